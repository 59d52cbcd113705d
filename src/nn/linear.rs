//! Linear layers cut by output features (column-parallel) or by input features (row-parallel).

use std::ops::Range;
use std::sync::Arc;

use super::exchange::all_reduce;
use super::{Context, Loader};
use crate::backend::{Constant, Tensor};
use crate::error::{Error, Result};
use crate::partition::{Fold, Leaves};
use crate::weights::Matrix;

/// `x · Wᵀ + b`, `W` cut along dimension 0: every rank computes its own output features and nothing is exchanged.
#[derive(Debug)]
pub struct ColumnLinear {
    // one below the other
    parts: Vec<Matrix>,
    bias: Option<Constant>,
    fold: Fold,
}

impl ColumnLinear {
    /// Loads the rows `own` of `<prefix>.weight`, `[out_features, in_features]`, and of `<prefix>.bias` if `bias`.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen.
    pub fn load(
        loader: &Loader<'_>,
        prefix: &str,
        (out_features, in_features): (usize, usize),
        own: &[Range<usize>],
        bias: bool,
    ) -> Result<Self> {
        let own = joined(own);
        let name = format!("{prefix}.weight");
        let shape = [out_features, in_features];
        let part = |rows: &Range<usize>| loader.part(&name, &shape, rows.clone(), 0..in_features);
        let parts: Result<Vec<Matrix>> = own.iter().map(part).collect();
        let bias = bias.then(|| {
            let all = loader.values(&format!("{prefix}.bias"), &[out_features])?;
            Ok::<_, Error>(Constant::from(
                own.iter().flat_map(|rows| &all[rows.clone()]).copied().collect::<Vec<f32>>(),
            ))
        });
        Ok(Self { parts: parts?, bias: bias.transpose()?, fold: Fold::whole(Leaves::unsharded(in_features)) })
    }

    /// As [`ColumnLinear::load`], the same rows on every rank: all of them.
    ///
    /// # Errors
    /// As [`ColumnLinear::load`].
    pub fn replicated(loader: &Loader<'_>, prefix: &str, out_features: usize, in_features: usize) -> Result<Self> {
        Self::load(loader, prefix, (out_features, in_features), std::slice::from_ref(&(0..out_features)), false)
    }

    /// Wraps a matrix that is loaded already.
    pub fn of(weight: Matrix) -> Self {
        let fold = Fold::whole(Leaves::unsharded(weight.in_features()));
        Self { parts: vec![weight], bias: None, fold }
    }

    /// `[rows, in]` → `[rows, out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        let [y] = Self::forward_all([self], x, cx)?;
        Ok(y)
    }

    /// Several layers over the same input, whose work is shared out at once.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: &Tensor, cx: &Context<'_>) -> Result<[Tensor; N]> {
        let parts: Vec<&Matrix> = layers.iter().flat_map(|layer| &layer.parts).collect();
        let mut products = cx.backend.linears(x, &parts, &layers[0].fold)?.into_iter();
        Ok(layers.map(|layer| {
            let own: Vec<Tensor> = products.by_ref().take(layer.parts.len()).collect();
            let mut y = match <[Tensor; 1]>::try_from(own) {
                Ok([one]) => one,
                Err(parts) => Tensor::beside(cx.backend, x.rows(), &parts.iter().collect::<Vec<_>>()),
            };
            if let Some(bias) = &layer.bias {
                cx.backend.add_bias(&mut y, bias);
            }
            y
        }))
    }
}

/// Runs that follow each other become one; empty ones go, but for the last.
fn joined(runs: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for run in runs.iter().filter(|run| !run.is_empty()) {
        match out.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => out.push(run.clone()),
        }
    }
    if out.is_empty() {
        out.push(0..0);
    }
    out
}

/// `x · Wᵀ`, `W` cut along dimension 1 at whole units: every rank sums its own input features, all_reduce the rest.
#[derive(Debug)]
pub struct RowLinear {
    weight: Matrix,
    fold: Arc<Fold>,
}

impl RowLinear {
    /// Columns of a unit of a feed-forward layer: a block of FP8, or as much for any other format.
    pub const COLUMNS: usize = 128;

    /// Loads the columns of `fold` of `<prefix>.weight`, `[out_features, in_features]`.
    ///
    /// # Errors
    /// If the tensor is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, out_features: usize, fold: Fold) -> Result<Self> {
        let shape = [out_features, fold.leaves.len()];
        let weight = loader.part(&format!("{prefix}.weight"), &shape, 0..out_features, fold.columns())?;
        Ok(Self { weight, fold: fold.into() })
    }

    /// `[rows, in]` → `[rows, out]`, whole on every rank.
    ///
    /// # Errors
    /// If the shapes do not fit or a rank is lost.
    pub fn forward(&self, x: &Tensor, cx: &mut Context<'_>) -> Result<Tensor> {
        let partial = cx.backend.linear(x, &self.weight, &self.fold)?;
        all_reduce(partial, &self.fold, (x.rows(), self.weight.out_features()), cx)
    }
}
