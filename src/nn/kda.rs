//! Kimi Delta Attention (arXiv 2510.26692): a gated delta net whose state decays channel by channel.

use super::{Centre, ColumnLinear, Context, Loader, Mixer, RmsNorm, RowLinear};
use crate::backend::{Backend, Constant, DeltaShape, DeltaStore, HeadGroups, KvType, LayerState, Tensor};
use crate::error::{Error, Result};
use crate::partition::Leaves;

/// The shape of a Kimi Delta Attention.
#[derive(Debug, Clone, Copy)]
pub struct KdaConfig {
    /// Features of the residual stream.
    pub hidden: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a query, a key or a value: a multiple of 16.
    pub head_dim: usize,
    /// Inputs that the convolutions see, the current one among them.
    pub kernel: usize,
    /// Epsilon of the norm of the output.
    pub eps: f32,
}

/// Convolutions, delta rule, norm, gate, output projection.
#[derive(Debug)]
pub struct KimiDeltaAttention {
    // this rank's heads
    own: DeltaShape,
    q: ColumnLinear,
    k: ColumnLinear,
    v: ColumnLinear,
    // [taps + 1, q | k | v]
    conv: Constant,
    taps: usize,
    decay: LowRank,
    beta: ColumnLinear,
    gate: LowRank,
    // one a channel, as `dt_bias`
    a_log: Constant,
    dt_bias: Constant,
    norm: RmsNorm,
    out: RowLinear,
}

/// A projection in two steps, the first of them whole on every rank.
#[derive(Debug)]
struct LowRank {
    a: ColumnLinear,
    b: ColumnLinear,
}

impl KimiDeltaAttention {
    /// Loads this rank's heads of the tensors under `<prefix>.`.
    ///
    /// # Errors
    /// If one is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: KdaConfig) -> Result<Self> {
        let KdaConfig { hidden, heads, head_dim, kernel, eps } = config;
        let (name, width) = (|name: &str| format!("{prefix}.{name}"), heads * head_dim);
        let unit = loader.unit(&name("o_proj.weight"), (hidden, width), head_dim)?;
        let fold = loader.group().fold(Leaves::of_units(width, unit));
        let columns = fold.columns();
        let own = columns.start / head_dim..columns.end / head_dim;
        let column = |module: &str, inner: usize| {
            ColumnLinear::load(loader, &name(module), (width, inner), std::slice::from_ref(&columns), false)
        };
        let low_rank = |a: &str, b: &str| -> Result<LowRank> {
            Ok(LowRank { a: ColumnLinear::replicated(loader, &name(a), head_dim, hidden)?, b: column(b, head_dim)? })
        };
        let stored = |module: &str| loader.values(&name(&format!("{module}.weight")), &[width, 1, kernel]);
        let stored = [stored("q_conv1d")?, stored("k_conv1d")?, stored("v_conv1d")?];
        let mut conv = Tensor::zeros(kernel, 3 * columns.len());
        for (part, stored) in stored.iter().enumerate() {
            for (channel, at) in columns.clone().enumerate() {
                for (tap, weight) in stored[at * kernel..][..kernel].iter().enumerate() {
                    conv.row_mut(tap)[part * columns.len() + channel] = *weight;
                }
            }
        }
        let per_head = loader.values(&name("A_log"), &[1, 1, heads, 1])?;
        let a_log: Vec<f32> =
            per_head[own.clone()].iter().flat_map(|a_log| std::iter::repeat_n(*a_log, head_dim)).collect();
        let whole = HeadGroups::whole(heads, heads);
        Ok(Self {
            own: DeltaShape { heads: whole.run(own.clone()), key_dim: head_dim, value_dim: head_dim },
            q: column("q_proj", hidden)?,
            k: column("k_proj", hidden)?,
            v: column("v_proj", hidden)?,
            conv: conv.into_vec().into(),
            taps: kernel - 1,
            decay: low_rank("f_a_proj", "f_b_proj")?,
            beta: ColumnLinear::load(loader, &name("b_proj"), (heads, hidden), &[own], false)?,
            gate: low_rank("g_a_proj", "g_b_proj")?,
            a_log: Constant::from(a_log),
            dt_bias: loader.values(&name("dt_bias"), &[width])?[columns.clone()].to_vec().into(),
            norm: RmsNorm::load(loader, &name("o_norm.weight"), head_dim, eps, Centre::Zero)?,
            out: RowLinear::load(loader, &name("o_proj"), hidden, fold)?,
        })
    }
}

impl Mixer for KimiDeltaAttention {
    fn forward(&self, x: &Tensor, state: &mut LayerState, cx: &mut Context<'_>) -> Result<Tensor> {
        let LayerState::Delta(store) = state else { return Err(Error::msg("a gated delta net needs its own store")) };
        let layers = [&self.q, &self.k, &self.v, &self.decay.a, &self.beta, &self.gate.a];
        let [q, k, v, decay, beta, gate] = ColumnLinear::forward_all(layers, x, cx)?;
        let (decay, gate) = (self.decay.b.forward(&decay, cx)?, self.gate.b.forward(&gate, cx)?);
        let qkv = Tensor::beside(cx.backend, x.rows(), &[&q, &k, &v]);
        let qkv = cx.backend.conv_silu(&qkv, &self.conv, store, cx.batch);
        let gates = cx.backend.delta_gates(&decay, &beta, &self.a_log, &self.dt_bias);
        let y = cx.backend.delta_rule(qkv, &gates, store, cx.batch, &self.own);
        let mut y = self.norm.forward(&y, cx);
        cx.backend.gate_sigmoid(&mut y, &gate);
        self.out.forward(&y, cx)
    }

    fn state(&self, backend: &dyn Backend, _pages: usize, slots: usize) -> Result<LayerState> {
        let channels = self.conv.len() / (self.taps + 1);
        Ok(LayerState::Delta(DeltaStore::new(
            backend,
            slots,
            channels,
            self.taps,
            self.own.values() * self.own.key_dim,
        )?))
    }

    fn state_bytes(&self, _pages: usize, slots: usize, _kv: KvType) -> u64 {
        let past = self.conv.len() / (self.taps + 1) * self.taps;
        let values = past + self.own.values() * self.own.key_dim;
        slots as u64 * (values * size_of::<f32>()) as u64
    }
}
