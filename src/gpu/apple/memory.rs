//! Buffers over pages that are the host's, and the set that keeps them where kernels may follow addresses to them.

use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_metal::{
    MTLAllocation, MTLBuffer, MTLCommandQueue, MTLDevice, MTLResidencySet, MTLResidencySetDescriptor,
    MTLResourceOptions,
};

use super::said;
use crate::error::{Error, Result};
use crate::gpu::Buffer;

/// What a buffer of this device is known by. Metal lets go of the pages before their owner does. Neighbours that were adopted may
/// have a page in common, which counts for both: Metal asks for whole pages, not that they are one buffer's alone (llama.cpp's
/// buffers over a mapped model overlap too), and nobody writes them.
pub(super) struct Pages {
    buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
    residency: Arc<Residency>,
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: Metal's resources may be used and released by any thread; nothing of one is changed after it is made
unsafe impl Send for Pages {}
// SAFETY: as above
unsafe impl Sync for Pages {}

impl Pages {
    pub(super) fn buffer(&self) -> &ProtocolObject<dyn MTLBuffer> {
        &self.buffer
    }

    pub(super) fn is_of(&self, residency: &Arc<Residency>) -> bool {
        Arc::ptr_eq(&self.residency, residency)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.residency.remove(&self.buffer);
    }
}

/// Zeroed pages of our own.
pub(super) fn allocate(
    device: &ProtocolObject<dyn MTLDevice>,
    residency: &Arc<Residency>,
    bytes: usize,
) -> Result<Buffer> {
    let len = bytes.max(1).checked_next_multiple_of(rustix::param::page_size());
    let len = len.ok_or_else(|| Error::msg(format_args!("{bytes} bytes are more than there can be")))?;
    let mut pages = MmapMut::map_anon(len)
        .map_err(|error| Error::from_std(error).context(format_args!("no room for {bytes} bytes")))?;
    let start = NonNull::from(&mut pages[..]).cast();
    wrap(device, residency, start, len, bytes, Box::new(pages))
}

/// The pages that `bytes` lie in, and where in them they start.
pub(super) fn adopt(
    device: &ProtocolObject<dyn MTLDevice>,
    residency: &Arc<Residency>,
    bytes: &Bytes,
) -> Result<(Buffer, usize)> {
    if bytes.is_empty() {
        return Ok((allocate(device, residency, 0)?, 0));
    }
    let page = rustix::param::page_size();
    let before = bytes.as_ptr().addr() % page;
    let len = (before + bytes.len()).next_multiple_of(page);
    let start = NonNull::new(bytes.as_ptr().wrapping_sub(before).cast_mut());
    let start = start.ok_or_else(|| Error::msg("there is no page at address 0"))?;
    Ok((wrap(device, residency, start, len, len, Box::new(bytes.clone()))?, before))
}

/// A buffer of `len` bytes of whole pages at `start`, of which `shown` are told of, as long as `owner` lives.
fn wrap(
    device: &ProtocolObject<dyn MTLDevice>,
    residency: &Arc<Residency>,
    start: NonNull<u8>,
    len: usize,
    shown: usize,
    owner: Box<dyn Any + Send + Sync>,
) -> Result<Buffer> {
    let options = MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked;
    // SAFETY: the range is whole pages, all of them mapped because the owner has bytes in each; the owner is dropped after
    // the buffer, and so there is nothing for Metal to free
    let buffer = unsafe {
        device.newBufferWithBytesNoCopy_length_options_deallocator(start.cast::<c_void>(), len, options, None)
    };
    let buffer = buffer.ok_or_else(|| {
        let error = Error::msg(format_args!("Metal refuses {len} bytes of memory as a buffer"));
        error.hint(format_args!("a buffer of this device may have {} bytes", device.maxBufferLength()))
    })?;
    residency.add(&buffer)?;
    let address = buffer.gpuAddress();
    let handle = Box::new(Pages { buffer, residency: residency.clone(), _owner: owner });
    // SAFETY: the handle has the owner, which is what keeps the memory
    Ok(unsafe { Buffer::new(start, shown, address, handle) })
}

/// The set of all buffers, attached to the queue: what is in it needs no naming in an encoder.
pub(super) struct Residency(Mutex<Set>);

struct Set {
    set: Retained<ProtocolObject<dyn MTLResidencySet>>,
    /// Whether something was added that Metal has not been told to look at.
    stale: bool,
    /// Bytes that are in it, and that may be: beyond them Metal ends commands for want of memory.
    bytes: u64,
    limit: u64,
}

// SAFETY: a residency set belongs to no thread; the mutex lets one at a time at it
unsafe impl Send for Set {}

impl Residency {
    pub(super) fn new(
        device: &ProtocolObject<dyn MTLDevice>,
        queue: &ProtocolObject<dyn MTLCommandQueue>,
    ) -> Result<Self> {
        let set = device
            .newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new())
            .map_err(|error| said("Metal makes no residency set", &error))?;
        queue.addResidencySet(&set);
        let limit = device.recommendedMaxWorkingSetSize();
        Ok(Self(Mutex::new(Set { set, stale: false, bytes: 0, limit })))
    }

    fn add(&self, buffer: &ProtocolObject<dyn MTLBuffer>) -> Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, limit) = (held.bytes.saturating_add(buffer.length() as u64), held.limit);
        if bytes > limit {
            let error = format_args!("the GPU would need {bytes} bytes, and macOS lets it have {limit}");
            let hint = "lower --ctx, spread the model over more machines, or raise `sysctl iogpu.wired_limit_mb`";
            return Err(Error::msg(error).hint(hint));
        }
        held.set.addAllocation(allocation(buffer));
        (held.bytes, held.stale) = (bytes, true);
        Ok(())
    }

    fn remove(&self, buffer: &ProtocolObject<dyn MTLBuffer>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.set.removeAllocation(allocation(buffer));
        held.bytes = held.bytes.saturating_sub(buffer.length() as u64);
        // now, because the pages are about to go
        held.set.commit();
    }

    /// Makes what was added resident: once for many, because a model has thousands of tensors.
    pub(super) fn settle(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.stale {
            held.set.commit();
            held.set.requestResidency();
            held.stale = false;
        }
    }
}

fn allocation(buffer: &ProtocolObject<dyn MTLBuffer>) -> &ProtocolObject<dyn MTLAllocation> {
    ProtocolObject::from_ref(buffer)
}
