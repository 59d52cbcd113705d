//! Each rule of the control channel by itself.

use std::time::Duration;

use tbshard::comm::control::{Action, Activity, Cause, CauseKind, Control, Deadlines, Failure, Frame, Loss, Operation};

use super::plan::Rng;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn names(world_size: usize) -> Vec<String> {
    (0..world_size).map(|rank| format!("rank {rank} (127.0.0.1:5091{rank})")).collect()
}

fn control(rank: usize, world_size: usize) -> Control {
    Control::new(rank, world_size, names(world_size), Deadlines::default(), ms(0)).unwrap()
}

fn drain(control: &mut Control) -> Vec<Action> {
    std::iter::from_fn(|| control.next_action()).collect()
}

fn causes(control: &mut Control) -> Vec<Cause> {
    let actions = drain(control).into_iter();
    actions.filter_map(|action| if let Action::Abort(cause) = action { Some(cause) } else { None }).collect()
}

fn activity(operation: Operation, number: u64, place: &str, waiting_for: Option<usize>) -> Activity {
    Activity { operation, number, place: place.to_owned(), waiting_for }
}

fn heartbeat(progress: u64, activity: Option<Activity>) -> Vec<u8> {
    Frame::Heartbeat { progress, activity }.encode()
}

fn failure(peer: Option<usize>, why: &str) -> Failure {
    Failure { peer, activity: None, why: why.to_owned() }
}

/// Ticks as asked until `end`, while every rank of `alive` sends heartbeats.
fn pass(control: &mut Control, start: u64, end: u64, alive: &[usize]) -> Vec<Action> {
    let mut actions = Vec::new();
    for now in (start..=end).step_by(10) {
        if now % 200 == 0 {
            alive.iter().for_each(|peer| control.on_frame(*peer, &heartbeat(1, None), ms(now)));
        }
        if control.next_deadline().is_some_and(|deadline| deadline <= ms(now)) {
            control.on_tick(ms(now));
        }
        actions.extend(drain(control));
    }
    actions
}

fn abort_of(actions: &[Action]) -> String {
    let mut causes =
        actions.iter().filter_map(|action| if let Action::Abort(cause) = action { Some(cause) } else { None });
    let cause = causes.next().unwrap();
    assert_eq!(causes.next(), None);
    cause.to_string()
}

#[test]
fn the_silent_are_dead_and_the_slow_are_not() {
    let mut rank0 = control(0, 3);
    let here = activity(Operation::AllReduce, 8841, "layer 17 mlp", None);
    rank0.on_frame(2, &heartbeat(3, Some(here)), ms(0));
    let actions = pass(&mut rank0, 10, 4990, &[1]);
    assert!(actions.iter().all(|action| matches!(action, Action::Send(_, bytes) if bytes[0] == 1)));
    let actions = pass(&mut rank0, 5000, 5100, &[1]);
    let expected = "rank 2 (127.0.0.1:50912) sent nothing for 5.0 s in all_reduce #8841 (layer 17 mlp)";
    assert_eq!(abort_of(&actions), expected);
    let told: Vec<usize> =
        actions.iter().filter_map(|a| if let Action::Send(to, _) = a { Some(*to) } else { None }).collect();
    assert_eq!(told[told.len() - 2..], [1, 2], "a silent rank may still listen");
    // it is over once the living know, and the silent were given time
    rank0.on_frame(1, &Frame::Ack.encode(), ms(5200));
    assert_eq!(drain(&mut rank0), []);
    assert_eq!(pass(&mut rank0, 5210, 7000, &[]).last(), Some(&Action::Exit));
    assert_eq!(rank0.next_deadline(), None);
}

#[test]
fn a_leap_of_the_clock_is_no_silence_but_not_for_ever() {
    let mut rank0 = control(0, 2);
    pass(&mut rank0, 0, 1000, &[1]);
    rank0.on_tick(ms(100_000));
    assert_eq!(drain(&mut rank0).len(), 1, "one heartbeat, whatever was missed");
    assert!(rank0.next_deadline() > Some(ms(100_000)));
    assert!(!pass(&mut rank0, 100_010, 104_000, &[]).iter().any(|action| matches!(action, Action::Abort(_))));
    rank0.on_frame(1, &heartbeat(1, None), ms(104_001));
    // a machine that sleeps without end and never hears the peer again
    let aborts = (2..20).position(|hours| {
        rank0.on_tick(ms(hours * 3_600_000));
        !causes(&mut rank0).is_empty() || rank0.next_deadline().is_none()
    });
    assert!(aborts.is_some_and(|sleeps| (3..7).contains(&sleeps)), "{aborts:?}");
}

#[test]
fn a_more_specific_cause_replaces_a_derived_one_within_the_grace() {
    // each is told 10 ms after the one before, all within the grace of 50 ms
    let mut rank0 = control(0, 4);
    rank0.on_frame(1, &Frame::Report(failure(Some(2), "connection reset")).encode(), ms(0));
    rank0.on_lost(2, Loss::Closed, ms(10));
    rank0.on_lost(3, Loss::Closed, ms(20));
    rank0.on_lost(2, Loss::Exited("killed by signal 9".to_owned()), ms(30));
    rank0.on_tick(ms(49));
    assert_eq!(causes(&mut rank0), []);
    rank0.on_tick(ms(50));
    let cause = causes(&mut rank0).remove(0);
    assert_eq!((cause.rank, cause.kind, cause.agreed), (2, CauseKind::Exited, true));
    assert_eq!(cause.to_string(), "rank 2 (127.0.0.1:50912) ended: killed by signal 9");
    // and nothing replaces a decision
    rank0.on_frame(1, &Frame::Report(failure(None, "out of memory")).encode(), ms(51));
    rank0.on_local(failure(None, "out of memory"), ms(52));
    rank0.on_finished(ms(53));
    rank0.on_tick(ms(300));
    assert_eq!(causes(&mut rank0), []);
}

#[test]
fn a_failure_is_decided_at_once_and_everybody_hears_the_same() {
    let mut ranks: Vec<Control> = (0..3).map(|rank| control(rank, 3)).collect();
    ranks[2].on_activity(activity(Operation::AllGather, 12, "head", None), 1);
    ranks[2].on_local(failure(None, "out of\nmemory"), ms(5));
    let mut seen = vec![Vec::new(); 3];
    for _ in 0..4 {
        for rank in 0..3 {
            for action in drain(&mut ranks[rank]) {
                match action {
                    Action::Send(to, bytes) => ranks[to].on_frame(rank, &bytes, ms(6)),
                    other => seen[rank].push(other),
                }
            }
        }
    }
    for actions in &seen {
        assert_eq!(abort_of(actions), "rank 2 (127.0.0.1:50912) failed in all_gather #12 (head): out of memory");
        assert_eq!(actions.len(), 2, "{actions:?}");
    }
}

#[test]
fn without_rank_0_each_goes_by_its_own_view() {
    let mut silent = control(1, 3);
    silent.on_activity(activity(Operation::Recv, 3, "", Some(0)), 1);
    let actions = pass(&mut silent, 0, 5000, &[]);
    let view = "; this is the view of rank 1 (127.0.0.1:50911) alone";
    assert_eq!(abort_of(&actions), format!("rank 0 (127.0.0.1:50910) sent nothing for 5.0 s in recv #3{view}"));
    let leave = &actions[actions.len() - 3];
    assert!(matches!(leave, Action::Send(0, bytes) if bytes[0] == 3), "{leave:?}");
    let mut closed = control(1, 3);
    closed.on_lost(0, Loss::Closed, ms(1));
    assert_eq!(abort_of(&drain(&mut closed)), format!("rank 0 (127.0.0.1:50910) closed its connection{view}"));
    let mut garbled = control(1, 3);
    garbled.on_frame(0, &[99], ms(1));
    let why = "sent what is no control frame: no control frame is of kind 99";
    assert_eq!(abort_of(&drain(&mut garbled)), format!("rank 0 (127.0.0.1:50910) {why}{view}"));
    // whom rank 0 does not answer although it is there
    let mut ignored = control(1, 3);
    ignored.on_local(failure(Some(2), "connection reset"), ms(0));
    let actions = pass(&mut ignored, 0, 15_000, &[0]);
    assert!(abort_of(&actions).starts_with("rank 0 (127.0.0.1:50910) made no progress for 15.0 s"));
}

#[test]
fn who_leaves_by_its_own_view_is_not_blamed_for_leaving() {
    let mut rank0 = control(0, 3);
    rank0.on_frame(1, &Frame::Leave(failure(Some(0), "it heard nothing for 5.0 s")).encode(), ms(1));
    rank0.on_lost(1, Loss::Closed, ms(2));
    let actions = pass(&mut rank0, 10, 60, &[2]);
    let expected = "rank 1 (127.0.0.1:50911) lost its link to rank 0 (127.0.0.1:50910): it heard nothing for 5.0 s";
    assert_eq!(abort_of(&actions), expected);
}

#[test]
fn only_rank_0_decides_and_only_to_rank_0_is_reported() {
    for (rank, frame) in [
        (0, Frame::End),
        (0, Frame::Decision(Cause::new(0, CauseKind::Failed, 0, &names(3)))),
        (0, Frame::Ack),
        (1, Frame::Done),
        (1, Frame::Report(failure(None, ""))),
    ] {
        let (mut this, peer) = (control(rank, 3), usize::from(rank == 0));
        this.on_frame(peer, &frame.encode(), ms(1));
        this.on_tick(ms(51));
        let cause = causes(&mut this).remove(0);
        assert_eq!((cause.rank, cause.kind), (peer, CauseKind::Garbled));
    }
}

#[test]
fn an_orderly_end_is_no_death() {
    let mut rank0 = control(0, 3);
    rank0.on_frame(1, &Frame::Done.encode(), ms(1));
    rank0.on_lost(1, Loss::Closed, ms(2));
    rank0.on_finished(ms(10));
    rank0.on_lost(2, Loss::Closed, ms(11));
    let actions = drain(&mut rank0);
    assert_eq!(actions, [Action::Send(2, Frame::End.encode()), Action::Exit]);
    let mut rank1 = control(1, 3);
    rank1.on_frame(0, &Frame::End.encode(), ms(1));
    rank1.on_lost(0, Loss::Closed, ms(2));
    assert_eq!(drain(&mut rank1), [Action::Send(0, Frame::Ack.encode())]);
    rank1.on_finished(ms(3));
    assert_eq!(drain(&mut rank1), [Action::Exit]);
    let mut late = control(1, 3);
    late.on_frame(0, &Frame::End.encode(), ms(1));
    assert_eq!(pass(&mut late, 10, 5100, &[]).last(), Some(&Action::Exit));
    let mut alone = control(0, 1);
    alone.on_finished(ms(1));
    assert_eq!(drain(&mut alone), [Action::Exit]);
}

/// Rank 0 of four after 601 s in which nobody but `moves` got on, and where each waits for whom `waits` says.
fn after_ten_minutes(waits: [Option<usize>; 4], idle: Option<usize>, moves: Option<usize>) -> Option<usize> {
    let mut rank0 = control(0, 4);
    let mut found = None;
    for second in 0..=601 {
        for (rank, waits) in waits.into_iter().enumerate() {
            let operation = if idle == Some(rank) { Operation::Idle } else { Operation::AllReduce };
            let here = activity(operation, 7, "layer 3", waits);
            let progress = if moves == Some(rank) { second } else { 0 };
            match rank {
                0 => rank0.on_activity(here, progress),
                _ => rank0.on_frame(rank, &heartbeat(progress, Some(here)), ms(second * 1000)),
            }
        }
        (0..5).for_each(|step| rank0.on_tick(ms(second * 1000 + step * 200)));
        found = found.or(causes(&mut rank0).first().map(|cause| {
            assert_eq!(cause.kind, CauseKind::Stuck);
            let place = if idle == Some(cause.rank) { "while idle" } else { "in all_reduce #7 (layer 3)" };
            assert!(cause.to_string().ends_with(&format!("made no progress for 600.0 s {place}")), "{cause}");
            cause.rank
        }));
    }
    found
}

#[test]
fn the_stuck_is_the_one_that_the_others_wait_for() {
    assert_eq!(after_ten_minutes([Some(1), Some(2), None, Some(2)], None, None), Some(2));
    assert_eq!(after_ten_minutes([None, None, None, Some(1)], None, None), Some(1));
    assert_eq!(after_ten_minutes([Some(2), Some(3), Some(3), Some(2)], None, None), Some(2), "a circle");
    assert_eq!(after_ten_minutes([Some(2), Some(2), None, Some(2)], None, Some(2)), None, "it gets on, slowly");
    assert_eq!(after_ten_minutes([None, Some(0), Some(0), Some(0)], Some(0), None), None, "there is no work");
    assert_eq!(
        after_ten_minutes([Some(2), Some(2), None, Some(2)], Some(2), None),
        Some(2),
        "it did not notice its work"
    );
}

#[test]
fn what_cannot_be_is_refused_or_ignored() {
    let new = |rank, world_size, names, deadlines| Control::new(rank, world_size, names, deadlines, ms(0)).is_err();
    assert!(new(2, 2, names(2), Deadlines::default()));
    assert!(new(0, 2, names(3), Deadlines::default()));
    assert!(new(0, 2, names(2), Deadlines { heartbeat_interval: ms(0), ..Deadlines::default() }));
    assert!(new(0, 2, names(2), Deadlines { heartbeat_interval: ms(1300), ..Deadlines::default() }));
    let mut rank1 = control(1, 3);
    for peer in [1, 2, 3, usize::MAX] {
        rank1.on_frame(peer, &[99], ms(1));
        rank1.on_lost(peer, Loss::Closed, ms(1));
    }
    assert_eq!(drain(&mut rank1), []);
    rank1.on_activity(activity(Operation::Send, 1, "", Some(usize::MAX)), 1);
    rank1.on_tick(ms(0));
    rank1.on_local(failure(Some(77), "x"), ms(0));
    assert_eq!(drain(&mut rank1).len(), 2);
}

#[test]
fn no_order_of_inputs_panics_or_ends_twice() {
    let frames = super::wire::every_frame();
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let mut control = control(rng.below(3) as usize, 3);
        let (mut now, mut actions) = (ms(0), Vec::new());
        for _ in 0..30 {
            now = match rng.below(20) {
                0 => ms(0),
                1 if rng.one_in(10) => Duration::MAX,
                _ => now.saturating_add(ms(rng.below(2000))),
            };
            let peer = rng.below(4) as usize;
            match rng.below(12) {
                0 => control.on_lost(peer, Loss::Broken(String::new()), now),
                1 => control.on_local(failure((peer > 0).then_some(peer), "x"), now),
                2 => control.on_finished(now),
                3 => control.on_activity(activity(Operation::Barrier, 1, "", Some(peer)), rng.below(9)),
                4 => control.on_frame(peer, &[], now),
                5..8 => control.on_tick(now),
                _ => control.on_frame(peer, &frames[rng.below(frames.len() as u64) as usize].encode(), now),
            }
            actions.extend(drain(&mut control));
        }
        let exit = actions.iter().position(|action| *action == Action::Exit);
        assert!(exit.is_none_or(|exit| exit + 1 == actions.len()), "seed {seed}: {actions:?}");
        assert_eq!(exit.is_some(), control.next_deadline().is_none(), "seed {seed}");
        assert!(actions.iter().filter(|action| matches!(action, Action::Abort(_))).count() <= 1, "seed {seed}");
    }
}
