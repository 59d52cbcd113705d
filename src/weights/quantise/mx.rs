//! Floating-point codes: MXFP4 and MXFP8 with a power of two a group of 32, NVFP4 with an E4M3 scale a group of 16.

use super::{Codes, Float};
use crate::weights::e4m3;

/// The largest magnitude of E2M1.
const MAX_E2M1: f32 = 6.0;

/// The largest magnitude of E4M3.
const MAX_E4M3: f32 = 448.0;

/// E2M1 magnitudes are 0, ½, 1, 1½, 2, 3, 4, 6; between two of them lies one of these, and belongs to the smaller.
const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

pub(super) fn mxfp4<T: Float>(values: &[f32], out: Codes<'_>) {
    let groups = values.as_chunks::<32>().0.iter().zip(out.codes.as_chunks_mut::<16>().0).zip(out.scales);
    for ((values, codes), stored) in groups {
        let (scale, byte) = power_of_two(T::round(largest(values) / MAX_E2M1));
        *stored = byte;
        pairs::<T, 32>(values, scale, codes);
    }
}

pub(super) fn mxfp8<T: Float>(values: &[f32], out: Codes<'_>) {
    let groups = values.as_chunks::<32>().0.iter().zip(out.codes.as_chunks_mut::<32>().0).zip(out.scales);
    for ((values, codes), stored) in groups {
        let (scale, byte) = power_of_two(T::round(largest(values) / MAX_E4M3));
        *stored = byte;
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest_e4m3(T::round(value / scale));
        }
    }
}

pub(super) fn nvfp4<T: Float>(values: &[f32], out: Codes<'_>) {
    let groups = values.as_chunks::<16>().0.iter().zip(out.codes.as_chunks_mut::<8>().0).zip(out.scales);
    for ((values, codes), stored) in groups {
        *stored = nearest_e4m3(T::round(largest(values) / MAX_E2M1));
        match e4m3(*stored) {
            // too small for a scale: MLX divides by zero and takes what that gives for code 0
            0.0 => codes.fill(0),
            scale => pairs::<T, 16>(values, scale, codes),
        }
    }
}

/// Two codes a byte, the first in the low half.
fn pairs<T: Float, const GROUP: usize>(values: &[f32; GROUP], scale: f32, bytes: &mut [u8]) {
    let mut codes = [0; GROUP];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = nearest_e2m1(T::round(value / scale));
    }
    for (byte, pair) in bytes.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = pair[0] | pair[1] << 4;
    }
}

fn largest(values: &[f32]) -> f32 {
    let magnitudes = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    f32::from_bits(magnitudes.fold(0, u32::max))
}

/// The smallest power of two that is at least `scale`, and its E8M0 byte; one for zero, as in MLX.
///
/// E8M0 ends at 2⁻¹²⁷, which stands for all below it; there MLX 0.32 lets the byte wrap round to huge scales.
fn power_of_two(scale: f32) -> (f32, u8) {
    const LEAST: u32 = 1 << 22;
    if scale == 0.0 {
        return (1.0, 127);
    }
    if scale.to_bits() <= LEAST {
        return (f32::from_bits(LEAST), 0);
    }
    let exponent = (scale.to_bits() + 0x7f_ffff) >> 23;
    (f32::from_bits(exponent << 23), exponent as u8)
}

/// The nearest E2M1 code, ties to the smaller magnitude; what becomes zero has no sign. Beyond 6 it is 6, where MLX, which
/// looks for the smallest of rounded distances, finds zero for what is millions of times larger (NVFP4 of weights > 10⁹).
fn nearest_e2m1(value: f32) -> u8 {
    let magnitude = MIDDLES.iter().fold(0, |code, middle| code + u8::from(value.abs() > *middle));
    let sign = (value.to_bits() >> 28) as u8 & 8;
    if magnitude == 0 { 0 } else { magnitude | sign }
}

/// The nearest E4M3 code, ties to even, at most 448.
fn nearest_e4m3(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs().min(MAX_E4M3);
    let code = if magnitude < 1.0 / 64.0 {
        // below the normal numbers codes are 2⁻⁹ apart: adding 2¹⁴ leaves the nearest multiple in the mantissa
        (magnitude + 16384.0).to_bits() as u8
    } else {
        let bits = magnitude.to_bits();
        // bias 127 to bias 7, and 23 bits of mantissa to 3
        ((bits - (120 << 23) + 0x7_ffff + (bits >> 20 & 1)) >> 20) as u8
    };
    code | sign
}
