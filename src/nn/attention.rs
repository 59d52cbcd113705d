//! Grouped-query attention with the options of the Qwen and Llama families.

use std::ops::Range;

use super::{Centre, ColumnLinear, Context, Loader, Mixer, RmsNorm, RowLinear};
use crate::backend::{AttentionShape, Backend, HeadGroups, KvStore, KvType, LayerState, RopeStyle, Tensor};
use crate::error::{Error, Result};
use crate::partition::Leaves;

/// What distinguishes one family's attention from another's.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Features of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// RMSNorm on every query and key head before the rotation: its epsilon and centre.
    pub qk_norm: Option<(f32, Centre)>,
    /// q_proj also yields, per head, a gate whose sigmoid multiplies the output.
    pub output_gate: bool,
    /// How the rotation pairs values.
    pub rope: RopeStyle,
}

/// softmax(q kᵀ / √d) v over the paged cache.
#[derive(Debug)]
pub struct Attention {
    config: AttentionConfig,
    // this rank's heads
    own: HeadGroups,
    q: ColumnLinear,
    k: ColumnLinear,
    v: ColumnLinear,
    o: RowLinear,
    norms: Option<(RmsNorm, RmsNorm)>,
}

impl Attention {
    /// Loads `<prefix>.{q,k,v,o}_proj` and the norms that `config` asks for.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: AttentionConfig) -> Result<Self> {
        let AttentionConfig { hidden, heads, kv_heads, head_dim, qkv_bias, .. } = config;
        let unit = loader.unit(&format!("{prefix}.o_proj.weight"), (hidden, heads * head_dim), head_dim)?;
        let fold = loader.group().fold(Leaves::of_units(heads * head_dim, unit));
        let whole = HeadGroups::whole(heads, kv_heads);
        let own = fold.columns().start / head_dim..fold.columns().end / head_dim;
        let column = |name: &str, heads: usize, own: &Range<usize>, width: usize| {
            let rows = own.start * width..own.end * width;
            ColumnLinear::load(loader, &format!("{prefix}.{name}"), (heads * width, hidden), &[rows], qkv_bias)
        };
        let norm = |name: &str, (eps, centre)| {
            RmsNorm::load(loader, &format!("{prefix}.{name}.weight"), head_dim, eps, centre)
        };
        let q_width = if config.output_gate { 2 * head_dim } else { head_dim };
        let own_kv = whole.shared_by(&own);
        let norms =
            config.qk_norm.map(|how| Ok::<_, Error>((norm("q_norm", how)?, norm("k_norm", how)?))).transpose()?;
        Ok(Self {
            config,
            own: whole.run(own.clone()),
            q: column("q_proj", heads, &own, q_width)?,
            k: column("k_proj", kv_heads, &own_kv, head_dim)?,
            v: column("v_proj", kv_heads, &own_kv, head_dim)?,
            o: RowLinear::load(loader, &format!("{prefix}.o_proj"), hidden, fold)?,
            norms,
        })
    }
}

impl Mixer for Attention {
    fn forward(&self, x: &Tensor, state: &mut LayerState, cx: &mut Context<'_>) -> Result<Tensor> {
        let LayerState::Kv(store) = state else { return Err(Error::msg("an attention layer needs a KV store")) };
        let AttentionConfig { head_dim, rope, .. } = self.config;
        let [mut q, mut k, v] = ColumnLinear::forward_all([&self.q, &self.k, &self.v], x, cx)?;
        let gate = self.config.output_gate.then(|| {
            // per head: the query, then its gate
            let gate = q.head_part(cx.backend, 2 * head_dim, head_dim, head_dim);
            q = q.head_part(cx.backend, 2 * head_dim, 0, head_dim);
            gate
        });
        if let Some((q_norm, k_norm)) = &self.norms {
            q = q_norm.forward(&q, cx);
            k = k_norm.forward(&k, cx);
        }
        cx.backend.rope(&mut q, head_dim, cx.rope, rope);
        cx.backend.rope(&mut k, head_dim, cx.rope, rope);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { heads: self.own, scale };
        let mut y = cx.backend.attention(&q, &k, &v, store, cx.batch, &shape);
        if let Some(gate) = gate {
            cx.backend.gate_sigmoid(&mut y, &gate);
        }
        self.o.forward(&y, cx)
    }

    fn state(&self, backend: &dyn Backend, pages: usize, _slots: usize) -> Result<LayerState> {
        Ok(LayerState::Kv(KvStore::new(backend, pages, self.own.shared, self.config.head_dim)?))
    }

    fn state_bytes(&self, pages: usize, _slots: usize, kv: KvType) -> u64 {
        pages as u64 * (KvStore::page_values(self.own.shared, self.config.head_dim) * kv.bytes()) as u64
    }
}
