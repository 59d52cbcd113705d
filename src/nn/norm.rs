//! RMSNorm, with weights stored around one or around zero.

use super::{Context, Loader};
use crate::backend::{Constant, Tensor};
use crate::error::Result;

/// What a norm's stored weight is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centre {
    /// The stored value multiplies.
    Zero,
    /// One plus the stored value multiplies.
    One,
}

/// x · rsqrt(mean x² + eps) · weight over runs of the weight's length.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Constant,
    eps: f32,
}

impl RmsNorm {
    /// Loads `name`, `[len]`.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn load(loader: &Loader<'_>, name: &str, len: usize, eps: f32, centre: Centre) -> Result<Self> {
        let mut weight = loader.values(name, &[len])?;
        if centre == Centre::One && !loader.norms_hold_one() {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(Self { weight: weight.into(), eps })
    }

    /// Normalises every run.
    pub fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Tensor {
        cx.backend.rms_norm(x, &self.weight, self.eps)
    }

    /// Adds `added` to `x`, and normalises every run of that.
    pub fn forward_added(&self, x: &mut Tensor, added: &Tensor, cx: &Context<'_>) -> Tensor {
        cx.backend.add_rms_norm(x, added, &self.weight, self.eps)
    }

    /// Normalises every run, then multiplies by silu(gate).
    pub fn forward_gated(&self, x: &Tensor, gate: &Tensor, cx: &Context<'_>) -> Tensor {
        cx.backend.rms_norm_gated(x, gate, &self.weight, self.eps)
    }
}
