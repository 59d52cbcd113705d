//! Macs and the cables between them: what they say is read, what is wrong has a command, and what is set up stays and goes.

mod cables;
mod checks;
mod reading;
// a Mac would run its own commands, by their paths, and change its own network
#[cfg(not(target_os = "macos"))]
mod setup;
mod site;

/// How tbshard ended.
#[derive(Debug)]
#[cfg_attr(target_os = "macos", allow(dead_code, reason = "as above"))]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}
