//! Every barrier of the kernels is needed: without it a model answers otherwise, or a race is found. The fence's, which one rank
//! does not need, is `fence.rs`'s.

use std::path::Path;
use std::sync::Arc;

use metal_on_cpu::compile::{Build, compile, join};
use metal_on_cpu::{Emulator, Library, Options};
use tbshard::backend::Metal;
use tbshard::engine::{Engine, Wanted};
use tbshard::error::Result;
use tbshard::models::Model;

use crate::models::{checkpoints, prompts};

/// Where the calls of barriers are in a text.
fn barriers(text: &str) -> Vec<std::ops::Range<usize>> {
    let code = |at: usize| !text[..at].rsplit('\n').next().unwrap().contains("//");
    let calls = text.match_indices("group_barrier(").filter(|(at, _)| code(*at));
    calls
        .map(|(at, _)| {
            let start = text[..at].rfind(|c: char| !c.is_alphanumeric() && c != '_').unwrap() + 1;
            start..at + text[at..].find(';').unwrap()
        })
        .collect()
}

/// The logits of the last prompt, and an error if a kernel finds a race.
fn logits(dir: &Path, library: &Library) -> Result<Vec<f32>> {
    let emulator = Emulator::with(library.clone(), Options { races: true, ..Options::default() });
    let backend = Box::new(Metal::new(Arc::new(emulator)));
    let mut engine = Engine::new(Model::open(dir, &|_, _| ())?, backend, 512, 1)?;
    let mut sequence = engine.start()?;
    let logits = engine.forward(&mut [(&mut sequence, &prompts(dir).last().unwrap()[0][..])], Wanted::All, None)?;
    Ok(logits.data().to_vec())
}

#[test]
fn no_barrier_can_go() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = join(&here.join("../../kernels")).unwrap();
    let fence = text.find("\"kernels/fence.metal\"").unwrap();
    let fence = fence..fence + text[fence..].find("#line 1 \"").unwrap();
    let whole = Library::kernels(Build::Races).unwrap();
    let dirs = checkpoints();
    let wanted: Vec<_> = dirs.iter().map(|dir| logits(dir, &whole).unwrap()).collect();
    let out = tempfile::tempdir().unwrap();
    let mut unneeded = Vec::new();
    let found: Vec<_> = barriers(&text).into_iter().filter(|range| !fence.contains(&range.start)).collect();
    assert!(!found.is_empty(), "no barriers: the test no longer finds them");
    for (number, range) in found.into_iter().enumerate() {
        let mutant = format!("{}(void)0{}", &text[..range.start], &text[range.end..]);
        let made = compile(&mutant, Build::Races, &here.join("shim"), out.path(), &format!("mutant{number}")).unwrap();
        let library = Library::load(&made).unwrap();
        let differs = |(dir, wanted): (&std::path::PathBuf, &Vec<f32>)| match logits(dir, &library) {
            Ok(logits) => (logits != *wanted).then(|| "other logits".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let place = {
            let before = &text[..range.start];
            let (mark, line) = before.rsplit_once("#line ").map(|(_, rest)| rest.split_once('\n').unwrap()).unwrap();
            let (first, file) = mark.split_once(' ').unwrap();
            let line = first.parse::<usize>().unwrap() + line.matches('\n').count();
            format!("{}:{line}", file.trim_matches('"'))
        };
        match dirs.iter().zip(&wanted).find_map(differs) {
            Some(how) => println!("{place}: {how}"),
            None => unneeded.push(place),
        }
    }
    assert!(unneeded.is_empty(), "nothing shows that these are missing: {unneeded:?}");
}
