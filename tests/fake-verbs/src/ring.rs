//! A queue pair's file: the receives that its owner has posted, and the messages that its peer has put there.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::map::{Map, Shared};

/// Receives and messages under way; more than any queue is deep.
pub(crate) const SLOTS: usize = 8192;
/// Bytes of messages under way: twice what a Mac's deepest queue holds.
pub(crate) const BYTES: usize = 32 << 20;
/// Where those begin.
const DATA: usize = size_of::<Layout>().next_multiple_of(65536);

/// Alone on the cache lines that one side writes and the other watches.
#[repr(C, align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

/// A message.
#[repr(C)]
pub(crate) struct Record {
    offset: AtomicU64,
    len: AtomicU32,
    imm: AtomicU32,
    flags: AtomicU32,
}

/// What a record has besides its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) imm: Option<u32>,
}

/// The file.
#[repr(C)]
pub(crate) struct Layout {
    pub(crate) state: AtomicU32,
    /// The number of the queue pair that it is connected to.
    pub(crate) dest: AtomicU32,
    pub(crate) rq_psn: AtomicU32,
    pub(crate) device: AtomicU32,
    /// Its owner has destroyed it.
    pub(crate) gone: AtomicU32,
    /// Its owner's name among processes.
    token: [AtomicU32; 16],
    pub(crate) posted: Apart<AtomicU64>,
    pub(crate) produced: Apart<AtomicU64>,
    pub(crate) consumed: Apart<AtomicU64>,
    lengths: [AtomicU32; SLOTS],
    records: [Record; SLOTS],
}

// SAFETY: atomics all over; the messages' bytes are written before `produced` says so.
unsafe impl Shared for Layout {}

pub(crate) type Ring = Map<Layout>;

impl Map<Layout> {
    pub(crate) fn new(path: &std::path::Path, device: usize, token: &str) -> std::io::Result<Self> {
        let ring = Self::create(path, DATA + BYTES)?;
        ring.device.store(device as u32, Ordering::Relaxed);
        for (to, from) in ring.token.iter().zip(token.as_bytes().chunks(4)) {
            let mut word = [0; 4];
            word[..from.len()].copy_from_slice(from);
            to.store(u32::from_ne_bytes(word), Ordering::Relaxed);
        }
        Ok(ring)
    }

    pub(crate) fn owner(&self) -> String {
        let bytes = self.token.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        String::from_utf8_lossy(&bytes.take_while(|byte| *byte != 0).collect::<Vec<u8>>()).into_owned()
    }

    /// Its owner tells its peer of one more receive.
    pub(crate) fn post(&self, len: u32) {
        let posted = self.posted.0.load(Ordering::Relaxed);
        self.lengths[posted as usize % SLOTS].store(len, Ordering::Relaxed);
        self.posted.0.store(posted + 1, Ordering::Release);
    }

    /// The room of the receive that the message `index` meets, if it is posted.
    pub(crate) fn receive(&self, index: u64) -> Option<u32> {
        let posted = self.posted.0.load(Ordering::Acquire) > index;
        posted.then(|| self.lengths[index as usize % SLOTS].load(Ordering::Relaxed))
    }

    /// Room for a message of the one peer, who remembers where its last one ended.
    pub(crate) fn room(&self, head: &mut usize, len: usize) -> Option<usize> {
        let len = len.max(1).next_multiple_of(64);
        let produced = self.produced.0.load(Ordering::Relaxed);
        let consumed = self.consumed.0.load(Ordering::Acquire);
        if produced - consumed >= SLOTS as u64 {
            return None;
        }
        let at = if produced == consumed {
            // always the same bytes while one message is under way: they stay in caches
            Some(0)
        } else {
            let oldest = self.records[consumed as usize % SLOTS].offset.load(Ordering::Relaxed) as usize;
            match *head > oldest {
                true if *head + len <= BYTES => Some(*head),
                true if len < oldest => Some(0),
                false if *head + len < oldest => Some(*head),
                _ => None,
            }
        };
        let at = at.filter(|at| at + len <= BYTES)?;
        *head = at + len;
        Some(at)
    }

    /// Where a message's bytes are.
    pub(crate) fn data(&self, offset: usize, len: usize) -> *mut u8 {
        self.bytes(DATA + offset, len)
    }

    /// The peer hands a message over whose bytes it has written.
    pub(crate) fn produce(&self, head: Head) -> u64 {
        let produced = self.produced.0.load(Ordering::Relaxed);
        let record = &self.records[produced as usize % SLOTS];
        record.offset.store(head.offset as u64, Ordering::Relaxed);
        record.len.store(head.len as u32, Ordering::Relaxed);
        record.imm.store(head.imm.unwrap_or(0), Ordering::Relaxed);
        record.flags.store(u32::from(head.imm.is_some()), Ordering::Relaxed);
        self.produced.0.store(produced + 1, Ordering::Release);
        produced
    }

    /// The oldest message.
    pub(crate) fn next(&self) -> Option<Head> {
        let consumed = self.consumed.0.load(Ordering::Relaxed);
        (self.produced.0.load(Ordering::Acquire) > consumed).then(|| {
            let record = &self.records[consumed as usize % SLOTS];
            Head {
                offset: record.offset.load(Ordering::Relaxed) as usize,
                len: record.len.load(Ordering::Relaxed) as usize,
                imm: (record.flags.load(Ordering::Relaxed) != 0).then(|| record.imm.load(Ordering::Relaxed)),
            }
        })
    }

    /// Its owner has it.
    pub(crate) fn consume(&self) {
        let consumed = self.consumed.0.load(Ordering::Relaxed);
        self.consumed.0.store(consumed + 1, Ordering::Release);
    }

    /// As new.
    pub(crate) fn clear(&self) {
        self.dest.store(0, Ordering::Release);
        for counter in [&self.posted, &self.produced, &self.consumed] {
            counter.0.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn messages_under_way_do_not_overlap() {
        let path = std::env::temp_dir().join(format!("fake-verbs-ring-{}", crate::home::token()));
        let ring = Ring::new(&path, 0, "nobody").unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut random = 1u64;
        let mut below = |limit: usize| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as usize % limit
        };
        let (mut head, mut refused) = (0, 0);
        let mut under_way: VecDeque<(usize, usize)> = VecDeque::new();
        for _ in 0..200_000 {
            let limit = [1, 64, 4097, 1 << 20, 4095 * 4096 + 1][below(5)];
            // now and then lengths whose sums meet exactly
            let len = if below(2) == 0 { (1 + below(15)) << 20 } else { below(limit) };
            match ring.room(&mut head, len) {
                Some(at) => {
                    assert!(at + len <= BYTES);
                    assert!(under_way.iter().all(|&(start, end)| at + len.max(1) <= start || end <= at));
                    under_way.push_back((at, at + len.max(1)));
                    ring.produce(Head { offset: at, len, imm: None });
                }
                None => {
                    assert!(!under_way.is_empty());
                    refused += 1;
                }
            }
            for _ in 0..below(3) {
                if let Some(next) = ring.next() {
                    assert_eq!(under_way.pop_front().unwrap(), (next.offset, next.offset + next.len.max(1)));
                    ring.consume();
                }
            }
        }
        assert!(refused > 100);
    }

    #[test]
    fn two_of_the_longest_messages_fit() {
        let path = std::env::temp_dir().join(format!("fake-verbs-ring-{}", crate::home::token()));
        let ring = Ring::new(&path, 0, "nobody").unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut head = 0;
        for _ in 0..2 {
            let offset = ring.room(&mut head, 4095 * 4096).unwrap();
            ring.produce(Head { offset, len: 4095 * 4096, imm: None });
        }
        assert!(ring.room(&mut head, 4095 * 4096).is_none());
    }
}
