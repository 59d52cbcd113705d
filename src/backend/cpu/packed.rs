//! Rows of packed weights: values of a few bits, groups of them scaled together.
//!
//! A weight is the f32 nearest to scale · q + bias (one rounding), or the exact product of a float and its scale.

use half::f16;

use super::rows::Rows;
use super::simd::pairs::Pairs;
use super::simd::{LANES, Simd};
use crate::weights::{Dtype, Numbers, Packed, e4m3};

/// The values of unsigned codes.
static COUNT: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Those of codes of which eight stands for zero.
static CENTRED: [f32; LANES] = [-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.];

/// The values of E2M1 (OCP Microscaling Formats 1.0, table 5).
static E2M1: [f32; LANES] = [0., 0.5, 1., 1.5, 2., 3., 4., 6., -0., -0.5, -1., -1.5, -2., -3., -4., -6.];

/// Scales, or biases, as they are stored.
///
/// # Safety
/// `at` needs that there are more than `index`.
pub(super) trait Number: Copy {
    /// Whether reading one costs little beside a group of weights.
    const FAST: bool = true;
    /// How many lie in a line of memory.
    const IN_LINE: usize;
    fn of(numbers: &Numbers) -> Self;
    /// Where number `index` is stored; it may lie after the last one.
    fn address(self, index: usize) -> *const u8;
    unsafe fn at(self, index: usize) -> f32;
    /// The same in all lanes.
    #[inline(always)]
    unsafe fn splat<S: Simd>(self, index: usize) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::splat(self.at(index)) }
    }
}

/// The upper halves of f32.
#[derive(Clone, Copy)]
pub(super) struct Bf16(*const u16);

/// f16 or f32.
#[derive(Clone, Copy)]
pub(super) struct Other(*const u8, Dtype);

/// Powers of two: 2^(code − 127), 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1).
#[derive(Clone, Copy)]
pub(super) struct E8m0(*const u8);

/// OCP 8-bit floating point, table 1.
#[derive(Clone, Copy)]
pub(super) struct E4m3(*const u8);

impl Number for Bf16 {
    const IN_LINE: usize = 32;
    fn address(self, index: usize) -> *const u8 {
        self.0.wrapping_add(index).cast()
    }
    fn of(numbers: &Numbers) -> Self {
        Self(numbers.bytes.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn at(self, index: usize) -> f32 {
        // SAFETY: the caller's promise
        let bits = unsafe { self.0.add(index).read_unaligned() };
        f32::from_bits(u32::from(u16::from_le(bits)) << 16)
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(self, index: usize) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::splat_bf16(self.address(index)) }
    }
}

impl Number for Other {
    const FAST: bool = false;
    const IN_LINE: usize = 16;
    fn address(self, index: usize) -> *const u8 {
        self.0.wrapping_add(index * self.1.width())
    }
    fn of(numbers: &Numbers) -> Self {
        Self(numbers.bytes.as_ptr(), numbers.dtype)
    }
    unsafe fn at(self, index: usize) -> f32 {
        // SAFETY: the caller's promise
        unsafe {
            match self.1 {
                Dtype::F16 => f16::from_bits(u16::from_le(self.0.cast::<u16>().add(index).read_unaligned())).to_f32(),
                Dtype::Bf16 => Bf16(self.0.cast()).at(index),
                _ => f32::from_bits(u32::from_le(self.0.cast::<u32>().add(index).read_unaligned())),
            }
        }
    }
}

impl Number for E8m0 {
    const IN_LINE: usize = 64;
    fn address(self, index: usize) -> *const u8 {
        self.0.wrapping_add(index)
    }
    fn of(numbers: &Numbers) -> Self {
        Self(numbers.bytes.as_ptr())
    }
    #[inline(always)]
    unsafe fn at(self, index: usize) -> f32 {
        // SAFETY: the caller's promise
        match unsafe { self.0.add(index).read() } {
            0 => f32::from_bits(1 << 22),
            255 => f32::NAN,
            code => f32::from_bits(u32::from(code) << 23),
        }
    }
}

impl Number for E4m3 {
    const IN_LINE: usize = 64;
    fn address(self, index: usize) -> *const u8 {
        self.0.wrapping_add(index)
    }
    fn of(numbers: &Numbers) -> Self {
        Self(numbers.bytes.as_ptr())
    }
    #[inline(always)]
    unsafe fn at(self, index: usize) -> f32 {
        // SAFETY: the caller's promise
        e4m3(unsafe { self.0.add(index).read() })
    }
}

/// Where packed values and what scales them lie.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    start: *const u8,
    row_bytes: usize,
    bits: usize,
    // the logarithm of a group's columns
    log_columns: u32,
    groups_per_row: usize,
    // row and column where the matrix starts in what is stored
    origin: (usize, usize),
}

impl Groups {
    pub(super) fn of(packed: &Packed, stride: usize, origin: (usize, usize)) -> Self {
        let Packed { coding, values, .. } = packed;
        Self {
            start: values.as_ptr(),
            row_bytes: coding.words(stride) * 4,
            bits: coding.bits(),
            log_columns: coding.group().trailing_zeros(),
            groups_per_row: stride / coding.group(),
            origin,
        }
    }

    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        let (row, col) = (row + self.origin.0, col + self.origin.1);
        self.start.wrapping_add(row * self.row_bytes + col * self.bits / 8)
    }

    #[inline(always)]
    fn left(self, col: usize) -> usize {
        let columns = 1 << self.log_columns;
        columns - (col + self.origin.1) % columns
    }

    /// Asks for the line of `numbers` that begins at this column's group, if one does.
    #[inline(always)]
    unsafe fn prefetch<S: Simd, N: Number>(self, numbers: N, (row, col): (usize, usize)) {
        if (col >> self.log_columns).is_multiple_of(N::IN_LINE) {
            // SAFETY: a prefetch of any address is harmless
            unsafe { S::prefetch(numbers.address(self.index(row, col))) }
        }
    }

    #[inline(always)]
    fn index(self, row: usize, col: usize) -> usize {
        (row + self.origin.0) * self.groups_per_row + ((col + self.origin.1) >> self.log_columns)
    }
}

/// Affine rows of up to four bits: a group's possible weights are a table.
#[derive(Clone, Copy)]
pub(super) struct TableRows<const BITS: usize, N> {
    groups: Groups,
    scales: N,
    biases: N,
}

/// Rows of four bits in groups of 32, eight standing for zero.
#[derive(Clone, Copy)]
pub(super) struct CentredRows<N> {
    groups: Groups,
    scales: N,
}

/// Affine rows of more bits.
#[derive(Clone, Copy)]
pub(super) struct AffineRows<const BITS: usize, N> {
    groups: Groups,
    scales: N,
    biases: N,
}

/// E2M1 rows.
#[derive(Clone, Copy)]
pub(super) struct Fp4Rows<N> {
    groups: Groups,
    scales: N,
}

/// E4M3 rows scaled by powers of two.
#[derive(Clone, Copy)]
pub(super) struct Mxfp8Rows {
    groups: Groups,
    scales: E8m0,
}

impl<const BITS: usize, N: Number> TableRows<BITS, N> {
    pub(super) fn of(groups: Groups, scales: &Numbers, biases: &Numbers) -> Self {
        Self { groups, scales: N::of(scales), biases: N::of(biases) }
    }
}

impl<N: Number> CentredRows<N> {
    pub(super) fn of(groups: Groups, scales: &Numbers) -> Self {
        Self { groups, scales: N::of(scales) }
    }
}

impl<const BITS: usize, N: Number> AffineRows<BITS, N> {
    pub(super) fn of(groups: Groups, scales: &Numbers, biases: &Numbers) -> Self {
        Self { groups, scales: N::of(scales), biases: N::of(biases) }
    }
}

impl<N: Number> Fp4Rows<N> {
    pub(super) fn of(groups: Groups, scales: &Numbers) -> Self {
        Self { groups, scales: N::of(scales) }
    }
}

impl Mxfp8Rows {
    pub(super) fn of(groups: Groups, scales: &Numbers) -> Self {
        Self { groups, scales: E8m0::of(scales) }
    }
}

/// What the kinds of rows have in common.
macro_rules! in_groups {
    () => {
        #[inline(always)]
        fn left_in_group(self, col: usize) -> usize {
            self.groups.left(col)
        }
        #[inline(always)]
        fn address(self, row: usize, col: usize) -> *const u8 {
            self.groups.address(row, col)
        }
        #[inline(always)]
        unsafe fn load_some<S: Simd>(self, row: usize, col: usize, count: usize, group: Self::Group<S>) -> S::V {
            // groups are never cut, and are whole sixteens: `linear` checks that
            debug_assert!(count == LANES);
            // SAFETY: the caller's promise
            unsafe { self.load::<S>(row, col, group) }
        }
    };
}

impl<const BITS: usize, N: Number> Rows for TableRows<BITS, N> {
    const BITS: usize = BITS;
    const DIRECT: bool = BITS == 4 && N::FAST;
    const DIRECT_PAIRS: bool = Self::DIRECT;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> S::V {
        let index = self.groups.index(row, col);
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe {
            let (scale, bias) = (self.scales.splat::<S>(index), self.biases.splat::<S>(index));
            S::fma(S::load(COUNT.as_ptr()), scale, bias)
        }
    }
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(self, row: usize, col: usize) {
        // SAFETY: a prefetch of any address is harmless
        unsafe {
            S::prefetch(self.address(row, col));
            self.groups.prefetch::<S, N>(self.scales, (row, col));
            self.groups.prefetch::<S, N>(self.biases, (row, col));
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, table: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::lookup(table, S::unpack::<BITS>(self.address(row, col))) }
    }
    #[inline(always)]
    unsafe fn load_pairs<S: Simd, P: Pairs<S>>(self, row: usize, col: usize, table: S::V) -> P::P {
        // SAFETY: inside the matrix by the trait's contract
        unsafe {
            if BITS == 4 {
                return P::nibbles(P::round(table, table), self.address(row, col));
            }
            P::round(self.load::<S>(row, col, table), self.load::<S>(row, col + LANES, table))
        }
    }
}

impl<N: Number> Rows for CentredRows<N> {
    const BITS: usize = 4;
    const DIRECT: bool = N::FAST;
    const DIRECT_PAIRS: bool = N::FAST;
    const GROUP: usize = 32;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe { S::mul(S::load(CENTRED.as_ptr()), self.scales.splat::<S>(self.groups.index(row, col))) }
    }
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(self, row: usize, col: usize) {
        // SAFETY: a prefetch of any address is harmless
        unsafe {
            S::prefetch(self.address(row, col));
            self.groups.prefetch::<S, N>(self.scales, (row, col));
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, table: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::lookup(table, S::unpack::<4>(self.address(row, col))) }
    }
    #[inline(always)]
    unsafe fn load_pairs<S: Simd, P: Pairs<S>>(self, row: usize, col: usize, table: S::V) -> P::P {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { P::nibbles(P::round(table, table), self.address(row, col)) }
    }
}

impl<const BITS: usize, N: Number> Rows for AffineRows<BITS, N> {
    const BITS: usize = BITS;
    const DIRECT: bool = BITS == 8 && N::FAST;
    const DIRECT_PAIRS: bool = Self::DIRECT;
    type Group<S: Simd> = (S::V, S::V);
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> (S::V, S::V) {
        let index = self.groups.index(row, col);
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe { (self.scales.splat::<S>(index), self.biases.splat::<S>(index)) }
    }
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(self, row: usize, col: usize) {
        // SAFETY: a prefetch of any address is harmless
        unsafe {
            S::prefetch(self.address(row, col));
            self.groups.prefetch::<S, N>(self.scales, (row, col));
            self.groups.prefetch::<S, N>(self.biases, (row, col));
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, (scale, bias): (S::V, S::V)) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::fma(S::code_values(S::unpack::<BITS>(self.address(row, col))), scale, bias) }
    }
}

impl<N: Number> Rows for Fp4Rows<N> {
    const BITS: usize = 4;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe {
            let scale = self.scales.at(self.groups.index(row, col));
            S::mul(S::load(E2M1.as_ptr()), S::splat(scale))
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, table: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::lookup(table, S::unpack::<4>(self.address(row, col))) }
    }
}

impl Rows for Mxfp8Rows {
    const BITS: usize = 8;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe { S::splat(self.scales.at(self.groups.index(row, col))) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, scale: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::mul(S::load_fp8(self.address(row, col)), scale) }
    }
}
