//! Loading a rank's weights: what it may use of its machine, and how far it is, for a bar and for a launcher.

use std::cell::Cell;
use std::time::Instant;

use super::fault::LOADING;
use super::load::all_cores;
use super::ui;
use crate::backend::Backend;
use crate::cluster::facts::free_memory;
use crate::cluster::run::Loading;
use crate::comm::Ranks;
use crate::error::{Error, Result};
use crate::models::{Blueprint, Model};
use crate::partition::Plan;

/// Told how far the weights are.
pub(super) type Told<'a> = &'a (dyn Fn(Loading) + Sync);

/// What a rank may use of its machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means {
    pub(super) threads: usize,
    /// Bytes of memory for the weights of all ranks on this machine, where the system says what is free.
    pub(super) memory: Option<u64>,
    /// How many ranks those are.
    pub(super) ranks: usize,
}

impl Means {
    /// Those of a process that has the machine to itself.
    pub(super) fn whole(threads: Option<usize>) -> Self {
        Self::shared(threads.unwrap_or_else(all_cores), 1)
    }

    /// Those of one of `ranks` ranks on this machine. A tenth of the memory is left for everything else.
    pub(super) fn shared(threads: usize, ranks: usize) -> Self {
        Self { threads, memory: free_memory().map(|free| free / 10 * 9), ranks: ranks.max(1) }
    }
}

/// Loads what this rank of `ranks` owns for `backend`. Weights in files are read, if there is memory for them.
pub(super) fn load(
    blueprint: Blueprint,
    (plan, ranks): (&Plan, &Ranks),
    (backend, means): (&dyn Backend, Means),
    quiet: bool,
    told: Told<'_>,
) -> Result<Model> {
    let (rank, made) = (ranks.world.rank(), blueprint.is_in_memory());
    if made {
        let needed = blueprint.share(plan, rank)?.bytes();
        if let Some(memory) = means.memory.map(|memory| memory / means.ranks as u64).filter(|memory| needed > *memory) {
            let error = format!("{} of weights are to be made in {} of free memory", gb(needed), gb(memory));
            return Err(Error::msg(error).hint("take fewer layers (--layers), or a checkpoint in files"));
        }
    }
    let bar = ui::bar(0, "loading {bar:20} {pos}/{len} layers", quiet);
    // an end of the run is noticed by what follows
    let goes_on = || ranks.world.starting(LOADING).is_ok();
    let progress = |done: usize, layers: usize| {
        bar.set_length(layers as u64);
        bar.set_position(done as u64);
        if made {
            told(Loading { percent: percent(done as u64, layers as u64), ..Loading::default() });
        }
        goes_on();
    };
    let mut model = blueprint.load(plan, rank, &progress)?;
    bar.finish_and_clear();
    if made {
        model.keep(backend, &|_, _| goes_on())?;
        return Ok(model);
    }
    let bar = ui::bar(0, "reading {bar:20} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left", quiet);
    let (start, last) = (Instant::now(), Cell::new(0));
    // ranks of one machine map the same files
    let room =
        means.memory.map_or(0, |memory| if model.whole <= memory { memory } else { memory / means.ranks as u64 });
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        let (percent, rate) = (percent(done, total), (done as f64 / start.elapsed().as_secs_f64().max(1e-9)) as u64);
        // not at every step: a line that nobody reads holds a few hundred of them, and then its writer
        if last.replace(percent) != percent {
            told(Loading { percent, bytes: total, rate });
        }
        goes_on()
    };
    model.keep(backend, &progress)?;
    let unread = model.read_ahead(room, &progress);
    bar.finish_and_clear();
    if let (Some(bytes), Some(_), false) = (unread?, means.memory, quiet) {
        let (bytes, free) = (gb(bytes), gb(room));
        ui::whisper(format_args!(
            "{bytes} of weights do not fit {free} of free memory: they are read as they are needed"
        ));
    }
    Ok(model)
}

fn percent(done: u64, all: u64) -> u8 {
    (done * 100 / all.max(1)) as u8
}

fn gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
