//! Which rank owns what: pure arithmetic, no I/O, the same result on every rank.

mod leaves;
mod tree;

pub use leaves::{Leaves, MAX_LEAVES};
pub use tree::{Fold, halves};
