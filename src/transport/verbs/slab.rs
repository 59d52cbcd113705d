//! Registered memory in slots of one size. A slot is the program's or the device's, never both.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, Sge, Wc};
use super::device::Domain;
use super::errors::{self, Step};
use super::library::Functions;
use super::open::Object;
use super::queue::QueuePair;
use crate::error::{Error, Result};

/// Pages of Apple's processors; a multiple of every other's.
const PAGE: usize = 16 << 10;

/// Slots of memory that a device may read and write.
pub struct Slab {
    region: NonNull<abi::Mr>,
    memory: NonNull<u8>,
    layout: Layout,
    slot: usize,
    /// Which slots the device has.
    lent: Vec<bool>,
    domain: Arc<Domain>,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for Slab {}

impl Slab {
    /// Registers `count` slots of `slot` bytes, zeroed.
    ///
    /// # Errors
    /// If the system does not let so much memory be locked, or the device has no more regions.
    pub fn new(domain: &Arc<Domain>, slot: usize, count: usize) -> Result<Self> {
        let bytes = slot.checked_mul(count).filter(|bytes| *bytes > 0).map(|bytes| bytes.next_multiple_of(PAGE));
        let layout = bytes.and_then(|bytes| Layout::from_size_align(bytes, PAGE).ok());
        let layout = layout.ok_or_else(|| Error::msg(format!("{count} slots of {slot} bytes cannot be")))?;
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let access = if domain.device.is_thunderbolt() { abi::ACCESS_ALL } else { abi::ACCESS_LOCAL };
        let make = |library: &Functions| {
            // SAFETY: the memory is ours, of that size, and stays until the region has ended.
            unsafe { (library.reg_mr)(domain.raw.as_ptr(), memory.as_ptr().cast(), layout.size(), access) }
        };
        let region = domain.device.open.make(Object::Region, make).map_err(|errno| {
            // SAFETY: it was allocated with this layout, and no device knows it.
            unsafe { dealloc(memory.as_ptr(), layout) };
            errors::failed(Step::Memory(layout.size()), domain.device.name(), errno)
        })?;
        Ok(Self { region, memory, layout, slot, lent: vec![false; count], domain: Arc::clone(domain) })
    }

    /// Bytes of a slot.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Where a slot is, if it is the program's.
    fn own(&self, slot: usize) -> Result<NonNull<u8>> {
        match self.lent.get(slot) {
            // SAFETY: the slab has that slot.
            Some(false) => Ok(unsafe { self.memory.add(slot * self.slot) }),
            Some(true) => Err(Error::msg(format!("slot {slot} is the device's"))),
            None => Err(Error::msg(format!("there is no slot {slot}"))),
        }
    }

    /// A slot's bytes, `[slot]`.
    ///
    /// # Errors
    /// If the device has it.
    pub fn read(&self, slot: usize) -> Result<&[u8]> {
        let at = self.own(slot)?;
        // SAFETY: the slot is the program's, so nothing writes to it while `self` is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(at.as_ptr(), self.slot) })
    }

    /// A slot's bytes to be written, `[slot]`.
    ///
    /// # Errors
    /// If the device has it.
    pub fn write(&mut self, slot: usize) -> Result<&mut [u8]> {
        let at = self.own(slot)?;
        // SAFETY: as in `read`, and `self` is borrowed alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.slot) })
    }

    fn lend(&mut self, slot: usize, length: usize) -> Result<Sge> {
        let at = self.own(slot)?;
        let length = u32::try_from(length.min(self.slot)).unwrap_or(u32::MAX);
        self.lent[slot] = true;
        // SAFETY: the region stands.
        let lkey = unsafe { self.region.as_ref() }.lkey;
        Ok(Sge { addr: at.as_ptr() as u64, length, lkey })
    }

    /// Posts the first `length` bytes of a slot as a send with the completion `id`; the slot is the device's then.
    ///
    /// # Errors
    /// If the device has it already, or refuses.
    pub fn post_send(&mut self, pair: &mut QueuePair, id: u64, slot: usize, length: usize) -> Result<()> {
        let memory = self.lend(slot, length)?;
        pair.post_send(id, memory)
    }

    /// Posts the first `length` bytes of a slot as a receive with the completion `id`; the slot is the device's then.
    ///
    /// # Errors
    /// If the device has it already, or refuses.
    pub fn post_recv(&mut self, pair: &mut QueuePair, id: u64, slot: usize, length: usize) -> Result<()> {
        let memory = self.lend(slot, length)?;
        pair.post_recv(id, memory)
    }

    /// Takes back a slot whose request is `done`.
    pub fn take_back(&mut self, slot: usize, _done: &Wc) {
        if let Some(lent) = self.lent.get_mut(slot) {
            *lent = false;
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // whoever drops a slab has dropped the queue pairs that use it, or drops them next and the device then finds the
        // region gone and touches nothing
        let errno = self.domain.device.open.end(Object::Region(self.region));
        if errno == 0 {
            // SAFETY: it was allocated with this layout, and the device does not know it any more.
            unsafe { dealloc(self.memory.as_ptr(), self.layout) };
        }
        // else the device may still write there: better to lose the memory than to give it to somebody else
    }
}
