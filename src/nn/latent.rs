//! Multi-head latent attention in its absorbed form (DeepSeek-V2, arXiv 2405.04434): what a position leaves behind is
//! one latent vector for all heads.

use std::ops::Range;

use super::{Centre, ColumnLinear, Context, Loader, Mixer, RmsNorm, RowLinear};
use crate::backend::{Backend, KvType, LatentShape, LatentStore, LayerState, PAGE, RopeStyle, Tensor};
use crate::error::{Error, Result};
use crate::partition::Leaves;
use crate::weights::Matrix;

/// The shape of a latent attention.
#[derive(Debug, Clone, Copy)]
pub struct LatentConfig {
    /// Features of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Features that queries are made of, if they are projected in two steps.
    pub q_rank: Option<usize>,
    /// Features that keys and values are made of.
    pub kv_rank: usize,
    /// Values of a query or key that are not rotated.
    pub plain_dim: usize,
    /// Values that are, or would be; all heads share those of the keys.
    pub rope_dim: usize,
    /// Values of a value.
    pub value_dim: usize,
    /// Whether positions are rotated at all.
    pub rotates: bool,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Epsilon of the norms of both latent vectors.
    pub eps: f32,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer")]
enum Queries {
    Direct(ColumnLinear),
    LowRank { a: ColumnLinear, norm: RmsNorm, b: ColumnLinear },
}

/// softmax(q_h W_kh c) W_vh c over the latent vectors c of all positions.
///
/// Every rank has some of the heads, and all of the latent vectors: they are 1/heads of what plain attention would keep.
#[derive(Debug)]
pub struct LatentAttention {
    config: LatentConfig,
    // this rank's heads
    heads: usize,
    queries: Queries,
    latent: ColumnLinear,
    norm: RmsNorm,
    keys: PerHead,
    values: PerHead,
    out: RowLinear,
}

/// A matrix a head; `turned` ones are stored with their inputs as rows.
#[derive(Debug)]
struct PerHead {
    matrices: Vec<Matrix>,
    turned: bool,
}

impl LatentAttention {
    /// Loads this rank's heads of the tensors under `<prefix>.`.
    ///
    /// # Errors
    /// If one is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, config: LatentConfig) -> Result<Self> {
        let LatentConfig { hidden, heads, q_rank, kv_rank, plain_dim, rope_dim, value_dim, eps, .. } = config;
        let name = |name: &str| format!("{prefix}.{name}");
        let width = heads * value_dim;
        let unit = loader.unit(&name("o_proj.weight"), (hidden, width), value_dim)?;
        let fold = loader.group().fold(Leaves::of_units(width, unit));
        let own = fold.columns().start / value_dim..fold.columns().end / value_dim;
        let head_dim = plain_dim + rope_dim;
        let rows = own.start * head_dim..own.end * head_dim;
        let queries = |module: &str, inner: usize| {
            ColumnLinear::load(loader, &name(module), (heads * head_dim, inner), std::slice::from_ref(&rows), false)
        };
        let norm = |module: &str, len| RmsNorm::load(loader, &name(module), len, eps, Centre::Zero);
        let queries = match q_rank {
            None => Queries::Direct(queries("q_proj", hidden)?),
            Some(rank) => Queries::LowRank {
                a: ColumnLinear::replicated(loader, &name("q_a_proj"), rank, hidden)?,
                norm: norm("q_a_layernorm.weight", rank)?,
                b: queries("q_b_proj", rank)?,
            },
        };
        let (keys, values) = per_head(loader, prefix, &config, own.clone())?;
        Ok(Self {
            config,
            heads: own.len(),
            queries,
            latent: ColumnLinear::replicated(loader, &name("kv_a_proj_with_mqa"), kv_rank + rope_dim, hidden)?,
            norm: norm("kv_a_layernorm.weight", kv_rank)?,
            keys,
            values,
            out: RowLinear::load(loader, &name("o_proj"), hidden, fold)?,
        })
    }

    /// Queries `[rows, heads · (plain + rope)]` and latent vectors `[rows, kv_rank + rope]` before norm and rotation.
    fn project(&self, x: &Tensor, cx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        match &self.queries {
            Queries::Direct(queries) => {
                let [q, latent] = ColumnLinear::forward_all([queries, &self.latent], x, cx)?;
                Ok((q, latent))
            }
            Queries::LowRank { a, norm, b } => {
                let [q, latent] = ColumnLinear::forward_all([a, &self.latent], x, cx)?;
                Ok((b.forward(&norm.forward(&q, cx), cx)?, latent))
            }
        }
    }

    fn width(&self) -> usize {
        self.config.kv_rank + self.config.rope_dim
    }
}

/// The halves of `kv_b_proj` of the heads `own`: keys from the latent vector, then its values, head by head; or as MLX
/// stores them, apart and the first ones turned already.
fn per_head(loader: &Loader<'_>, prefix: &str, config: &LatentConfig, own: Range<usize>) -> Result<(PerHead, PerHead)> {
    let LatentConfig { heads, kv_rank, plain_dim, value_dim, .. } = *config;
    let split = format!("{prefix}.embed_q.weight");
    let load = |name: &str, shape: &[usize], each: usize, rows: Range<usize>| -> Result<Vec<Matrix>> {
        let columns = shape.last().copied().unwrap_or(0);
        let part = |rows: Range<usize>| loader.part(name, shape, rows, 0..columns);
        if own.is_empty() {
            // a tensor of which nothing is needed is known all the same
            part(0..0)?;
        }
        own.clone().map(|head| part(head * each + rows.start..head * each + rows.end)).collect()
    };
    if loader.has(&split) {
        let values = format!("{prefix}.unembed_out.weight");
        let keys = load(&split, &[heads, kv_rank, plain_dim], kv_rank, 0..kv_rank)?;
        let values = load(&values, &[heads, value_dim, kv_rank], value_dim, 0..value_dim)?;
        return Ok((PerHead { matrices: keys, turned: false }, PerHead { matrices: values, turned: false }));
    }
    let (name, each) = (format!("{prefix}.kv_b_proj.weight"), plain_dim + value_dim);
    let shape = [heads * each, kv_rank];
    let keys = load(&name, &shape, each, 0..plain_dim)?;
    let values = load(&name, &shape, each, plain_dim..each)?;
    Ok((PerHead { matrices: keys, turned: true }, PerHead { matrices: values, turned: false }))
}

impl Mixer for LatentAttention {
    fn forward(&self, x: &Tensor, state: &mut LayerState, cx: &mut Context<'_>) -> Result<Tensor> {
        let LayerState::Latent(store) = state else {
            return Err(Error::msg("a latent attention layer needs a store of latent vectors"));
        };
        let LatentConfig { kv_rank, plain_dim, rope_dim, rotates, scale, .. } = self.config;
        let (q, latent) = self.project(x, cx)?;
        let part = |from, width| q.head_part(cx.backend, plain_dim + rope_dim, from, width);
        let (plain, mut rotated) = (part(0, plain_dim), part(plain_dim, rope_dim));
        let compressed = self.norm.forward(&latent.columns(cx.backend, std::slice::from_ref(&(0..kv_rank))), cx);
        let mut shared = latent.columns(cx.backend, std::slice::from_ref(&(kv_rank..kv_rank + rope_dim)));
        if rotates {
            cx.backend.rope(&mut rotated, rope_dim, cx.rope, RopeStyle::Pairs);
            cx.backend.rope(&mut shared, rope_dim, cx.rope, RopeStyle::Pairs);
        }
        let absorbed = cx.backend.per_head(&plain, &self.keys.matrices, self.keys.turned)?;
        let q = absorbed.beside_by_head(cx.backend, &rotated, (kv_rank, rope_dim));
        let latent = Tensor::beside(cx.backend, x.rows(), &[&compressed, &shared]);
        let shape = LatentShape { heads: self.heads, width: self.width(), values: kv_rank, scale };
        let y = cx.backend.latent_attention(&q, &latent, store, cx.batch, &shape);
        let y = cx.backend.per_head(&y, &self.values.matrices, self.values.turned)?;
        self.out.forward(&y, cx)
    }

    fn state(&self, backend: &dyn Backend, pages: usize, _slots: usize) -> Result<LayerState> {
        Ok(LayerState::Latent(LatentStore::new(backend, pages, self.width())?))
    }

    fn state_bytes(&self, pages: usize, _slots: usize, kv: KvType) -> u64 {
        pages as u64 * (PAGE * self.width() * kv.bytes()) as u64
    }
}
