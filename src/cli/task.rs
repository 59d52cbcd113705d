//! What rank 0 tells the other ranks to be, and what all ranks do before the first token.

use serde::{Deserialize, Serialize};

use super::fault::{HELLO, LOADING, SELF_TEST};
use super::load::{Loaded, ModelArgs, Opened};
use super::loading::{Means, Told};
use crate::comm::{Communicator, Hello, Ranks, self_test};
use crate::error::{Error, Result};
use crate::partition::Plan;

/// Bytes of a task at most.
const MAX_BYTES: usize = 1 << 20;

/// The work of a run.
#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Task {
    /// Run a part of a model.
    Model { model: ModelArgs, plan: Plan },
    /// Reduce vectors of these many values, so often each.
    AllReduce { sizes: Vec<usize>, reps: usize },
}

impl Task {
    /// Tells the other ranks.
    pub(super) fn announce(&self, world: &Communicator) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(Error::from_std)?;
        world.broadcast_bytes(text, MAX_BYTES).map(drop)
    }

    /// Hears it from rank 0.
    pub(super) fn hear(world: &Communicator) -> Result<Self> {
        let text = world.broadcast_bytes(Vec::new(), MAX_BYTES)?;
        serde_json::from_slice(&text).map_err(|_| {
            let error = Error::cluster("rank 0 gave a task that this version of tbshard does not know");
            error.hint("give every rank the same version of tbshard")
        })
    }
}

/// Compares notes with the other ranks, tests the links, and loads this rank's part; returns when all are ready.
pub(super) fn start(
    opened: Opened,
    model: &ModelArgs,
    plan: &Plan,
    world: Communicator,
    means: Means,
    told: Told<'_>,
) -> Result<Loaded> {
    let hello = Hello::new([
        ("version of tbshard", env!("CARGO_PKG_VERSION").to_owned()),
        ("build of tbshard", env!("TBSHARD_BUILD").to_owned()),
        ("model", opened.blueprint.digest.clone()),
        ("plan", plan.describe()),
        ("context", opened.context(model).to_string()),
        ("arithmetic", model.arithmetic_id().to_owned()),
    ]);
    world.starting(HELLO)?;
    hello.exchange(&world)?;
    world.starting(SELF_TEST)?;
    self_test(&world)?;
    world.starting(LOADING)?;
    let ranks = Ranks::new(world.clone(), plan)?;
    let texts = opened.texts()?;
    let loaded = opened.load(texts, model, plan, ranks, means, told)?;
    world.barrier()?;
    world.busy(false)?;
    Ok(loaded)
}
