//! all_reduce between a device and the ranks: while the ranks sum, the device already has what comes after.

use std::sync::Arc;

use super::Context;
use crate::backend::{Crossing, Exchange, Tensor};
use crate::comm::Place;
use crate::error::Result;
use crate::partition::Fold;

/// A sum over ranks that the device was promised.
#[derive(Debug)]
pub(super) struct Promised {
    crossing: Box<dyn Crossing>,
    fold: Arc<Fold>,
    // where in the model it was asked for
    place: Place,
}

/// Finishes the tree over the subtrees in `partial`: a tensor of `shape`, `[rows, out]`.
///
/// # Errors
/// If the device has failed or a rank is lost, which may be found out in the sum before.
pub(super) fn all_reduce(
    partial: Tensor,
    fold: &Arc<Fold>,
    shape: (usize, usize),
    cx: &mut Context<'_>,
) -> Result<Tensor> {
    if fold.is_whole() {
        // nothing is left to add
        return Ok(partial);
    }
    match cx.backend.post(partial, shape)? {
        Exchange::Here(partial) => {
            let mut sum = Tensor::scratch(shape.0, shape.1);
            cx.ranks.stage.reduce_tree_into(fold, partial.data(), sum.data_mut())?;
            Ok(cx.backend.upload(sum))
        }
        Exchange::Posted(sum, crossing) => {
            let promised = Promised { crossing, fold: fold.clone(), place: cx.place };
            // the device is on its way to this one while the ranks sum the one before
            if let Some(before) = cx.promised.replace(promised) {
                cx.keep(before)?;
            }
            Ok(sum)
        }
    }
}

impl Context<'_> {
    /// Says where in the model this rank is, for errors.
    pub(super) fn at(&mut self, place: Place) {
        self.place = place;
        self.ranks.at(place);
    }

    /// Waits until everything that was asked for has run: then the host may look at tensors.
    ///
    /// # Errors
    /// If the device has failed or a rank is lost.
    pub(super) fn finish(&mut self) -> Result<()> {
        if let Some(promised) = self.promised.take() {
            self.keep(promised)?;
        }
        self.backend.finish()
    }

    /// Sums what was promised. All ranks do so in the same order.
    fn keep(&mut self, promised: Promised) -> Result<()> {
        let Promised { mut crossing, fold, place } = promised;
        self.ranks.at(place);
        let (partial, sum) = crossing.arrive()?;
        self.ranks.stage.reduce_tree_into(&fold, partial, sum)?;
        self.ranks.at(self.place);
        crossing.answer()
    }
}
