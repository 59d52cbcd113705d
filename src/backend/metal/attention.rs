//! Attention over paged tiles: what is new goes to the cache, then every row and head folds its positions span by span.

use bytemuck::bytes_of;

use super::arena::Region;
use super::memory::{Taken, Values, region_of, tensor};
use super::{LANES, Metal, Rows};
use crate::backend::{AttentionShape, Batch, HeadGroups, KvStore, LatentShape, LatentStore, Memory, Tensor};
use crate::error::{Error, Result};
use crate::gpu::params::{AttentionParams, CacheParams, RowParams, SegmentParams};

/// Positions whose tiles are folded one after the other.
const SPAN: usize = 1024;
/// Query heads that share the loads of a tile.
const HEADS: usize = 4;
/// Bytes of what spans have found that are kept until they are merged.
const PARTS: usize = 64 << 20;

/// Makes a batch visible to kernels.
pub(super) fn upload(metal: &Metal, batch: &Batch) -> Result<Rows> {
    let (mut rows, mut pages) = (Vec::with_capacity(batch.rows()), Vec::new());
    for segment in batch.segments() {
        // the tables follow the rows
        let first = batch.rows() * 2 + pages.len();
        pages.extend_from_slice(&segment.pages);
        let row = |row| RowParams { pages: first as u32, position: segment.position(row) as u32 };
        rows.extend(segment.rows.clone().map(row));
    }
    let segments = batch.segments().iter().map(|segment| SegmentParams {
        slot: segment.slot as u32,
        first: segment.rows.start as u32,
        count: segment.rows.len() as u32,
    });
    let segments: Vec<SegmentParams> = segments.collect();
    let rows = [bytemuck::cast_slice::<_, u8>(&rows), bytemuck::cast_slice(&pages)].concat();
    Ok(Rows {
        id: batch.id(),
        rows: Taken::upload(&metal.stream, &rows)?,
        segments: Taken::upload(&metal.stream, bytemuck::cast_slice(&segments))?,
    })
}

/// Where the state of a layer is, which this backend has made.
pub(super) fn state(metal: &Metal, memory: &mut Memory) -> Result<Region> {
    region_of(memory).cloned().ok_or_else(|| {
        Error::msg(format!("the state of a layer is not in the memory of {}", metal.stream.device().name()))
    })
}

/// softmax(q kᵀ · scale) v for every row and head over the positions up to its own, whose keys and values `kv` are stored.
pub(super) fn attention(
    metal: &Metal,
    q: &Tensor,
    kv: (&Tensor, &Tensor),
    store: &mut KvStore,
    batch: &Batch,
    shape: &AttentionShape,
) -> Result<Tensor> {
    let (heads, dim) = (shape.heads, store.head_dim);
    assert!(q.cols() == heads.heads * dim && store.kv_heads == heads.shared && q.rows() == batch.rows());
    let (rows, cache) = (metal.rows_of(batch)?, state(metal, &mut store.data)?);
    let params = CacheParams { kv_heads: heads.shared as u32, head_dim: dim as u32 };
    let (k, v) = (metal.input(kv.0)?, metal.input(kv.1)?);
    let work = ([heads.shared, batch.rows(), 1], LANES);
    metal.run(("store_kv", ""), &[&k, &v, rows.rows.region()], &[&cache], bytes_of(&params), work);
    let kernel = match dim {
        0..=32 => "attention_heads1",
        33..=64 => "attention_heads2",
        65..=128 => "attention_heads4",
        129..=256 => "attention_heads8",
        _ => return Err(Error::msg(format!("no kernel has heads of {dim} values"))),
    };
    attend(metal, kernel, q, &rows, &cache, batch, (heads, dim, dim, shape.scale))
}

/// As [`attention`], over latent vectors whose first values are the value too.
pub(super) fn latent_attention(
    metal: &Metal,
    q: &Tensor,
    latent: &Tensor,
    store: &mut LatentStore,
    batch: &Batch,
    shape: &LatentShape,
) -> Result<Tensor> {
    let LatentShape { heads, width, values, scale } = *shape;
    assert!(q.cols() == heads * width && store.width == width && values <= width && q.rows() == batch.rows());
    let (rows, cache) = (metal.rows_of(batch)?, state(metal, &mut store.data)?);
    let params = CacheParams { kv_heads: 1, head_dim: width as u32 };
    let from = metal.input(latent)?;
    let work = ([1, batch.rows(), 1], LANES);
    metal.run(("store_latent", ""), &[&from, rows.rows.region()], &[&cache], bytes_of(&params), work);
    let kernel = match values {
        0..=32 => "attention_latent1",
        33..=128 => "attention_latent4",
        129..=512 => "attention_latent16",
        _ => return Err(Error::msg(format!("no kernel has latent values of {values}"))),
    };
    let heads = HeadGroups { heads, shared: usize::from(heads > 0), group: heads.max(1), before: 0 };
    attend(metal, kernel, q, &rows, &cache, batch, (heads, width, values, scale))
}

fn attend(
    metal: &Metal,
    kernel: &'static str,
    q: &Tensor,
    rows: &Rows,
    cache: &Region,
    batch: &Batch,
    (heads, width, values, scale): (HeadGroups, usize, usize, f32),
) -> Result<Tensor> {
    let spans = batch.positions().max().map_or(0, |last| last / SPAN + 1);
    let chunks = heads.group.div_ceil(HEADS);
    let mut params = AttentionParams {
        first: 0,
        heads: heads.heads as u32,
        kv_heads: heads.shared as u32,
        group: heads.group as u32,
        before: heads.before as u32,
        chunks: chunks as u32,
        width: width as u32,
        values: values as u32,
        spans: spans as u32,
        scale,
    };
    let from = metal.input(q)?;
    let y = metal.scratch(q.rows() * heads.heads * values)?;
    let attend = |params: &AttentionParams, count: usize, to: &Values| {
        let work = ([heads.shared * chunks, count, spans], LANES);
        metal.run((kernel, ""), &[&from, rows.rows.region(), cache], &[to.region()], bytes_of(params), work);
    };
    if spans <= 1 {
        attend(&params, q.rows(), &y);
    } else {
        let of_row = heads.heads * spans * (2 + values);
        let at_once = (PARTS / (4 * of_row).max(1)).clamp(1, q.rows().max(1));
        for first in (0..q.rows()).step_by(at_once) {
            let count = at_once.min(q.rows() - first);
            params.first = first as u32;
            let parts = metal.scratch(count * of_row)?;
            attend(&params, count, &parts);
            let work = ([heads.heads, count, 1], LANES);
            metal.run(("merge_spans", ""), &[parts.region()], &[y.region()], bytes_of(&params), work);
        }
    }
    Ok(tensor(q.rows(), heads.heads * values, y))
}
