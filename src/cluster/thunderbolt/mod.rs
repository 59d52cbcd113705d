//! Macs and the Thunderbolt cables between them: what a Mac says of itself, who is cabled to whom, and what is to be set up.
//!
//! All of it is written from documented formats and from what users of other programs report. None of it has run on a Mac.

mod apply;
mod cabling;
mod checks;
mod commands;
mod drawing;
mod goal;
mod ibv;
mod ifconfig;
mod mac;
mod plan;
mod ports;
mod profiler;
mod reach;
mod versions;

pub use apply::{Applied, Order, apply};
pub use cabling::{Cable, Cabling, End, Shape};
pub use checks::{check, check_alone, check_file, check_memory, check_reach, lifeline, to_do};
pub use commands::{Raw, Record, Said, run};
pub use drawing::{dot, drawing};
pub use goal::{Goal, in_shell};
pub use ibv::{Device, Rdma};
pub use ifconfig::Link;
pub use mac::{Mac, Port};
pub use plan::{Plan, undo};
pub use ports::Service;
pub use profiler::Speed;
pub use reach::{Reach, reach};
pub use versions::Version;

use crate::error::Error;

/// Output of a command that is not what is documented.
fn strange(command: &str, what: impl std::fmt::Display) -> Error {
    let error = Error::msg(format!("`{command}` says what tbshard does not understand: {what}"));
    error.hint(format!("run `{command}` there, and report what it prints"))
}

/// The beginning of a line that is not understood.
fn shown(line: &str) -> String {
    let line: String = line.trim().chars().filter(|c| !c.is_control()).collect();
    let end = line.char_indices().nth(60).map_or(line.len(), |(at, _)| at);
    format!("`{}`", &line[..end])
}
