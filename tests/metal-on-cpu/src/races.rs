//! Accesses of threads to the same bytes, and whether a barrier orders them: whatever the schedule was.
//!
//! Only barriers order, and only the memory that they name: functions of a SIMD-group wait for lanes, not for memory.

use std::collections::HashMap;
use std::ops::Range;

use crate::fault::place;
use crate::group::LANES;

/// Accesses to a word that are remembered at most.
const REMEMBERED: usize = 8;
/// Bits of `mem_flags`: device and threadgroup memory.
const FLAGS: [u32; 2] = [1, 2];

/// One access of a thread, and how many barriers it came after.
#[derive(Debug, Clone, Copy)]
struct Access {
    group: u32,
    thread: usize,
    group_barriers: u32,
    simd_barriers: u32,
    bytes: u8,
    writes: bool,
    code: usize,
}

impl Access {
    /// Whether a barrier, or being the same thread's, puts it before `later`.
    fn is_before(&self, later: &Self) -> bool {
        let same_simd = self.thread / LANES == later.thread / LANES;
        self.group == later.group
            && (self.thread == later.thread
                || self.group_barriers < later.group_barriers
                || same_simd && self.simd_barriers < later.simd_barriers)
    }
}

/// What was touched in a call.
#[derive(Debug)]
pub(crate) struct Races {
    buffers: Vec<Range<usize>>,
    threadgroup: Range<usize>,
    group: u32,
    // by the kind of memory
    group_barriers: [u32; 2],
    simd_barriers: Vec<[u32; 2]>,
    words: [HashMap<usize, Vec<Access>>; 2],
}

impl Races {
    /// Of a call that may touch `buffers`.
    pub(crate) fn new(buffers: Vec<Range<usize>>) -> Self {
        Self {
            buffers,
            threadgroup: 0..0,
            group: 0,
            group_barriers: [0; 2],
            simd_barriers: Vec::new(),
            words: Default::default(),
        }
    }

    pub(crate) fn begin_group(&mut self, simds: usize, threadgroup: Range<usize>) {
        self.group += 1;
        self.group_barriers = [0; 2];
        self.simd_barriers = vec![[0; 2]; simds];
        self.words[1].clear();
        self.threadgroup = threadgroup;
    }

    pub(crate) fn pass_group(&mut self, flags: u32) {
        FLAGS.iter().zip(&mut self.group_barriers).for_each(|(flag, count)| *count += u32::from(flags & flag != 0));
    }

    pub(crate) fn pass_simd(&mut self, simd: usize, flags: u32) {
        let counts = &mut self.simd_barriers[simd];
        FLAGS.iter().zip(counts).for_each(|(flag, count)| *count += u32::from(flags & flag != 0));
    }

    /// Notes an access; what it races with, if it does.
    pub(crate) fn access(&mut self, thread: usize, at: Range<usize>, writes: bool, code: usize) -> Option<String> {
        let kind = usize::from(self.threadgroup.contains(&at.start));
        if kind == 0 && !self.buffers.iter().any(|buffer| buffer.contains(&at.start)) {
            // a stack, or what only is read
            return None;
        }
        for word in at.start / 4..at.end.div_ceil(4) {
            let inside = |byte: &usize| at.contains(&(word * 4 + byte));
            let new = Access {
                group: self.group,
                thread,
                group_barriers: self.group_barriers[kind],
                simd_barriers: self.simd_barriers[thread / LANES][kind],
                bytes: (0..4).filter(inside).map(|byte| 1 << byte).sum(),
                writes,
                code,
            };
            let known = self.words[kind].entry(word).or_default();
            let races = |old: &&Access| (old.writes || writes) && old.bytes & new.bytes != 0 && !old.is_before(&new);
            if let Some(old) = known.iter().find(races) {
                let verb = |access: &Access| if access.writes { "writes" } else { "reads" };
                let memory = ["device", "threadgroup"][kind];
                let apart = if old.group == new.group { "" } else { " of another threadgroup" };
                return Some(format!(
                    "no barrier orders {memory} memory: thread {}{apart} {} at {}, thread {thread} {} the same at {}",
                    old.thread,
                    verb(old),
                    place(old.code),
                    verb(&new),
                    place(code)
                ));
            }
            // an ordered write hides what came before it, and a thread's own reads are one
            known.retain(|old| {
                let hidden = old.bytes & !new.bytes == 0 && old.is_before(&new);
                !(hidden && (writes || !old.writes && old.thread == thread))
            });
            if known.len() < REMEMBERED {
                known.push(new);
            }
        }
        None
    }
}
