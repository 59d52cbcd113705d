//! Tokens that are taken where the logits are: the same ones, by a few bytes, and the same errors.

use std::path::Path;

use tbshard::engine::{Engine, Job, Limits, Room, Sampling, Scheduler, Update, Wanted};
use tbshard::error::Result;
use tbshard::models::Blueprint;

use super::{answer, drain, job, layout, on_ranks};
use crate::support::files::fixtures;
use crate::support::specimen::Specimen;
use crate::support::tiny::tiny_checkpoints;
use crate::transport::fabric::Fabric;

const ROOM: Room = Room { context: 384, sequences: 8, kept_states: 0, pages: 48 };
const LAYOUTS: [(usize, usize); 6] = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2)];

/// Prompts, and how the reference implementation goes on.
fn prompts(dir: &Path) -> Vec<[Vec<u32>; 2]> {
    let text = std::fs::read(dir.join("fixture.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let ids = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
    json["prompts"].as_array().unwrap().iter().map(|p| [ids(&p["input_ids"]), ids(&p["greedy"])]).collect()
}

/// A job whose tokens are chosen from logits.
fn looking(job: Job) -> Job {
    Job { logprobs: Some(0), ..job }
}

fn run(engine: &mut Engine, jobs: impl IntoIterator<Item = Job>) -> Vec<Update> {
    let mut scheduler = Scheduler::new(Limits::default());
    jobs.into_iter().for_each(|job| scheduler.submit(engine, job).unwrap());
    drain(&mut scheduler, engine)
}

#[test]
fn tokens_are_the_references_alone_and_beside_those_that_are_chosen_from_logits() {
    for dir in tiny_checkpoints() {
        let layers = Blueprint::open(&dir).unwrap().geometry.layers;
        let prompts = prompts(&dir);
        for (tp, pp) in LAYOUTS.into_iter().filter(|(_, pp)| *pp <= layers) {
            on_ranks(&dir, &layout(tp, pp), Fabric::Loopback, ROOM, |engine| {
                let jobs = |ways: &[bool]| -> Vec<Job> {
                    let all = ways.iter().flat_map(|way| prompts.iter().map(move |prompt| (*way, prompt)));
                    let job = |(id, (looks, [ids, greedy])): (usize, (bool, &[Vec<u32>; 2]))| {
                        let job = job(id as u64, ids.clone(), greedy.len());
                        if looks { looking(job) } else { job }
                    };
                    all.enumerate().map(job).collect()
                };
                for ways in [&[false][..], &[true], &[true, false, true]] {
                    let told = run(engine, jobs(ways));
                    for (id, [_, greedy]) in (0..ways.len()).flat_map(|_| &prompts).enumerate() {
                        let what = format!("{} tp {tp} pp {pp}, job {id} of {ways:?}", dir.display());
                        assert_eq!(answer(&told, id as u64), *greedy, "{what}");
                    }
                }
            });
        }
    }
}

/// Bytes that the last stage sent since `before`: to rank 0, nothing but what passes give.
fn sent(engine: &mut Engine, before: u64) -> u64 {
    let usage = engine.reports().unwrap().pop().unwrap().usage;
    usage.prompt.sent + usage.decode.sent - before
}

#[test]
fn a_token_takes_a_few_bytes_and_not_its_row_of_logits() {
    let dir = fixtures().join("tiny/llama");
    for stages in [2, 3] {
        on_ranks(&dir, &layout(1, stages), Fabric::Loopback, ROOM, |engine| {
            let row = 4 * engine.model().geometry.vocab as u64;
            let plain = |id| job(id, vec![5 + id as u32; 9], 7);
            let penalty = Sampling { repetition_penalty: 1.1, ..Sampling::default() };
            let penalised = |id| Job { sampling: penalty.clone(), ..plain(id) };
            let mut before = 0;
            let mut costs = |engine: &mut Engine, jobs: Vec<Job>, bytes: u64| {
                run(engine, jobs);
                assert_eq!(sent(engine, before), bytes);
                before += bytes;
            };
            costs(engine, vec![plain(0)], 7 * 12);
            costs(engine, vec![plain(0), plain(1), plain(2)], 3 * 7 * 12);
            costs(engine, vec![looking(plain(0))], 7 * row);
            costs(engine, vec![penalised(0)], 7 * row);
            costs(engine, vec![plain(0), looking(plain(1)), plain(2), penalised(3)], 2 * 7 * (12 + row));
        });
    }
}

/// The answer of a scheduler to one job, or why it ended.
fn scheduled(engine: &mut Engine, job: Job) -> Result<Vec<u32>> {
    let mut scheduler = Scheduler::new(Limits::default());
    scheduler.submit(engine, job)?;
    let mut updates = Vec::new();
    while !scheduler.is_idle() {
        updates.extend(scheduler.step(engine)?);
    }
    Ok(answer(&updates, 0))
}

/// One row of the head is damaged, wherever the rank that has it is.
#[test]
fn logits_that_are_no_numbers_end_a_run_however_a_token_is_taken() {
    for (row, bits) in [(0, 0x7fc0_u16), (17, 0x7fc0), (299, 0x7fc0), (130, 0x7f80), (299, 0xff80)] {
        let specimen = Specimen::of("qwen3");
        specimen.edit_tensor("lm_head.weight", |plain| {
            let width = plain.bytes.len() / plain.shape[0];
            plain.bytes[row * width..(row + 1) * width].copy_from_slice(&bits.to_le_bytes().repeat(width / 2));
        });
        for (tp, pp) in LAYOUTS {
            on_ranks(specimen.dir.path(), &layout(tp, pp), Fabric::Loopback, ROOM, |engine| {
                let what = format!("row {row} {bits:x}, tp {tp} pp {pp}");
                let mut sequence = engine.start().unwrap();
                let wanted = engine.forward(&mut [(&mut sequence, &[1, 2])], Wanted::Last, None).unwrap_err();
                assert!(wanted.to_string().contains("not numbers"), "{what}: {wanted}");
                let error = engine.next_tokens(&mut [(&mut sequence, &[3, 4])]).unwrap_err();
                assert_eq!(error.to_string(), wanted.to_string(), "{what}");
                // where nothing is wanted, nothing is looked at
                engine.forward(&mut [(&mut sequence, &[5])], Wanted::Nothing, None).unwrap();
                engine.end(sequence);
                for job in [job(0, vec![1, 2, 3], 4), looking(job(0, vec![1, 2, 3], 4))] {
                    let error = scheduled(engine, job).unwrap_err();
                    assert_eq!(error.to_string(), wanted.to_string(), "{what}");
                }
            });
        }
    }
}
