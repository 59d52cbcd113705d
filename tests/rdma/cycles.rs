//! A thousand starts and ends in one process, and nothing is left of them.

use std::sync::Arc;

use tbshard::transport::{Buffer, Endpoint, Kind};

use crate::transport::fabric::{message, next};
use crate::transport::fake::{Machines, connect_all};

#[test]
fn a_thousand_starts_leave_nothing_behind() {
    for machines in [Machines::Macs, Machines::Reliable] {
        let fake = Arc::new(machines.fake(2));
        for cycle in 0..500 {
            let ends = connect_all(&fake, machines, 2, |rank| machines.cabling(&fake, rank, 2));
            let mut ends: Vec<_> = ends.into_iter().map(|end| end.unwrap()).collect();
            ends[0].post_send(1, message(b"hello")).unwrap();
            ends[1].post_recv(0, Buffer::with_capacity(8)).unwrap();
            assert_eq!(next(&mut ends[0]).kind, Kind::Sent);
            assert_eq!(next(&mut ends[1]).buffer.bytes(), b"hello");
            // what is still to be taken in when the end comes is no leak either
            if cycle % 3 == 0 {
                ends[1].post_send(0, message(&[7; 100_000])).unwrap();
            }
            std::thread::scope(|scope| {
                for end in ends {
                    scope.spawn(move || drop(end));
                }
            });
            assert!(fake.objects().is_empty(), "{:?}", fake.objects());
        }
        assert!(fake.violations().is_empty(), "{:?}", fake.violations());
    }
}
