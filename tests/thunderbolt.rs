//! Macs and the cables between them: what they say is read, what is wrong has a command, and what is set up stays and goes.

mod cables;
mod checks;
mod reading;
mod setup;
mod site;

/// How tbshard ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}
