//! Sets `TBSHARD_BUILD`, a digest of everything that this crate is built from, alike on every machine and platform; makes one
//! text of the Metal kernels, and Rust structures of what they are handed.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a build fails by panicking, and cargo speaks through the environment"
)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// What goes into the binary.
const SOURCES: [&str; 6] = ["src", "kernels", "models", "Cargo.toml", "Cargo.lock", "build.rs"];

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", path.display());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| collect(&entry.path(), files)),
        Err(_) => files.push(path.to_owned()),
    }
}

fn digest(files: &[PathBuf]) -> u64 {
    // FNV-1a: it tells versions apart, it does not keep anybody out
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let name = file.display().to_string().into_bytes();
        for byte in name.into_iter().chain(fs::read(file).unwrap_or_default()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// What is compiled apart from the other kernels, because a compiler may refuse it.
const APART: &str = "kernels/fence.metal";

/// Those of `kernels/*.metal` that are `chosen`, after the headers that they include, each once: a library compiled from source
/// finds no files.
fn kernels(files: &[PathBuf], chosen: impl Fn(&Path) -> bool) -> String {
    let metal = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "metal") && chosen(file);
    let mut text = "#include <metal_stdlib>\n".to_owned();
    let mut done = Vec::new();
    files.iter().filter(metal).for_each(|file| append(file, &mut text, &mut done));
    text
}

fn append(file: &Path, text: &mut String, done: &mut Vec<PathBuf>) {
    if done.iter().any(|other| other == file) {
        return;
    }
    done.push(file.to_owned());
    let source = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    // a compiler names the file and its own line
    let place = |line: usize| format!("#line {line} \"{}\"\n", file.display());
    *text += &place(1);
    for (number, line) in source.lines().enumerate() {
        match line.strip_prefix("#include ") {
            Some(name) if name.starts_with('"') => {
                append(&file.with_file_name(name.trim_matches('"')), text, done);
                *text += &place(number + 2);
            }
            Some(_) => text.push('\n'),
            None => writeln!(text, "{line}").expect("a string takes all"),
        }
    }
}

/// The structures of `kernels/params.h` in Rust; that they have no padding is for `bytemuck` to check.
fn structures(header: &str) -> String {
    let mut out = String::new();
    for line in header.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        let words: Vec<&str> = line.trim_end_matches(';').split_whitespace().collect();
        match words[..] {
            [] => {}
            ["struct", name, "{"] => {
                out += "#[repr(C)]\n#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]\n";
                writeln!(out, "pub struct {name} {{").expect("a string takes all");
            }
            ["}"] => out += "}\n",
            [kind, field] => {
                let kind = match kind {
                    "uint" => "u32",
                    "float" => "f32",
                    "device_address" => "u64",
                    _ => panic!("kernels/params.h: there is no Rust type for `{line}`"),
                };
                writeln!(out, "    pub {field}: {kind},").expect("a string takes all");
            }
            _ => panic!("kernels/params.h: `{line}` is not understood"),
        }
    }
    out
}

/// That Metal lays them out as Rust does: it refuses a library in which one has another size.
fn sizes(header: &str) -> String {
    let mut out = String::new();
    let (mut structure, mut size) = ("", 0);
    for line in header.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["struct", name, "{"] => (structure, size) = (name, 0),
            ["};"] => {
                writeln!(out, "static_assert(sizeof({structure}) == {size}, \"layout\");").expect("a string takes all")
            }
            ["device_address", _] => size += 8,
            [_, _] => size += 4,
            _ => {}
        }
    }
    out
}

fn main() {
    let mut files = Vec::new();
    SOURCES.iter().for_each(|source| collect(Path::new(source), &mut files));
    files.sort();
    println!("cargo::rustc-env=TBSHARD_BUILD={:016x}", digest(&files));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let write = |name: &str, text: String| fs::write(out.join(name), text).expect("OUT_DIR can be written");
    let params = fs::read_to_string("kernels/params.h").expect("kernels/params.h is there");
    write("kernels.metal", kernels(&files, |file| file != Path::new(APART)) + &sizes(&params));
    write("fence.metal", kernels(&files, |file| file == Path::new(APART)));
    write("params.rs", structures(&params));
}
