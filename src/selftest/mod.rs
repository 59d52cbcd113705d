//! Every operation of a backend against the CPU's, on operands that are the same everywhere.

mod cases;
mod fence;
mod measure;
mod operands;

pub use cases::{Case, all};
pub use fence::{Crossings, crossings, exchanges};
pub use measure::{bandwidth, crossing};

use crate::backend::Backend;
use crate::error::{Error, Result};

/// How far a backend's results were from the CPU's.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// The largest, as a part of the largest result (of one, if that is less).
    pub largest: f32,
    /// Results that were compared.
    pub values: usize,
}

impl Case {
    /// Computes it on both.
    ///
    /// # Errors
    /// If one of them fails, the results are not as many, or too far apart; it says where.
    pub fn compare(&self, backend: &dyn Backend, cpu: &dyn Backend) -> Result<Difference> {
        let (theirs, ours) = ((self.run)(cpu)?, (self.run)(backend)?);
        backend.finish()?;
        if ours.len() != theirs.len() {
            return Err(Error::msg(format!("{}: {} results where there are {}", self.name, ours.len(), theirs.len())));
        }
        let scale = theirs.iter().fold(1.0f32, |most, value| most.max(value.abs()));
        let mut largest = 0.0f32;
        for (at, (our, their)) in ours.iter().zip(&theirs).enumerate() {
            let difference = (our - their).abs() / scale;
            let equal = our.to_bits() == their.to_bits();
            if !equal && (difference.is_nan() || difference > self.tolerance) {
                let error = format!("{}: result {at} is {our:e}, the CPU's is {their:e}", self.name);
                let hint = format!("they may differ by {:e}", self.tolerance * scale);
                return Err(Error::msg(error).hint(hint));
            }
            largest = largest.max(if equal { 0.0 } else { difference });
        }
        Ok(Difference { largest, values: ours.len() })
    }
}
