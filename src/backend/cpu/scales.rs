//! The scales and biases of packed weights, in the types that they are stored in.

use half::f16;

use super::simd::Simd;
use crate::weights::{Dtype, Numbers, e4m3};

/// Scales, or biases, as they are stored.
///
/// # Safety
/// `at` needs that there are more than `index`.
pub(super) trait Number: Copy {
    /// Whether reading one costs little beside a group of weights.
    const FAST: bool = true;
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
