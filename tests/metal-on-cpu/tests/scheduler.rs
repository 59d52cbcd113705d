//! Many answers at once: tokens and probabilities are those of a job that has the device for itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use metal_on_cpu::{Emulator, Options};
use tbshard::backend::Metal;
use tbshard::comm::Ranks;
use tbshard::engine::{Counts, Engine, Job, Limits, Room, Sampling, Scheduler, Update};
use tbshard::models::Model;

type Told = BTreeMap<u64, Vec<(u32, Vec<(u32, u32)>)>>;

fn jobs() -> Vec<Job> {
    let tokens = |len: usize, salt: usize| (0..len).map(|i| ((i * 7919 + salt * 31) % 290) as u32).collect::<Vec<_>>();
    let job = |id: usize, shared: usize, own: usize, max_tokens: usize| Job {
        id: id as u64,
        prompt: [&tokens(shared, 1)[..], &tokens(own, 2 + id)].concat(),
        max_tokens,
        eos: Vec::new(),
        sampling: Sampling::default(),
        choice: 0,
        logprobs: Some(5),
        constraint: None,
    };
    vec![job(0, 90, 7, 40), job(1, 90, 22, 3), job(2, 50, 1, 90), job(3, 0, 5, 70), job(4, 90, 7, 30)]
}

/// Runs `jobs` in so many places and pages.
fn run(dir: &Path, jobs: Vec<Job>, room: Room, limits: Limits) -> (Told, Counts) {
    let backend = Box::new(Metal::new(Arc::new(Emulator::new(Options::default()).unwrap())));
    let model = Model::open(dir, &|_, _| ()).unwrap();
    let mut engine = Engine::with_ranks(model, backend, room, Ranks::solo()).unwrap();
    let mut scheduler = Scheduler::new(limits);
    jobs.into_iter().for_each(|job| scheduler.submit(&engine, job).unwrap());
    let mut told = Told::new();
    while !scheduler.is_idle() {
        for update in scheduler.step(&mut engine).unwrap() {
            if let Update::Token { id, chosen } = update {
                let top = chosen.logprobs.unwrap().top.into_iter().map(|(token, log)| (token, log.to_bits()));
                told.entry(id).or_default().push((chosen.token, top.collect()));
            }
        }
    }
    (told, scheduler.counts())
}

#[test]
fn bits_are_those_of_a_job_alone() {
    let alone = Room { context: 160, sequences: 1, kept_states: 0, pages: 3 };
    let (mut preempted, mut shared) = (0, 0);
    for fixture in ["llama", "qwen3_5"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny").join(fixture);
        let (wanted, _) = run(&dir, jobs(), alone, Limits { shares: false, ..Limits::default() });
        for pages in [15, 4] {
            let room = Room { context: 160, sequences: 5, kept_states: 2, pages };
            let (told, counts) = run(&dir, jobs(), room, Limits { rows: 48, ..Limits::default() });
            assert!(told == wanted, "{fixture} in {pages} pages");
            preempted += counts.preempted;
            shared += counts.shared_tokens;
        }
    }
    assert!(preempted > 0 && shared > 0, "{preempted} preempted, {shared} shared");
}
