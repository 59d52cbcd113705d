//! Every operation of the CPU backend: against candle in f64, and its bits against themselves.
//!
//! An operation has three properties. It computes what the readable form in `reference` does, up to f32 rounding. Its
//! bits are the same on every instruction set and number of threads. A row's bits do not depend on the other rows.

mod argmax;
mod attention;
mod check;
mod delta;
mod edges;
mod embed;
mod experts;
mod fast;
mod guard;
mod heads;
mod latent;
mod linear;
mod order;
mod packed;
pub mod random;
mod reference;
mod routing;
mod rowwise;
mod schedule;
pub mod stored;

use std::ops::Range;

use tbshard::partition::{Fold, Leaves};

/// The part of a tree inside `run`, as if a rank owned just that.
fn run_of(leaves: Leaves, run: Range<usize>) -> Fold {
    let cuts = vec![0, run.start, run.end, leaves.count()];
    Fold::shared(leaves, cuts, 1)
}
