//! Sixteen lanes in four 128-bit registers.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Simd, tabled};

/// NEON lanes, four a register.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Neon;

/// An expression for every register.
macro_rules! each {
    (|$i:ident| $value:expr) => {
        // SAFETY: `Simd`'s contract; every aarch64 processor has NEON
        unsafe { [each!(0, $i, $value), each!(1, $i, $value), each!(2, $i, $value), each!(3, $i, $value)] }
    };
    ($at:literal, $i:ident, $value:expr) => {{
        let $i = $at;
        $value
    }};
}

/// Adds lanes i and i+8, then i and i+4.
#[inline(always)]
unsafe fn quarter(v: [float32x4_t; 4]) -> float32x4_t {
    // SAFETY: the processor has NEON
    unsafe { vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])) }
}

/// Four f16 of the lower half, widened. The intrinsic needs a type that the oldest compiler has not.
#[inline(always)]
unsafe fn f16_low(halves: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: one instruction between registers
    unsafe {
        asm!("fcvtl {wide:v}.4s, {halves:v}.4h", wide = lateout(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Four f16 of the upper half, widened.
#[inline(always)]
unsafe fn f16_high(halves: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: one instruction between registers
    unsafe {
        asm!("fcvtl2 {wide:v}.4s, {halves:v}.8h", wide = lateout(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Eight E4M3 bytes as f16 bits of 1/256 of their value.
#[inline(always)]
unsafe fn fp8_as_f16(bytes: uint8x8_t) -> uint16x8_t {
    // SAFETY: the processor has NEON
    unsafe {
        let wide = vmovl_u8(bytes);
        let magnitude = vandq_u16(wide, vdupq_n_u16(0x7f));
        let sign = vshlq_n_u16::<8>(veorq_u16(wide, magnitude));
        let nan = vandq_u16(vceqq_u16(magnitude, vdupq_n_u16(0x7f)), vdupq_n_u16(0x7e00));
        vorrq_u16(vorrq_u16(vshlq_n_u16::<7>(magnitude), sign), nan)
    }
}

/// For sixteen codes of `bits` bits: the two bytes that hold each, and how far it must be shifted down in them.
const fn places(bits: usize) -> ([u8; 32], [i16; 16]) {
    let (mut bytes, mut shifts) = ([0; 32], [0; 16]);
    let mut i = 0;
    while i < 16 {
        let byte = i * bits / 8;
        bytes[2 * i] = byte as u8;
        // past the last byte a table gives zero
        bytes[2 * i + 1] = byte as u8 + 1;
        shifts[i] = -((i * bits % 8) as i16);
        i += 1;
    }
    (bytes, shifts)
}

// SAFETY (all blocks below): `Simd`'s contract: pointers are valid for sixteen values; every aarch64 processor has NEON
impl Simd for Neon {
    type V = [float32x4_t; 4];
    type Codes = uint8x16_t;
    tabled!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see above
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        each!(|i| vld1q_f32(from.add(4 * i)))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: see above
            unsafe { vst1q_f32(to.add(4 * i), v) };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::V {
        each!(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(from.add(8 * i))))))
    }
    #[inline(always)]
    unsafe fn split_bf16(from: *const u8) -> [Self::V; 2] {
        let words = each!(|i| vreinterpretq_u32_u8(vld1q_u8(from.add(16 * i))));
        let lower = each!(|i| vreinterpretq_f32_u32(vshlq_n_u32::<16>(words[i])));
        [lower, each!(|i| vreinterpretq_f32_u32(vandq_u32(words[i], vdupq_n_u32(0xffff_0000))))]
    }
    #[inline(always)]
    unsafe fn splat_two_bf16(from: *const u8) -> [Self::V; 2] {
        // SAFETY: see above, for four bytes
        unsafe {
            let words = vdupq_n_u32(from.cast::<u32>().read_unaligned());
            let upper = vandq_u32(words, vdupq_n_u32(0xffff_0000));
            [[vreinterpretq_f32_u32(vshlq_n_u32::<16>(words)); 4], [vreinterpretq_f32_u32(upper); 4]]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: see above
        unsafe {
            let [low, high] = [vreinterpretq_u16_u8(vld1q_u8(from)), vreinterpretq_u16_u8(vld1q_u8(from.add(16)))];
            [f16_low(low), f16_high(low), f16_low(high), f16_high(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> Self::V {
        // SAFETY: see above
        unsafe {
            let bytes = vld1q_u8(from);
            let [low, high] = [fp8_as_f16(vget_low_u8(bytes)), fp8_as_f16(vget_high_u8(bytes))];
            let halves = [f16_low(low), f16_high(low), f16_low(high), f16_high(high)];
            Self::mul(halves, Self::splat(256.0))
        }
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(from: *const u8) -> uint8x16_t {
        // SAFETY: see above; no more than 2 · BITS bytes are read
        unsafe {
            if BITS == 8 {
                return vld1q_u8(from);
            }
            if BITS == 4 {
                let bytes = vld1_u8(from);
                let (low, high) = (vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
                return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
            }
            let word = |at: usize| u64::from(from.add(at).cast::<u32>().read_unaligned());
            let (low, high) = match BITS {
                2 => (word(0), 0),
                3 => (word(0) | u64::from(from.add(4).cast::<u16>().read_unaligned()) << 32, 0),
                5 => (word(0) | word(4) << 32, from.add(8).cast::<u16>().read_unaligned().into()),
                _ => (word(0) | word(4) << 32, word(8)),
            };
            let bytes = vcombine_u8(vcreate_u8(low), vcreate_u8(high));
            let (at, shifts) = &const { places(BITS) };
            let eight = |half: usize| {
                let pairs = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, vld1q_u8(at.as_ptr().add(16 * half))));
                let codes = vshlq_u16(pairs, vld1q_s16(shifts.as_ptr().add(8 * half)));
                vmovn_u16(codes)
            };
            vandq_u8(vcombine_u8(eight(0), eight(1)), vdupq_n_u8((1 << BITS) - 1))
        }
    }
    #[inline(always)]
    unsafe fn code_values(codes: uint8x16_t) -> Self::V {
        // SAFETY: see above
        unsafe {
            let [low, high] = [vmovl_u8(vget_low_u8(codes)), vmovl_u8(vget_high_u8(codes))];
            [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)]
                .map(|four| vcvtq_f32_u32(vmovl_u16(four)))
        }
    }
    /// The first bytes of all entries make a table of sixteen bytes, which one instruction looks up; so do the others.
    #[inline(always)]
    unsafe fn lookup(table: Self::V, codes: uint8x16_t) -> Self::V {
        // SAFETY: see above
        unsafe {
            let [a, b, c, d] = table.map(|four| vreinterpretq_u8_f32(four));
            let (even, odd) = ([vuzp1q_u8(a, b), vuzp1q_u8(c, d)], [vuzp2q_u8(a, b), vuzp2q_u8(c, d)]);
            // bytes 0, 1, 2, 3 of the sixteen entries
            let of = |bytes: uint8x16_t| vqtbl1q_u8(bytes, codes);
            let [zero, one] = [of(vuzp1q_u8(even[0], even[1])), of(vuzp1q_u8(odd[0], odd[1]))];
            let [two, three] = [of(vuzp2q_u8(even[0], even[1])), of(vuzp2q_u8(odd[0], odd[1]))];
            let (low, high) =
                ([vzip1q_u8(zero, one), vzip2q_u8(zero, one)], [vzip1q_u8(two, three), vzip2q_u8(two, three)]);
            let [l0, l1] = low.map(|pairs| vreinterpretq_u16_u8(pairs));
            let [h0, h1] = high.map(|pairs| vreinterpretq_u16_u8(pairs));
            [vzip1q_u16(l0, h0), vzip2q_u16(l0, h0), vzip1q_u16(l1, h1), vzip2q_u16(l1, h1)]
                .map(|four| vreinterpretq_f32_u16(four))
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each!(|i| vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each!(|i| vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each!(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        each!(|i| vdivq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        each!(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        each!(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn add_exponent(y: Self::V, t: Self::V) -> Self::V {
        each!(|i| {
            let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(t[i]));
            vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(y[i]), exponent))
        })
    }
    #[inline(always)]
    unsafe fn zip(a: Self::V, b: Self::V) -> [Self::V; 2] {
        // SAFETY: see above
        unsafe {
            let (zip1, zip2) = (|i: usize| vzip1q_f32(a[i], b[i]), |i: usize| vzip2q_f32(a[i], b[i]));
            [[zip1(0), zip2(0), zip1(1), zip2(1)], [zip1(2), zip2(2), zip1(3), zip2(3)]]
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: see above
        unsafe {
            let four = quarter(v);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: see above
        unsafe {
            let [a, b, c, d] = [quarter(v[0]), quarter(v[1]), quarter(v[2]), quarter(v[3])];
            // lanes i and i + 2 of two sums
            let two = |a, b| {
                let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
                vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
            };
            std::mem::transmute::<float32x4_t, [f32; 4]>(vpaddq_f32(two(a, b), two(c, d)))
        }
    }
}
