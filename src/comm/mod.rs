//! Collectives between ranks. Today there is one rank, where every collective is the identity.

use crate::error::{Error, Result};
use crate::partition::Fold;

/// A group of ranks that compute together.
///
/// **Invariant:** `world_size == 1` is not special to callers: collectives are no-ops there and nobody tests for it.
#[derive(Debug, Default)]
pub struct Communicator(());

impl Communicator {
    /// Returns the group of one rank.
    pub fn solo() -> Self {
        Self(())
    }

    /// Finishes the fixed tree of a row-parallel product.
    ///
    /// `partial` holds one `[tokens, out]` block per subtree of `fold`; the sum of the whole tree is left in the first.
    ///
    /// # Errors
    /// If `fold` is not the whole tree: the missing leaves belong to ranks that this group does not have.
    pub fn all_reduce(&mut self, fold: &Fold, partial: &mut [f32]) -> Result<()> {
        if fold.roots.len() == 1 && fold.roots[0] == (0..fold.leaves.count()) {
            return Ok(());
        }
        let values = partial.len();
        Err(Error::msg(format!("a group of one rank cannot reduce {} subtrees of {values} values", fold.roots.len())))
    }
}
