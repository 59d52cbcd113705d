//! What the tests share: where fixtures lie, and engines on them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use tbshard::backend::{Backend, Cpu};
use tbshard::comm::{Algorithm, Communicator, Ranks};
use tbshard::engine::{Engine, Room};
use tbshard::models::{Blueprint, Model};
use tbshard::partition::{Fold, Layout, Leaves, Plan};
use tbshard::transport::Endpoint;

/// The directory of the committed fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The large oracle set, if `TBSHARD_ORACLE` says where it is.
#[allow(clippy::disallowed_methods, reason = "tests are configured by the environment")]
pub fn oracle() -> Option<PathBuf> {
    std::env::var_os("TBSHARD_ORACLE").map(PathBuf::from)
}

/// The directories of all tiny checkpoints, committed and (if there) of the oracle.
pub fn tiny_checkpoints() -> Vec<PathBuf> {
    let mut dirs = subdirectories(&fixtures().join("tiny"));
    assert!(!dirs.is_empty(), "no committed fixtures");
    match oracle() {
        Some(oracle) => dirs.extend(subdirectories(&oracle.join("tiny"))),
        None => println!("skipped: TBSHARD_ORACLE is not set"),
    }
    dirs
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut dirs: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

/// The ranks of a `tiktoken.model` that knows bytes alone.
pub fn byte_ranks() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |at: usize| char::from(DIGITS[at]);
    (0..256).map(|byte| format!("{}{}== {byte}\n", digit(byte >> 2), digit((byte & 3) << 4))).collect()
}

/// Loads the checkpoint in `dir`.
pub fn model(dir: &Path) -> Model {
    Model::open(dir, &|_, _| ()).unwrap_or_else(|error| panic!("{}: {error:?}", dir.display()))
}

/// An engine with `slots` sequences of 512 positions on one thread.
pub fn engine(dir: &Path, slots: usize) -> Engine {
    Engine::new(model(dir), Box::new(Cpu::new(1).unwrap()) as Box<dyn Backend>, 512, slots).unwrap()
}

/// The part of a tree inside `run`, as if a rank owned just that.
pub fn run_of(leaves: Leaves, run: Range<usize>) -> Fold {
    let cuts = vec![0, run.start, run.end, leaves.count()];
    Fold::shared(leaves, cuts, 1)
}

/// Runs `work` on rank 0 of the ranks that `mesh` connects, threads of this process; returns what it does.
pub fn on_ranks<T: Send>(
    mesh: Vec<Box<dyn Endpoint>>,
    blueprint: &(dyn Fn() -> Blueprint + Sync),
    (layout, algorithm): (&Layout, Algorithm),
    cpu: &(dyn Fn() -> Cpu + Sync),
    room: Room,
    work: &(dyn Fn(&mut Engine) -> T + Sync),
) -> T {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = mesh
            .into_iter()
            .map(|endpoint| {
                scope.spawn(move || {
                    let blueprint = blueprint();
                    let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, layout).unwrap();
                    let world = Communicator::new(endpoint, None).with_algorithm(algorithm);
                    let ranks = Ranks::new(world, &plan).unwrap();
                    let rank = ranks.world.rank();
                    let model = blueprint.load(&plan, rank, &|_, _| ()).unwrap();
                    let mut engine = Engine::with_ranks(model, Box::new(cpu()), room, ranks).unwrap();
                    if rank > 0 {
                        engine.follow().unwrap();
                        return None;
                    }
                    let result = work(&mut engine);
                    engine.stop().unwrap();
                    Some(result)
                })
            })
            .collect();
        ranks.into_iter().filter_map(|rank| rank.join().unwrap()).next().unwrap()
    })
}
