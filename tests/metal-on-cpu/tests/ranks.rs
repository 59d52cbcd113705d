//! Whole models on several ranks, each with a device of its own: no layout changes a bit of the logits.

use std::path::Path;
use std::sync::Arc;

use metal_on_cpu::{Emulator, Options};
use tbshard::backend::Metal;
use tbshard::comm::{Communicator, Ranks};
use tbshard::engine::{Engine, Room, Wanted};
use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Plan};
use tbshard::transport::loopback;

use crate::models::checkpoints;

/// A prompt, and tokens after it one by one.
const PROMPT: usize = 33;
const AFTER: usize = 2;

fn logits(engine: &mut Engine) -> Vec<u32> {
    let vocab = engine.model().geometry.vocab.min(290);
    let tokens: Vec<u32> = (0..PROMPT + AFTER).map(|i| ((i * i * 7 + 3 * i + 1) % vocab) as u32).collect();
    let mut sequence = engine.start().unwrap();
    let mut bits = Vec::new();
    let mut run = |tokens: &[u32]| {
        let logits = engine.forward(&mut [(&mut sequence, tokens)], Wanted::All, None).unwrap();
        bits.extend(logits.data().iter().map(|logit| logit.to_bits()));
    };
    run(&tokens[..PROMPT]);
    tokens[PROMPT..].chunks(1).for_each(&mut run);
    engine.end(sequence);
    bits
}

/// The logits of rank 0, with the ranks as threads of this process.
fn run(dir: &Path, layout: &Layout) -> Vec<u32> {
    let mesh = loopback::mesh(layout.world_size);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = mesh
            .into_iter()
            .map(|endpoint| {
                scope.spawn(move || {
                    let blueprint = Blueprint::open(dir).unwrap();
                    let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, layout).unwrap();
                    let ranks = Ranks::new(Communicator::new(Box::new(endpoint), None), &plan).unwrap();
                    let rank = ranks.world.rank();
                    let model = blueprint.load(&plan, rank, &|_, _| ()).unwrap();
                    let backend = Box::new(Metal::new(Arc::new(Emulator::new(Options::default()).unwrap())));
                    let mut engine = Engine::with_ranks(model, backend, Room::of(64, 1).unwrap(), ranks).unwrap();
                    if rank > 0 {
                        engine.follow().unwrap();
                        return Vec::new();
                    }
                    let logits = logits(&mut engine);
                    engine.stop().unwrap();
                    logits
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).next().unwrap()
    })
}

fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

#[test]
fn no_layout_changes_a_bit() {
    for dir in checkpoints() {
        let one = run(&dir, &layout(1, 1));
        assert!(one.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        for (tp, pp) in [(2, 1), (3, 1), (1, 2)] {
            let many = run(&dir, &layout(tp, pp));
            assert!(many == one, "{}: tp {tp}, pp {pp} has other bits", dir.display());
        }
    }
}
