//! `tbshard schema`: the JSON Schema of cluster files.

use super::{Outcome, ui};
use crate::cluster;
use crate::error::Result;

pub(super) fn run() -> Result<Outcome> {
    ui::print(&format!("{:#}\n", cluster::json_schema()))?;
    Ok(Outcome::Done)
}
