//! What every fabric keeps, over every fabric: order, content, sizes, queues, deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tbshard::comm::Communicator;
use tbshard::transport::{Buffer, Endpoint, Kind, MAX_MESSAGE};

use super::fabric::{FABRICS, Fabric, message, next, on_all, pattern, soon};
use super::fake::Machines;
use crate::support::sending::Sending;

/// Sends `lengths` to every other rank, receives as many from each, and checks all that comes. Receives are posted
/// first or last.
pub fn all_to_all(end: &mut dyn Endpoint, lengths: &[usize], receive_first: bool) {
    let (me, world_size) = (end.rank(), end.world_size());
    let peers: Vec<usize> = (0..world_size).filter(|peer| *peer != me).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let receive = |end: &mut dyn Endpoint| {
        for peer in &peers {
            lengths.iter().for_each(|_| end.post_recv(*peer, Buffer::with_capacity(longest)).unwrap());
        }
    };
    if receive_first {
        receive(end);
    }
    for (index, len) in lengths.iter().enumerate() {
        for peer in &peers {
            end.post_send(*peer, message(&pattern(me, *peer, index, *len))).unwrap();
        }
    }
    if !receive_first {
        receive(end);
    }
    let (mut sent, mut received) = (vec![0; world_size], vec![0; world_size]);
    for _ in 0..2 * peers.len() * lengths.len() {
        let done = next(end);
        let (peer, bytes) = (done.peer, done.buffer.bytes());
        match done.kind {
            Kind::Sent => {
                assert_eq!(bytes.len(), lengths[sent[peer]], "the buffers come back in order");
                sent[peer] += 1;
            }
            Kind::Received => {
                let index = received[peer];
                assert!(bytes == pattern(peer, me, index, lengths[index]), "message {index} of {peer} to {me}");
                received[peer] += 1;
            }
        }
    }
    assert!(end.poll(Instant::now()).unwrap().is_none(), "nothing else completes");
}

fn everywhere(fabric: Fabric, lengths: &'static [usize]) {
    for world_size in [1, 2, 3, 4, 5, 8] {
        for receive_first in [true, false] {
            on_all(fabric.mesh(world_size), move |mut end| {
                assert_eq!(end.world_size(), world_size);
                all_to_all(&mut *end, lengths, receive_first);
            });
        }
    }
}

/// Sizes around a page, and a change of size with every message.
pub const SIZES: &[usize] = &[0, 1, 4095, 4096, 4097, 0, 0, 70_000, 1, 131_038, 65_499, 65_500, 65_519, 3];

#[test]
fn sizes_over_loopback() {
    everywhere(Fabric::Loopback, SIZES);
}

#[test]
fn sizes_over_shm() {
    everywhere(Fabric::Shm, SIZES);
}

#[test]
fn sizes_over_tcp_encrypted() {
    everywhere(Fabric::Noise, SIZES);
}

#[test]
fn sizes_over_rdma_of_macs() {
    everywhere(Fabric::Rdma(Machines::Macs), SIZES);
}

#[test]
fn sizes_over_rdma_of_macs_in_a_ring() {
    everywhere(Fabric::Rdma(Machines::MacRing), SIZES);
}

#[test]
fn sizes_over_rdma_reliable() {
    everywhere(Fabric::Rdma(Machines::Reliable), SIZES);
}

#[test]
fn sizes_over_rdma_unreliable() {
    everywhere(Fabric::Rdma(Machines::Unreliable), SIZES);
}

#[test]
fn sizes_over_a_ring() {
    everywhere(Fabric::Ring, SIZES);
}

#[test]
fn sizes_over_tcp_plain() {
    everywhere(Fabric::Plain, SIZES);
}

#[test]
fn sixty_four_mebibytes_both_ways_at_once() {
    for fabric in FABRICS {
        on_all(fabric.mesh(2), |mut end| all_to_all(&mut *end, &[64 << 20, 1], true));
    }
}

/// Messages of up to 2^`bits` bytes, the same on every rank, and an order of posting of its own.
pub fn random_sizes(end: &mut dyn Endpoint, seed: u64, bits: u64) {
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    for _ in 0..10 {
        let count = random(12);
        let mut length = || {
            let bits = random(bits);
            random(1 << bits) as usize
        };
        let lengths: Vec<usize> = (0..count).map(|_| length()).collect();
        let first = (random(4) + end.rank() as u64).is_multiple_of(2);
        all_to_all(end, &lengths, first);
    }
}

#[test]
fn seeded_random_sizes_and_orders_of_posting() {
    for fabric in FABRICS {
        for seed in 1..4 {
            on_all(fabric.mesh(3), move |mut end| random_sizes(&mut *end, seed, 18));
        }
    }
}

/// `count` messages of every rank to rank 0 before it posts a single receive.
pub fn queue(end: &mut dyn Endpoint, count: usize) {
    if end.rank() > 0 {
        (0..count).for_each(|index| end.post_send(0, message(&pattern(end.rank(), 0, index, 333))).unwrap());
        (0..count).for_each(|_| assert_eq!(next(end).kind, Kind::Sent));
        end.post_recv(0, Buffer::with_capacity(0)).unwrap();
        assert_eq!(next(end).kind, Kind::Received);
        return;
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(end.poll(Instant::now()).unwrap().is_none(), "nothing is received that was not posted for");
    for peer in 1..end.world_size() {
        for index in 0..count {
            end.post_recv(peer, Buffer::with_capacity(333)).unwrap();
            let done = next(end);
            assert!(done.buffer.bytes() == pattern(peer, 0, index, 333), "message {index} of {peer}");
        }
        end.post_send(peer, Buffer::with_capacity(0)).unwrap();
        assert_eq!(next(end).kind, Kind::Sent);
    }
}

#[test]
fn many_messages_wait_for_their_receives() {
    for fabric in FABRICS {
        on_all(fabric.mesh(2), |mut end| queue(&mut *end, 2000));
    }
}

#[test]
fn messages_that_are_sent_from_where_they_lie_keep_their_places() {
    const COUNT: usize = 300;
    for fabric in FABRICS {
        let length = |index: usize| [333, 0, 5000, 70_000, 1][index % 5];
        let at_once = on_all(fabric.mesh(2), move |mut end| {
            if end.rank() == 0 {
                std::thread::sleep(Duration::from_millis(50));
                for index in 0..COUNT {
                    end.post_recv(1, Buffer::with_capacity(70_000)).unwrap();
                    assert!(next(&mut *end).buffer.bytes() == pattern(1, 0, index, length(index)), "message {index}");
                }
                end.post_send(1, Buffer::with_capacity(0)).unwrap();
                assert_eq!(next(&mut *end).kind, Kind::Sent);
                return 0;
            }
            // far more than there is room for before the first is received, and a few are posted in any case
            let mut posted = 0;
            for index in 0..COUNT {
                let bytes = pattern(1, 0, index, length(index));
                if index % 7 == 0 || !end.send_now(0, &bytes).unwrap() {
                    end.post_send(0, message(&bytes)).unwrap();
                    posted += 1;
                }
            }
            (0..posted).for_each(|_| assert_eq!(next(&mut *end).kind, Kind::Sent));
            end.post_recv(0, Buffer::with_capacity(0)).unwrap();
            assert_eq!(next(&mut *end).kind, Kind::Received);
            COUNT - posted
        });
        let some = matches!(fabric, Fabric::Rdma(_));
        assert_eq!((1..COUNT / 2).contains(&at_once[1]), some, "{fabric:?}: {at_once:?}");
    }
}

#[test]
fn a_sum_over_rdma_leaves_from_where_it_lies() {
    let (posted, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let watched = |inner| {
        let (posted, sent) = (posted.clone(), sent.clone());
        let post = move |inner: &mut dyn Endpoint, peer, message| {
            posted.fetch_add(1, Ordering::Relaxed);
            inner.post_send(peer, message)
        };
        Sending::both_by(inner, post, move |inner, peer, message| {
            let now = inner.send_now(peer, message)?;
            sent.fetch_add(usize::from(now), Ordering::Relaxed);
            Ok(now)
        })
    };
    let ends = Fabric::Rdma(Machines::Macs).mesh(3).into_iter().map(watched).collect();
    let sums = on_all(ends, |end| {
        let (rank, world) = (end.rank() as f32, Communicator::new(end, None));
        let mut values: Vec<f32> = (0..5120).map(|i| i as f32 + rank).collect();
        world.all_reduce(&mut values).unwrap();
        values
    });
    assert!(sums.iter().all(|sum| sum.iter().enumerate().all(|(i, value)| *value == 3.0 * i as f32 + 3.0)));
    assert_eq!((posted.load(Ordering::Relaxed), sent.load(Ordering::Relaxed)), (0, 6));
}

#[test]
fn one_silent_peer_does_not_hold_up_the_others() {
    for fabric in FABRICS {
        on_all(fabric.mesh(3), |mut end| match end.rank() {
            0 => {
                end.post_recv(1, Buffer::with_capacity(8)).unwrap();
                end.post_recv(2, Buffer::with_capacity(8)).unwrap();
                assert_eq!(next(&mut *end).peer, 2);
                end.post_send(1, message(b"go")).unwrap();
                let kinds = [next(&mut *end).kind, next(&mut *end).kind];
                assert!(kinds.contains(&Kind::Sent) && kinds.contains(&Kind::Received), "{kinds:?}");
            }
            1 => {
                end.post_recv(0, Buffer::with_capacity(8)).unwrap();
                assert_eq!(next(&mut *end).buffer.bytes(), b"go");
                end.post_send(0, message(b"late")).unwrap();
                next(&mut *end);
            }
            _ => {
                end.post_send(0, message(b"early")).unwrap();
                next(&mut *end);
            }
        });
    }
}

#[test]
fn polling_ends_at_the_deadline() {
    for fabric in FABRICS {
        let mut ends = fabric.mesh(2);
        ends[0].post_recv(1, Buffer::with_capacity(8)).unwrap();
        for wait in [0, 1, 30, 200].map(Duration::from_millis) {
            let start = Instant::now();
            assert!(ends[0].poll(start + wait).unwrap().is_none());
            let took = start.elapsed();
            assert!(took >= wait, "{fabric:?} ended {took:?} into {wait:?}");
            assert!(took < wait + Duration::from_millis(250), "{fabric:?} waited {took:?} for {wait:?}");
        }
        assert!(ends[0].poll(Instant::now() - Duration::from_secs(1)).unwrap().is_none(), "a deadline in the past");
    }
}

/// Processor time of this thread.
#[cfg(target_os = "linux")]
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_wait_costs_next_to_nothing() {
    for fabric in FABRICS {
        let mut ends = fabric.mesh(2);
        ends[0].post_recv(1, Buffer::with_capacity(8)).unwrap();
        let mut idle = || {
            let before = thread_time();
            assert!(ends[0].poll(Instant::now() + Duration::from_millis(600)).unwrap().is_none());
            thread_time() - before
        };
        let most = Duration::from_millis(12);
        // others on the machine can only add to it
        let mut spent = idle();
        for _ in 0..2 {
            spent = if spent < most { spent } else { idle() };
        }
        assert!(spent < most, "{fabric:?} spent {spent:?} of 600 ms");
    }
}

#[test]
fn what_cannot_be_posted_is_an_error() {
    for fabric in FABRICS {
        let mut ends = fabric.mesh(2);
        for peer in [0, 2, usize::MAX] {
            assert!(ends[0].post_send(peer, Buffer::with_capacity(1)).is_err());
            assert!(ends[0].post_recv(peer, Buffer::with_capacity(1)).is_err());
        }
        let mut long = Buffer::with_capacity(MAX_MESSAGE + 1);
        long.set_len(MAX_MESSAGE + 1).unwrap();
        let error = ends[0].post_send(1, long).unwrap_err();
        assert!(error.to_string().contains("over the limit"), "{error}");
        assert!(Buffer::with_capacity(3).set_len(4).is_err());
        assert!(Buffer::with_capacity(3).fill(b"four").is_err());
    }
}

#[test]
fn a_message_longer_than_its_receive_is_an_error_with_both_lengths() {
    for fabric in FABRICS {
        on_all(fabric.mesh(2), move |mut end| {
            if end.rank() == 1 {
                end.post_send(0, message(&[1; 100])).unwrap();
                // until the other has seen it
                let _ = end.poll(Instant::now() + Duration::from_millis(300));
                return;
            }
            end.post_recv(1, Buffer::with_capacity(99)).unwrap();
            let error = end.poll(soon()).unwrap_err().to_string();
            assert!(error.contains("rank 1") && error.contains("100") && error.contains("99"), "{fabric:?}: {error}");
            assert_eq!(end.poll(soon()).unwrap_err().to_string(), error, "it comes again");
        });
    }
}
