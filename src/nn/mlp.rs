//! The dense SwiGLU feed-forward layer.

use super::{ColumnLinear, Context, FeedForward, Loader, RowLinear};
use crate::backend::Tensor;
use crate::error::Result;
use crate::partition::Leaves;

/// down(silu(gate x) · up x).
#[derive(Debug)]
pub struct Mlp {
    gate: ColumnLinear,
    up: ColumnLinear,
    down: RowLinear,
}

impl Mlp {
    /// Loads `<prefix>.{gate,up,down}_proj`.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, hidden: usize, inner: usize) -> Result<Self> {
        let fold = loader.group().fold(Leaves::of_units(inner, RowLinear::COLUMNS));
        let column = |name: &str| {
            ColumnLinear::load(loader, &format!("{prefix}.{name}"), (inner, hidden), &[fold.columns()], false)
        };
        Ok(Self {
            gate: column("gate_proj")?,
            up: column("up_proj")?,
            down: RowLinear::load(loader, &format!("{prefix}.down_proj"), hidden, fold)?,
        })
    }
}

impl FeedForward for Mlp {
    fn forward(&self, x: &Tensor, cx: &mut Context<'_>) -> Result<Tensor> {
        let [gate, up] = ColumnLinear::forward_all([&self.gate, &self.up], x, cx)?;
        self.down.forward(&cx.backend.swiglu(gate, &up), cx)
    }
}
