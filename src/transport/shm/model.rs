//! The ring under every interleaving and every reordering that the memory model allows, by loom.

use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, fence};
use loom::thread;

use super::ring::{Consumer, Memory, Producer, Word, arm, disarm, ring};

impl Word for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.swap(value, order)
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// A ring of two bytes, each of which loom watches for access by both sides at once.
struct Shared {
    head: AtomicU32,
    tail: AtomicU32,
    bell: AtomicU32,
    bytes: [UnsafeCell<u8>; 2],
}

impl Shared {
    /// Positions start just before they wrap.
    fn new() -> Arc<Self> {
        let start = || AtomicU32::new(u32::MAX);
        let bytes = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { head: start(), tail: start(), bell: AtomicU32::new(0), bytes })
    }
}

impl Memory for Arc<Shared> {
    type Word = AtomicU32;
    fn head(&self) -> &AtomicU32 {
        &self.head
    }
    fn tail(&self) -> &AtomicU32 {
        &self.tail
    }
    fn capacity(&self) -> usize {
        2
    }
    unsafe fn put(&self, at: u32, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let cell = &self.bytes[at.wrapping_add(i as u32) as usize % 2];
            // SAFETY: the caller's promise, which loom checks.
            cell.with_mut(|place| unsafe { *place = *byte });
        }
    }
    unsafe fn get(&self, at: u32, into: &mut [u8]) {
        for (i, byte) in into.iter_mut().enumerate() {
            let cell = &self.bytes[at.wrapping_add(i as u32) as usize % 2];
            // SAFETY: the caller's promise, which loom checks.
            *byte = cell.with(|place| unsafe { *place });
        }
    }
}

#[test]
fn bytes_cross_in_order_through_a_ring_smaller_than_they() {
    loom::model(|| {
        let shared = Shared::new();
        let theirs = Arc::clone(&shared);
        let producer = thread::spawn(move || {
            let mut to = Producer::new(theirs);
            let mut left: &[u8] = &[1, 2, 3];
            while !left.is_empty() {
                let count = to.write(left).unwrap();
                left = &left[count..];
                if !to.publish() {
                    thread::yield_now();
                }
            }
        });
        let mut from = Consumer::new(shared);
        let mut got = [0; 3];
        let mut have = 0;
        while have < got.len() {
            let count = from.read(&mut got[have..]).unwrap();
            have += count;
            if !from.release() {
                thread::yield_now();
            }
        }
        producer.join().unwrap();
        assert_eq!(got, [1, 2, 3]);
    });
}

#[test]
fn whoever_sleeps_is_woken() {
    loom::model(|| {
        let shared = Shared::new();
        let theirs = Arc::clone(&shared);
        let producer = thread::spawn(move || {
            let mut to = Producer::new(Arc::clone(&theirs));
            assert_eq!(to.write(&[7]).unwrap(), 1);
            to.publish();
            ring(&theirs.bell)
        });
        let mut from = Consumer::new(Arc::clone(&shared));
        arm(&shared.bell);
        let slept = from.read(&mut [0]).unwrap() == 0;
        let woken = producer.join().unwrap();
        // a sleeper that saw nothing has been rung for, and nothing is left to wait for
        assert!(!slept || woken, "asleep for ever");
        disarm(&shared.bell);
        assert!(!slept || from.read(&mut [0]).unwrap() == 1);
    });
}
