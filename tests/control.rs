//! The control channel: each rule by itself, and a hundred thousand schedules of a simulated group.

mod check;
mod faults;
pub mod plan;
mod rules;
mod sim;
mod wire;
