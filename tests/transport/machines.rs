//! The conformance suite between machines: `tbshard launch --hosts FILE -- TESTS machines:: --ignored` runs it on each.

use std::time::{Duration, Instant};

use tbshard::cluster::run::Run;
use tbshard::transport::{Buffer, Endpoint, Kind};

use super::conformance::{SIZES, all_to_all, queue, random_sizes};
use super::fabric::{message, next, soon};

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
    random_sizes(&mut *end, 7, 17);
    queue(&mut *end, 300);
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
