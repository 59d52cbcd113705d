//! Mixture of SwiGLU experts, cut by columns like any feed-forward layer: every rank works on every chosen expert.

use std::ops::Range;

use super::linear::all_reduce;
use super::{ColumnLinear, Context, FeedForward, Loader, RowLinear};
use crate::backend::{ExpertWeights, Experts, SharedExpert, Tensor};
use crate::error::Result;
use crate::partition::{Fold, Leaves, MAX_LEAVES};
use crate::weights::Matrix;

/// The shape of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct MoeConfig {
    /// Features of the residual stream.
    pub hidden: usize,
    /// Experts to choose from.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Columns of an expert.
    pub inner: usize,
    /// Columns of the shared expert, if there is one.
    pub shared_inner: Option<usize>,
    /// Weights of the chosen experts are scaled to sum to one.
    pub normalise: bool,
}

#[derive(Debug)]
struct Shared {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    fold: Fold,
    // its sigmoid weighs the shared expert
    weight: ColumnLinear,
}

/// A router and its experts.
#[derive(Debug)]
pub struct Moe {
    config: MoeConfig,
    router: ColumnLinear,
    routed: ExpertWeights,
    fold: Fold,
    shared: Option<Shared>,
}

impl Moe {
    /// Loads `<prefix>.gate`, `<prefix>.experts` (fused or one by one), and the shared expert with its gate.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: MoeConfig) -> Result<Self> {
        let MoeConfig { hidden, experts, inner, shared_inner, .. } = config;
        // the shared expert joins the routed ones leaf by leaf, so both are cut into as many leaves
        let units = |inner: usize| inner.div_ceil(RowLinear::COLUMNS);
        let parts = shared_inner.map_or(MAX_LEAVES, |shared| units(shared).min(units(inner)).min(MAX_LEAVES));
        let fold = |inner| loader.group().fold(Leaves::into_parts(inner, RowLinear::COLUMNS, parts));
        let shared = shared_inner.map(|inner| -> Result<Shared> {
            let fold = fold(inner);
            let [gate, up, down] = swiglu_weights(loader, &format!("{prefix}.shared_expert"), hidden, &fold)?;
            let weight = ColumnLinear::replicated(loader, &format!("{prefix}.shared_expert_gate"), 1, hidden)?;
            Ok(Shared { gate, up, down, fold, weight })
        });
        let fold = fold(inner);
        Ok(Self {
            config,
            router: ColumnLinear::replicated(loader, &format!("{prefix}.gate"), experts, hidden)?,
            routed: load_experts(loader, prefix, &config, &fold)?,
            fold,
            shared: shared.transpose()?,
        })
    }
}

/// Gate, up and down of one expert: the columns of `fold`.
fn swiglu_weights(loader: &Loader<'_>, prefix: &str, hidden: usize, fold: &Fold) -> Result<[Matrix; 3]> {
    let (inner, own) = (fold.leaves.len(), fold.columns());
    let rows = |name: &str| loader.part(&format!("{prefix}.{name}.weight"), &[inner, hidden], own.clone(), 0..hidden);
    let (gate, up) = (rows("gate_proj")?, rows("up_proj")?);
    let down = loader.part(&format!("{prefix}.down_proj.weight"), &[hidden, inner], 0..hidden, own.clone())?;
    Ok([gate, up, down])
}

/// The experts below `prefix`, which a checkpoint has in one of three ways: gate and up fused and all stacked, stacked
/// one by one (`switch_mlp`, MLX), or a module each.
fn load_experts(loader: &Loader<'_>, prefix: &str, config: &MoeConfig, fold: &Fold) -> Result<ExpertWeights> {
    let MoeConfig { hidden, experts, inner, .. } = *config;
    let (fused, stacked) = (format!("{prefix}.experts.gate_up_proj"), format!("{prefix}.switch_mlp"));
    let is_stacked = loader.has(&format!("{stacked}.gate_proj.weight"));
    let mut weights = ExpertWeights::default();
    for expert in 0..experts {
        let own = fold.columns();
        let entry = |name: &str, shape: [usize; 2], rows: Range<usize>, columns: Range<usize>| {
            let first = expert * shape[0];
            loader.part(name, &[experts, shape[0], shape[1]], first + rows.start..first + rows.end, columns)
        };
        let rows = |name: &str, all: usize, of: Range<usize>| entry(name, [all, hidden], of, 0..hidden);
        let columns = |name: &str| entry(name, [hidden, inner], 0..hidden, own.clone());
        let [gate, up, down] = if loader.has(&fused) {
            let after = inner + own.start..inner + own.end;
            let down = format!("{prefix}.experts.down_proj");
            [rows(&fused, 2 * inner, own.clone())?, rows(&fused, 2 * inner, after)?, columns(&down)?]
        } else if is_stacked {
            let name = |kind: &str| format!("{stacked}.{kind}_proj.weight");
            [rows(&name("gate"), inner, own.clone())?, rows(&name("up"), inner, own.clone())?, columns(&name("down"))?]
        } else {
            swiglu_weights(loader, &format!("{prefix}.experts.{expert}"), hidden, fold)?
        };
        weights.gate.push(gate);
        weights.up.push(up);
        weights.down.push(down);
    }
    Ok(weights)
}

impl FeedForward for Moe {
    fn forward(&self, x: &Tensor, cx: &mut Context<'_>) -> Result<Tensor> {
        let logits = self.router.forward(x, cx)?;
        let routes = cx.backend.route(&logits, self.config.top_k, self.config.normalise);
        let shared = match &self.shared {
            None => None,
            Some(shared) => Some(SharedExpert {
                gate: &shared.gate,
                up: &shared.up,
                down: &shared.down,
                fold: &shared.fold,
                weights: Some(shared.weight.forward(x, cx)?),
            }),
        };
        let experts = Experts { routed: &self.routed, fold: &self.fold, shared };
        let partial = cx.backend.experts(x, &routes, &experts)?;
        all_reduce(partial, &self.fold, (x.rows(), x.cols()), cx)
    }
}
