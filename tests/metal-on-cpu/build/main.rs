//! Compiles the kernels as C++ with clang: once with Metal's address spaces, to see that pointers are qualified, and once
//! without, to be run by `shim/runtime.cpp`.

#![allow(clippy::disallowed_methods, reason = "cargo speaks to builds through the environment")]

mod translate;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The compiler; another by this variable.
const CLANG: (&str, &str) = ("METAL_ON_CPU_CLANG", "clang++-19");
const STANDARD: &str = "-std=c++17";
/// Metal does not contract products and sums on its own in safe mode.
const FLAGS: [&str; 4] = ["-ffp-contract=off", "-Wall", "-Wno-unknown-attributes", "-Wno-unused"];

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{:?} cannot be run ({error}): install clang 19, or name another by {}", command.get_program(), CLANG.0)
    });
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Translates the kernels in `source` and returns the C++ file.
fn translated(clang: &str, source: &Path, stem: &str, out: &Path) -> PathBuf {
    // only the kernels' own macros: the stand-in for <metal_stdlib> is included by what comes out
    let own = fs::read_to_string(source).expect("the source is there").replacen("#include <metal_stdlib>\n", "\n", 1);
    let own_path = out.join(format!("{stem}.in.cpp"));
    fs::write(&own_path, own).expect("OUT_DIR can be written");
    let expanded = run(Command::new(clang).args(["-E", "-xc++", STANDARD, "-DMETAL_ON_CPU"]).arg(&own_path));
    let expanded = String::from_utf8(expanded).expect("sources are UTF-8");
    let cpp = translate::translate(&expanded, stem);
    let path = out.join(format!("{stem}.cpp"));
    fs::write(&path, cpp).expect("OUT_DIR can be written");
    run(Command::new(clang)
        .args(["-fsyntax-only", "-DMSL_ADDRESS_SPACES", STANDARD, "-Ishim", "-Werror"])
        .args(FLAGS)
        .arg(&path));
    path
}

fn main() {
    let clang = env::var(CLANG.0).unwrap_or_else(|_| CLANG.1.to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = PathBuf::from(env::var_os("DEP_TBSHARD_KERNELS").expect("tbshard's build says where they are"));
    println!("cargo::rerun-if-env-changed={}", CLANG.0);
    for path in ["build", "shim", "mistakes"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed={}", kernels.display());

    let mut build = cc::Build::new();
    build.compiler(&clang).cpp(true).std("c++17").opt_level(2).debug(true).include("shim").warnings(false);
    FLAGS.iter().for_each(|flag| _ = build.flag(flag));
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        build.flag("-mavx2").flag("-mfma").flag("-mf16c");
    }
    if env::var_os("CARGO_FEATURE_TSAN").is_some() {
        build.flag("-fsanitize=thread");
        let runtime = run(Command::new(&clang).arg("-print-file-name=libclang_rt.tsan-x86_64.a"));
        let runtime = String::from_utf8(runtime).expect("a path");
        for argument in ["-Wl,--whole-archive", runtime.trim(), "-Wl,--no-whole-archive", "-lresolv", "-lrt", "-ldl"] {
            println!("cargo::rustc-link-arg-tests={argument}");
        }
    }
    build.file("shim/runtime.cpp");
    build.file(translated(&clang, &kernels, "kernels", &out));
    build.file(translated(&clang, Path::new("mistakes/mistakes.metal"), "mistakes", &out));
    build.compile("metal_on_cpu");
}
