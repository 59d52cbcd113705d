//! Attention over paged tiles, folded left to right with an online softmax: grouped-query and multi-head latent.

mod cached;
mod fold;

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use self::cached::Cached;
use self::fold::{Part, Query, Tile, fold_block, merge};
use super::Cpu;
use super::linear::Shared;
use super::simd::dispatch;
use crate::backend::state::{KvStore, KvType, LatentStore, PAGE, TILE};
use crate::backend::{AttentionShape, Batch, HeadGroups, LatentShape, Segment, Tensor};

/// Query rows (a token and a head) that share the loads of one tile.
const QUERIES: usize = 4;
/// Positions whose tiles are folded one after the other.
const SPAN: usize = 1024;
/// Query rows (a token and a head) of one task: their states fit the first-level cache.
const ROWS: usize = 64;
/// Heads of one task, so that a token alone keeps all threads busy.
const HEADS: usize = 16;
const _: () = assert!(SPAN.is_multiple_of(PAGE));

/// Writes the rows of `k` and `v` (`[rows, kv_heads · head_dim]`) to their positions.
pub(super) fn store(store: &mut KvStore, k: &Tensor, v: &Tensor, batch: &Batch) {
    match store.kind {
        KvType::F32 => store_as::<f32>(store, k, v, batch),
        KvType::Bf16 => store_as::<u16>(store, k, v, batch),
    }
}

fn store_as<C: Cached>(store: &mut KvStore, k: &Tensor, v: &Tensor, batch: &Batch) {
    let (heads, dim, words) = (store.kv_heads, store.head_dim, store.tile_words());
    for segment in batch.segments() {
        for row in segment.rows.clone() {
            let position = segment.position(row);
            for head in 0..heads {
                let tile = store.tile_at(&segment.pages, head, position);
                let tile = cast_slice_mut::<f32, C>(&mut store.data[tile..][..words]);
                let (keys, values) = tile.split_at_mut(TILE * dim);
                C::put_turned(keys, position % TILE, &k.row(row)[head * dim..][..dim]);
                C::put_row(values, position % TILE, &v.row(row)[head * dim..][..dim]);
            }
        }
    }
}

/// Writes the rows of `latent` (`[rows, width]`) to their positions.
pub(super) fn store_latent(store: &mut LatentStore, latent: &Tensor, batch: &Batch) {
    match store.kind {
        KvType::F32 => store_latent_as::<f32>(store, latent, batch),
        KvType::Bf16 => store_latent_as::<u16>(store, latent, batch),
    }
}

fn store_latent_as<C: Cached>(store: &mut LatentStore, latent: &Tensor, batch: &Batch) {
    let words = store.tile_words();
    for segment in batch.segments() {
        for row in segment.rows.clone() {
            let position = segment.position(row);
            let at = store.tile_at(&segment.pages, position);
            C::put_row(cast_slice_mut(&mut store.data[at..][..words]), position % TILE, latent.row(row));
        }
    }
}

/// softmax(q kᵀ · scale) v for every query row over the positions up to its own: `[rows, heads · head_dim]`.
pub(super) fn attention(cpu: &Cpu, q: &Tensor, kv: &KvStore, batch: &Batch, shape: &AttentionShape) -> Tensor {
    let (dim, heads) = (kv.head_dim, shape.heads);
    assert!(
        q.cols() == heads.heads * dim && kv.kv_heads == heads.shared,
        "queries of {} columns are not {} heads of {dim} over {} of the cache",
        q.cols(),
        heads.heads,
        kv.kv_heads
    );
    Work { cpu, q, cache: Cache::Heads(kv), heads, width: dim, values: dim, scale: shape.scale }.run(batch)
}

/// softmax(q cᵀ · scale) c′ for every query row over the latent vectors c up to its own position, whose first values are
/// c′: `[rows, heads · values]`.
pub(super) fn latent_attention(
    cpu: &Cpu,
    q: &Tensor,
    store: &LatentStore,
    batch: &Batch,
    shape: &LatentShape,
) -> Tensor {
    let LatentShape { heads, width, values, scale } = *shape;
    assert!(q.cols() == heads * width && store.width == width && values <= width);
    let heads = HeadGroups { heads, shared: usize::from(heads > 0), group: heads.max(1), before: 0 };
    Work { cpu, q, cache: Cache::Latent(store), heads, width, values, scale }.run(batch)
}

/// Query rows of one sequence, and some of the heads that share a head of the cache.
struct Unit<'a> {
    segment: &'a Segment,
    rows: Range<usize>,
    shared: usize,
    heads: Range<usize>,
}

impl Unit<'_> {
    fn spans(&self) -> usize {
        self.segment.position(self.rows.end).div_ceil(SPAN)
    }
}

/// What is attended to.
#[derive(Clone, Copy)]
enum Cache<'a> {
    Heads(&'a KvStore),
    Latent(&'a LatentStore),
}

/// What all units of a call share.
#[derive(Clone, Copy)]
struct Work<'a> {
    cpu: &'a Cpu,
    q: &'a Tensor,
    cache: Cache<'a>,
    heads: HeadGroups,
    // values of a query head, and of an output head
    width: usize,
    values: usize,
    scale: f32,
}

impl Work<'_> {
    /// Positions are folded tile by tile inside spans of [`SPAN`], and the spans' results from left to right: so a long
    /// sequence of few heads keeps all threads busy, and nothing depends on how many there are.
    fn run(self, batch: &Batch) -> Tensor {
        assert_eq!(self.q.rows(), batch.rows());
        let units = self.units(batch);
        let mut out = Tensor::scratch(self.q.rows(), self.heads.heads * self.values);
        let spans = units.iter().map(Unit::spans).max().unwrap_or(0);
        if spans > 1 && units.len() < 4 * self.cpu.pool.threads() {
            self.split(&units, spans, &mut out);
        } else {
            self.whole(&units, &mut out);
        }
        out
    }

    fn units<'b>(&self, batch: &'b Batch) -> Vec<Unit<'b>> {
        let rows_each = (ROWS / self.heads.group.clamp(1, HEADS)).max(1);
        let mut units = Vec::new();
        for segment in batch.segments() {
            for first in segment.rows.clone().step_by(rows_each) {
                let rows = first..(first + rows_each).min(segment.rows.end);
                for shared in 0..self.heads.shared {
                    let sharing = self.heads.sharing(shared);
                    for head in sharing.clone().step_by(HEADS) {
                        let heads = head..(head + HEADS).min(sharing.end);
                        units.push(Unit { segment, rows: rows.clone(), shared, heads });
                    }
                }
            }
        }
        units
    }

    /// A task a unit.
    fn whole(self, units: &[Unit<'_>], out: &mut Tensor) {
        let (dim, width) = (self.values, out.cols());
        let to = Shared::new(out.data_mut());
        self.cpu.pool.run(units.len(), |task| {
            let unit = &units[task];
            // SAFETY: every (row, head) belongs to one task
            let mut queries = self.queries(unit, |row, head| unsafe {
                to.part(row * width + head * dim..row * width + (head + 1) * dim)
            });
            self.fold_span(unit, 0, &mut queries);
            if unit.spans() > 1 {
                let mut next = Tensor::scratch(queries.len(), dim);
                for span in 1..unit.spans() {
                    let mut outs = next.data_mut().chunks_exact_mut(dim);
                    let mut part = self.queries(unit, |_, _| outs.next().unwrap_or_default());
                    self.fold_span(unit, span, &mut part);
                    queries.iter_mut().zip(&part).for_each(|(query, part)| self.merge(query, part.found()));
                }
            }
            queries.iter_mut().for_each(Query::finish);
        });
    }

    /// A task a span of a unit, and then one a query.
    fn split(self, units: &[Unit<'_>], spans: usize, out: &mut Tensor) {
        let (dim, width, heads) = (self.values, out.cols(), self.heads.heads);
        let place = |row: usize, head: usize, span: usize| (row * heads + head) * spans + span;
        let mut outs = Tensor::scratch(out.rows() * heads * spans, dim);
        // the maximum and the sum; no sum where the query sees nothing of the span
        let mut states = Tensor::scratch(out.rows() * heads * spans, 2);
        let (to, to_states) = (Shared::new(outs.data_mut()), Shared::new(states.data_mut()));
        self.cpu.pool.run(units.len() * spans, |task| {
            let (unit, span) = (&units[task / spans], task % spans);
            let mut at = Vec::new();
            let mut queries = self.queries(unit, |row, head| {
                let place = place(row, head, span);
                at.push(place);
                // SAFETY: every (row, head, span) belongs to one task
                unsafe { to.part(place * dim..(place + 1) * dim) }
            });
            self.fold_span(unit, span, &mut queries);
            for (query, place) in queries.iter().zip(at) {
                // SAFETY: as above
                unsafe { to_states.part(2 * place..2 * place + 2) }.copy_from_slice(&[query.max, query.sum]);
            }
        });
        let part = |place: usize| {
            let [max, sum] = [states.data()[2 * place], states.data()[2 * place + 1]];
            Part { max, sum, out: &outs.data()[place * dim..][..dim] }
        };
        let to = Shared::new(out.data_mut());
        self.cpu.pool.run(self.q.rows() * heads, |task| {
            let (row, head) = (task / heads, task % heads);
            // SAFETY: every (row, head) belongs to one task
            let out = unsafe { to.part(row * width + head * dim..row * width + (head + 1) * dim) };
            let first = part(place(row, head, 0));
            out.copy_from_slice(first.out);
            let mut query = Query { q: &[], positions: 0, max: first.max, sum: first.sum, out };
            (1..spans).for_each(|span| self.merge(&mut query, part(place(row, head, span))));
            query.finish();
        });
    }

    fn queries<'b>(&'b self, unit: &Unit<'_>, mut out: impl FnMut(usize, usize) -> &'b mut [f32]) -> Vec<Query<'b>> {
        let mut queries = Vec::with_capacity(unit.rows.len() * unit.heads.len());
        for row in unit.rows.clone() {
            for head in unit.heads.clone() {
                let q = &self.q.row(row)[head * self.width..][..self.width];
                let positions = unit.segment.position(row) + 1;
                queries.push(Query { q, positions, max: 0.0, sum: 0.0, out: out(row, head) });
            }
        }
        queries
    }

    /// The tile of the positions from `start` on.
    fn tile<C: Cached>(&self, unit: &Unit<'_>, start: usize) -> Tile<'_, C> {
        let pages = &unit.segment.pages;
        match self.cache {
            Cache::Heads(kv) => {
                let at = kv.tile_at(pages, unit.shared, start);
                let tile = cast_slice(&kv.data[at..][..kv.tile_words()]);
                let (keys, values) = tile.split_at(TILE * kv.head_dim);
                Tile::Heads { keys, values }
            }
            Cache::Latent(store) => {
                let at = store.tile_at(pages, start);
                Tile::Latent(cast_slice(&store.data[at..][..store.tile_words()]))
            }
        }
    }

    /// Folds the tiles of span `span` into queries that know nothing yet.
    fn fold_span(&self, unit: &Unit<'_>, span: usize, queries: &mut [Query<'_>]) {
        let (Cache::Heads(KvStore { kind, .. }) | Cache::Latent(LatentStore { kind, .. })) = self.cache;
        match kind {
            KvType::F32 => self.fold_span_of::<f32>(unit, span, queries),
            KvType::Bf16 => self.fold_span_of::<u16>(unit, span, queries),
        }
    }

    fn fold_span_of<C: Cached>(&self, unit: &Unit<'_>, span: usize, queries: &mut [Query<'_>]) {
        let last = queries.iter().map(|query| query.positions).max().unwrap_or(0);
        for start in (span * SPAN..last.min((span + 1) * SPAN)).step_by(TILE) {
            let (tile, scale, first) = (self.tile::<C>(unit, start), self.scale, start.is_multiple_of(SPAN));
            // positions grow with the rows, so the queries that see this tile are a suffix
            let seeing = queries.iter().position(|query| query.positions > start).unwrap_or(queries.len());
            // the first queries ask for what comes next
            let mut next =
                if start + TILE < last { self.tile::<C>(unit, start + TILE).start() } else { std::ptr::null() };
            for block in queries[seeing..].chunks_mut(QUERIES) {
                // SAFETY: the instruction set is available; `tile` holds TILE keys and values of the queries' widths
                unsafe {
                    dispatch!(
                        self.cpu.isa,
                        fold_block[C: Cached](
                            block: &mut [Query<'_>],
                            tile: Tile<'_, C>,
                            next: *const u8,
                            start: usize,
                            scale: f32,
                            first: bool,
                        )
                    );
                };
                next = std::ptr::null();
            }
        }
    }

    /// Adds what a later span has found, if it has found anything.
    fn merge(&self, query: &mut Query<'_>, part: Part<'_>) {
        if part.sum != 0.0 {
            // SAFETY: the instruction set is available; both outputs have `dim` values
            unsafe { dispatch!(self.cpu.isa, merge(query: &mut Query<'_>, part: Part<'_>)) };
        }
    }
}
