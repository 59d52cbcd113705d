//! Which rank owns what: pure arithmetic, no I/O, the same result on every rank.

mod group;
mod leaves;
mod memory;
mod plan;
mod tree;

pub use group::Group;
pub use leaves::{Leaves, MAX_LEAVES};
pub use memory::Sizes;
pub use plan::{Layout, MAX_RANKS, Plan, Seat, Strategy};
pub use tree::{Fold, Step, halves};
