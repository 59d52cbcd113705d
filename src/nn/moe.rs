//! Mixture of SwiGLU experts, cut by columns like any feed-forward layer: every rank works on every chosen expert.

use std::ops::Range;
use std::sync::Arc;

use super::exchange::all_reduce;
use super::{ColumnLinear, Context, FeedForward, Loader, RowLinear};
use crate::backend::{Constant, ExpertWeights, Experts, Router, Scores, SharedExpert, Tensor};
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
    /// What an expert's gate, up and down projections are called.
    pub projections: [&'static str; 3],
    /// The expert that every row uses, if there is one.
    pub shared: Option<SharedConfig>,
    /// How experts are chosen.
    pub routing: Routing,
    /// Weights of the chosen experts are scaled to sum to one.
    pub normalise: bool,
    /// What they are multiplied by then.
    pub scale: f32,
}

impl MoeConfig {
    /// The projections of most architectures.
    pub const PROJECTIONS: [&'static str; 3] = ["gate_proj", "up_proj", "down_proj"];
}

/// The expert that every row uses.
#[derive(Debug, Clone, Copy)]
pub struct SharedConfig {
    /// Its module.
    pub name: &'static str,
    /// Its columns.
    pub inner: usize,
    /// The module whose sigmoid weighs it, if it is weighed.
    pub gate: Option<&'static str>,
}

/// How a router chooses.
#[derive(Debug, Clone, Copy)]
pub enum Routing {
    /// By a softmax over all experts.
    Softmax,
    /// By sigmoids and a learnt bias, among the best groups (DeepSeek-V3, arXiv 2412.19437).
    Sigmoid {
        /// Groups of experts.
        groups: usize,
        /// Groups that a row may choose from.
        top_groups: usize,
    },
}

#[derive(Debug)]
struct Shared {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    fold: Fold,
    // its sigmoid weighs the shared expert
    weight: Option<ColumnLinear>,
}

/// A router and its experts.
#[derive(Debug)]
pub struct Moe {
    config: MoeConfig,
    router: ColumnLinear,
    // one an expert where the router has them
    bias: Constant,
    routed: ExpertWeights,
    fold: Arc<Fold>,
    shared: Option<Shared>,
}

impl Moe {
    /// Loads `<prefix>.gate`, `<prefix>.experts` (fused or one by one), and the shared expert with its gate.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: MoeConfig) -> Result<Self> {
        let MoeConfig { hidden, experts, inner, .. } = config;
        // the shared expert joins the routed ones leaf by leaf, so both are cut into as many leaves
        let units = |inner: usize| inner.div_ceil(RowLinear::COLUMNS);
        let parts = config.shared.map_or(MAX_LEAVES, |shared| units(shared.inner).min(units(inner)).min(MAX_LEAVES));
        let fold = |inner| loader.group().fold(Leaves::into_parts(inner, RowLinear::COLUMNS, parts));
        let shared = config.shared.map(|SharedConfig { name, inner, gate }| -> Result<Shared> {
            let fold = fold(inner);
            let at = format!("{prefix}.{name}");
            let [gate_proj, up, down] = swiglu_weights(loader, &at, MoeConfig::PROJECTIONS, hidden, &fold)?;
            let weight = gate.map(|gate| ColumnLinear::replicated(loader, &format!("{prefix}.{gate}"), 1, hidden));
            Ok(Shared { gate: gate_proj, up, down, fold, weight: weight.transpose()? })
        });
        let bias = match config.routing {
            Routing::Softmax => Constant::default(),
            Routing::Sigmoid { .. } => {
                loader.values(&format!("{prefix}.gate.e_score_correction_bias"), &[experts])?.into()
            }
        };
        let fold = fold(inner);
        Ok(Self {
            config,
            router: ColumnLinear::replicated(loader, &format!("{prefix}.gate"), experts, hidden)?,
            bias,
            routed: load_experts(loader, prefix, &config, &fold)?,
            fold: fold.into(),
            shared: shared.transpose()?,
        })
    }

    fn router(&self) -> Router<'_> {
        let MoeConfig { top_k, normalise, scale, routing, .. } = self.config;
        let scores = match routing {
            Routing::Softmax => Scores::Softmax,
            Routing::Sigmoid { groups, top_groups } => Scores::Sigmoid { bias: &self.bias, groups, top_groups },
        };
        Router { scores, top_k, normalise, scale }
    }
}

/// Gate, up and down of one expert: the columns of `fold`.
fn swiglu_weights(
    loader: &Loader<'_>,
    prefix: &str,
    [gate, up, down]: [&str; 3],
    hidden: usize,
    fold: &Fold,
) -> Result<[Matrix; 3]> {
    let (inner, own) = (fold.leaves.len(), fold.columns());
    let rows = |name: &str| loader.part(&format!("{prefix}.{name}.weight"), &[inner, hidden], own.clone(), 0..hidden);
    let (gate, up) = (rows(gate)?, rows(up)?);
    let down = loader.part(&format!("{prefix}.{down}.weight"), &[hidden, inner], 0..hidden, own.clone())?;
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
            swiglu_weights(loader, &format!("{prefix}.experts.{expert}"), config.projections, hidden, fold)?
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
        let routes = cx.backend.route(&logits, &self.router());
        let shared = match &self.shared {
            None => None,
            Some(shared) => Some(SharedExpert {
                gate: &shared.gate,
                up: &shared.up,
                down: &shared.down,
                fold: &shared.fold,
                weights: shared.weight.as_ref().map(|weight| weight.forward(x, cx)).transpose()?,
            }),
        };
        let experts = Experts { routed: &self.routed, fold: &self.fold, shared };
        let partial = cx.backend.experts(x, &routes, &experts)?;
        all_reduce(partial, &self.fold, (x.rows(), x.cols()), cx)
    }
}
