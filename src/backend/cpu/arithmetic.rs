//! How operands meet in a matrix product: exactly as they are, or rounded to bf16 (or to eight bits: [`int8`]).

use std::marker::PhantomData;

use super::int8;
use super::least::Least;
use super::math::load_some;
use super::rows::{Place, Rows};
use super::simd::pairs::{PAIRED, Pairs};
use super::simd::{LANES, Simd};
use super::turned::Tokens;
use super::wide::WideRows;

/// One way to multiply stored weights with activations.
///
/// # Safety
/// As [`Rows`] and [`Simd`].
pub(super) trait Products<S: Simd>: Copy {
    /// A stored activation: any bits are one, and it fits in an f32 of scratch memory.
    type X: Copy;
    /// [`Products::STEP`] operands.
    type W: Copy;
    /// Rows of scratch memory, of values `X`.
    type Wide: Rows + From<*const Self::X>;
    /// Columns of one step.
    const STEP: usize;
    /// Whether operands are bf16 in pairs.
    const PAIRS: bool;
    /// Whether the lanes of sums are in the order of [`Simd::riffle`].
    const RIFFLED: bool = false;
    /// What has the same bits, sooner, where no operand and no sum is subnormal.
    type Normal: Products<S, X = Self::X, Wide = Self::Wide>;
    /// Whether [`Products::Normal`] is another type.
    const CAREFUL: bool = false;
    /// The least of `count` operands, where it matters.
    #[inline(always)]
    unsafe fn least(_from: *const Self::X, _count: usize) -> Least {
        Least::default()
    }
    unsafe fn weights<R: Rows>(w: R, place: Place, group: R::Group<S>) -> Self::W;
    unsafe fn weights_some<R: Rows>(w: R, place: Place, count: usize, group: R::Group<S>) -> Self::W;
    unsafe fn load(from: *const Self::X) -> Self::W;
    unsafe fn load_some(from: *const Self::X, count: usize) -> Self::W;
    /// The operands of one lane, at `from`, in all lanes.
    unsafe fn splat(from: *const Self::X) -> Self::W;
    unsafe fn store(to: *mut Self::X, values: Self::W);
    unsafe fn add(acc: S::V, w: Self::W, x: Self::W) -> S::V;
}

/// f32 activations, weights as exact as their format is; sixteen columns in the order of [`Simd::riffle`] if `RIFFLED`.
#[derive(Clone, Copy)]
pub(super) struct InF32<const RIFFLED: bool>;

pub(super) type Exact = InF32<false>;

/// Activations and weights rounded to bf16.
#[derive(Clone, Copy)]
pub(super) struct Fast<P>(PhantomData<P>);

impl<S: Simd, const RIFFLED: bool> Products<S> for InF32<RIFFLED> {
    type X = f32;
    type W = S::V;
    type Wide = WideRows<f32>;
    type Normal = Self;
    const STEP: usize = LANES;
    const PAIRS: bool = false;
    const RIFFLED: bool = RIFFLED;
    #[inline(always)]
    unsafe fn weights<R: Rows>(w: R, place: Place, group: R::Group<S>) -> S::V {
        // SAFETY: the caller's promise
        unsafe { if RIFFLED { w.load_riffled::<S>(place, group) } else { w.load::<S>(place, group) } }
    }
    #[inline(always)]
    unsafe fn weights_some<R: Rows>(w: R, place: Place, count: usize, group: R::Group<S>) -> S::V {
        // SAFETY: the caller's promise
        unsafe { w.load_some::<S>(place, count, group) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> S::V {
        // SAFETY: the caller's promise
        unsafe { load_some::<S>(from, count) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::splat(*from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, values: S::V) {
        // SAFETY: the caller's promise
        unsafe { S::store(to, values) }
    }
    #[inline(always)]
    unsafe fn add(acc: S::V, w: S::V, x: S::V) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::fma(w, x, acc) }
    }
}

impl<S: Simd, P: Pairs<S>> Products<S> for Fast<P> {
    type X = u16;
    type W = P::P;
    type Wide = WideRows<u16>;
    type Normal = Fast<P::Normal>;
    const STEP: usize = PAIRED;
    const PAIRS: bool = true;
    const CAREFUL: bool = P::CAREFUL;
    #[inline(always)]
    unsafe fn least(from: *const u16, count: usize) -> Least {
        // SAFETY: the caller's promise
        unsafe { if P::CAREFUL { Least::of(from, count) } else { Least::default() } }
    }
    #[inline(always)]
    unsafe fn weights<R: Rows>(w: R, place: Place, group: R::Group<S>) -> P::P {
        // SAFETY: the caller's promise
        unsafe { w.load_pairs::<S, P>(place, group) }
    }
    #[inline(always)]
    unsafe fn weights_some<R: Rows>(w: R, place: Place, count: usize, group: R::Group<S>) -> P::P {
        // SAFETY: the caller's promise
        unsafe { w.load_some_pairs::<S, P>(place, count, group) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u16) -> P::P {
        // SAFETY: the caller's promise
        unsafe { P::load(from) }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const u16, count: usize) -> P::P {
        let mut values = [0u16; PAIRED];
        // SAFETY: the caller's promise, for `count` values
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count.min(PAIRED));
            P::load(values.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn splat(from: *const u16) -> P::P {
        // SAFETY: the caller's promise
        unsafe { P::splat(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u16, values: P::P) {
        // SAFETY: the caller's promise
        unsafe { P::store(to, values) }
    }
    #[inline(always)]
    unsafe fn add(acc: S::V, w: P::P, x: P::P) -> S::V {
        // SAFETY: the caller's promise
        unsafe { P::dot(acc, w, x) }
    }
}

/// Activations of several tokens as a kind of products takes them.
#[derive(Clone, Copy)]
pub(super) enum Xs<'a> {
    /// For [`Exact`].
    F32(Tokens<'a, f32>),
    /// For [`Fast`], and the least value of each.
    Bf16(Tokens<'a, u16>, &'a [Least]),
    /// For [`int8`].
    Int8(&'a [&'a [f32]]),
}

impl<'a> Xs<'a> {
    /// The same with what [`super::turned::roots`] made of them, which has no meaning for [`int8`].
    pub(super) fn with(self, turned: &'a [f32]) -> Self {
        match self {
            Self::F32(xs) => Self::F32(Tokens { turned, ..xs }),
            Self::Bf16(xs, least) => Self::Bf16(Tokens { turned, ..xs }, least),
            Self::Int8(_) => self,
        }
    }

    /// How many tokens there are.
    pub(super) fn len(self) -> usize {
        match self {
            Self::F32(xs) => xs.rows.len(),
            Self::Bf16(xs, _) => xs.rows.len(),
            Self::Int8(xs) => xs.len(),
        }
    }

    /// Whether every token has at least `columns` values.
    pub(super) fn reach(self, columns: usize) -> bool {
        match self {
            Self::F32(xs) => xs.rows.iter().all(|x| x.len() >= columns),
            Self::Bf16(xs, _) => xs.rows.iter().all(|x| x.len() >= columns),
            Self::Int8(xs) => xs.iter().all(|x| int8::columns(x.len()) >= columns),
        }
    }

    /// Calls `f` with runs of at most `tokens` of them and the first one's number.
    pub(super) fn chunks(self, tokens: usize, mut f: impl FnMut(usize, Self)) {
        match self {
            Self::F32(xs) => xs.chunks(tokens).for_each(|(first, xs)| f(first, Xs::F32(xs))),
            Self::Bf16(xs, least) => {
                xs.chunks(tokens).for_each(|(first, xs)| f(first, Xs::Bf16(xs, &least[first..first + xs.rows.len()])));
            }
            Self::Int8(xs) => xs.chunks(tokens).enumerate().for_each(|(i, xs)| f(i * tokens, Xs::Int8(xs))),
        }
    }
}
