//! Explores schedules of the simulated group and holds each to the invariants.

use super::plan::{Fault, MILLI, Micros, SECOND};
use super::sim::Sim;

/// How many schedules one run of the tests explores.
const SCHEDULES: u64 = 120_000;

/// The first invariant that does not hold, if any.
fn violation(sim: &Sim) -> Option<String> {
    if sim.broken.is_some() {
        return sim.broken.clone();
    }
    let plan = &sim.plan;
    let mut guilty = plan.guilty();
    if guilty.contains(&0) {
        // who leaves by its own view because rank 0 is gone may be missed by its neighbours first
        guilty.extend((0..sim.ranks.len()).filter(|rank| sim.ranks[*rank].aborts.iter().any(|cause| !cause.agreed)));
    }
    let mut decisions: Vec<String> = Vec::new();
    for (rank, state) in sim.ranks.iter().enumerate() {
        for cause in &state.aborts {
            if !guilty.contains(&cause.rank) {
                return Some(format!("rank {rank} blames a healthy rank: {cause}"));
            }
            if cause.agreed {
                decisions.push(cause.to_string());
            } else if !plan.deaf(rank) && sim.survives(rank) {
                return Some(format!("rank {rank} can hear rank 0 and ends with a view of its own: {cause}"));
            }
        }
        // a heartbeat to each in each interval, and a few words at the end; none is made up for after a sleep
        let intervals = sim.now / plan.deadlines.heartbeat_interval.as_micros() as u64;
        if state.sent > (intervals + 8) * plan.world_size as u64 {
            return Some(format!("rank {rank} sent {} frames in {intervals} heartbeats", state.sent));
        }
        if state.aborts.len() > 1 || (state.ended && !state.aborts.is_empty()) {
            return Some(format!("rank {rank} aborts twice, or after an orderly end: {:?}", state.aborts));
        }
    }
    decisions.dedup();
    if decisions.len() > 1 {
        return Some(format!("there are several decisions: {decisions:?}"));
    }
    outcome(sim).or_else(|| late(sim))
}

/// Everybody who is there has come to an end, and to the same end.
fn outcome(sim: &Sim) -> Option<String> {
    let certain = sim.plan.faults.iter().any(|(_, fault)| match fault {
        Fault::Kill { .. } | Fault::Fail { .. } | Fault::Link { .. } | Fault::Wedge { .. } => true,
        Fault::Freeze { wake, .. } => wake.is_none(),
        Fault::Cut { .. } | Fault::Garble { .. } => true,
        Fault::Jump { .. } => false,
    });
    let must_end = certain || sim.plan.finish.is_some();
    let survivors = || (0..sim.ranks.len()).filter(|rank| sim.survives(*rank));
    for rank in survivors() {
        let state = &sim.ranks[rank];
        if must_end && state.over.is_none() {
            return Some(format!("rank {rank} never ends"));
        }
        if state.over.is_some() && state.aborts.is_empty() && !state.ended {
            return Some(format!("rank {rank} exits without a word"));
        }
        if sim.plan.finish.is_none() && state.over.is_some() && state.aborts.is_empty() {
            return Some(format!("rank {rank} ends in good order although nobody finished"));
        }
    }
    // rank 0 speaks for all who can hear it
    let head = sim.ranks.first().filter(|state| state.over.is_some() && sim.survives(0))?;
    let odd = survivors().find(|rank| {
        let same = sim.ranks[*rank].aborts.is_empty() == head.aborts.is_empty();
        *rank > 0 && !same && !sim.plan.deaf(*rank)
    });
    odd.map(|rank| format!("rank {rank} does not end as rank 0 does"))
}

/// Everybody who is there ends within the bound: the silence that proves a death after its last frame came, the grace,
/// and the decision's way; once more the silence for each sleep of an observer.
fn late(sim: &Sim) -> Option<String> {
    let deadlines = &sim.plan.deadlines;
    let micros = |time: std::time::Duration| time.as_micros() as Micros;
    if let Some(finish) = sim.plan.finish.filter(|_| sim.plan.faults.is_empty() && !sim.plan.spiky) {
        // all acknowledge the end, so that rank 0 need not linger
        let slow = sim.ranks[0].over.is_none_or(|over| over > finish + 3 * sim.plan.delay());
        return slow.then(|| "rank 0 waits although all know of the end".to_owned());
    }
    let last = sim.plan.faults.iter().map(|(time, _)| *time).max()?;
    let delay = sim.plan.delay();
    // a group that only meets closing streams and errors waits for nobody's silence
    let loud = |fault: &Fault| matches!(fault, Fault::Kill { .. } | Fault::Fail { .. } | Fault::Link { .. });
    let silent = if sim.plan.faults.iter().all(|(_, fault)| loud(fault)) {
        2 * delay
    } else {
        micros(deadlines.silent + deadlines.heartbeat_interval)
    };
    let mut bound = silent + micros(deadlines.grace) + 2 * delay + 200 * MILLI;
    for (_, fault) in &sim.plan.faults {
        match fault {
            Fault::Jump { .. } => bound += micros(deadlines.silent),
            Fault::Freeze { wake: Some(wake), .. } => bound += wake + micros(deadlines.silent),
            Fault::Wedge { .. } => {
                bound = bound.max(micros(deadlines.progress.unwrap_or_default()) + 3 * delay + SECOND)
            }
            _ => {}
        }
    }
    // an orderly end can be waited for instead
    let start = last.max(sim.plan.finish.unwrap_or_default());
    let aborted = (0..sim.ranks.len()).filter(|rank| sim.survives(*rank) && !sim.ranks[*rank].aborts.is_empty());
    let ends = aborted.filter_map(|rank| Some((sim.ranks[rank].over?, rank))).max()?;
    let linger = if ends.1 == 0 { micros(deadlines.linger) } else { 0 };
    let late = ends.0.saturating_sub(start) > bound + linger;
    late.then(|| format!("rank {} ends {} ms after the last fault", ends.1, (ends.0 - start) / MILLI))
}

fn explore(seeds: std::ops::Range<u64>) -> [u64; 3] {
    let mut tally = [0; 3];
    for seed in seeds {
        let mut sim = Sim::new(seed, false);
        sim.run();
        if let Some(what) = violation(&sim) {
            let mut again = Sim::new(seed, true);
            again.run();
            let trace = again.trace.unwrap_or_default().join("\n");
            panic!("{trace}\n\nseed {seed}: {what}");
        }
        let aborted = sim.ranks.iter().any(|rank| !rank.aborts.is_empty());
        let orderly = sim.ranks.iter().any(|rank| rank.ended);
        tally[0] += u64::from(aborted);
        tally[1] += u64::from(orderly);
        tally[2] += u64::from(!aborted && !orderly);
    }
    tally
}

#[test]
fn every_schedule_keeps_the_invariants() {
    let [aborted, orderly, running] = explore(0..SCHEDULES);
    println!("{SCHEDULES} schedules: {aborted} with an abort, {orderly} with an orderly end, {running} still running");
    // the schedules are worth something only if they meet all kinds of ends
    assert!(aborted > SCHEDULES / 2 && orderly > SCHEDULES / 10 && running > SCHEDULES / 200);
}
