//! Rows of packed weights: values of a few bits, groups of them scaled together.
//!
//! A weight is the f32 nearest to scale · q + bias (one rounding), or the exact product of a float and its scale.

use super::rows::Rows;
use super::simd::{LANES, Simd};
use crate::weights::{Coding, Dtype, Numbers, Packed};

/// The values of unsigned codes.
pub(super) static COUNT: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// The values of E2M1 (OCP Microscaling Formats 1.0, table 5).
pub(super) static E2M1: [f32; LANES] = [0., 0.5, 1., 1.5, 2., 3., 4., 6., -0., -0.5, -1., -1.5, -2., -3., -4., -6.];

/// Scales, or biases, as they are stored.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    start: *const u8,
    dtype: Dtype,
    // that many from the start can be read as if they had four bytes
    roomy: usize,
    e4m3: bool,
}

impl Scales {
    pub(super) fn of(numbers: &Numbers) -> Self {
        let roomy = (numbers.bytes.len() / numbers.dtype.width()).saturating_sub(3);
        Self { start: numbers.bytes.as_ptr(), dtype: numbers.dtype, roomy, e4m3: false }
    }

    /// Number `index`.
    ///
    /// # Safety
    /// There are more than `index`, and the bytes live.
    #[inline(always)]
    pub(super) unsafe fn at(self, index: usize) -> f32 {
        let at = self.start.wrapping_add(index * self.dtype.width());
        // SAFETY: the caller's promise
        unsafe {
            match self.dtype {
                Dtype::Bf16 => f32::from_bits(u32::from(u16::from_le(at.cast::<u16>().read_unaligned())) << 16),
                Dtype::F16 => half::f16::from_bits(u16::from_le(at.cast::<u16>().read_unaligned())).to_f32(),
                Dtype::U8 | Dtype::Fp8 if self.e4m3 => e4m3(at.read()),
                Dtype::U8 | Dtype::Fp8 => e8m0(at.read()),
                Dtype::F32 | Dtype::U32 => f32::from_bits(u32::from_le(at.cast::<u32>().read_unaligned())),
            }
        }
    }

    /// Number `index` in every lane.
    ///
    /// # Safety
    /// As [`Scales::at`], and [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn splat<S: Simd>(self, index: usize) -> S::V {
        // SAFETY: the caller's promise; four bytes are readable where `roomy` says so
        unsafe {
            if matches!(self.dtype, Dtype::Bf16) && index < self.roomy {
                S::splat_bf16(self.start.add(index * 2))
            } else {
                S::splat(self.at(index))
            }
        }
    }
}

/// 2^(code − 127); 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1).
fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The value of an E4M3 byte (OCP 8-bit floating point, table 1).
fn e4m3(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    let magnitude = f32::from_bits(u32::from(code & 0x7f) << 20) * f32::from_bits((120 + 127) << 23);
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Where packed values and what scales them lie.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    start: *const u8,
    row_bytes: usize,
    bits: usize,
    // of a group, a power of two
    columns: usize,
    groups_per_row: usize,
    scales: Scales,
    biases: Option<Scales>,
    // row and column where the matrix starts in what is stored
    origin: (usize, usize),
}

impl Groups {
    pub(super) fn of(packed: &Packed, stride: usize, origin: (usize, usize)) -> Self {
        let Packed { coding, values, scales, biases } = packed;
        Self {
            start: values.as_ptr(),
            row_bytes: coding.words(stride) * 4,
            bits: coding.bits(),
            columns: coding.group(),
            groups_per_row: stride / coding.group(),
            scales: Scales { e4m3: *coding == Coding::Nvfp4, ..Scales::of(scales) },
            biases: biases.as_ref().map(Scales::of),
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
        self.columns - (col + self.origin.1) % self.columns
    }

    #[inline(always)]
    fn index(self, row: usize, col: usize) -> usize {
        (row + self.origin.0) * self.groups_per_row + (col + self.origin.1) / self.columns
    }
}

/// Rows of up to four bits: a group's sixteen possible weights are a table.
#[derive(Clone, Copy)]
pub(super) struct TableRows<const BITS: usize> {
    pub(super) groups: Groups,
    pub(super) table: &'static [f32; LANES],
}

/// Affine rows of more bits.
#[derive(Clone, Copy)]
pub(super) struct AffineRows<const BITS: usize> {
    pub(super) groups: Groups,
}

/// E4M3 rows scaled by powers of two.
#[derive(Clone, Copy)]
pub(super) struct Mxfp8Rows {
    pub(super) groups: Groups,
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

impl<const BITS: usize> Rows for TableRows<BITS> {
    const BITS: usize = BITS;
    const DIRECT: bool = BITS == 4;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> S::V {
        let index = self.groups.index(row, col);
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe {
            let (table, scale) = (S::load(self.table.as_ptr()), self.groups.scales.splat::<S>(index));
            match self.groups.biases {
                Some(biases) => S::fma(table, scale, biases.splat::<S>(index)),
                None => S::mul(table, scale),
            }
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, table: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::lookup(table, S::unpack::<BITS>(self.address(row, col))) }
    }
}

impl<const BITS: usize> Rows for AffineRows<BITS> {
    const BITS: usize = BITS;
    const DIRECT: bool = BITS == 8;
    type Group<S: Simd> = (S::V, S::V);
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> (S::V, S::V) {
        let index = self.groups.index(row, col);
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe {
            let bias = self.groups.biases.map_or_else(|| S::splat(0.0), |biases| biases.splat::<S>(index));
            (self.groups.scales.splat::<S>(index), bias)
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, (scale, bias): (S::V, S::V)) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::fma(S::code_values(S::unpack::<BITS>(self.address(row, col))), scale, bias) }
    }
}

impl Rows for Mxfp8Rows {
    const BITS: usize = 8;
    type Group<S: Simd> = S::V;
    in_groups!();
    #[inline(always)]
    unsafe fn group<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: there is a scale for every group by `Matrix::new`
        unsafe { self.groups.scales.splat::<S>(self.groups.index(row, col)) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize, scale: S::V) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::mul(S::load_fp8(self.address(row, col)), scale) }
    }
}
