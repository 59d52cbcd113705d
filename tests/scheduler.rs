//! Many answers at once: what a job is given is what it would be given alone.

mod bits;
mod greedy;
mod places;

use std::path::Path;

use tbshard::backend::Cpu;
use tbshard::comm::Algorithm;
use tbshard::engine::{Engine, Job, Room, Sampling, Scheduler, Update};
use tbshard::models::Blueprint;
use tbshard::partition::Layout;

use crate::support::ranks;
use crate::transport::fabric::Fabric;

/// Runs `work` on rank 0 of as many ranks as `layout` has, threads of this process.
fn on_ranks<T: Send>(
    dir: &Path,
    layout: &Layout,
    fabric: Fabric,
    room: Room,
    work: impl Fn(&mut Engine) -> T + Sync,
) -> T {
    let open = || Blueprint::open(dir).unwrap();
    let cpu = || Cpu::new(1).unwrap();
    ranks::on_ranks(fabric.mesh(layout.world_size), &open, (layout, Algorithm::Auto), &cpu, room, &work)
}

fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

fn job(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Job {
    let sampling = Sampling::default();
    Job { id, prompt, max_tokens, eos: Vec::new(), sampling, choice: 0, logprobs: None, constraint: None }
}

/// Runs all jobs to their end; returns what was told.
fn drain(scheduler: &mut Scheduler, engine: &mut Engine) -> Vec<Update> {
    let mut updates = Vec::new();
    while !scheduler.is_idle() {
        updates.extend(scheduler.step(engine).unwrap());
    }
    updates
}

/// The tokens of job `id`.
fn answer(updates: &[Update], id: u64) -> Vec<u32> {
    let token = |update: &Update| match update {
        Update::Token { id: of, chosen } if *of == id => Some(chosen.token),
        _ => None,
    };
    updates.iter().filter_map(token).collect()
}
