//! How sixteen consecutive weights of a stored row become f32 lanes: one impl a format.

use bytes::Bytes;

use super::arithmetic::Exact;
use super::dot::widen;
use super::math::load_some;
use super::packed::{AffineRows, CentredRows, Fp4Rows, Groups, Mxfp8Rows, TableRows};
use super::scales::{Bf16, E4m3, E8m0, Number, Other};
use super::simd::pairs::{PAIRED, Pairs};
use super::simd::{Isa, LANES, Simd, dispatch};

use crate::backend::{Tensor, check};
use crate::error::Result;
use crate::weights::{Coding, Dtype, FP8_BLOCK, Matrix, Packed, Values};

/// A weight of a stored matrix.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: *const u8,
    pub(super) row: usize,
    pub(super) col: usize,
}

impl Place {
    /// The one `columns` columns on, which are whole bytes.
    #[inline(always)]
    pub(super) fn after<R: Rows>(self, columns: usize) -> Self {
        Self { at: self.at.wrapping_add(columns * R::BITS / 8), col: self.col + columns, ..self }
    }
}

/// The rows of a stored matrix.
///
/// # Safety
/// Callers keep rows and columns (and the sixteen, or `count`, values from there) inside the matrix, and fulfil [`Simd`].
pub(super) trait Rows: Copy {
    /// Bits of a value.
    const BITS: usize;
    /// Whether a few tokens read the weights as they are stored; if not, they are widened first for any number of them.
    const DIRECT: bool = true;
    /// The same where operands are rounded to bf16.
    const DIRECT_PAIRS: bool = false;
    /// Whether [`Rows::load_riffled`] is what costs less where the instruction set says so.
    const RIFFLED: bool = false;
    /// Columns that can be taken at once: no group ends among them.
    const RUN: usize = PAIRED;
    /// Columns of the groups of most checkpoints, for which there is code of its own; zero if there is none.
    const GROUP: usize = 0;
    /// What the values of a group are scaled with.
    type Group<S: Simd>: Copy;
    /// The columns from `col` to the end of its group.
    #[inline(always)]
    fn left_in_group(self, _col: usize) -> usize {
        usize::MAX
    }
    /// The number of the group of column `col`; those of a row follow each other.
    #[inline(always)]
    fn group_at(self, _row: usize, _col: usize) -> usize {
        0
    }
    /// The number of the group of the weight at `place`.
    #[inline(always)]
    fn group_of(self, place: Place) -> usize {
        self.group_at(place.row, place.col)
    }
    /// The group of this number.
    unsafe fn group<S: Simd>(self, number: usize) -> Self::Group<S>;
    /// Where the weight is stored; the row may lie after the last one.
    fn address(self, row: usize, col: usize) -> *const u8;
    #[inline(always)]
    fn place(self, row: usize, col: usize) -> Place {
        Place { at: self.address(row, col), row, col }
    }
    /// Sixteen weights from `place` on, all of `group`.
    unsafe fn load<S: Simd>(self, place: Place, group: Self::Group<S>) -> S::V;
    /// The first `count` of them, zeros after.
    unsafe fn load_some<S: Simd>(self, place: Place, count: usize, group: Self::Group<S>) -> S::V;
    /// As [`Rows::load`], in the order of [`Simd::riffle`].
    #[inline(always)]
    unsafe fn load_riffled<S: Simd>(self, place: Place, group: Self::Group<S>) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::riffle(self.load::<S>(place, group)) }
    }
    /// Thirty-two weights, rounded to bf16; `group` is that of the first.
    #[inline(always)]
    unsafe fn load_pairs<S: Simd, P: Pairs<S>>(self, place: Place, group: Self::Group<S>) -> P::P {
        let Place { row, col, .. } = place;
        // SAFETY: the caller's promise
        unsafe {
            let next =
                if self.left_in_group(col) < PAIRED { self.group::<S>(self.group_at(row, col + LANES)) } else { group };
            P::round(self.load::<S>(place, group), self.load::<S>(place.after::<Self>(LANES), next))
        }
    }
    /// The first `count` of them, zeros after.
    #[inline(always)]
    unsafe fn load_some_pairs<S: Simd, P: Pairs<S>>(self, place: Place, count: usize, group: Self::Group<S>) -> P::P {
        // SAFETY: the caller's promise
        unsafe {
            let low = match count {
                LANES.. => self.load::<S>(place, group),
                _ => self.load_some::<S>(place, count, group),
            };
            let high = match count {
                ..=LANES => S::splat(0.0),
                _ => {
                    let next = place.after::<Self>(LANES);
                    self.load_some::<S>(next, count - LANES, self.group::<S>(self.group_of(next)))
                }
            };
            P::round(low, high)
        }
    }
}

/// For formats without groups.
macro_rules! ungrouped {
    () => {
        type Group<S: Simd> = ();
        #[inline(always)]
        unsafe fn group<S: Simd>(self, _number: usize) {}
    };
}
pub(super) use ungrouped;

/// f32 rows, of a matrix or of activations.
#[derive(Clone, Copy)]
pub(super) struct F32Rows {
    pub(super) start: *const u8,
    /// In values.
    pub(super) stride: usize,
}

/// bf16 rows.
#[derive(Clone, Copy)]
pub(super) struct Bf16Rows {
    start: *const u8,
    stride: usize,
}

/// f16 rows.
#[derive(Clone, Copy)]
pub(super) struct F16Rows {
    start: *const u8,
    stride: usize,
}

/// Block-scaled E4M3 rows.
#[derive(Clone, Copy)]
pub(super) struct Fp8Rows {
    start: *const u8,
    stride: usize,
    scales: Other,
    scale_stride: usize,
    // where row 0 and column 0 lie in the grid of blocks
    origin: (usize, usize),
}

impl Rows for F32Rows {
    const BITS: usize = 32;
    ungrouped!();
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * (Self::BITS / 8))
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (): ()) -> S::V {
        // SAFETY: inside the matrix by the trait's contract; loads need no alignment
        unsafe { S::load(place.at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, place: Place, count: usize, (): ()) -> S::V {
        // SAFETY: as above
        unsafe { load_some::<S>(place.at.cast(), count) }
    }
}

/// Copies `bytes` bytes to the front of a zeroed buffer for sixteen values of two bytes.
#[inline(always)]
unsafe fn padded(from: *const u8, bytes: usize) -> [u8; LANES * 2] {
    let mut buffer = [0u8; LANES * 2];
    // SAFETY: the caller's pointer is valid for `bytes` ≤ 32
    unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), bytes.min(LANES * 2)) };
    buffer
}

impl Rows for Bf16Rows {
    const BITS: usize = 16;
    const DIRECT_PAIRS: bool = true;
    #[inline(always)]
    unsafe fn load_pairs<S: Simd, P: Pairs<S>>(self, place: Place, (): ()) -> P::P {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { P::load(place.at.cast()) }
    }
    ungrouped!();
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * (Self::BITS / 8))
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (): ()) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::load_bf16(place.at) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, place: Place, count: usize, (): ()) -> S::V {
        // SAFETY: as above
        unsafe { S::load_bf16(padded(place.at, count * 2).as_ptr()) }
    }
}

impl Rows for F16Rows {
    const BITS: usize = 16;
    ungrouped!();
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * (Self::BITS / 8))
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (): ()) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::load_f16(place.at) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, place: Place, count: usize, (): ()) -> S::V {
        // SAFETY: as above
        unsafe { S::load_f16(padded(place.at, count * 2).as_ptr()) }
    }
}

impl Fp8Rows {
    /// The scales of sixteen columns, or of the first `count` of them.
    #[inline(always)]
    unsafe fn scales<S: Simd>(self, place: Place, count: usize) -> S::V {
        let (row, col) = (place.row + self.origin.0, place.col + self.origin.1);
        let first = row / FP8_BLOCK * self.scale_stride;
        // SAFETY: there is a scale for every block by `Matrix::new`
        unsafe {
            if col / FP8_BLOCK == (col + count - 1) / FP8_BLOCK {
                return S::splat(self.scales.at(first + col / FP8_BLOCK));
            }
            // heads whose width is no multiple of sixteen: the lanes straddle two blocks
            let mut lanes = [0.0; LANES];
            for (i, lane) in lanes.iter_mut().enumerate().take(count) {
                *lane = self.scales.at(first + (col + i) / FP8_BLOCK);
            }
            S::load(lanes.as_ptr())
        }
    }
}

impl Rows for Fp8Rows {
    const BITS: usize = 8;
    ungrouped!();
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * (Self::BITS / 8))
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (): ()) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::mul(S::load_fp8(place.at), self.scales::<S>(place, LANES)) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, place: Place, count: usize, (): ()) -> S::V {
        // SAFETY: as above
        unsafe {
            let bytes = padded(place.at, count);
            S::mul(S::load_fp8(bytes.as_ptr()), self.scales::<S>(place, count))
        }
    }
}

/// Calls `$body` with `$rows` bound to the [`Rows`] of a matrix's format.
macro_rules! with_rows {
    ($matrix:expr, $rows:ident => $body:expr) => {{
        use $crate::backend::cpu::rows::StoredRows;
        match StoredRows::of($matrix) {
            StoredRows::F32($rows) => $body,
            StoredRows::F16($rows) => $body,
            StoredRows::Bf16($rows) => $body,
            StoredRows::Fp8($rows) => $body,
            StoredRows::Table2($rows) => $body,
            StoredRows::Table3($rows) => $body,
            StoredRows::Table4($rows) => $body,
            StoredRows::Affine5($rows) => $body,
            StoredRows::Affine6($rows) => $body,
            StoredRows::Affine8($rows) => $body,
            StoredRows::Table2Other($rows) => $body,
            StoredRows::Table3Other($rows) => $body,
            StoredRows::Table4Other($rows) => $body,
            StoredRows::Affine5Other($rows) => $body,
            StoredRows::Affine6Other($rows) => $body,
            StoredRows::Affine8Other($rows) => $body,
            StoredRows::Int4($rows) => $body,
            StoredRows::Int4Other($rows) => $body,
            StoredRows::Mxfp4($rows) => $body,
            StoredRows::Nvfp4($rows) => $body,
            StoredRows::Mxfp8($rows) => $body,
        }
    }};
}
pub(super) use with_rows;

/// The rows of a matrix in any format.
pub(super) enum StoredRows {
    F32(F32Rows),
    F16(F16Rows),
    Bf16(Bf16Rows),
    Fp8(Fp8Rows),
    Table2(TableRows<2, Bf16>),
    Table3(TableRows<3, Bf16>),
    Table4(TableRows<4, Bf16>),
    Affine5(AffineRows<5, Bf16>),
    Affine6(AffineRows<6, Bf16>),
    Affine8(AffineRows<8, Bf16>),
    Table2Other(TableRows<2, Other>),
    Table3Other(TableRows<3, Other>),
    Table4Other(TableRows<4, Other>),
    Affine5Other(AffineRows<5, Other>),
    Affine6Other(AffineRows<6, Other>),
    Affine8Other(AffineRows<8, Other>),
    Int4(CentredRows<Bf16>),
    Int4Other(CentredRows<Other>),
    Mxfp4(Fp4Rows<E8m0>),
    Nvfp4(Fp4Rows<E4m3>),
    Mxfp8(Mxfp8Rows),
}

impl StoredRows {
    pub(super) fn of(matrix: &Matrix) -> Self {
        let (stride, origin) = (matrix.stride(), matrix.origin());
        let start = |bytes: &Bytes, width: usize| bytes.as_ptr().wrapping_add((origin.0 * stride + origin.1) * width);
        match matrix.values() {
            Values::F32(bytes) => Self::F32(F32Rows { start: start(bytes, 4), stride }),
            Values::F16(bytes) => Self::F16(F16Rows { start: start(bytes, 2), stride }),
            Values::Bf16(bytes) => Self::Bf16(Bf16Rows { start: start(bytes, 2), stride }),
            Values::Fp8 { values, scales } => Self::Fp8(Fp8Rows {
                start: start(values, 1),
                stride,
                scales: Other::of(scales),
                scale_stride: stride.div_ceil(FP8_BLOCK),
                origin,
            }),
            Values::Packed(packed) => Self::packed(packed, Groups::of(packed, stride, origin)),
        }
    }

    fn packed(packed: &Packed, groups: Groups) -> Self {
        let (scales, bf16) = (&packed.scales, packed.scales.dtype == Dtype::Bf16);
        let Some(biases) = &packed.biases else {
            return match (packed.coding, bf16) {
                (Coding::Mxfp4, _) => Self::Mxfp4(Fp4Rows::of(groups, scales)),
                (Coding::Nvfp4, _) => Self::Nvfp4(Fp4Rows::of(groups, scales)),
                (Coding::Mxfp8, _) => Self::Mxfp8(Mxfp8Rows::of(groups, scales)),
                (Coding::Affine { .. }, true) => Self::Int4(CentredRows::of(groups, scales)),
                (Coding::Affine { .. }, false) => Self::Int4Other(CentredRows::of(groups, scales)),
            };
        };
        match (packed.coding.bits(), bf16) {
            (2, true) => Self::Table2(TableRows::of(groups, scales, biases)),
            (3, true) => Self::Table3(TableRows::of(groups, scales, biases)),
            (4, true) => Self::Table4(TableRows::of(groups, scales, biases)),
            (5, true) => Self::Affine5(AffineRows::of(groups, scales, biases)),
            (6, true) => Self::Affine6(AffineRows::of(groups, scales, biases)),
            (_, true) => Self::Affine8(AffineRows::of(groups, scales, biases)),
            (2, false) => Self::Table2Other(TableRows::of(groups, scales, biases)),
            (3, false) => Self::Table3Other(TableRows::of(groups, scales, biases)),
            (4, false) => Self::Table4Other(TableRows::of(groups, scales, biases)),
            (5, false) => Self::Affine5Other(AffineRows::of(groups, scales, biases)),
            (6, false) => Self::Affine6Other(AffineRows::of(groups, scales, biases)),
            (_, false) => Self::Affine8Other(AffineRows::of(groups, scales, biases)),
        }
    }
}

#[inline(always)]
unsafe fn widen_row<S: Simd>(table: &Matrix, row: usize, to: &mut [f32]) {
    // SAFETY: the caller checked `row`; `to` holds whole steps
    unsafe {
        with_rows!(table, stored => widen::<S, Exact, _, 1>(stored, (row, 0), table.in_features(), to.as_mut_ptr()))
    }
}

/// Copies the rows `ids` of `table`, widened: `[ids, in]`.
pub(in crate::backend) fn gather(isa: Isa, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
    check::ids(table, ids)?;
    let width = table.in_features();
    let mut out = Tensor::scratch(ids.len(), width);
    let mut wide = Tensor::scratch(1, width.next_multiple_of(LANES));
    for (i, id) in ids.iter().enumerate() {
        let row = *id as usize;
        let to = wide.data_mut();
        // SAFETY: the instruction set is available, the row is inside the table
        unsafe { dispatch!(isa, widen_row(table: &Matrix, row: usize, to: &mut [f32])) };
        out.row_mut(i).copy_from_slice(&wide.data()[..width]);
    }
    Ok(out)
}
