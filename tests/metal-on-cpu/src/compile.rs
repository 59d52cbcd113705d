//! Metal sources to a library that this process can load, by clang.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::translate::{Purpose, translate};

/// The compiler.
pub const CLANG: &str = "clang++-19";

/// As Metal reads numbers and rounds: no double, each operation of halves by itself, nothing fused that is not said.
const LANGUAGE: [&str; 11] = [
    "-std=c++17",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    "-Wno-unknown-attributes",
    "-Wno-user-defined-literals",
    "-Wno-duplicate-decl-specifier",
];

/// `*.metal` of `dir` after the headers that they include, each once and each under its name: what Metal gets as one text.
///
/// # Errors
/// If a file cannot be read.
pub fn join(dir: &Path) -> Result<String, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "metal"));
    files.sort();
    let (mut text, mut done) = (String::new(), Vec::new());
    files.iter().try_for_each(|file| append(file, &mut text, &mut done))?;
    Ok(text)
}

fn append(file: &Path, text: &mut String, done: &mut Vec<PathBuf>) -> Result<(), String> {
    if done.iter().any(|other| other == file) {
        return Ok(());
    }
    done.push(file.to_owned());
    let source = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let dir = file.parent().and_then(Path::file_name).unwrap_or_default();
    let name = Path::new(dir).join(file.file_name().unwrap_or_default());
    let mark = |line: usize| format!("#line {line} \"{}\"\n", name.display());
    *text += &mark(1);
    for (index, line) in source.lines().enumerate() {
        match line.strip_prefix("#include ") {
            Some(header) if header.starts_with('"') => {
                append(&file.with_file_name(header.trim_matches('"')), text, done)?;
                *text += &mark(index + 2);
            }
            Some(_) => text.push('\n'),
            None => {
                *text += line;
                text.push('\n');
            }
        }
    }
    Ok(())
}

/// What a library is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// To run.
    Fast,
    /// To look for races: every access is told.
    Races,
}

/// Looks at `text` with Metal's address spaces.
///
/// # Errors
/// If clang is missing or refuses the text: then what it says.
pub fn check(text: &str, shim: &Path, out: &Path, name: &str) -> Result<(), String> {
    let translated = translate(&preprocess(text, out, name)?, Purpose::Check)?;
    let file = write(out, &format!("{name}.check.cpp"), &translated)?;
    run(clang(shim).args(["-fsyntax-only", "-DADDRESS_SPACES"]).arg(&file)).map(drop)
}

/// Compiles `text` to a library in `out`.
///
/// # Errors
/// If clang is missing or refuses the text: then what it says.
pub fn compile(text: &str, build: Build, shim: &Path, out: &Path, name: &str) -> Result<PathBuf, String> {
    let translated = translate(&preprocess(text, out, name)?, Purpose::Code)?;
    let code = write(out, &format!("{name}.cpp"), &translated)?;
    let library = out.join(format!("{name}.so"));
    let mut command = clang(shim);
    command.args(["-fPIC", "-shared", "-fvisibility=hidden", "-nostdlib++", "-gline-tables-only"]);
    match build {
        Build::Fast => command.arg("-O2"),
        // wide accesses would not be told; atomic ones do not race
        Build::Races => command.args(["-O1", "-DRACES", "-fno-vectorize", "-fno-slp-vectorize"]).args([
            "-fsanitize=thread",
            "-mllvm",
            "-tsan-instrument-atomics=0",
            "-mllvm",
            "-tsan-distinguish-volatile=1",
        ]),
    };
    if cfg!(target_arch = "x86_64") {
        command.args(["-mavx2", "-mfma", "-mf16c"]);
    }
    run(command.arg("-o").arg(&library).arg(&code).arg("-lm"))?;
    Ok(library)
}

fn preprocess(text: &str, out: &Path, name: &str) -> Result<String, String> {
    let joined = write(out, &format!("{name}.joined.cpp"), text)?;
    run(Command::new(CLANG).args(["-E", "-D__METAL_VERSION__=320"]).arg(&joined))
}

fn clang(shim: &Path) -> Command {
    let mut command = Command::new(CLANG);
    command.args(LANGUAGE).arg("-I").arg(shim);
    command
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let path = dir.join(name);
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| {
        format!(
            "{CLANG} could not be started ({error}): the emulator of Metal compiles kernels with it, install clang 19"
        )
    })?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
