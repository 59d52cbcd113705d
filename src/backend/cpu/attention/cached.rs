//! How a tile of the cache lies in memory: as it is, or rounded to bf16 and two values in a word ([`KvType`]).
//!
//! [`KvType`]: crate::backend::KvType

use bytemuck::Pod;
use half::bf16;

use crate::backend::cpu::math::load_some;
use crate::backend::cpu::simd::{LANES, Simd};
use crate::backend::state::TILE;

/// A value of the cache. Turned keys are `[head_dim, TILE]`, rows `[TILE, width]`.
///
/// # Safety
/// As [`Simd`]; pointers are those of a tile.
pub(super) trait Cached: Pod {
    /// The keys of all positions of the tile at dimension `d`.
    unsafe fn turned<S: Simd>(keys: *const Self, d: usize) -> [S::V; 2];
    /// Sixteen values from `d` on of the rows `2 · pair` and `2 · pair + 1`.
    unsafe fn rows<S: Simd>(rows: *const Self, width: usize, pair: usize, d: usize) -> [S::V; 2];
    /// Of them the first `count`, and zeros.
    unsafe fn rows_some<S: Simd>(rows: *const Self, width: usize, pair: usize, d: usize, count: usize) -> [S::V; 2];
    /// The value at `d` of a row.
    unsafe fn value(rows: *const Self, width: usize, row: usize, d: usize) -> f32;
    /// Writes the key of a position.
    fn put_turned(keys: &mut [Self], position: usize, key: &[f32]);
    /// Writes a row.
    fn put_row(rows: &mut [Self], row: usize, values: &[f32]);
}

impl Cached for f32 {
    #[inline(always)]
    unsafe fn turned<S: Simd>(keys: *const Self, d: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise
        unsafe { [S::load(keys.add(d * TILE)), S::load(keys.add(d * TILE + LANES))] }
    }
    #[inline(always)]
    unsafe fn rows<S: Simd>(rows: *const Self, width: usize, pair: usize, d: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise
        unsafe {
            let first = rows.add(2 * pair * width + d);
            [S::load(first), S::load(first.add(width))]
        }
    }
    #[inline(always)]
    unsafe fn rows_some<S: Simd>(rows: *const Self, width: usize, pair: usize, d: usize, count: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise
        unsafe {
            let first = rows.add(2 * pair * width + d);
            [load_some::<S>(first, count), load_some::<S>(first.add(width), count)]
        }
    }
    #[inline(always)]
    unsafe fn value(rows: *const Self, width: usize, row: usize, d: usize) -> f32 {
        // SAFETY: the caller's promise
        unsafe { *rows.add(row * width + d) }
    }
    fn put_turned(keys: &mut [Self], position: usize, key: &[f32]) {
        for (keys, value) in keys.chunks_exact_mut(TILE).zip(key) {
            keys[position] = *value;
        }
    }
    fn put_row(rows: &mut [Self], row: usize, values: &[f32]) {
        rows[row * values.len()..][..values.len()].copy_from_slice(values);
    }
}

/// The bits of bf16.
impl Cached for u16 {
    #[inline(always)]
    unsafe fn turned<S: Simd>(keys: *const Self, d: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise
        unsafe { S::split_bf16(keys.add(d * TILE).cast()) }
    }
    #[inline(always)]
    unsafe fn rows<S: Simd>(rows: *const Self, width: usize, pair: usize, d: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise
        unsafe { S::split_bf16(rows.add(2 * (pair * width + d)).cast()) }
    }
    #[inline(always)]
    unsafe fn rows_some<S: Simd>(rows: *const Self, width: usize, pair: usize, d: usize, count: usize) -> [S::V; 2] {
        let mut words = [0; 2 * LANES];
        // SAFETY: the caller's promise
        unsafe {
            let first = rows.add(2 * (pair * width + d));
            std::ptr::copy_nonoverlapping(first, words.as_mut_ptr(), 2 * count.min(LANES));
            S::split_bf16(words.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn value(rows: *const Self, width: usize, row: usize, d: usize) -> f32 {
        // SAFETY: the caller's promise
        bf16::from_bits(unsafe { *rows.add(2 * (row / 2 * width + d) + row % 2) }).to_f32()
    }
    fn put_turned(keys: &mut [Self], position: usize, key: &[f32]) {
        let at = position % LANES * 2 + position / LANES;
        for (keys, value) in keys.chunks_exact_mut(TILE).zip(key) {
            keys[at] = bf16::from_f32(*value).to_bits();
        }
    }
    fn put_row(rows: &mut [Self], row: usize, values: &[f32]) {
        let pair = &mut rows[row / 2 * 2 * values.len()..][..2 * values.len()];
        for (both, value) in pair.chunks_exact_mut(2).zip(values) {
            both[row % 2] = bf16::from_f32(*value).to_bits();
        }
    }
}
