//! The conformance suite between machines: `tbshard launch --hosts FILE -- TESTS machines:: --ignored` runs it on each.

use std::time::{Duration, Instant};

use tbshard::cluster::run::Run;
use tbshard::transport::{Buffer, Endpoint, Kind};

use super::conformance::{SIZES, all_to_all};
use super::fabric::{message, next, pattern, soon};

/// Every rank's end of the fabric that the cluster file asks for, which every part of the suite goes over in turn.
#[test]
#[ignore = "needs other machines: tests/rdma-lab starts it on each of its own"]
fn the_suite_between_machines() {
    let run = Run::inherited().unwrap().expect("to be started by `tbshard launch`");
    let ticket = run.ticket().clone();
    let mut end = ticket.endpoint(ticket.meet().unwrap().data, None).unwrap();
    let (me, world_size) = (end.rank(), end.world_size());
    for receive_first in [true, false] {
        all_to_all(&mut *end, SIZES, receive_first);
    }
    all_to_all(&mut *end, &[3 << 20, 1], true);
    random_sizes(&mut *end);
    queue(&mut *end);
    deadlines(&mut *end);
    // who ends is noticed by who waits for it
    if me + 1 < world_size {
        end.post_recv(world_size - 1, Buffer::with_capacity(8)).unwrap();
        let error = end.poll(soon()).unwrap_err().to_string();
        assert!(error.contains(&format!("rank {}", world_size - 1)) && error.contains("closed"), "{error}");
    }
    println!("rank {me} of {world_size}: the suite passed over {}", end.peer((me + 1) % world_size));
}

/// Each in turn waits for the next rank, which says nothing before it hears that the wait is over.
fn deadlines(end: &mut dyn Endpoint) {
    let (me, world_size) = (end.rank(), end.world_size());
    for waits in 0..world_size {
        let other = (waits + 1) % world_size;
        if me == waits {
            let start = Instant::now();
            end.post_recv(other, Buffer::with_capacity(8)).unwrap();
            assert!(end.poll(start + Duration::from_millis(200)).unwrap().is_none());
            assert!(start.elapsed() >= Duration::from_millis(200));
            end.post_send(other, message(b"waited")).unwrap();
            let kinds = [next(end).kind, next(end).kind];
            assert!(kinds.contains(&Kind::Sent) && kinds.contains(&Kind::Received), "{kinds:?}");
        } else if me == other {
            end.post_recv(waits, Buffer::with_capacity(8)).unwrap();
            assert_eq!(next(end).kind, Kind::Received);
            end.post_send(waits, message(b"release")).unwrap();
            assert_eq!(next(end).kind, Kind::Sent);
        }
    }
}

fn random_sizes(end: &mut dyn Endpoint) {
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    for _ in 0..10 {
        let count = random(12);
        let mut length = || {
            let bits = random(17);
            random(1 << bits) as usize
        };
        let lengths: Vec<usize> = (0..count).map(|_| length()).collect();
        let first = (random(4) + end.rank() as u64).is_multiple_of(2);
        all_to_all(end, &lengths, first);
    }
}

/// Many messages to rank 0 before it posts a single receive.
fn queue(end: &mut dyn Endpoint) {
    let peers = 1..end.world_size();
    if end.rank() > 0 {
        (0..300).for_each(|index| end.post_send(0, message(&pattern(end.rank(), 0, index, 333))).unwrap());
        (0..300).for_each(|_| assert_eq!(next(end).kind, Kind::Sent));
        end.post_recv(0, Buffer::with_capacity(0)).unwrap();
        assert_eq!(next(end).kind, Kind::Received);
        return;
    }
    std::thread::sleep(Duration::from_millis(100));
    for peer in peers {
        for index in 0..300 {
            end.post_recv(peer, Buffer::with_capacity(333)).unwrap();
            let done = next(end);
            assert!(done.buffer.bytes() == pattern(peer, 0, index, 333), "message {index} of {peer}");
        }
        end.post_send(peer, Buffer::with_capacity(0)).unwrap();
        assert_eq!(next(end).kind, Kind::Sent);
    }
}
