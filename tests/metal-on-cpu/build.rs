//! Compiles the project's kernels and the mistakes of the tests to libraries that the emulator loads.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "a build fails by panicking, and cargo speaks through the environment"
)]

#[path = "src/compile.rs"]
mod compile;
#[path = "src/translate.rs"]
mod translate;

use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in ["build.rs", "src/compile.rs", "src/translate.rs", "shim", "mistakes", "../../kernels"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    for (dir, name) in [("../../kernels", "kernels"), ("mistakes", "mistakes")] {
        if let Err(problem) = make(Path::new(dir), &out, name) {
            println!("cargo::error={dir} does not compile");
            for line in problem.lines() {
                println!("cargo::error={line}");
            }
            return;
        }
    }
}

fn make(dir: &Path, out: &Path, name: &str) -> Result<(), String> {
    let (text, shim) = (compile::join(dir)?, Path::new("shim"));
    compile::check(&text, shim, out, name)?;
    compile::compile(&text, compile::Build::Fast, shim, out, name)?;
    compile::compile(&text, compile::Build::Races, shim, out, &format!("{name}-races")).map(drop)
}
