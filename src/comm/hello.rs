//! What ranks compare before they work together, and the collectives' start-up test on known values.

use serde::{Deserialize, Serialize};

use super::{Algorithm, Communicator};
use crate::error::{Error, Result};

const MAX_BYTES: usize = 16 * 1024;

/// What all ranks must have in common, each under the name that an error calls it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello(Vec<(String, String)>);

impl Hello {
    /// Returns a digest of these values.
    pub fn new<const N: usize>(values: [(&str, String); N]) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Compares with all ranks of `world`.
    ///
    /// # Errors
    /// On every rank if any differs, naming the rank and what differs.
    pub fn exchange(&self, world: &Communicator) -> Result<()> {
        let own = serde_json::to_vec(self).map_err(Error::from_std)?;
        let all = world.gather_bytes(&own, MAX_BYTES)?;
        let verdict =
            all.iter().enumerate().find_map(|(rank, theirs)| self.objection(rank, theirs)).unwrap_or_default();
        let verdict = String::from_utf8_lossy(&world.broadcast_bytes(verdict.into_bytes(), MAX_BYTES)?).into_owned();
        if verdict.is_empty() {
            return Ok(());
        }
        Err(Error::cluster(verdict).hint("give every rank the same program, the same model and the same options"))
    }

    fn objection(&self, rank: usize, theirs: &[u8]) -> Option<String> {
        let Ok(theirs) = serde_json::from_slice::<Self>(theirs) else {
            return Some(format!("rank {rank} runs another version of tbshard"));
        };
        if theirs.0.len() != self.0.len() {
            return Some(format!("rank {rank} runs another version of tbshard"));
        }
        let differs = self.0.iter().zip(&theirs.0).find(|(ours, theirs)| ours != theirs);
        differs
            .map(|((name, ours), (_, theirs))| format!("rank {rank} has another {name}: `{theirs}`, rank 0 `{ours}`"))
    }
}

/// Runs every collective on values whose result is known.
///
/// # Errors
/// Naming the collective and the size that gave something else, or the rank that was lost.
pub fn self_test(world: &Communicator) -> Result<()> {
    let (rank, size) = (world.rank(), world.world_size());
    if size == 1 {
        return Ok(());
    }
    let wrong = |what: &str, count: usize| {
        let error = Error::cluster(format!("{what} of {count} values is wrong on rank {rank} in the start-up test"));
        error.hint("the link corrupts data, or the ranks do not run the same program")
    };
    // small whole numbers: every order of additions gives the same sum
    let value = |rank: usize, i: usize| ((rank + 1) * (i % 97 + 1)) as f32;
    let values = |rank: usize, count: usize| -> Vec<f32> { (0..count).map(|i| value(rank, i)).collect() };
    for count in [1, 1024, 5120, 40_000] {
        let sum: Vec<f32> = (0..count).map(|i| (0..size).map(|rank| value(rank, i)).sum()).collect();
        for algorithm in [Algorithm::Direct, Algorithm::Scatter] {
            let mut own = values(rank, count);
            world.clone().with_algorithm(algorithm).all_reduce(&mut own)?;
            if own != sum {
                return Err(wrong("all_reduce", count));
            }
        }
        let slice = rank * count / size..(rank + 1) * count / size;
        if world.reduce_scatter(&values(rank, count))? != sum[slice] {
            return Err(wrong("reduce_scatter", count));
        }
        let all: Vec<f32> = (0..size).flat_map(|rank| values(rank, count)).collect();
        if world.all_gather(&values(rank, count), &vec![count; size])? != all {
            return Err(wrong("all_gather", count));
        }
        let mut own = values(rank, count);
        world.broadcast(&mut own, size - 1)?;
        if own != values(size - 1, count) {
            return Err(wrong("broadcast", count));
        }
        // round the ring
        world.send((rank + 1) % size, &values(rank, count))?;
        let before = (rank + size - 1) % size;
        if world.recv(before, count)? != values(before, count) {
            return Err(wrong("send", count));
        }
    }
    world.barrier()
}
