//! f32 values that the host can see, in its own memory or in a device's.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::Lines;
use crate::error::{Error, Result};

/// Values that a backend reads and writes.
#[derive(Debug)]
pub enum Memory {
    /// In the host's own memory.
    Host(Lines),
    /// In memory of a device: the host looks at them after what the device was asked to do has run.
    Device(Box<dyn DeviceMemory>),
}

/// Values in memory of a device.
pub trait DeviceMemory: Any + fmt::Debug + Send + Sync {
    /// Waits for the device, then shows the values.
    fn values(&self) -> &[f32];

    /// As [`DeviceMemory::values`], to be changed.
    fn values_mut(&mut self) -> &mut [f32];
}

impl Memory {
    /// `len` zeros in the host's memory, which they cost only once they are written. A failed allocation aborts, so a
    /// reservation is tried first.
    ///
    /// # Errors
    /// If there is no room for them.
    pub(super) fn zeros(len: usize) -> Result<Self> {
        let room = Lines::room(len);
        match Vec::<f32>::new().try_reserve_exact(room) {
            Ok(()) => Ok(Self::Host(Lines::within(vec![0.0; room], len))),
            Err(_) => Err(no_room()),
        }
    }
}

/// What is said where the state of a sequence finds no room.
pub(super) fn no_room() -> Error {
    Error::msg("there is no memory for the state of so many positions").hint("lower --ctx")
}

impl Deref for Memory {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Host(values) => values,
            Self::Device(memory) => memory.values(),
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Host(values) => values,
            Self::Device(memory) => memory.values_mut(),
        }
    }
}

/// Values of a model that never change: a device keeps its copy of them.
#[derive(Debug, Clone, Default)]
pub struct Constant(Arc<[f32]>);

impl Constant {
    /// Tells it from others as long as it lives.
    pub(super) fn identity(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

impl From<Vec<f32>> for Constant {
    fn from(values: Vec<f32>) -> Self {
        Self(values.into())
    }
}

impl Deref for Constant {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}
