//! The groups that a rank of a model belongs to.

use super::{Communicator, Place};
use crate::error::{Error, Result};
use crate::partition::Plan;

/// All ranks, and those of this rank's stage.
#[derive(Debug, Clone)]
pub struct Ranks {
    /// All ranks: commands, hidden states between stages, logits to rank 0.
    pub world: Communicator,
    /// The tensor-parallel group: sums inside a layer.
    pub stage: Communicator,
    /// Stages that the model is cut into.
    pub stages: usize,
}

impl Ranks {
    /// One rank alone.
    pub fn solo() -> Self {
        Self { world: Communicator::solo(), stage: Communicator::solo(), stages: 1 }
    }

    /// The groups of this rank in `plan`.
    ///
    /// # Errors
    /// If the plan is for another number of ranks.
    pub fn new(world: Communicator, plan: &Plan) -> Result<Self> {
        if plan.world_size() != world.world_size() {
            let error = format!("a plan for {} ranks does not fit {}", plan.world_size(), world.world_size());
            return Err(Error::msg(error));
        }
        let stage = world.split(&plan.ranks_of(plan.stage_of(world.rank())).collect::<Vec<_>>())?;
        Ok(Self { world, stage, stages: plan.stages().len() })
    }

    /// Says where in the model this rank is, for errors.
    pub fn at(&self, place: Place) {
        self.world.at(place);
    }
}
