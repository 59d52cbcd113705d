//! The protocol of a byte ring between one producer and one consumer, and of waking who sleeps on it.
//!
//! It is generic over where the bytes and the atomic words lie, so that the very code that runs on shared memory is
//! checked under every interleaving by a model (`model.rs`).
//!
//! Positions count bytes and wrap at 2³²; a ring holds at most 2³⁰, so a distance is never ambiguous. The producer owns
//! `tail` and the consumer `head`; each keeps a copy of the other's and looks again only when the copy does not do,
//! because a look moves a cache line between cores.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, Ordering};

/// An atomic word that both sides see.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u32;
    fn store(&self, value: u32, order: Ordering);
    fn swap(&self, value: u32, order: Ordering) -> u32;
    /// A sequentially consistent fence of the same memory model.
    fn fence();
}

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
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Where a ring lies.
pub(super) trait Memory {
    type Word: Word;
    /// Bytes that the consumer has taken.
    fn head(&self) -> &Self::Word;
    /// Bytes that the producer has put.
    fn tail(&self) -> &Self::Word;
    /// Bytes that the ring holds: a power of two, at most 2³⁰.
    fn capacity(&self) -> usize;
    /// Copies `bytes` to the position `at`, wrapping around.
    ///
    /// # Safety
    /// The range is free: the consumer has taken what was there and is not reading it.
    unsafe fn put(&self, at: u32, bytes: &[u8]);
    /// Copies from the position `at`, wrapping around.
    ///
    /// # Safety
    /// The range is full: the producer has put it and is not writing it.
    unsafe fn get(&self, at: u32, into: &mut [u8]);
}

/// The other side wrote a position that cannot be.
#[derive(Debug)]
pub(super) struct Corrupt;

/// The end that puts bytes in.
pub(super) struct Producer<M> {
    pub(super) memory: M,
    tail: u32,
    published: u32,
    head: u32,
}

impl<M: Memory> Producer<M> {
    /// Takes over the producing end of a ring, which nobody else has.
    pub(super) fn new(memory: M) -> Self {
        let (tail, head) = (memory.tail().load(Relaxed), memory.head().load(Acquire));
        Self { memory, tail, published: tail, head }
    }

    /// Copies as much of `bytes` as there is room for, and returns how much. Unseen until [`Self::publish`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        let capacity = self.memory.capacity();
        let mut room = capacity.saturating_sub(self.tail.wrapping_sub(self.head) as usize);
        if room < bytes.len() {
            self.head = self.memory.head().load(Acquire);
            let full = self.tail.wrapping_sub(self.head) as usize;
            room = capacity.checked_sub(full).ok_or(Corrupt)?;
        }
        let count = room.min(bytes.len());
        // SAFETY: the consumer has released everything before `head`, so `room` bytes from `tail` on are free.
        unsafe { self.memory.put(self.tail, &bytes[..count]) };
        self.tail = self.tail.wrapping_add(count as u32);
        Ok(count)
    }

    /// Shows the consumer what was written. Returns whether there was anything.
    pub(super) fn publish(&mut self) -> bool {
        let news = self.published != self.tail;
        if news {
            self.memory.tail().store(self.tail, Release);
            self.published = self.tail;
        }
        news
    }
}

/// The end that takes bytes out.
pub(super) struct Consumer<M> {
    pub(super) memory: M,
    head: u32,
    released: u32,
    tail: u32,
}

impl<M: Memory> Consumer<M> {
    /// Takes over the consuming end of a ring, which nobody else has.
    pub(super) fn new(memory: M) -> Self {
        let (head, tail) = (memory.head().load(Relaxed), memory.tail().load(Acquire));
        Self { memory, head, released: head, tail }
    }

    /// Copies out as much as there is and `into` holds, and returns how much.
    /// The room is the producer's only after [`Self::release`].
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, Corrupt> {
        let mut full = self.tail.wrapping_sub(self.head) as usize;
        if full < into.len() {
            self.tail = self.memory.tail().load(Acquire);
            full = self.tail.wrapping_sub(self.head) as usize;
            if full > self.memory.capacity() {
                return Err(Corrupt);
            }
        }
        let count = full.min(into.len());
        // SAFETY: the producer has published everything before `tail`, so `full` bytes from `head` on are there.
        unsafe { self.memory.get(self.head, &mut into[..count]) };
        self.head = self.head.wrapping_add(count as u32);
        Ok(count)
    }

    /// Gives the producer the room of what was read. Returns whether there was any.
    pub(super) fn release(&mut self) -> bool {
        let news = self.released != self.head;
        if news {
            self.memory.head().store(self.head, Release);
            self.released = self.head;
        }
        news
    }
}

/// Says that the owner of `bell` is about to sleep. It must look at its rings once more before it does.
pub(super) fn arm<W: Word>(bell: &W) {
    bell.store(1, Relaxed);
    // pairs with the fence in `ring`: either the sleeper sees the position, or the other side sees the bell armed
    W::fence();
}

/// Says that the owner of `bell` is awake.
pub(super) fn disarm<W: Word>(bell: &W) {
    bell.store(0, Relaxed);
}

/// After a position was published: whether the owner of `bell` sleeps and this caller is to wake it.
pub(super) fn ring<W: Word>(bell: &W) -> bool {
    W::fence();
    bell.load(Relaxed) != 0 && bell.swap(0, Ordering::AcqRel) != 0
}
