//! The words that a device and the host share while kernels run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::arena::Region;
use super::ledger::{CLOSED, word};
use crate::error::Result;
use crate::gpu::{Buffer, Device};

// kernels/fence.metal has the same places
const SIGNALLED: usize = 0;
const ANSWERED: usize = 32;
const EXPIRED: usize = 64;
/// Words, with the cache line after the last one.
const WORDS: usize = 96;

/// Words of shared memory.
#[derive(Debug, Clone)]
pub(in crate::backend::metal) struct Words(Arc<Buffer>);

impl Words {
    pub(in crate::backend::metal) fn new(device: &dyn Device) -> Result<Self> {
        let words = Self(Arc::new(device.allocate(WORDS * 4)?));
        [SIGNALLED, ANSWERED, EXPIRED].into_iter().for_each(|at| words.at(at).store(0, Ordering::Release));
        Ok(words)
    }

    pub(in crate::backend::metal) fn region(&self) -> Region {
        Region { buffer: self.0.clone(), bytes: 0..WORDS * 4 }
    }

    fn at(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the buffer has so many words at a page's start, and the host uses them only so
        unsafe { &*self.0.start().as_ptr().cast::<AtomicU32>().add(at) }
    }

    /// The newest exchange whose partial sums are there, as a word, and with it all that was written before.
    pub(in crate::backend::metal) fn signalled(&self) -> u32 {
        self.at(SIGNALLED).load(Ordering::Acquire)
    }

    /// The exchange that a wait gave up, as a word, or 0.
    pub(in crate::backend::metal) fn expired(&self) -> u32 {
        self.at(EXPIRED).load(Ordering::Acquire)
    }

    /// The sum of exchange `number` is there.
    pub(in crate::backend::metal) fn answer(&self, number: u64) {
        self.at(ANSWERED).store(word(number), Ordering::Release);
    }

    /// Nothing more will come: waits leave.
    pub(in crate::backend::metal) fn close(&self) {
        self.at(ANSWERED).store(CLOSED, Ordering::Release);
    }

    /// Waits may wait again. The device has nothing to do meanwhile.
    pub(in crate::backend::metal) fn renew(&self) {
        self.at(EXPIRED).store(0, Ordering::Release);
    }
}
