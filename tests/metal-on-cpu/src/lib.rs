#![doc = include_str!("../README.md")]

mod caches;
mod commands;
pub mod compile;
mod emulator;
mod fault;
mod fiber;
mod group;
mod host;
mod library;
mod memory;
mod order;
mod queue;
mod races;
pub mod translate;

pub use emulator::{Constants, Emulator, Options};
pub use library::Library;
pub use order::Order;
