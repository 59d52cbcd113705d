//! Rows of packed weights: values of a few bits, groups of them scaled together.
//!
//! A weight is the f32 nearest to scale · q + bias (one rounding), or the exact product of a float and its scale.

use super::rows::{Place, Rows};
use super::scales::{E8m0, Number};
use super::simd::dots::Sixteen;
use super::simd::{LANES, Simd};
use crate::weights::{Numbers, Packed};

/// Those of codes of which eight stands for zero.
static CENTRED: [f32; LANES] = [-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.];

/// The values of E2M1 (OCP Microscaling Formats 1.0, table 5).
static E2M1: [f32; LANES] = [0., 0.5, 1., 1.5, 2., 3., 4., 6., -0., -0.5, -1., -1.5, -2., -3., -4., -6.];

/// Where packed values and what scales them lie.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    start: *const u8,
    row_bytes: usize,
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
            log_columns: coding.group().trailing_zeros(),
            groups_per_row: stride / coding.group(),
            origin,
        }
    }

    /// Sixteen rows at column `col`, of values of `bits` bits.
    #[inline(always)]
    pub(super) fn sixteen(self, row: usize, col: usize, bits: usize) -> Sixteen {
        Sixteen { start: self.address(row, col, bits), stride: self.row_bytes }
    }

    #[inline(always)]
    fn address(self, row: usize, col: usize, bits: usize) -> *const u8 {
        let (row, col) = (row + self.origin.0, col + self.origin.1);
        self.start.wrapping_add(row * self.row_bytes + col * bits / 8)
    }

    #[inline(always)]
    fn left(self, col: usize) -> usize {
        let columns = 1 << self.log_columns;
        columns - (col + self.origin.1) % columns
    }

    #[inline(always)]
    pub(super) fn index(self, row: usize, col: usize) -> usize {
        (row + self.origin.0) * self.groups_per_row + ((col + self.origin.1) >> self.log_columns)
    }
}

/// Affine rows of up to four bits: the possible weights of a group may be a table.
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
        fn group_at(self, row: usize, col: usize) -> usize {
            self.groups.index(row, col)
        }
        #[inline(always)]
        fn address(self, row: usize, col: usize) -> *const u8 {
            self.groups.address(row, col, Self::BITS)
        }
        #[inline(always)]
        unsafe fn load_some<S: Simd>(self, place: Place, count: usize, group: Self::Group<S>) -> S::V {
            // groups are never cut, and are whole sixteens: `linear` checks that
            debug_assert!(count == LANES);
            // SAFETY: the caller's promise
            unsafe { self.load::<S>(place, group) }
        }
    };
}

impl<const BITS: usize, N: Number> Rows for TableRows<BITS, N> {
    const BITS: usize = BITS;
    const DIRECT: bool = BITS == 4 && N::FAST;
    const GROUP: usize = 64;
    const RIFFLED: bool = BITS == 4;
    type Group<S: Simd> = S::Affine;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, number: usize) -> S::Affine {
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe { S::affine(self.scales.splat::<S>(number), self.biases.splat::<S>(number)) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, group: S::Affine) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::affine_values(group, S::unpack::<BITS>(place.at)) }
    }
    #[inline(always)]
    unsafe fn load_riffled<S: Simd>(self, place: Place, group: S::Affine) -> S::V {
        // SAFETY: as above
        unsafe { if BITS == 4 { S::affine_riffled(group, place.at) } else { S::riffle(self.load::<S>(place, group)) } }
    }
}

impl<N: Number> Rows for CentredRows<N> {
    const BITS: usize = 4;
    const DIRECT: bool = N::FAST;
    const RIFFLED: bool = true;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, number: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe {
            let scale = self.scales.splat::<S>(number);
            // zeros are positive, as scale · 8 + bias is
            S::fma(S::load(CENTRED.as_ptr()), scale, S::splat(0.0))
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, table: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::lookup(table, S::unpack::<4>(place.at)) }
    }
    #[inline(always)]
    unsafe fn load_riffled<S: Simd>(self, place: Place, table: S::V) -> S::V {
        // SAFETY: as above
        unsafe { S::lookup_riffled(table, place.at) }
    }
}

impl<const BITS: usize, N: Number> Rows for AffineRows<BITS, N> {
    const BITS: usize = BITS;
    const DIRECT: bool = BITS == 8 && N::FAST;
    const GROUP: usize = 64;
    type Group<S: Simd> = (S::V, S::V);
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, number: usize) -> (S::V, S::V) {
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe { (self.scales.splat::<S>(number), self.biases.splat::<S>(number)) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (scale, bias): (S::V, S::V)) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::fma(S::code_values(S::unpack::<BITS>(place.at)), scale, bias) }
    }
}

impl<N: Number> Rows for Fp4Rows<N> {
    const BITS: usize = 4;
    const RIFFLED: bool = true;
    const RUN: usize = LANES;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, number: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe {
            let scale = self.scales.at(number);
            S::mul(S::load(E2M1.as_ptr()), S::splat(scale))
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, table: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::lookup(table, S::unpack::<4>(place.at)) }
    }
    #[inline(always)]
    unsafe fn load_riffled<S: Simd>(self, place: Place, table: S::V) -> S::V {
        // SAFETY: as above
        unsafe { S::lookup_riffled(table, place.at) }
    }
}

impl Rows for Mxfp8Rows {
    const BITS: usize = 8;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, number: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe { S::splat(self.scales.at(number)) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, scale: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::mul(S::load_fp8(place.at), scale) }
    }
}
