//! Requests as queue pairs keep them.

use crate::abi::Sge;

/// Elements that a request can have.
pub(crate) const ELEMENTS: usize = 4;
/// TN3205: what a message is cut into, and depth is counted in.
pub(crate) const FRAME: usize = 4096;
/// Frames of a message; one at least.
pub(crate) fn frames(len: usize) -> u32 {
    (len.div_ceil(FRAME) as u32).max(1)
}

/// Memory of a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) parts: [Sge; ELEMENTS],
    pub(crate) count: usize,
}

impl Parts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sge> {
        self.parts[..self.count].iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().map(|part| part.length as usize).sum()
    }
}

/// Where a send is on its way.
pub(crate) enum Place {
    Waiting,
    /// In the peer's file; with a sum of its bytes if its completion had to wait.
    There {
        index: u64,
        sum: Option<u64>,
    },
    /// Out of sight: it completes and nobody gets it.
    Lost,
}

pub(crate) struct Send {
    pub(crate) id: u64,
    pub(crate) parts: Parts,
    /// Its bytes, if they were taken when it was posted, or belong to a fault.
    pub(crate) bytes: Option<Box<[u8]>>,
    /// A sum of its bytes when it was posted, if it could not leave then.
    pub(crate) posted: Option<u64>,
    pub(crate) imm: Option<u32>,
    pub(crate) signaled: bool,
    /// What it takes of the depth.
    pub(crate) cost: u32,
    /// Made by a fault: no completion.
    pub(crate) extra: bool,
    pub(crate) place: Place,
}

impl Send {
    pub(crate) fn new(id: u64, parts: Parts, imm: Option<u32>, signaled: bool, cost: u32) -> Self {
        Self { id, parts, bytes: None, posted: None, imm, signaled, cost, extra: false, place: Place::Waiting }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.as_ref().map_or_else(|| self.parts.len(), |bytes| bytes.len())
    }

    pub(crate) fn copy_to(&self, to: *mut u8) {
        // SAFETY: `to` has room for `len` bytes; the parts lie in live regions, which was just checked; what the
        // program writes meanwhile, against the rules, is what is torn.
        unsafe {
            if let Some(bytes) = &self.bytes {
                return to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
            let mut at = to;
            for part in self.parts.iter() {
                at.copy_from_nonoverlapping(part.addr as *const u8, part.length as usize);
                at = at.add(part.length as usize);
            }
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        let mut copy = vec![0; self.len()];
        self.copy_to(copy.as_mut_ptr());
        let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let (words, rest) = copy.as_chunks::<8>();
        let sum = words.iter().fold(1, |sum, word| mix(sum, u64::from_ne_bytes(*word)));
        rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)))
    }
}

pub(crate) struct Recv {
    pub(crate) id: u64,
    pub(crate) parts: Parts,
    pub(crate) cost: u32,
}
