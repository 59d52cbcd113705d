//! `tbshard agent`: starts a rank for a launcher on another machine. Not for people.

use super::{Outcome, env};
use crate::cluster::agent::{Machine, serve};
use crate::error::Result;

/// What tells this program from others of its version.
pub(super) const BUILD: &str = env!("TBSHARD_BUILD");

pub(super) fn run() -> Result<Outcome> {
    let machine = Machine::here(BUILD, env::ssh_connection().as_deref());
    serve(machine, std::io::stdin(), std::io::stdout())?;
    Ok(Outcome::Done)
}
