//! The fabrics of `transport`: one conformance suite over all of them, and the faults of each.

pub mod conformance;
mod cycles;
mod endings;
pub mod fabric;
pub mod fake;
mod machines;
mod rendezvous;
mod secure;
mod shm;
mod strangers;
mod wire;
