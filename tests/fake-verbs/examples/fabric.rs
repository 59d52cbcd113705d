//! Makes a fabric for programs started by hand or by a script: `fabric apple|ring|rxe COUNT DIR`, then its environment.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::path::Path;
use std::process::ExitCode;

use fake_verbs::Fabric;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, count, dir] = words.as_slice() else { return usage() };
    let Ok(count) = count.parse() else { return usage() };
    let (fabric, prefix) = match kind.as_str() {
        "apple" => (Fabric::apple(count), "mac"),
        "ring" => (Fabric::ring(count), "mac"),
        "rxe" => (Fabric::rxe(count), "linux"),
        _ => return usage(),
    };
    let fabric = fabric.moved_to(Path::new(dir));
    for at in 0..count {
        let words: Vec<String> =
            fabric.env(&format!("{prefix}{at}")).iter().map(|(key, value)| format!("{key}={value}")).collect();
        println!("{}", words.join(" "));
    }
    fabric.keep();
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: fabric apple|ring|rxe COUNT DIR");
    ExitCode::from(2)
}
