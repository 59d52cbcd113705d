//! Kernels on the emulator against plain references, and the emulator's own checks.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod argmax;
mod attention;
mod checks;
mod fence;
mod formats;
mod grouped;
mod heads;
mod linear;
mod memory;
mod models;
mod mutations;
mod operations;
mod races;
mod ranks;
mod rowwise;
mod scheduler;
#[path = "../../support/sending.rs"]
mod sending;
mod shim;
mod support;
