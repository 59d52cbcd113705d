//! Random schedules over every architecture and layout: tokens and logits are those of the job alone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use tbshard::engine::{
    Counts, Engine, Finish, Job, Limits, Request, Room, Sampler, Sampling, Scheduler, Update, Wanted, generate,
};
use tbshard::partition::Layout;

use super::{job, layout, on_ranks};
use crate::support::engine::engine;
use crate::support::files::fixtures;
use crate::support::tiny::tiny_checkpoints;
use crate::transport::fabric::Fabric;

const CONTEXT: usize = 384;
const JOBS: u64 = 14;

/// Room for one job of any length, or several short ones: places are given up all the time.
const TIGHT: Room = Room { context: CONTEXT, sequences: 5, kept_states: 3, pages: 8 };

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn tokens(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(290) as u32).collect()
    }
}

/// Jobs of which many begin alike.
fn jobs(seed: u64) -> Vec<Job> {
    let mut random = Random(seed);
    let families = [random.tokens(200), random.tokens(130), random.tokens(64)];
    let jobs = (0..JOBS).map(|id| {
        let family = &families[random.below(3)];
        let mut prompt = family[..random.below(family.len() + 1)].to_vec();
        if random.below(3) > 0 {
            prompt.clone_from(family);
        }
        let own = 1 + random.below(40);
        prompt.extend(random.tokens(own));
        let hot = random.below(2) == 1;
        let temperature = if hot { 1.0 } else { 0.0 };
        let max_tokens = 1 + random.below(120);
        if id % 4 == 1 {
            // its tokens are taken where the logits are
            return job(id, prompt, max_tokens);
        }
        let sampling = Sampling { temperature, seed: id, presence_penalty: 0.1, ..Sampling::default() };
        Job { sampling, choice: id % 3, logprobs: Some(usize::MAX), ..job(id, prompt, max_tokens) }
    });
    jobs.collect()
}

/// What a job is told: tokens, each with the logarithms of all probabilities by token.
type Told = Vec<(u32, Vec<u32>)>;

/// What a job is to be told, from a sequence of its own, and passes over all of it at once.
fn alone(engine: &mut Engine, job: &Job) -> Told {
    let mut sequence = engine.start().unwrap();
    let Job { prompt, max_tokens, sampling, choice, .. } = job;
    let request =
        Request { prompt: prompt.clone(), max_tokens: *max_tokens, eos: Vec::new(), sampling: sampling.clone() };
    let mut sampler = Sampler::new(sampling.clone(), *choice);
    let on = &mut |_| ControlFlow::<Finish>::Continue(());
    let tokens = generate(engine, &mut sequence, &request, &mut sampler, on).unwrap().tokens;
    engine.end(sequence);
    let mut sequence = engine.start().unwrap();
    let all = [&prompt[..], &tokens[..tokens.len() - 1]].concat();
    let logits = engine.forward(&mut [(&mut sequence, &all)], Wanted::All, None).unwrap();
    engine.end(sequence);
    let rows = (prompt.len() - 1..).map(|row| logits.row(row));
    if job.logprobs.is_none() {
        assert!(tokens.iter().zip(rows.clone()).all(|(token, row)| *token == first_largest(row)));
    }
    tokens.iter().zip(rows).map(|(token, row)| (*token, log_softmax(row))).collect()
}

/// The token of the largest logit, the first of equals.
fn first_largest(row: &[f32]) -> u32 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|logit| *logit == largest).unwrap() as u32
}

fn log_softmax(row: &[f32]) -> Vec<u32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|logit| libm::exp(f64::from(logit - max))).sum();
    let log = libm::log(sum) + f64::from(max);
    row.iter().map(|logit| ((f64::from(*logit) - log) as f32).to_bits()).collect()
}

/// Runs `jobs`, which come at random times, some of them ended at random times; checks every word that is told.
fn schedule(engine: &mut Engine, jobs: Vec<Job>, told: &[Told], seed: u64, shares: bool) -> Counts {
    let mut random = Random(seed);
    let mut scheduler = Scheduler::new(Limits { rows: 1 + random.below(96), shares });
    let mut coming = jobs.into_iter();
    let mut lengths: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut ended, mut done, mut idle) = (Vec::new(), 0, 0);
    loop {
        for _ in 0..random.below(3) {
            let Some(job) = coming.next() else { break };
            lengths.insert(job.id, 0);
            scheduler.submit(engine, job).unwrap();
        }
        if coming.len() == 0 && scheduler.is_idle() {
            break;
        }
        // jobs that all have come end by themselves
        if coming.len() > 0 && random.below(8) == 0 {
            let id = random.below(JOBS as usize) as u64;
            if scheduler.end(id).is_some() {
                ended.push(id);
            }
        }
        let updates = scheduler.step(engine).unwrap();
        idle = if updates.is_empty() { idle + 1 } else { 0 };
        assert!(idle < 100, "nothing happens any more: {:?}", scheduler.counts());
        for update in updates {
            let id = update.id();
            assert!(!ended.contains(&id), "{update:?} after its end");
            match update {
                Update::Prompt { done, shared, total, .. } => assert!(shared < done && done <= total),
                Update::Token { chosen, .. } => {
                    let at = lengths.get_mut(&id).unwrap();
                    let (token, logs) = &told[id as usize][*at];
                    assert_eq!(chosen.token, *token, "job {id}, token {at}");
                    assert_eq!(chosen.logprobs.is_none(), id % 4 == 1, "job {id}");
                    if let Some(given) = chosen.logprobs {
                        assert_eq!(given.chosen.to_bits(), logs[*token as usize], "job {id}, token {at}");
                        let mut by_token = given.top;
                        by_token.sort_unstable_by_key(|(token, _)| *token);
                        let bits: Vec<u32> = by_token.iter().map(|(_, log)| log.to_bits()).collect();
                        assert!(bits == *logs, "job {id}, token {at}: other logits");
                    }
                    *at += 1;
                }
                Update::Done { finish, .. } => {
                    assert_eq!((finish, lengths[&id]), (Finish::Length, told[id as usize].len()), "job {id}");
                    ended.push(id);
                    done += 1;
                }
                Update::Failed { error, .. } => panic!("job {id}: {error}"),
            }
        }
    }
    assert_eq!(ended.len() as u64, JOBS - not_begun(&lengths), "{done} done, ended: {ended:?}");
    scheduler.counts()
}

/// Jobs that were ended before they came do not exist.
fn not_begun(lengths: &BTreeMap<u64, usize>) -> u64 {
    JOBS - lengths.len() as u64
}

fn every_architecture(layouts: &[Layout], seeds: &[u64]) {
    let (mut preempted, mut shared) = (0, 0);
    for dir in tiny_checkpoints() {
        if !dir.starts_with(fixtures()) {
            continue;
        }
        let told = told(&dir, seeds);
        for layout in layouts {
            let layers = tbshard::models::Blueprint::open(&dir).unwrap().geometry.layers;
            if layout.pp.unwrap() > layers {
                continue;
            }
            let counts = on_ranks(&dir, layout, Fabric::Loopback, TIGHT, |engine| {
                let runs = seeds.iter().zip(&told);
                runs.map(|(seed, told)| schedule(engine, jobs(*seed), told, 77 + seed, seed % 4 != 3))
                    .collect::<Vec<_>>()
            });
            preempted += counts.iter().map(|counts| counts.preempted).sum::<u64>();
            shared += counts.iter().map(|counts| counts.shared_tokens).sum::<u64>();
        }
    }
    // else nothing of that was tried
    assert!(preempted > 0 && shared > 0, "{preempted} preempted, {shared} shared");
}

fn told(dir: &Path, seeds: &[u64]) -> Vec<Vec<Told>> {
    let mut engine = engine(dir, 1);
    seeds.iter().map(|seed| jobs(*seed).iter().map(|job| alone(&mut engine, job)).collect()).collect()
}

#[test]
fn one_rank() {
    every_architecture(&[layout(1, 1)], &[0, 3]);
}

#[test]
fn two_ranks() {
    every_architecture(&[layout(2, 1), layout(1, 2)], &[0]);
}

#[test]
fn three_ranks() {
    every_architecture(&[layout(3, 1), layout(1, 3)], &[0]);
}

#[test]
fn stages_of_two_over_every_fabric() {
    let dir = fixtures().join("tiny/qwen3_5");
    let told = told(&dir, &[0]);
    for fabric in [Fabric::Shm, Fabric::Noise] {
        for shape in [layout(2, 2), layout(1, 2)] {
            let counts = on_ranks(&dir, &shape, fabric, TIGHT, |engine| schedule(engine, jobs(0), &told[0], 5, true));
            assert!(counts.steps > 0);
        }
    }
}
