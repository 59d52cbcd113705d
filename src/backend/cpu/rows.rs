//! How sixteen consecutive weights of a stored row become f32 lanes: one impl a format.

use bytes::Bytes;

use super::math::load_some;
use super::simd::{Isa, LANES, Simd, dispatch};

use crate::backend::tensor::Tensor;
use crate::error::{Error, Result};
use crate::weights::{FP8_BLOCK, Matrix, Values};

/// The rows of a stored matrix.
///
/// # Safety
/// Callers keep `row` and `col` (and the sixteen, or `count`, values from there) inside the matrix, and fulfil [`Simd`].
pub(super) trait Rows: Copy {
    /// Bytes of a value.
    const WIDTH: usize;
    /// Where the weight is stored; the row may lie after the last one.
    fn address(self, row: usize, col: usize) -> *const u8;
    /// Sixteen weights from column `col` of row `row`.
    unsafe fn load<S: Simd>(self, row: usize, col: usize) -> S::V;
    /// The first `count` of them, zeros after.
    unsafe fn load_some<S: Simd>(self, row: usize, col: usize, count: usize) -> S::V;
}

/// f32 rows, of a matrix or of scratch memory.
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
    scales: *const f32,
    scale_stride: usize,
    // where row 0 and column 0 lie in the grid of blocks
    origin: (usize, usize),
}

impl Rows for F32Rows {
    const WIDTH: usize = 4;
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * Self::WIDTH)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: inside the matrix by the trait's contract; loads need no alignment
        unsafe { S::load(self.address(row, col).cast()) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, row: usize, col: usize, count: usize) -> S::V {
        // SAFETY: as above
        unsafe { load_some::<S>(self.address(row, col).cast(), count) }
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
    const WIDTH: usize = 2;
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * Self::WIDTH)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::load_bf16(self.address(row, col)) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, row: usize, col: usize, count: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::load_bf16(padded(self.address(row, col), count * 2).as_ptr()) }
    }
}

impl Rows for F16Rows {
    const WIDTH: usize = 2;
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * Self::WIDTH)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::load_f16(self.address(row, col)) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, row: usize, col: usize, count: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::load_f16(padded(self.address(row, col), count * 2).as_ptr()) }
    }
}

impl Fp8Rows {
    /// The scales of sixteen columns, or of the first `count` of them.
    #[inline(always)]
    unsafe fn scales<S: Simd>(self, row: usize, col: usize, count: usize) -> S::V {
        let (row, col) = (row + self.origin.0, col + self.origin.1);
        // SAFETY: there is a scale for every block by `Matrix::new`
        unsafe {
            let row = self.scales.add(row / FP8_BLOCK * self.scale_stride);
            if col / FP8_BLOCK == (col + count - 1) / FP8_BLOCK {
                return S::splat(*row.add(col / FP8_BLOCK));
            }
            // heads whose width is no multiple of sixteen: the lanes straddle two blocks
            let mut lanes = [0.0; LANES];
            for (i, lane) in lanes.iter_mut().enumerate().take(count) {
                *lane = *row.add((col + i) / FP8_BLOCK);
            }
            S::load(lanes.as_ptr())
        }
    }
}

impl Rows for Fp8Rows {
    const WIDTH: usize = 1;
    #[inline(always)]
    fn address(self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add((row * self.stride + col) * Self::WIDTH)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, col: usize) -> S::V {
        // SAFETY: inside the matrix by the trait's contract
        unsafe { S::mul(S::load_fp8(self.address(row, col)), self.scales::<S>(row, col, LANES)) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(self, row: usize, col: usize, count: usize) -> S::V {
        // SAFETY: as above
        unsafe {
            let bytes = padded(self.address(row, col), count);
            S::mul(S::load_fp8(bytes.as_ptr()), self.scales::<S>(row, col, count))
        }
    }
}

/// Calls `$body` with `$rows` bound to the [`Rows`] of a matrix's format.
macro_rules! with_rows {
    ($matrix:expr, $rows:ident => $body:expr) => {
        match $crate::backend::cpu::rows::StoredRows::of($matrix) {
            $crate::backend::cpu::rows::StoredRows::F32($rows) => $body,
            $crate::backend::cpu::rows::StoredRows::F16($rows) => $body,
            $crate::backend::cpu::rows::StoredRows::Bf16($rows) => $body,
            $crate::backend::cpu::rows::StoredRows::Fp8($rows) => $body,
        }
    };
}
pub(super) use with_rows;

/// The rows of a matrix in any format.
pub(super) enum StoredRows {
    F32(F32Rows),
    F16(F16Rows),
    Bf16(Bf16Rows),
    Fp8(Fp8Rows),
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
                scales: scales.as_ptr(),
                scale_stride: stride.div_ceil(FP8_BLOCK),
                origin,
            }),
        }
    }
}

/// Widens `count` weights of `row` from column `col` on into `to`.
///
/// # Safety
/// As [`Rows`]; `to` holds at least `count` values.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, R: Rows>(rows: R, row: usize, col: usize, count: usize, to: *mut f32) {
    let whole = count / LANES * LANES;
    // SAFETY: the caller's promise
    unsafe {
        for i in (0..whole).step_by(LANES) {
            S::store(to.add(i), rows.load::<S>(row, col + i));
        }
        if whole < count {
            let v = rows.load_some::<S>(row, col + whole, count - whole);
            super::math::store_some::<S>(to.add(whole), v, count - whole);
        }
    }
}

#[inline(always)]
unsafe fn widen_row<S: Simd>(table: &Matrix, row: usize, to: &mut [f32]) {
    // SAFETY: the caller checked `row`; `to` holds one row
    unsafe { with_rows!(table, stored => widen::<S, _>(stored, row, 0, to.len(), to.as_mut_ptr())) }
}

/// Copies the rows `ids` of `table`, widened: `[ids, in]`.
pub(super) fn gather(isa: Isa, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
    let mut out = Tensor::zeros(ids.len(), table.in_features());
    for (i, id) in ids.iter().enumerate() {
        let row = *id as usize;
        if row >= table.out_features() {
            let rows = table.out_features();
            return Err(Error::msg(format!("token {id} is not in the embedding table of {rows} rows")));
        }
        let to = out.row_mut(i);
        // SAFETY: the instruction set is available, the row is inside the table
        unsafe { dispatch!(isa, widen_row(table: &Matrix, row: usize, to: &mut [f32])) };
    }
    Ok(out)
}
