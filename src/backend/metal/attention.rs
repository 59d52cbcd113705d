//! Attention over paged tiles: what is new goes to the cache, then every row and head folds its positions: a prompt's rows many
//! at a time, others span by span.

use std::ops::Range;

use bytemuck::bytes_of;

use super::arena::Region;
use super::linear::MANY;
use super::memory::{Taken, Values, region_of, tensor};
use super::{LANES, Metal, Rows};
use crate::backend::{AttentionShape, Batch, HeadGroups, KvStore, LatentShape, LatentStore, Memory, Segment, Tensor};
use crate::error::{Error, Result};
use crate::gpu::params::{AttentionParams, BlockParams, CacheParams, RowParams, SegmentParams};

/// Positions whose tiles are folded one after the other.
const SPAN: usize = 1024;
/// Query heads that share the loads of a tile.
const HEADS: usize = 4;
/// Rows of a prompt that a threadgroup has.
const BLOCK: usize = 32;
/// Rows of a matrix of a SIMD-group: heads of a prompt's rows are multiples of it.
const MATRIX: usize = 8;
/// Bytes of what spans have found that are kept until they are merged.
const PARTS: usize = 64 << 20;

/// Makes a batch visible to kernels.
pub(super) fn upload(metal: &Metal, batch: &Batch) -> Result<Rows> {
    let (mut rows, mut pages) = (Vec::with_capacity(batch.rows()), Vec::new());
    let (mut blocks, mut all, mut others) = (Vec::new(), Few::default(), Few::default());
    for segment in batch.segments() {
        // the tables follow the rows
        let first = batch.rows() * 2 + pages.len();
        pages.extend_from_slice(&segment.pages);
        let row = |row| RowParams { pages: first as u32, position: segment.position(row) as u32 };
        rows.extend(segment.rows.clone().map(row));
        all.push(segment);
        match segment.rows.len() {
            MANY.. => blocks.extend(blocks_of(segment, first)),
            _ => others.push(segment),
        }
    }
    let segments = batch.segments().iter().map(|segment| SegmentParams {
        slot: segment.slot as u32,
        first: segment.rows.start as u32,
        count: segment.rows.len() as u32,
    });
    let segments: Vec<SegmentParams> = segments.collect();
    let rows = [bytemuck::cast_slice::<_, u8>(&rows), bytemuck::cast_slice(&pages)].concat();
    let prompts = match blocks.len() {
        0 => None,
        count => Some((Taken::upload(&metal.stream, bytemuck::cast_slice(&blocks))?, count)),
    };
    Ok(Rows {
        id: batch.id(),
        rows: Taken::upload(&metal.stream, &rows)?,
        segments: Taken::upload(&metal.stream, bytemuck::cast_slice(&segments))?,
        prompts,
        all,
        others,
    })
}

/// Rows each of which attends by itself.
#[derive(Debug, Default)]
pub(super) struct Few {
    runs: Vec<Range<usize>>,
    /// Of the row that sees most.
    spans: usize,
}

impl Few {
    fn push(&mut self, segment: &Segment) {
        let Range { start, end } = segment.rows;
        match self.runs.last_mut() {
            _ if start == end => return,
            Some(last) if last.end == start => last.end = end,
            _ => self.runs.push(start..end),
        }
        self.spans = self.spans.max(segment.position(end - 1) / SPAN + 1);
    }
}

/// The blocks of a prompt whose page table starts at `pages`.
fn blocks_of(segment: &Segment, pages: usize) -> impl Iterator<Item = BlockParams> {
    segment.rows.clone().step_by(BLOCK).map(move |first| BlockParams {
        first: first as u32,
        count: BLOCK.min(segment.rows.end - first) as u32,
        pages: pages as u32,
        position: segment.position(first) as u32,
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
    let kernels = match dim {
        0..=32 => ["attention_heads1", "attention_prompt_heads2"],
        33..=64 => ["attention_heads2", "attention_prompt_heads2"],
        65..=128 => ["attention_heads4", "attention_prompt_heads4"],
        129..=256 => ["attention_heads8", "attention_prompt_heads8"],
        _ => return Err(Error::msg(format!("no kernel has heads of {dim} values"))),
    };
    let kernels = Kernels { few: kernels[0], many: (kernels[1], 4 * LANES) };
    attend(metal, &kernels, q, &rows, &cache, (heads, dim, dim, shape.scale))
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
    let kernels = match values {
        0..=32 => ["attention_latent1", "attention_prompt_latent2"],
        33..=128 => ["attention_latent4", "attention_prompt_latent2"],
        129..=512 => ["attention_latent16", "attention_prompt_latent8"],
        _ => return Err(Error::msg(format!("no kernel has latent values of {values}"))),
    };
    let kernels = Kernels { few: kernels[0], many: (kernels[1], 8 * LANES) };
    let heads = HeadGroups { heads, shared: usize::from(heads > 0), group: heads.max(1), before: 0 };
    attend(metal, &kernels, q, &rows, &cache, (heads, width, values, scale))
}

/// The kernels for a shape of heads.
struct Kernels {
    /// A SIMD-group a row and some heads.
    few: &'static str,
    /// A block of a prompt's rows a threadgroup, which has so many threads.
    many: (&'static str, usize),
}

/// Which of the kernels a row goes to depends on how many rows its own sequence has.
fn attend(
    metal: &Metal,
    kernels: &Kernels,
    q: &Tensor,
    rows: &Rows,
    cache: &Region,
    (heads, width, values, scale): (HeadGroups, usize, usize, f32),
) -> Result<Tensor> {
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
        spans: 1,
        scale,
    };
    let from = metal.input(q)?;
    let y = metal.scratch(q.rows() * heads.heads * values)?;
    let whole = width.is_multiple_of(MATRIX) && values.is_multiple_of(MATRIX);
    let few = match &rows.prompts {
        Some((blocks, count)) if whole => {
            let reads = [&*from, blocks.region(), rows.rows.region(), cache];
            let work = ([heads.heads, *count, 1], kernels.many.1);
            metal.run((kernels.many.0, ""), &reads, &[y.region()], bytes_of(&params), work);
            &rows.others
        }
        _ => &rows.all,
    };
    let spans = few.spans;
    params.spans = spans as u32;
    let attend = |params: &AttentionParams, count: usize, to: &Values| {
        let work = ([heads.shared * chunks, count, spans], LANES);
        metal.run((kernels.few, ""), &[&from, rows.rows.region(), cache], &[to.region()], bytes_of(params), work);
    };
    let of_row = heads.heads * spans * (2 + values);
    let at_once = if spans > 1 { (PARTS / (4 * of_row).max(1)).max(1) } else { usize::MAX };
    for rows in &few.runs {
        for first in rows.clone().step_by(at_once) {
            let count = at_once.min(rows.end - first);
            params.first = first as u32;
            if spans <= 1 {
                attend(&params, count, &y);
                continue;
            }
            let parts = metal.scratch(count * of_row)?;
            attend(&params, count, &parts);
            let work = ([heads.heads, count, 1], LANES);
            metal.run(("merge_spans", ""), &[parts.region()], &[y.region()], bytes_of(&params), work);
        }
    }
    Ok(tensor(q.rows(), heads.heads * values, y))
}
