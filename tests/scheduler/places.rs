//! Who has a place, what is shared, and what is refused.

use tbshard::engine::{Constraint, Finish, Job, Limits, Room, Scheduler, Update};
use tbshard::error::{Error, Result};

use super::{answer, drain, job, layout, on_ranks};
use crate::support::files::fixtures;
use crate::transport::fabric::Fabric;

const ROOM: Room = Room { context: 512, sequences: 8, kept_states: 4, pages: 64 };

fn prompt(len: usize, salt: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + salt * 31) % 290) as u32).collect()
}

fn on(fixture: &str, room: Room, work: impl Fn(&mut tbshard::engine::Engine) + Sync) {
    let dir = fixtures().join("tiny").join(fixture);
    for shape in [layout(1, 1), layout(2, 1), layout(1, 2)] {
        on_ranks(&dir, &shape, Fabric::Loopback, room, &work);
    }
}

#[test]
fn a_common_beginning_is_computed_once() {
    for fixture in ["llama", "qwen3_5", "deepseek_v3"] {
        on(fixture, ROOM, |engine| {
            let mut scheduler = Scheduler::new(Limits::default());
            let system = prompt(200, 1);
            for id in 0..8 {
                let prompt = [&system[..], &prompt(5 + id as usize, 7 + id as usize)].concat();
                scheduler.submit(engine, job(id, prompt, 4)).unwrap();
            }
            drain(&mut scheduler, engine);
            let counts = scheduler.counts();
            // three whole pages; without a recurrent state also what is alike of the fourth
            assert!(counts.shared_tokens >= 7 * 192, "{fixture}: {counts:?}");
            let all: u64 = (0..8).map(|id| 205 + id).sum();
            assert_eq!(counts.prompt_tokens + counts.shared_tokens, all, "{fixture}");
            // and later ones find it too
            scheduler.submit(engine, job(9, [&system[..], &[3, 4]].concat(), 1)).unwrap();
            drain(&mut scheduler, engine);
            assert!(scheduler.counts().shared_tokens >= 8 * 192, "{fixture}");
        });
    }
}

#[test]
fn a_place_is_found_where_only_one_has_room() {
    let room = Room { context: 512, sequences: 4, kept_states: 2, pages: 8 };
    for fixture in ["llama", "qwen3_5"] {
        on(fixture, room, |engine| {
            let mut scheduler = Scheduler::new(Limits::default());
            // the second needs more than half of the pages that the first left behind, and cannot go on from them
            let document = prompt(300, 1);
            for id in 0..4 {
                let prompt = [&document[..], &prompt(120, 40 + id as usize)].concat();
                scheduler.submit(engine, job(id, prompt, 60)).unwrap();
            }
            let mut steps = 0;
            while !scheduler.is_idle() {
                scheduler.step(engine).unwrap();
                steps += 1;
                assert!(steps < 2000, "{fixture}: {:?}", scheduler.counts());
            }
        });
    }
}

#[test]
fn another_scheduler_finds_what_one_has_left() {
    on("llama", ROOM, |engine| {
        for round in 0..5 {
            let mut scheduler = Scheduler::new(Limits::default());
            for id in 0..8 {
                let prompt = [&prompt(150, 1)[..], &prompt(300, (8 * round + id) as usize)].concat();
                scheduler.submit(engine, job(id, prompt, 2)).unwrap();
            }
            drain(&mut scheduler, engine);
            assert!(scheduler.counts().shared_tokens >= 7 * 128);
        }
        let mut sequence = engine.start().unwrap();
        engine.prefill(&mut sequence, &prompt(512, 9), &mut |_| true).unwrap();
        engine.end(sequence);
    });
}

#[test]
fn a_conversation_goes_on_from_what_was_said() {
    on("llama", ROOM, |engine| {
        let mut scheduler = Scheduler::new(Limits::default());
        scheduler.submit(engine, job(0, prompt(100, 1), 60)).unwrap();
        let said = answer(&drain(&mut scheduler, engine), 0);
        let next = [&prompt(100, 1)[..], &said, &[1, 2, 3]].concat();
        scheduler.submit(engine, job(1, next, 1)).unwrap();
        drain(&mut scheduler, engine);
        // the last token of an answer is never run
        assert!(scheduler.counts().shared_tokens >= 128, "{:?}", scheduler.counts());
    });
}

#[test]
fn without_sharing_all_is_computed() {
    on("llama", ROOM, |engine| {
        let mut scheduler = Scheduler::new(Limits { shares: false, ..Limits::default() });
        for id in 0..3 {
            scheduler.submit(engine, job(id, prompt(200, 1), 2)).unwrap();
        }
        drain(&mut scheduler, engine);
        assert_eq!((scheduler.counts().shared_tokens, scheduler.counts().prompt_tokens), (0, 600));
    });
}

#[test]
fn who_is_ended_is_in_no_further_step() {
    on("llama", ROOM, |engine| {
        let mut scheduler = Scheduler::new(Limits::default());
        for id in 0..3 {
            scheduler.submit(engine, job(id, prompt(20, id as usize), 400)).unwrap();
        }
        while answer(&scheduler.step(engine).unwrap(), 1).is_empty() {}
        let tokens = scheduler.counts().generated_tokens;
        assert!(scheduler.end(1).is_some());
        assert!(scheduler.end(1).is_none());
        assert!(scheduler.end(77).is_none());
        for _ in 0..4 {
            let updates = scheduler.step(engine).unwrap();
            assert!(updates.iter().all(|update| update.id() != 1));
        }
        assert_eq!(scheduler.counts().running, 2);
        assert!(scheduler.counts().generated_tokens > tokens);
        scheduler.submit(engine, job(5, prompt(20, 5), 400)).unwrap();
        scheduler.end_all(engine).unwrap();
        assert!(scheduler.is_idle() && engine.reports().is_ok());
        assert_eq!(engine.free_slots(), ROOM.sequences);
    });
}

#[test]
fn a_new_prompt_does_not_keep_others_from_their_next_token() {
    on("llama", ROOM, |engine| {
        let mut scheduler = Scheduler::new(Limits { rows: 20, ..Limits::default() });
        scheduler.submit(engine, job(0, prompt(4, 0), 100)).unwrap();
        while answer(&scheduler.step(engine).unwrap(), 0).is_empty() {}
        scheduler.submit(engine, job(1, prompt(300, 1), 1)).unwrap();
        let mut between = 0;
        loop {
            let updates = scheduler.step(engine).unwrap();
            between += answer(&updates, 0).len();
            if !answer(&updates, 1).is_empty() {
                break;
            }
        }
        // 300 tokens in steps of 20 rows, of which the other one has its row
        assert!(between >= 14, "{between}");
    });
}

#[test]
fn what_can_never_run_is_refused() {
    on("llama", ROOM, |engine| {
        let mut scheduler = Scheduler::new(Limits::default());
        let mut refused = |prompt: Vec<u32>, words: &str| {
            let error = scheduler.submit(engine, job(0, prompt, 5)).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        };
        refused(Vec::new(), "no tokens");
        refused(prompt(513, 1), "the prompt has 513 tokens, the context 512");
        refused(vec![1, 300], "token 300 is not in the embedding table of 300 rows");
        scheduler.submit(engine, job(0, prompt(512, 1), 5)).unwrap();
        let updates = drain(&mut scheduler, engine);
        assert_eq!(answer(&updates, 0).len(), 1);
        assert!(matches!(updates.last(), Some(Update::Done { finish: Finish::Length, .. })));
        scheduler.submit(engine, job(1, prompt(5, 1), 0)).unwrap();
        let updates = drain(&mut scheduler, engine);
        assert!(answer(&updates, 1).is_empty());
        assert!(matches!(updates.last(), Some(Update::Done { finish: Finish::Length, .. })));
    });
}

/// Allows one token, so often.
#[derive(Debug)]
struct Only(u32, usize);

impl Constraint for Only {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        if self.0 == 13 {
            return Err(Error::msg("no token may follow"));
        }
        let keep = logits[self.0 as usize];
        logits.fill(f32::NEG_INFINITY);
        logits[self.0 as usize] = keep;
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        assert_eq!(token, self.0);
        self.1 -= 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.1 == 0
    }
}

#[test]
fn grammars_are_kept_and_fail_alone() {
    on("llama", ROOM, |engine| {
        let mut scheduler = Scheduler::new(Limits::default());
        let with = |id, token, count| {
            let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Only(token, count)));
            Job { constraint, ..job(id, prompt(9, id as usize), 20) }
        };
        for job in [with(0, 17, 3), with(1, 13, 3), with(2, 21, 50)] {
            scheduler.submit(engine, job).unwrap();
        }
        let updates = drain(&mut scheduler, engine);
        assert_eq!(answer(&updates, 0), [17; 3]);
        assert_eq!(answer(&updates, 2), [21; 20]);
        let last = |id| updates.iter().rfind(|update| update.id() == id).unwrap();
        assert!(matches!(last(0), Update::Done { finish: Finish::Stop, .. }));
        assert!(matches!(last(1), Update::Failed { .. }));
        assert!(matches!(last(2), Update::Done { finish: Finish::Length, .. }));
    });
}
