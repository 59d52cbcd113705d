//! Whole models on several ranks, each with a device of its own: no layout changes a bit of the logits.

use std::path::Path;
use std::sync::{Arc, Mutex};

use metal_on_cpu::{Emulator, Options};
use tbshard::backend::{Fence, Metal};
use tbshard::comm::{Communicator, Ranks};
use tbshard::engine::{Engine, Room, Wanted};
use tbshard::error::Result;
use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Plan};
use tbshard::transport::Endpoint;
use tbshard::transport::loopback::{self, Loopback};

use crate::models::{checkpoints, prompts};

/// A prompt, and tokens after it one by one.
const PROMPT: usize = 33;
const AFTER: usize = 2;

/// What ranks are made of, as threads of this process.
pub struct Parts<'a> {
    pub fence: Fence,
    pub emulators: &'a Emulators,
    pub endpoint: &'a (dyn Fn(Loopback) -> Box<dyn Endpoint> + Sync),
}

/// The endpoint as it is.
pub fn usual(endpoint: Loopback) -> Box<dyn Endpoint> {
    Box::new(endpoint)
}

/// A device for each rank, kept to be asked afterwards.
pub struct Emulators(Options, Mutex<Vec<Arc<Emulator>>>);

impl Emulators {
    pub fn new(options: Options) -> Self {
        Self(options, Mutex::default())
    }

    fn another(&self) -> Arc<Emulator> {
        let emulator = Arc::new(Emulator::new(self.0).unwrap());
        self.1.lock().unwrap().push(emulator.clone());
        emulator
    }

    /// Those that there are, in any order.
    pub fn all(&self) -> Vec<Arc<Emulator>> {
        self.1.lock().unwrap().clone()
    }
}

fn logits(engine: &mut Engine) -> Result<Vec<u32>> {
    let vocab = engine.model().geometry.vocab.min(290);
    let tokens: Vec<u32> = (0..PROMPT + AFTER).map(|i| ((i * i * 7 + 3 * i + 1) % vocab) as u32).collect();
    let mut sequence = engine.start()?;
    let mut bits = Vec::new();
    let mut run = |tokens: &[u32]| -> Result<()> {
        let logits = engine.forward(&mut [(&mut sequence, tokens)], Wanted::All, None)?;
        bits.extend(logits.data().iter().map(|logit| logit.to_bits()));
        Ok(())
    };
    run(&tokens[..PROMPT])?;
    tokens[PROMPT..].chunks(1).try_for_each(&mut run)?;
    engine.end(sequence);
    Ok(bits)
}

/// What rank 0 does with the model.
type Task<'a> = &'a (dyn Fn(&mut Engine) -> Result<Vec<u32>> + Sync);

/// One rank of a model: what `task` returns, on rank 0.
fn rank(dir: &Path, layout: &Layout, parts: &Parts<'_>, task: Task<'_>, endpoint: Loopback) -> Result<Vec<u32>> {
    let blueprint = Blueprint::open(dir)?;
    let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, layout)?;
    let ranks = Ranks::new(Communicator::new((parts.endpoint)(endpoint), None), &plan)?;
    let rank = ranks.world.rank();
    let model = blueprint.load(&plan, rank, &|_, _| ())?;
    let backend = Box::new(Metal::with_fence(parts.emulators.another(), parts.fence));
    let mut engine = Engine::with_ranks(model, backend, Room::of(64, 1)?, ranks)?;
    if rank > 0 {
        return engine.follow().map(|()| Vec::new());
    }
    let done = task(&mut engine)?;
    engine.stop()?;
    Ok(done)
}

/// What each rank says in the end.
pub fn try_run(dir: &Path, layout: &Layout, parts: &Parts<'_>) -> Vec<Result<Vec<u32>>> {
    try_task(dir, layout, parts, &logits)
}

/// What each rank says in the end, of which rank 0 does `task`.
pub fn try_task(dir: &Path, layout: &Layout, parts: &Parts<'_>, task: Task<'_>) -> Vec<Result<Vec<u32>>> {
    let mesh = loopback::mesh(layout.world_size);
    std::thread::scope(|scope| {
        let start = |endpoint| scope.spawn(move || rank(dir, layout, parts, task, endpoint));
        let ranks: Vec<_> = mesh.into_iter().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// The logits of rank 0.
pub fn run(dir: &Path, layout: &Layout, parts: &Parts<'_>) -> Vec<u32> {
    let mut ended = try_run(dir, layout, parts);
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    ended.swap_remove(0).unwrap()
}

pub fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

#[test]
fn no_layout_changes_a_bit() {
    let run = |dir: &Path, layout: &Layout| {
        let emulators = Emulators::new(Options::default());
        run(dir, layout, &Parts { fence: Fence::default(), emulators: &emulators, endpoint: &usual })
    };
    for dir in checkpoints() {
        let one = run(&dir, &layout(1, 1));
        assert!(one.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        for (tp, pp) in [(2, 1), (3, 1), (1, 2)] {
            let many = run(&dir, &layout(tp, pp));
            assert!(many == one, "{}: tp {tp}, pp {pp} has other bits", dir.display());
        }
    }
}

/// A prompt and an answer to it, whose tokens are taken where the logits are.
fn greedy(engine: &mut Engine, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut sequence = engine.start()?;
    let mut tokens = engine.next_tokens(&mut [(&mut sequence, prompt)])?;
    while tokens.len() < count {
        let last = tokens[tokens.len() - 1];
        tokens.extend(engine.next_tokens(&mut [(&mut sequence, &[last])])?);
    }
    engine.end(sequence);
    Ok(tokens)
}

#[test]
fn tokens_are_the_references_on_any_layout() {
    for dir in checkpoints() {
        let [prompt, wanted] = prompts(&dir).swap_remove(0);
        for (tp, pp) in [(2, 1), (3, 1), (1, 2)] {
            let emulators = Emulators::new(Options::default());
            let parts = Parts { fence: Fence::default(), emulators: &emulators, endpoint: &usual };
            let task = |engine: &mut Engine| greedy(engine, &prompt, 4);
            let ended = try_task(&dir, &layout(tp, pp), &parts, &task);
            let tokens = ended.into_iter().map(Result::unwrap).next().unwrap();
            assert_eq!(tokens, wanted[..4], "{}: tp {tp}, pp {pp}", dir.display());
        }
    }
}
