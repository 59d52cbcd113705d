//! Products of widened rows with sixteen tokens at a time: activations are turned, so that a register has one column of sixteen
//! tokens. Then the lanes of [`super::dot`] are sums of their own, which are added without a shuffle: leaves are short.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use bytemuck::NoUninit;

use super::Cpu;
use super::ahead::Later;
use super::arithmetic::Products;
use super::dot::LINE;
use super::linear::Shared;
use super::simd::{Isa, LANES, Simd, dispatch};
use super::stream::Out;
use super::wide::TALL;
use crate::backend::Tensor;
use crate::partition::{Fold, Step};

/// Words that are turned at once, of 32 bits: one of sixteen rows for each of sixteen lanes.
const SQUARE: usize = LANES * LANES;

/// Rows whose sums with two sixteens of tokens, a level of the tree on the other, stay in registers.
const HALF: usize = TALL / 2;

/// Columns of leaves that are short: adding their lanes takes long beside making them.
const SHORT: usize = 256;

/// Activations of several tokens: their rows and, of every whole sixteen of them, maybe the same turned by [`roots`].
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a, X> {
    pub(super) rows: &'a [&'a [X]],
    pub(super) turned: &'a [f32],
}

impl<'a, X: Copy> Tokens<'a, X> {
    /// Nothing is turned.
    pub(super) fn plain(rows: &'a [&'a [X]]) -> Self {
        Self { rows, turned: &[] }
    }

    /// How many of the rows are there turned: the first ones.
    pub(super) fn whole(self) -> usize {
        if self.turned.is_empty() { 0 } else { self.rows.len() / LANES * LANES }
    }

    pub(super) fn sixteens(self) -> Sixteens<'a> {
        let count = self.whole() / LANES;
        Sixteens { words: self.turned, count, apart: self.turned.len() / count.max(1) }
    }

    /// Runs of at most `tokens` of them, whole sixteens, and the first one's number.
    pub(super) fn chunks(self, tokens: usize) -> impl Iterator<Item = (usize, Self)> {
        let apart = self.sixteens().apart;
        self.rows.chunks(tokens).enumerate().map(move |(i, rows)| {
            let first = i * tokens / LANES;
            let turned = &self.turned[(first * apart).min(self.turned.len())..];
            (i * tokens, Self { rows, turned: &turned[..rows.len() / LANES * apart] })
        })
    }
}

/// The whole sixteens of `rows`, turned: for each root of `fold` `[sixteens, words]`, of which every leaf has `[16, steps, 16]`: of
/// each lane its operands step by step, one of each token. Leaves end with zeros. Empty if that does not pay for so few rows.
pub(super) fn roots<X: NoUninit + Sync>(cpu: &Cpu, rows: &[&[X]], fold: &Fold) -> Vec<Tensor> {
    // a register tile of rows is as good for one sixteen, and better if leaves are so long that their lanes cost nothing
    let short = fold.leaves.len() < fold.leaves.count() * SHORT;
    let least = if cpu.isa == Isa::Avx512 && !short { 2 * LANES } else { LANES };
    let some = if rows.len() < least { 0 } else { fold.roots.len() };
    (0..some).map(|root| turned(cpu, rows, fold.steps(root))).collect()
}

fn turned<X: NoUninit + Sync>(cpu: &Cpu, rows: &[&[X]], steps: &[Step]) -> Tensor {
    let deep = |step: &Step| (step.columns.len() * size_of::<X>()).div_ceil(LINE);
    let (sixteens, words) = (rows.len() / LANES, steps.iter().map(deep).sum::<usize>() * SQUARE);
    let mut turned = Tensor::scratch(sixteens, words);
    let to = Shared::new(turned.data_mut());
    cpu.pool.run(sixteens, |sixteen| {
        let rows = &rows[sixteen * LANES..][..LANES];
        // SAFETY: every task writes its own sixteen
        let mut to = unsafe { to.part(sixteen * words..(sixteen + 1) * words) };
        for step in steps {
            let leaf = to.split_off_mut(..deep(step) * SQUARE).unwrap_or_default();
            let rows: [&[u8]; LANES] = std::array::from_fn(|t| bytemuck::cast_slice(&rows[t][step.columns.clone()]));
            // SAFETY: the instruction set is available
            unsafe { dispatch!(cpu.isa, turn(rows: [&[u8]; LANES], leaf: &mut [f32])) };
        }
    });
    turned
}

/// Word i of every sixteen words of all rows goes to lane i: `[16, steps, 16]`.
#[inline(always)]
unsafe fn turn<S: Simd>(rows: [&[u8]; LANES], leaf: &mut [f32]) {
    let deep = leaf.len() / SQUARE;
    for k in 0..deep {
        // SAFETY: the caller's promise; `leaf` has as many values as are written
        unsafe {
            let mut words = [S::splat(0.0); LANES];
            for t in 0..LANES {
                let mut padded = [0u8; LINE];
                let rest = &rows[t][k * LINE..];
                let bytes = match rest.first_chunk::<LINE>() {
                    Some(whole) => whole,
                    None => {
                        padded[..rest.len()].copy_from_slice(rest);
                        &padded
                    }
                };
                words[t] = S::load(bytes.as_ptr().cast());
            }
            let words = zipped::<S, LANES>(words);
            for i in 0..LANES {
                S::store(leaf.as_mut_ptr().add((i * deep + k) * LANES), words[i]);
            }
        }
    }
}

/// Of `N` registers whose lanes are columns those whose rows are together: `16 / N` columns each.
#[inline(always)]
unsafe fn zipped<S: Simd, const N: usize>(mut words: [S::V; N]) -> [S::V; N] {
    for _ in 0..N.ilog2() {
        let halves = words;
        for i in 0..N / 2 {
            // SAFETY: the instruction set is available
            [words[2 * i], words[2 * i + 1]] = unsafe { S::zip(halves[i], halves[i + N / 2]) };
        }
    }
    words
}

/// Writes the sums of [`Sixteens::products`], those of the first `tall` rows: the `sum`th that is left.
///
/// # Safety
/// As [`Simd`]; `out` is valid for them.
#[inline(always)]
pub(super) unsafe fn put<S: Simd>(sums: &[f32], sum: usize, tall: usize, out: Out) {
    for (sixteen, rows) in sums.as_chunks::<LANES>().0.as_chunks::<TALL>().0.iter().enumerate() {
        // SAFETY: the caller's promise
        unsafe {
            let mut words = [S::splat(0.0); TALL];
            for r in 0..TALL {
                words[r] = S::load(rows[r].as_ptr());
            }
            let words = zipped::<S, TALL>(words);
            for i in 0..TALL {
                let mut tokens = [[0.0f32; TALL]; LANES / TALL];
                S::store(tokens.as_mut_ptr().cast(), words[i]);
                for t in 0..LANES / TALL {
                    out.put::<TALL>(sum, sixteen * LANES + i * (LANES / TALL) + t, &tokens[t], tall);
                }
            }
        }
    }
}

/// Turned activations: of every sixteen tokens as many words, `apart` from the next ones'.
#[derive(Clone, Copy)]
pub(super) struct Sixteens<'a> {
    words: &'a [f32],
    count: usize,
    apart: usize,
}

/// Widened rows of `width` values each, a step of each by turns, and a leaf of turned activations.
#[derive(Clone, Copy)]
struct Leaf<X> {
    rows: *const X,
    tokens: *const X,
    // from sixteen tokens to the next
    apart: usize,
    width: usize,
}

impl Sixteens<'_> {
    /// The products of [`TALL`] widened rows, `width` values each, over the leaf that begins `deep` steps after the first:
    /// `[sixteens, TALL, 16]`.
    ///
    /// # Safety
    /// As [`Simd`]; there are that many rows and steps.
    #[inline(always)]
    pub(super) unsafe fn products<S: Simd, K: Products<S>>(
        self,
        (rows, width): (*const K::X, usize),
        deep: usize,
        sums: &mut [f32],
        later: &mut Later,
    ) {
        let at_once = if S::TOKENS > 1 { 2 } else { 1 };
        let share = later.left.div_ceil(self.count.div_ceil(at_once).max(1));
        let mut sixteen = 0;
        while sixteen < self.count {
            let (tokens, to) =
                (&self.words[sixteen * self.apart + deep * SQUARE..], &mut sums[sixteen * TALL * LANES..]);
            let leaf = Leaf { rows, tokens: tokens.as_ptr().cast(), apart: self.apart * (K::STEP / LANES), width };
            // SAFETY: the caller's promise
            unsafe {
                later.fetch::<S>(share);
                sixteen += if S::TOKENS == 1 {
                    leaf.by_quarters::<S, K>(to)
                } else if sixteen + 2 <= self.count {
                    leaf.by_halves::<S, K>(to)
                } else {
                    leaf.tile::<S, K, TALL, 1>(to)
                };
            }
        }
    }
}

/// The sums that lanes `lane` and `lane + $apart` have become.
macro_rules! halves {
    ($whole:ident of $half:ident, $apart:literal) => {
        #[inline(always)]
        unsafe fn $whole<S: Simd, K: Products<S, X = X>, const ROWS: usize, const GROUPS: usize>(
            self,
            lane: usize,
        ) -> [[S::V; GROUPS]; ROWS] {
            // SAFETY: the caller's promise
            unsafe {
                let lower = self.$half::<S, K, ROWS, GROUPS>(lane);
                add::<S, ROWS, GROUPS>(lower, self.$half::<S, K, ROWS, GROUPS>(lane + $apart))
            }
        }
    };
}

impl<X: Copy> Leaf<X> {
    /// The products of all rows with two sixteens of tokens; returns how many they are.
    #[inline(always)]
    unsafe fn by_halves<S: Simd, K: Products<S, X = X>>(self, sums: &mut [f32]) -> usize {
        // SAFETY: the caller's promise
        unsafe {
            self.tile::<S, K, HALF, 2>(sums);
            self.half(1).tile::<S, K, HALF, 2>(&mut sums[HALF * LANES..])
        }
    }

    /// The products of all rows with sixteen tokens; returns how many sixteens they are. A quarter of the lanes meets all rows before
    /// the next one does: so much of the tokens stays in a first-level cache of 32 KiB, beside the rows.
    #[inline(always)]
    unsafe fn by_quarters<S: Simd, K: Products<S, X = X>>(self, sums: &mut [f32]) -> usize {
        // SAFETY: the caller's promise
        unsafe {
            let mut quarters = [[[[S::splat(0.0); 1]; HALF]; TALL / HALF]; 4];
            for lane in 0..4 {
                for half in 0..TALL / HALF {
                    quarters[lane][half] = self.half(half).four::<S, K, HALF, 1>(lane);
                }
            }
            // as `sixteen` has them
            let [a, b, c, d] = quarters;
            for half in 0..TALL / HALF {
                let all = add::<S, HALF, 1>(add::<S, HALF, 1>(a[half], c[half]), add::<S, HALF, 1>(b[half], d[half]));
                for r in 0..HALF {
                    S::store(sums[(half * HALF + r) * LANES..][..LANES].as_mut_ptr(), all[r][0]);
                }
            }
        }
        1
    }

    /// The same from row `half * HALF` on.
    #[inline(always)]
    fn half(self, half: usize) -> Self {
        let step = LINE / size_of::<X>();
        Self { rows: self.rows.wrapping_add(half * HALF * step), ..self }
    }

    /// The products of `ROWS` rows with sixteen tokens, `GROUPS` times; returns `GROUPS`.
    #[inline(always)]
    unsafe fn tile<S: Simd, K: Products<S, X = X>, const ROWS: usize, const GROUPS: usize>(
        self,
        sums: &mut [f32],
    ) -> usize {
        // SAFETY: the caller's promise
        let all = unsafe { self.sixteen::<S, K, ROWS, GROUPS>(0) };
        for r in 0..ROWS {
            for g in 0..GROUPS {
                // SAFETY: the instruction set is available, the slice has sixteen values
                unsafe { S::store(sums[(g * TALL + r) * LANES..][..LANES].as_mut_ptr(), all[r][g]) };
            }
        }
        GROUPS
    }

    // the tree of `Simd::sum`: a function each, because sums in a stack of arrays would leave the registers
    halves!(sixteen of eight, 1);
    halves!(eight of four, 2);
    halves!(four of two, 4);
    halves!(two of lane, 8);

    /// The sums of one lane.
    #[inline(always)]
    unsafe fn lane<S: Simd, K: Products<S, X = X>, const ROWS: usize, const GROUPS: usize>(
        self,
        lane: usize,
    ) -> [[S::V; GROUPS]; ROWS] {
        // SAFETY: the caller's promise
        unsafe {
            let tokens = self.tokens.add(lane * self.width);
            let rows = self.rows.add(lane * (K::STEP / LANES));
            let mut sums = [[S::splat(0.0); GROUPS]; ROWS];
            for k in (0..self.width).step_by(K::STEP) {
                let mut x = [K::load(tokens.add(k)); GROUPS];
                for g in 1..GROUPS {
                    x[g] = K::load(tokens.add(g * self.apart + k));
                }
                for r in 0..ROWS {
                    let w = K::splat(rows.add(k * TALL + r * K::STEP));
                    for g in 0..GROUPS {
                        sums[r][g] = K::add(sums[r][g], w, x[g]);
                    }
                }
            }
            sums
        }
    }
}

#[inline(always)]
unsafe fn add<S: Simd, const ROWS: usize, const GROUPS: usize>(
    mut a: [[S::V; GROUPS]; ROWS],
    b: [[S::V; GROUPS]; ROWS],
) -> [[S::V; GROUPS]; ROWS] {
    for r in 0..ROWS {
        for g in 0..GROUPS {
            // SAFETY: the instruction set is available
            a[r][g] = unsafe { S::add(a[r][g], b[r][g]) };
        }
    }
    a
}
