//! `tbshard models`: the catalogue.

use super::{Outcome, table, ui};
use crate::error::{Error, Result};
use crate::models::{architectures, catalogue};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let entries = catalogue::all()?;
    let runs = |architecture: &str| architectures().any(|name| name == architecture);
    let text = if args.json {
        let mut list = serde_json::to_value(&entries).map_err(Error::from_std)?;
        for entry in list.as_array_mut().into_iter().flatten() {
            entry["supported"] = runs(entry["architecture"].as_str().unwrap_or_default()).into();
        }
        format!("{list}\n")
    } else {
        let mut rows = vec![["NAME", "ARCHITECTURE", "PARAMS", "SIZE", "CONTEXT", "LICENCE"].map(str::to_owned)];
        for entry in &entries {
            let star = if runs(&entry.architecture) { "" } else { " *" };
            rows.push([
                entry.name.clone(),
                format!("{}{star}", entry.architecture),
                table::scaled(entry.parameters as f64, &["", "K", "M", "B", "T"]),
                table::scaled(entry.bytes as f64, &[" B", " kB", " MB", " GB", " TB"]),
                format!("{}K", entry.context / 1024),
                entry.licence.clone(),
            ]);
        }
        format!("{}\n* not supported yet; --json has the hub ids\n", table::aligned(&rows, &[2, 3, 4]))
    };
    ui::print(&text)?;
    Ok(Outcome::Done)
}
