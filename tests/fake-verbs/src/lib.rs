#![doc = include_str!("../README.md")]

pub mod abi;
#[allow(unreachable_pub, reason = "C calls them")]
mod absent;
mod board;
mod config;
#[allow(unreachable_pub, reason = "C calls them")]
mod device;
mod fabric;
mod handle;
mod home;
mod map;
#[allow(unreachable_pub, reason = "C calls them")]
mod memory;
#[allow(unreachable_pub, reason = "C calls them")]
mod pair;
mod post;
mod push;
#[allow(unreachable_pub, reason = "C calls them")]
mod queue;
mod request;
mod ring;
pub mod rules;
mod slip;
mod wire;

pub use board::{Fault, Kind};
pub use config::{Config, Device, Granted, Limits, Personality};
pub use fabric::{Fabric, Living, Violation};
