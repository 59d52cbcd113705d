//! Bytes between pages that nobody may touch: a kernel that reads past them, or before them, ends the test there.

use std::ops::Range;

use bytes::Bytes;
use memmap2::MmapMut;

/// Which end of the bytes touches a page that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Start,
    End,
}

struct Guarded {
    map: MmapMut,
    range: Range<usize>,
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// A copy of `bytes` whose end, or start, lies at a page that cannot be read.
pub fn guarded(bytes: &[u8], edge: Edge) -> Bytes {
    // SAFETY: it only asks
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    let room = bytes.len().div_ceil(page) * page;
    let mut map = MmapMut::map_anon(room + 2 * page).unwrap();
    let start = if edge == Edge::Start { page } else { page + room - bytes.len() };
    let range = start..start + bytes.len();
    map[range.clone()].copy_from_slice(bytes);
    for forbidden in [0, page + room] {
        let at = map.as_mut_ptr().wrapping_add(forbidden).cast();
        // SAFETY: a page of the mapping, which no slice reaches into
        assert_eq!(unsafe { libc::mprotect(at, page, libc::PROT_NONE) }, 0);
    }
    Bytes::from_owner(Guarded { map, range })
}
