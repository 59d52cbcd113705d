//! Gated delta net: the linear-attention layer of Qwen3-Next and Qwen3.5 (arXiv 2412.06464).

use std::ops::Range;

use super::{Centre, ColumnLinear, Context, Loader, Mixer, RmsNorm, RowLinear};
use crate::backend::{Backend, Constant, DeltaShape, DeltaStore, KvType, LayerState, Tensor};
use crate::error::{Error, Result};
use crate::partition::Leaves;

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
    Fused { qkvz: ColumnLinear, ba: ColumnLinear, fused: Fused },
}

/// Convolution, gated delta rule, gated norm, output projection.
#[derive(Debug)]
pub struct GatedDeltaNet {
    // this rank's heads
    own: DeltaShape,
    projections: Projections,
    // [taps + 1, channels]
    conv: Constant,
    taps: usize,
    a_log: Constant,
    dt_bias: Constant,
    norm: RmsNorm,
    out: RowLinear,
}

impl GatedDeltaNet {
    /// Loads this rank's heads of the tensors under `<prefix>.`.
    ///
    /// # Errors
    /// If one is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: DeltaConfig) -> Result<Self> {
        let DeltaConfig { hidden, shape, kernel, eps, layout } = config;
        let DeltaShape { heads, key_dim, value_dim } = shape;
        let unit = loader.unit(&format!("{prefix}.out_proj.weight"), (hidden, shape.values()), value_dim)?;
        let fold = loader.group().fold(Leaves::of_units(shape.values(), unit));
        let columns = fold.columns();
        let v = columns.start / value_dim..columns.end / value_dim;
        let k = heads.shared_by(&v);
        let own = DeltaShape { heads: heads.run(v.clone()), ..shape };
        let keys = shape.keys();
        let k_rows = k.start * key_dim..k.end * key_dim;
        let after = |rows: &Range<usize>, offset: usize| rows.start + offset..rows.end + offset;
        let channels = [k_rows.clone(), after(&k_rows, keys), after(&columns, 2 * keys)];
        let all_channels = 2 * keys + shape.values();
        let column = |name: &str, out: usize, own: &[Range<usize>]| {
            ColumnLinear::load(loader, &format!("{prefix}.{name}"), (out, hidden), own, false)
        };
        let projections = match layout {
            DeltaLayout::Split => Projections::Split {
                qkv: column("in_proj_qkv", all_channels, &channels)?,
                z: column("in_proj_z", shape.values(), std::slice::from_ref(&columns))?,
                b: column("in_proj_b", heads.heads, std::slice::from_ref(&v))?,
                a: column("in_proj_a", heads.heads, std::slice::from_ref(&v))?,
            },
            DeltaLayout::Fused => {
                let fused = Fused::new(&shape, &v, &k);
                Projections::Fused {
                    qkvz: column("in_proj_qkvz", all_channels + shape.values(), &fused.qkvz_rows)?,
                    ba: column("in_proj_ba", 2 * heads.heads, &fused.ba_rows)?,
                    fused,
                }
            }
        };
        let stored = loader.values(&format!("{prefix}.conv1d.weight"), &[all_channels, 1, kernel])?;
        let mut conv = Tensor::zeros(kernel, 2 * own.keys() + own.values());
        for (channel, at) in channels.iter().cloned().flatten().enumerate() {
            for (tap, weight) in stored[at * kernel..][..kernel].iter().enumerate() {
                conv.row_mut(tap)[channel] = *weight;
            }
        }
        let per_head = |name: &str| -> Result<Constant> {
            Ok(loader.values(&format!("{prefix}.{name}"), &[heads.heads])?[v.clone()].to_vec().into())
        };
        Ok(Self {
            own,
            projections,
            conv: conv.into_vec().into(),
            taps: kernel - 1,
            a_log: per_head("A_log")?,
            dt_bias: per_head("dt_bias")?,
            norm: RmsNorm::load(loader, &format!("{prefix}.norm.weight"), value_dim, eps, Centre::Zero)?,
            out: RowLinear::load(loader, &format!("{prefix}.out_proj"), hidden, fold)?,
        })
    }

    /// Past inputs of the convolution, their channels, and values of the recurrent state.
    fn state_shape(&self) -> (usize, usize, usize) {
        (self.taps, self.conv.len() / (self.taps + 1), self.own.values() * self.own.key_dim)
    }

    /// `[rows, q | k | v]`, z, b, a.
    fn project(&self, x: &Tensor, cx: &Context<'_>) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
        match &self.projections {
            Projections::Split { qkv, z, b, a } => {
                let [qkv, z, b, a] = ColumnLinear::forward_all([qkv, z, b, a], x, cx)?;
                Ok((qkv, z, b, a))
            }
            Projections::Fused { qkvz, ba, fused } => {
                let [qkvz, ba] = ColumnLinear::forward_all([qkvz, ba], x, cx)?;
                let of = |x: &Tensor, runs: &[Range<usize>]| x.columns(cx.backend, runs);
                Ok((of(&qkvz, &fused.qkv), of(&qkvz, &fused.z), of(&ba, &fused.b), of(&ba, &fused.a)))
            }
        }
    }
}

/// How Qwen3-Next interleaves its projections: per key head q, k, then v and z of the value heads that share it; b and
/// a likewise. The rows of the checkpoint that a rank needs, and where q, k, v, z, b and a then are in the products.
#[derive(Debug)]
struct Fused {
    qkvz_rows: Vec<Range<usize>>,
    ba_rows: Vec<Range<usize>>,
    qkv: Vec<Range<usize>>,
    z: Vec<Range<usize>>,
    b: Vec<Range<usize>>,
    a: Vec<Range<usize>>,
}

impl Fused {
    fn new(shape: &DeltaShape, v: &Range<usize>, k: &Range<usize>) -> Self {
        let DeltaShape { heads, key_dim, value_dim } = *shape;
        let group = heads.group;
        let (mut qkvz_rows, mut ba_rows) = (Vec::new(), Vec::new());
        let (mut parts, mut b, mut a) = ([const { Vec::new() }; 4], Vec::new(), Vec::new());
        let (mut at, mut at_ba) = (0, 0);
        for head in k.clone() {
            let sharing = heads.sharing(head);
            let mine = sharing.start.max(v.start) - sharing.start..sharing.end.min(v.end) - sharing.start;
            let base = head * (2 * key_dim + 2 * group * value_dim);
            let values = base + 2 * key_dim;
            let value_rows = |from: usize| from + mine.start * value_dim..from + mine.end * value_dim;
            let rows = [
                base..base + key_dim,
                base + key_dim..values,
                value_rows(values),
                value_rows(values + group * value_dim),
            ];
            for (part, rows) in parts.iter_mut().zip(rows) {
                part.push(at..at + rows.len());
                at += rows.len();
                qkvz_rows.push(rows);
            }
            for (part, from) in [(&mut b, head * 2 * group), (&mut a, head * 2 * group + group)] {
                part.push(at_ba..at_ba + mine.len());
                at_ba += mine.len();
                ba_rows.push(from + mine.start..from + mine.end);
            }
        }
        let [q, k, v, z] = parts;
        Self { qkvz_rows, ba_rows, qkv: [q, k, v].concat(), z, b, a }
    }
}

impl Mixer for GatedDeltaNet {
    fn forward(&self, x: &Tensor, state: &mut LayerState, cx: &mut Context<'_>) -> Result<Tensor> {
        let LayerState::Delta(store) = state else { return Err(Error::msg("a gated delta net needs its own store")) };
        let (qkv, z, b, a) = self.project(x, cx)?;
        let qkv = cx.backend.conv_silu(&qkv, &self.conv, store, cx.batch);
        let gates = cx.backend.delta_gates(&a, &b, &self.a_log, &self.dt_bias);
        let y = cx.backend.delta_rule(qkv, &gates, store, cx.batch, &self.own);
        let y = self.norm.forward_gated(&y, &z, cx);
        self.out.forward(&y, cx)
    }

    fn state(&self, backend: &dyn Backend, _pages: usize, slots: usize) -> Result<LayerState> {
        let (taps, channels, values) = self.state_shape();
        Ok(LayerState::Delta(DeltaStore::new(backend, slots, channels, taps, values)?))
    }

    fn state_bytes(&self, _pages: usize, slots: usize, _kv: KvType) -> u64 {
        let (taps, channels, values) = self.state_shape();
        slots as u64 * ((taps * channels + values) * size_of::<f32>()) as u64
    }
}
