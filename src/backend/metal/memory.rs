//! Tensors, constants and weights as regions of a device's buffers.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::arena::{Region, Writer};
use super::stream::Stream;
use crate::backend::{Constant, DeviceMemory, Memory, Tensor};
use crate::error::Result;
use crate::gpu::{Buffer, Device};
use crate::weights::Runs;

/// A region that is given back in the end.
#[derive(Debug)]
pub(super) struct Taken {
    stream: Arc<Stream>,
    region: Region,
    writer: Writer,
}

impl Taken {
    /// `bytes` bytes of unspecified values, for `writer` to write.
    fn of(stream: &Arc<Stream>, bytes: usize, writer: Writer) -> Result<Self> {
        Ok(Self { region: stream.take(bytes, writer)?, stream: stream.clone(), writer })
    }

    /// A copy of `bytes`.
    pub(super) fn upload(stream: &Arc<Stream>, bytes: &[u8]) -> Result<Self> {
        let taken = Self::of(stream, bytes.len(), Writer::Host)?;
        let (start, at) = (taken.region.buffer.start().as_ptr(), taken.region.bytes.start);
        // SAFETY: the region has at least so many bytes, belongs to us alone, and the device is done with what it was before
        unsafe { start.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(taken)
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.stream.give_back(self.region.clone(), self.writer);
    }
}

/// f32 values in a region, or in a buffer of their own.
#[derive(Debug)]
pub(super) struct Values {
    stream: Arc<Stream>,
    region: Region,
    // keeps the region from being taken again; none for a buffer of its own
    _taken: Option<Taken>,
}

impl Values {
    pub(super) fn scratch(stream: &Arc<Stream>, len: usize) -> Result<Self> {
        Self::taken(stream, len, Writer::Device)
    }

    /// `len` unspecified values, for `writer` to write.
    pub(super) fn taken(stream: &Arc<Stream>, len: usize, writer: Writer) -> Result<Self> {
        Ok(Self::of(stream, Taken::of(stream, len * 4, writer)?, len))
    }

    pub(super) fn upload(stream: &Arc<Stream>, values: &[f32]) -> Result<Self> {
        Ok(Self::of(stream, Taken::upload(stream, bytemuck::cast_slice(values))?, values.len()))
    }

    fn of(stream: &Arc<Stream>, taken: Taken, len: usize) -> Self {
        // what is touched is what has values: regions are larger
        let start = taken.region.bytes.start;
        let region = Region { buffer: taken.region.buffer.clone(), bytes: start..start + len * 4 };
        Self { stream: stream.clone(), region, _taken: Some(taken) }
    }

    /// `len` zeros in a buffer of their own.
    pub(super) fn zeros(stream: &Arc<Stream>, len: usize) -> Result<Self> {
        let buffer = Arc::new(stream.device().allocate((len * 4).max(4))?);
        Ok(Self { stream: stream.clone(), region: Region { buffer, bytes: 0..len * 4 }, _taken: None })
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    fn len(&self) -> usize {
        self.region.bytes.len() / 4
    }

    fn start(&self) -> *mut f32 {
        // what has failed is said by `finish`
        let _ = self.stream.finish();
        // SAFETY: the region lies in the buffer
        unsafe { self.region.buffer.start().as_ptr().add(self.region.bytes.start).cast() }
    }
}

impl DeviceMemory for Values {
    fn values(&self) -> &[f32] {
        // SAFETY: so many values that the device has written or zeroed, and that it does not write while they are borrowed
        unsafe { std::slice::from_raw_parts(self.start(), self.len()) }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and nobody else has this region
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len()) }
    }
}

/// The region of `memory`, if it is a device's.
pub(super) fn region_of(memory: &Memory) -> Option<&Region> {
    let Memory::Device(memory) = memory else { return None };
    (&**memory as &dyn Any).downcast_ref::<Values>().map(Values::region)
}

/// A tensor as an argument: where it is, or a copy of it.
#[derive(Debug)]
pub(super) enum Operand<'a> {
    There(&'a Region),
    Copied(Values),
}

impl std::ops::Deref for Operand<'_> {
    type Target = Region;

    fn deref(&self) -> &Region {
        match self {
            Self::There(region) => region,
            Self::Copied(values) => values.region(),
        }
    }
}

/// Constants and weights that a device has, by where the host has them. The host's are kept, so an address tells them apart.
#[derive(Debug, Default)]
pub(super) struct Residents {
    constants: Mutex<HashMap<usize, (Constant, Arc<Values>)>>,
    weights: Mutex<HashMap<Place, (Runs, Resident)>>,
}

/// Where runs lie: the address of the first, bytes of each, from one to the next, and of all.
type Place = (usize, usize, usize, usize);

/// A part of a weight where kernels see it, its runs one behind the other.
#[derive(Debug, Clone)]
pub(super) struct Resident {
    pub(super) region: Region,
    pub(super) copied: bool,
}

impl Residents {
    /// The device's copy of `constant`.
    pub(super) fn constant(&self, stream: &Arc<Stream>, constant: &Constant) -> Result<Arc<Values>> {
        let mut constants = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, values)) = constants.get(&constant.identity()) {
            return Ok(values.clone());
        }
        let values = Arc::new(Values::upload(stream, constant)?);
        constants.insert(constant.identity(), (constant.clone(), values.clone()));
        Ok(values)
    }

    /// `runs` where the device sees them, and nothing else but for the rest of their pages: the host's own, unless something
    /// lies between them, or they do not start at a multiple of `align`.
    pub(super) fn weights(&self, stream: &Arc<Stream>, runs: &Runs, align: usize) -> Result<Resident> {
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        let at = runs.span().as_ptr().addr();
        let place = (at, runs.run(), runs.every(), runs.bytes());
        if let Some((_, resident)) = weights.get(&place) {
            return Ok(resident.clone());
        }
        let copied = !runs.are_one() || !at.is_multiple_of(align);
        let (buffer, start) = match copied {
            true => (stream.device().constant(runs.bytes(), &mut |to| runs.copy_to(to))?, 0),
            false => stream.device().adopt(runs.span())?,
        };
        let region = Region { buffer: Arc::new(buffer), bytes: start..start + runs.bytes() };
        let resident = Resident { region, copied };
        weights.insert(place, (runs.clone(), resident.clone()));
        Ok(resident)
    }
}

/// A buffer of unspecified values: NaN in a debug build, so that what is read before it is written shows.
pub(super) fn unspecified(device: &dyn Device, bytes: usize) -> Result<Buffer> {
    let buffer = device.allocate(bytes)?;
    if cfg!(debug_assertions) {
        // SAFETY: the buffer has so many bytes, and nobody knows it yet
        unsafe { buffer.start().as_ptr().write_bytes(0xff, bytes) };
    }
    Ok(buffer)
}

/// A tensor over `values`, `[rows, cols]`.
pub(super) fn tensor(rows: usize, cols: usize, values: Values) -> Tensor {
    Tensor::within(rows, cols, Memory::Device(Box::new(values)))
}
