//! What goes wrong on the way: the rank that waits ends with the peer's name, and no byte is wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_verbs::{Fabric as Fake, Fault, Kind as Wrong};
use tbshard::transport::{Buffer, Endpoint, Kind};

use crate::transport::fabric::{message, pattern, soon};
use crate::transport::fake::{Held, Machines, connect_all};

fn pair(fake: &Arc<Fake>, machines: Machines) -> [Held; 2] {
    let ends = connect_all(fake, machines, 2, |rank| machines.cabling(fake, rank, 2));
    let ends: Vec<Held> = ends.into_iter().map(|end| end.unwrap()).collect();
    ends.try_into().ok().unwrap()
}

/// Rank 1 sends messages without end; returns what rank 0, which receives them, is told of it and after how long.
fn told(fake: &Arc<Fake>, machines: Machines, faults: impl FnOnce()) -> (String, Duration) {
    let [mut receiver, mut sender] = pair(fake, machines);
    faults();
    let start = Instant::now();
    let sends = std::thread::spawn(move || {
        for index in 0.. {
            sender.post_send(0, message(&pattern(1, 0, index, 10_000))).unwrap();
            loop {
                match sender.poll(Instant::now() + Duration::from_millis(50)) {
                    Ok(Some(_)) => break,
                    Ok(None) if start.elapsed() < Duration::from_secs(10) => {}
                    _ => return,
                }
            }
        }
    });
    let mut error = String::new();
    for index in 0..2000 {
        receiver.post_recv(1, Buffer::with_capacity(10_000)).unwrap();
        match receiver.poll(soon()) {
            Ok(done) => {
                let done = done.expect("it hangs");
                assert!(done.kind == Kind::Received && done.buffer.bytes() == pattern(1, 0, index, 10_000), "{index}");
            }
            Err(lost) => {
                assert_eq!(lost.peer, 1);
                error = lost.to_string();
                break;
            }
        }
    }
    let took = start.elapsed();
    drop(receiver);
    sends.join().unwrap();
    fake.clear_violations();
    (error, took)
}

fn of(kind: Wrong, after: u64) -> Fault {
    Fault { device: Some(1), ..Fault::new(kind, after) }
}

#[test]
fn what_is_lost_repeated_or_damaged_ends_the_run_by_name() {
    for machines in [Machines::Macs, Machines::Unreliable] {
        for after in [0, 1, 40] {
            for (kind, words) in [
                (Wrong::Drop, "1 chunks that were lost on the way"),
                (Wrong::Reorder, "1 chunks that were lost on the way"),
                (Wrong::Duplicate, "twice"),
                (Wrong::Corrupt, "damaged on the way"),
            ] {
                let fake = Arc::new(machines.fake(2));
                let index =
                    fake.index(&format!("{}.{}", machines.host(1), fake.device(&machines.host(1), &machines.host(0))));
                let fault = Fault { device: Some(index), value: 777, ..Fault::new(kind, after) };
                let (error, took) = told(&fake, machines, || fake.fault(fault));
                assert!(error.contains("rank 1") && error.contains(words), "{machines:?} {kind:?}: {error}");
                assert!(took < Duration::from_secs(2), "{kind:?} took {took:?}");
            }
        }
    }
}

#[test]
fn the_last_message_is_missed_too() {
    let fake = Arc::new(Fake::apple(2));
    let [mut receiver, mut sender] = pair(&fake, Machines::Macs);
    fake.fault(of(Wrong::Drop, 0));
    receiver.post_recv(1, Buffer::with_capacity(8)).unwrap();
    // both wait for each other, as after the last step of a collective
    sender.post_send(0, message(b"lost")).unwrap();
    sender.post_recv(0, Buffer::with_capacity(8)).unwrap();
    let waits = std::thread::spawn(move || while let Ok(_waiting) = sender.poll(soon()) {});
    let start = Instant::now();
    let error = receiver.poll(soon()).unwrap_err().to_string();
    assert!(error.contains("lost on the way"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(receiver);
    waits.join().unwrap();
    fake.clear_violations();
}

#[test]
fn a_completion_that_failed_is_read() {
    for kind in [Wrong::RecvStatus, Wrong::SendStatus, Wrong::Poll] {
        let fake = Arc::new(Fake::apple(2));
        let fault = Fault { device: Some(fake.index("mac0.rdma_en2")), value: 12, times: 1000, ..Fault::new(kind, 20) };
        let (error, _) = told(&fake, Machines::Macs, || fake.fault(fault));
        assert!(error.contains("rank 1"), "{kind:?}: {error}");
    }
}
