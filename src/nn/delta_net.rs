//! Gated delta net: the linear-attention layer of Qwen3-Next and Qwen3.5 (arXiv 2412.06464).

use super::{Centre, ColumnLinear, Context, Loader, Mixer, RmsNorm, RowLinear};
use crate::backend::{DeltaShape, DeltaStore, LayerState, Tensor};
use crate::error::{Error, Result};

/// How a checkpoint stores the input projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaLayout {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b`, `in_proj_a` (Qwen3.5 on).
    Split,
    /// `in_proj_qkvz` and `in_proj_ba`, interleaved per key head (Qwen3-Next).
    Fused,
}

/// The shape of a gated delta net.
#[derive(Debug, Clone, Copy)]
pub struct DeltaConfig {
    /// Features of the residual stream.
    pub hidden: usize,
    /// Heads and their widths.
    pub shape: DeltaShape,
    /// Inputs that the convolution sees, the current one among them.
    pub kernel: usize,
    /// Epsilon of the gated norm.
    pub eps: f32,
    /// How the input projections are stored.
    pub layout: DeltaLayout,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer")]
enum Projections {
    Split { qkv: ColumnLinear, z: ColumnLinear, b: ColumnLinear, a: ColumnLinear },
    Fused { qkvz: ColumnLinear, ba: ColumnLinear },
}

/// Convolution, gated delta rule, gated norm, output projection.
#[derive(Debug)]
pub struct GatedDeltaNet {
    config: DeltaConfig,
    projections: Projections,
    // [kernel, channels]
    conv: Tensor,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: RmsNorm,
    out: RowLinear,
}

impl GatedDeltaNet {
    /// Loads the tensors under `<prefix>.`.
    ///
    /// # Errors
    /// If one is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: DeltaConfig) -> Result<Self> {
        let DeltaConfig { hidden, shape, kernel, eps, layout } = config;
        let DeltaShape { k_heads, v_heads, key_dim, value_dim } = shape;
        let (keys, values) = (k_heads * key_dim, v_heads * value_dim);
        let channels = 2 * keys + values;
        let column = |name: &str, out| ColumnLinear::load(loader, &format!("{prefix}.{name}"), out, hidden, false);
        let projections = match layout {
            DeltaLayout::Split => Projections::Split {
                qkv: column("in_proj_qkv", channels)?,
                z: column("in_proj_z", values)?,
                b: column("in_proj_b", v_heads)?,
                a: column("in_proj_a", v_heads)?,
            },
            DeltaLayout::Fused => Projections::Fused {
                qkvz: column("in_proj_qkvz", channels + values)?,
                ba: column("in_proj_ba", 2 * v_heads)?,
            },
        };
        let stored = loader.values(&format!("{prefix}.conv1d.weight"), &[channels, 1, kernel])?;
        let mut conv = Tensor::zeros(kernel, channels);
        for (channel, taps) in stored.chunks_exact(kernel).enumerate() {
            for (tap, weight) in taps.iter().enumerate() {
                conv.row_mut(tap)[channel] = *weight;
            }
        }
        Ok(Self {
            config,
            projections,
            conv,
            a_log: loader.values(&format!("{prefix}.A_log"), &[v_heads])?,
            dt_bias: loader.values(&format!("{prefix}.dt_bias"), &[v_heads])?,
            norm: RmsNorm::load(loader, &format!("{prefix}.norm.weight"), value_dim, eps, Centre::Zero)?,
            out: RowLinear::load(loader, &format!("{prefix}.out_proj"), hidden, values, value_dim)?,
        })
    }

    /// `[rows, q | k | v]`, z, b, a.
    fn project(&self, x: &Tensor, cx: &Context<'_>) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
        let (qkvz, ba) = match &self.projections {
            Projections::Split { qkv, z, b, a } => {
                return Ok((qkv.forward(x, cx)?, z.forward(x, cx)?, b.forward(x, cx)?, a.forward(x, cx)?));
            }
            Projections::Fused { qkvz, ba } => (qkvz.forward(x, cx)?, ba.forward(x, cx)?),
        };
        let DeltaShape { k_heads, v_heads, key_dim, value_dim } = self.config.shape;
        let shared = v_heads / k_heads;
        // per key head: q, k, then v and z of the value heads that share it
        let (v_width, run) = (shared * value_dim, 2 * key_dim + 2 * shared * value_dim);
        let part = |from, width| qkvz.head_part(run, from, width);
        let qkv = Tensor::beside(&[&part(0, key_dim), &part(key_dim, key_dim), &part(2 * key_dim, v_width)]);
        let z = part(2 * key_dim + v_width, v_width);
        Ok((qkv, z, ba.head_part(2 * shared, 0, shared), ba.head_part(2 * shared, shared, shared)))
    }
}

impl Mixer for GatedDeltaNet {
    fn forward(&self, x: &Tensor, state: &mut LayerState, cx: &mut Context<'_>) -> Result<Tensor> {
        let LayerState::Delta(store) = state else { return Err(Error::msg("a gated delta net needs its own store")) };
        let (qkv, z, b, a) = self.project(x, cx)?;
        let qkv = cx.backend.conv_silu(&qkv, &self.conv, store, cx.batch);
        let gates = cx.backend.delta_gates(&a, &b, &self.a_log, &self.dt_bias);
        let y = cx.backend.delta_rule(qkv, &gates, store, cx.batch, &self.config.shape);
        let y = self.norm.forward_gated(&y, &z, cx);
        self.out.forward(&y, cx)
    }

    fn state(&self, _pages: usize, slots: usize) -> Result<LayerState> {
        let DeltaShape { v_heads, key_dim, value_dim, .. } = self.config.shape;
        let state = DeltaStore::new(slots, self.conv.cols(), self.conv.rows() - 1, v_heads * key_dim * value_dim)?;
        Ok(LayerState::Delta(state))
    }
}
