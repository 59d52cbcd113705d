//! Memory of a device for intermediates: taken from a few buffers again and again, so that a token allocates none.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::memory::unspecified;
use crate::error::Result;
use crate::gpu::{Buffer, Device};

/// Bytes of a buffer that small regions are cut from.
const SLAB: usize = 8 << 20;
/// Regions start at multiples of this.
const ALIGN: usize = 256;

/// A run of bytes of a buffer.
#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) buffer: Arc<Buffer>,
    pub(super) bytes: Range<usize>,
}

impl Region {
    /// Where kernels see it.
    pub(super) fn address(&self) -> u64 {
        self.buffer.address() + self.bytes.start as u64
    }
}

/// Who writes a region first: that decides when it may be taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Writer {
    /// The device, which does so after everything that it was asked before.
    Device,
    /// The device, for the host to read while it runs: never among what other kernels have in their caches.
    Landing,
    /// The host, which must wait until the device no longer reads it.
    Host,
}

/// Regions by their size, and the buffer that new ones are cut from.
#[derive(Debug, Default)]
pub(super) struct Arena {
    slab: Option<Region>,
    free: HashMap<(usize, Writer), Vec<Region>>,
    // the newest exchange that was posted
    posted: u64,
    // given back by the host, while the device may still read them, and the newest exchange then
    resting: Vec<(u64, Region)>,
}

impl Arena {
    /// A region of at least `bytes` bytes of unspecified values.
    pub(super) fn take(&mut self, device: &dyn Device, bytes: usize, writer: Writer) -> Result<Region> {
        let size = size_class(bytes);
        if let Some(region) = self.free.get_mut(&(size, writer)).and_then(Vec::pop) {
            return Ok(region);
        }
        if size > SLAB / 4 {
            return Ok(Region { buffer: Arc::new(unspecified(device, size)?), bytes: 0..size });
        }
        let slab = match &mut self.slab {
            Some(slab) if slab.bytes.len() >= size => slab,
            slab => slab.insert(Region { buffer: Arc::new(unspecified(device, SLAB)?), bytes: 0..SLAB }),
        };
        let start = slab.bytes.start;
        slab.bytes.start += size;
        Ok(Region { buffer: slab.buffer.clone(), bytes: start..start + size })
    }

    /// Takes a region back that [`Arena::take`] gave for the same writer.
    pub(super) fn give_back(&mut self, region: Region, writer: Writer) {
        match writer {
            Writer::Device | Writer::Landing => {
                self.free.entry((region.bytes.len(), writer)).or_default().push(region);
            }
            Writer::Host => self.resting.push((self.posted, region)),
        }
    }

    /// The exchange `number` was asked for.
    pub(super) fn posted(&mut self, number: u64) {
        self.posted = number;
    }

    /// What the host had given back when the exchange `number` was asked for is free: the device has done what came before.
    pub(super) fn passed(&mut self, number: u64) {
        for (_, region) in self.resting.extract_if(.., |(posted, _)| *posted < number) {
            self.free.entry((region.bytes.len(), Writer::Host)).or_default().push(region);
        }
    }

    /// What the host has given back is free: the device has done all that it was asked.
    pub(super) fn rested(&mut self) {
        self.passed(u64::MAX);
    }
}

/// Sizes that regions have: steps of an eighth to a quarter, so that few are wasted and many are met again.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(ALIGN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_aligned_and_waste_little() {
        for bytes in (1..100_000).step_by(37) {
            let size = size_class(bytes);
            assert!(size >= bytes && size.is_multiple_of(ALIGN));
            assert!(size <= (bytes + bytes / 4).max(bytes + ALIGN), "{bytes} {size}");
            assert_eq!(size_class(size), size);
        }
    }
}
