//! Linear layers cut by output features (column-parallel) or by input features (row-parallel).

use super::{Context, Loader};
use crate::backend::Tensor;
use crate::error::Result;
use crate::partition::{Fold, Leaves};
use crate::weights::Matrix;

/// `x · Wᵀ + b`, `W` cut along dimension 0: every rank computes its own output features and nothing is exchanged.
#[derive(Debug)]
pub struct ColumnLinear {
    weight: Matrix,
    bias: Option<Tensor>,
    fold: Fold,
}

impl ColumnLinear {
    /// Loads `<prefix>.weight`, `[out_features, in_features]`, and `<prefix>.bias` if `bias`.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen.
    pub fn load(
        loader: &Loader<'_>,
        prefix: &str,
        out_features: usize,
        in_features: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = loader.matrix(&format!("{prefix}.weight"), out_features, in_features)?;
        let bias = bias
            .then(|| Tensor::from_vec(1, out_features, loader.values(&format!("{prefix}.bias"), &[out_features])?))
            .transpose()?;
        Ok(Self::of(weight, bias))
    }

    /// Wraps a matrix that is loaded already.
    pub fn of(weight: Matrix, bias: Option<Tensor>) -> Self {
        let fold = Fold::whole(Leaves::unsharded(weight.in_features()));
        Self { weight, bias, fold }
    }

    /// `[rows, in]` → `[rows, out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        let mut y = cx.backend.linear(x, &self.weight, &self.fold)?;
        if let Some(bias) = &self.bias {
            cx.backend.add(&mut y, bias);
        }
        Ok(y)
    }
}

/// `x · Wᵀ`, `W` cut along dimension 1 at whole units: every rank sums its own input features, all_reduce the rest.
#[derive(Debug)]
pub struct RowLinear {
    weight: Matrix,
    fold: Fold,
}

impl RowLinear {
    /// Columns of a unit of a feed-forward layer: a block of FP8, or as much for any other format.
    pub const COLUMNS: usize = 128;

    /// Loads `<prefix>.weight`, `[out_features, in_features]`; `unit` columns are never cut (a head, 128 columns).
    ///
    /// # Errors
    /// If the tensor is missing or misshapen.
    pub fn load(
        loader: &Loader<'_>,
        prefix: &str,
        out_features: usize,
        in_features: usize,
        unit: usize,
    ) -> Result<Self> {
        let weight = loader.matrix(&format!("{prefix}.weight"), out_features, in_features)?;
        Ok(Self { weight, fold: Fold::whole(Leaves::of_units(in_features, unit)) })
    }

    /// `[rows, in]` → `[rows, out]`, whole on every rank.
    ///
    /// # Errors
    /// If the shapes do not fit or a rank is lost.
    pub fn forward(&self, x: &Tensor, cx: &mut Context<'_>) -> Result<Tensor> {
        let partial = cx.backend.linear(x, &self.weight, &self.fold)?;
        all_reduce(partial, &self.fold, x.rows(), cx)
    }
}

/// Finishes the tree over the subtrees in `partial`.
pub(super) fn all_reduce(mut partial: Tensor, fold: &Fold, rows: usize, cx: &mut Context<'_>) -> Result<Tensor> {
    cx.comm.all_reduce(fold, partial.data_mut())?;
    partial.truncate_rows(rows);
    Ok(partial)
}
