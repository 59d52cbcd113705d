//! A sum over ranks between a device and the host.

use std::fmt;

use super::Tensor;
use crate::error::Result;

/// A partial sum that was handed over for its sum.
#[derive(Debug)]
pub enum Exchange {
    /// The host has it, and hands the sum over as any tensor.
    Here(Tensor),
    /// What the sum will be, and its way there.
    Posted(Tensor, Box<dyn Crossing>),
}

/// A partial sum on its way to the host, and the sum on its way back. Crossings are served in the order in which they were
/// posted; dropping one that has no answer gives the device's work up.
pub trait Crossing: fmt::Debug + Send {
    /// Waits for the partial sum and shows it; beside it, where its sum is to be written.
    ///
    /// # Errors
    /// If the device has failed, or an earlier crossing has no answer.
    fn arrive(&mut self) -> Result<(&[f32], &mut [f32])>;

    /// The sum is written, and the device goes on with it.
    ///
    /// # Errors
    /// If the device has failed.
    fn answer(self: Box<Self>) -> Result<()>;
}
