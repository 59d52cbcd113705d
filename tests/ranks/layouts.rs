//! Every architecture on every layout: the SHA-256 of all logits is that of one rank.

use sha2::{Digest, Sha256};
use tbshard::backend::{Arithmetic, Cpu};
use tbshard::comm::Algorithm;
use tbshard::engine::{Engine, Room, Wanted};
use tbshard::models::Blueprint;
use tbshard::partition::Layout;
use tbshard::transport::Endpoint;

use crate::support::{on_ranks, tiny_checkpoints};
use crate::transport::fabric::Fabric;

const TOKENS: usize = 45;

fn tokens(vocab: usize) -> Vec<u32> {
    (0..TOKENS).map(|i| ((i * i * 7 + 3 * i + 1) % vocab.min(290)) as u32).collect()
}

fn hash_of(engine: &mut Engine, chunk: usize) -> String {
    let tokens = tokens(engine.model().geometry.vocab);
    let mut sequence = engine.start().unwrap();
    let mut hash = Sha256::new();
    for chunk in tokens.chunks(chunk) {
        let logits = engine.forward(&mut [(&mut sequence, chunk)], Wanted::All, None).unwrap();
        assert_eq!(logits.rows(), chunk.len());
        logits.data().iter().for_each(|logit| hash.update(logit.to_bits().to_le_bytes()));
    }
    engine.end(sequence);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hashes of rank 0 for every chunk size, with the ranks as threads of this process.
pub fn run(
    blueprint: &(dyn Fn() -> Blueprint + Sync),
    layout: &Layout,
    algorithm: Algorithm,
    mesh: Vec<Box<dyn Endpoint>>,
) -> Vec<String> {
    run_in(Arithmetic::Exact, blueprint, layout, algorithm, mesh)
}

fn run_in(
    arithmetic: Arithmetic,
    blueprint: &(dyn Fn() -> Blueprint + Sync),
    layout: &Layout,
    algorithm: Algorithm,
    mesh: Vec<Box<dyn Endpoint>>,
) -> Vec<String> {
    let cpu = || Cpu::new(1).unwrap().computing(arithmetic);
    let hashes = |engine: &mut Engine| [1, 7, TOKENS].map(|chunk| hash_of(engine, chunk)).to_vec();
    on_ranks(mesh, blueprint, (layout, algorithm), &cpu, Room::of(128, 1).unwrap(), &hashes)
}

fn same_bits(layouts: impl Fn(usize) -> Vec<Layout>) {
    for dir in tiny_checkpoints() {
        let open = || Blueprint::open(&dir).unwrap();
        let layers = open().geometry.layers;
        let alone = Layout { world_size: 1, ..Layout::default() };
        let one = run(&open, &alone, Algorithm::Auto, Fabric::Loopback.mesh(1));
        assert!(one.iter().all(|hash| *hash == one[0]), "{}: chunks differ", dir.display());
        let fast = |layout: &Layout| {
            run_in(Arithmetic::Fast, &open, layout, Algorithm::Auto, Fabric::Loopback.mesh(layout.world_size))
        };
        let fast_one = fast(&alone);
        assert!(fast_one.iter().all(|hash| *hash == fast_one[0]), "{}: chunks differ in fast", dir.display());
        assert_ne!(fast_one, one, "{}: fast is exact", dir.display());
        for layout in layouts(layers) {
            assert_eq!(fast(&layout), fast_one, "{} {layout:?} fast", dir.display());
            let ways = [
                (Fabric::Loopback, Algorithm::Direct),
                (Fabric::Loopback, Algorithm::Scatter),
                (Fabric::Shm, Algorithm::Auto),
                (Fabric::Noise, Algorithm::Auto),
            ];
            for (fabric, algorithm) in ways {
                let many = run(&open, &layout, algorithm, fabric.mesh(layout.world_size));
                assert_eq!(many, one, "{} {layout:?} {fabric:?} {algorithm:?}", dir.display());
            }
        }
    }
}

fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

#[test]
fn tensor_parallel_of_a_power_of_two() {
    same_bits(|_| [2, 4, 8].map(|tp| layout(tp, 1)).to_vec());
}

#[test]
fn tensor_parallel_of_an_odd_size() {
    same_bits(|_| [3, 5].map(|tp| layout(tp, 1)).to_vec());
}

#[test]
fn pipelines() {
    same_bits(|layers| (2..=4).filter(|pp| *pp <= layers).map(|pp| layout(1, pp)).collect());
}

#[test]
fn tensor_parallel_stages() {
    let shapes = [(2, 2), (3, 2), (4, 2), (2, 4)];
    same_bits(|layers| shapes.into_iter().filter(|(_, pp)| *pp <= layers).map(|(tp, pp)| layout(tp, pp)).collect());
}

#[test]
fn unequal_shares() {
    same_bits(|layers| {
        vec![
            Layout { weights: vec![512, 256, 256], ..layout(3, 1) },
            Layout { split: Some(vec![layers - 1, 1]), weights: vec![1, 5, 2, 2], ..layout(2, 2) },
        ]
    });
}
