//! Sixteen lanes in an array: the definition that the other instruction sets must match bit for bit.

use half::f16;

use super::{LANES, Simd, tabled};
use crate::weights::e4m3;

/// Portable lanes.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// Sixteen values of `BITS` bits, LSB first.
///
/// # Safety
/// `2 · BITS` bytes are readable.
#[inline(always)]
pub(super) unsafe fn unpack<const BITS: usize>(from: *const u8) -> [u8; LANES] {
    let mut bytes = [0u8; 16];
    // SAFETY: the caller's promise; BITS is at most eight
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), (2 * BITS).min(16)) };
    let packed = u128::from_le_bytes(bytes);
    std::array::from_fn(|i| (packed >> (i * BITS)) as u8 & (0xff >> (8 - BITS)))
}

impl Simd for Scalar {
    type V = [f32; LANES];
    type Codes = [u8; LANES];
    tabled!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's pointer is valid for sixteen values
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as in `load`
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::V {
        // SAFETY: as in `load`, for 32 bytes
        let halves = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(u16::from_le_bytes(halves[i])) << 16))
    }
    #[inline(always)]
    unsafe fn split_bf16(from: *const u8) -> [Self::V; 2] {
        // SAFETY: as in `load`, for 64 bytes
        let words = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        [0, 1].map(|half| each(|i| f32::from_bits(u32::from(words[i][half]) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: as in `load`, for 32 bytes
        let halves = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        each(|i| f16::from_le_bytes(halves[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> Self::V {
        // SAFETY: as in `load`, for 16 bytes
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        each(|i| e4m3(bytes[i]))
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(from: *const u8) -> Self::Codes {
        // SAFETY: as in `load`, for 2 · BITS bytes
        unsafe { unpack::<BITS>(from) }
    }
    #[inline(always)]
    unsafe fn code_values(codes: Self::Codes) -> Self::V {
        each(|i| f32::from(codes[i]))
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::V, codes: Self::Codes) -> Self::V {
        each(|i| table[usize::from(codes[i] & 15)])
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn add_exponent(y: Self::V, t: Self::V) -> Self::V {
        each(|i| f32::from_bits(y[i].to_bits().wrapping_add(t[i].to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn zip(a: Self::V, b: Self::V) -> [Self::V; 2] {
        [0, LANES / 2].map(|half| std::array::from_fn(|i| if i % 2 == 0 { a[half + i / 2] } else { b[half + i / 2] }))
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = v;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
}
