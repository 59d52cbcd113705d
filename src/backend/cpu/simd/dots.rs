//! Dot products of whole numbers: codes of weights, sixteen rows at a time, with activations of eight bits.
#![allow(clippy::needless_range_loop, reason = "registers are clearest, and unrolled, by index")]

use super::scalar::Scalar;
use super::{LANES, Simd};

/// Columns whose products are added as whole numbers.
pub(in crate::backend::cpu) const BLOCK: usize = 32;

/// Registers of codes in a block of sixteen rows: each has four columns of every row.
pub(in crate::backend::cpu) const QUADS: usize = BLOCK / 4;

/// Where sixteen rows start, as many bytes apart.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Sixteen {
    pub(in crate::backend::cpu) start: *const u8,
    pub(in crate::backend::cpu) stride: usize,
}

impl Sixteen {
    #[inline(always)]
    pub(in crate::backend::cpu) fn row(self, row: usize) -> *const u8 {
        self.start.wrapping_add(row * self.stride)
    }

    /// Asks for the cache line `at` bytes after the start of every row.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn prefetch<S: Simd>(self, at: usize) {
        let mut quad = self.start.wrapping_add(at);
        for _ in 0..4 {
            // SAFETY: a prefetch of any address is harmless
            unsafe {
                S::prefetch(quad);
                S::prefetch(quad.wrapping_add(self.stride));
                S::prefetch(quad.wrapping_add(2 * self.stride));
                S::prefetch(quad.wrapping_add(3 * self.stride));
            }
            quad = quad.wrapping_add(4 * self.stride);
        }
    }
}

/// Operations on whole numbers of sixteen rows, beside the f32 lanes of `S`: lane i belongs to row i.
///
/// # Safety
/// As [`Simd`]; pointers, and those to all rows, are valid for as many bytes as a method says.
pub(in crate::backend::cpu) trait Dots<S: Simd>: Copy {
    /// An i32 a lane, or four bytes.
    type I: Copy;
    fn zero() -> Self::I;
    /// Sixteen bytes, `at` bytes after the start of every row: the first four of all rows, then the next.
    unsafe fn words(rows: Sixteen, at: usize) -> [Self::I; 4];
    /// The lower and the upper four bits of every byte.
    unsafe fn nibbles(bytes: Self::I) -> [Self::I; 2];
    /// The two bf16 of every lane.
    unsafe fn bf16(pairs: Self::I) -> [S::V; 2];
    /// Adds the products of four codes of `BITS` bits a lane with the four activations at `x`, which are at least -127.
    unsafe fn dot<const BITS: usize>(acc: Self::I, codes: Self::I, x: *const i8) -> Self::I;
    /// The sums of lanes as f32, which are exact up to 2²⁴.
    unsafe fn sums(a: Self::I, b: Self::I) -> S::V;
}

impl Dots<Self> for Scalar {
    type I = [i32; LANES];

    #[inline(always)]
    fn zero() -> [i32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn words(rows: Sixteen, at: usize) -> [[i32; LANES]; 4] {
        // SAFETY: sixteen bytes are readable there in every row
        let word = |row, i| unsafe { rows.row(row).add(at + i * 4).cast::<u32>().read_unaligned() };
        std::array::from_fn(|i| std::array::from_fn(|row| u32::from_le(word(row, i)) as i32))
    }
    #[inline(always)]
    unsafe fn nibbles(bytes: [i32; LANES]) -> [[i32; LANES]; 2] {
        [bytes.map(|word| word & 0x0f0f_0f0f), bytes.map(|word| word >> 4 & 0x0f0f_0f0f)]
    }
    #[inline(always)]
    unsafe fn bf16(pairs: [i32; LANES]) -> [[f32; LANES]; 2] {
        let value = |bits| f32::from_bits(bits);
        [pairs.map(|pair| value((pair as u32) << 16)), pairs.map(|pair| value(pair as u32 & 0xffff_0000))]
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize>(acc: [i32; LANES], codes: [i32; LANES], x: *const i8) -> [i32; LANES] {
        // SAFETY: four values are readable
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|lane| {
            let codes = codes[lane].to_le_bytes();
            (0..4).fold(acc[lane], |sum, i| sum + i32::from(codes[i]) * i32::from(x[i]))
        })
    }
    #[inline(always)]
    unsafe fn sums(a: [i32; LANES], b: [i32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| (a[lane] + b[lane]) as f32)
    }
}

/// AVX2 and AVX512-VNNI.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::avx2::Avx2;
    use super::super::avx512::Avx512;
    use super::{Dots, Sixteen};

    // Everything is inlined into functions compiled for the instruction set, which closures would not be.

    /// Four columns of a register each: the sixteen bytes at `at` of the eight rows from `first` on.
    #[inline(always)]
    unsafe fn eight_rows(rows: Sixteen, first: usize, at: usize) -> [__m256i; 4] {
        // SAFETY: callers are compiled for AVX2 and have sixteen bytes there in every row
        unsafe {
            let mut two = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                let low = _mm_loadu_si128(rows.row(first + i).add(at).cast());
                let high = _mm_loadu_si128(rows.row(first + i + 4).add(at).cast());
                two[i] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
            }
            let (low, low_next) = (_mm256_unpacklo_epi32(two[0], two[1]), _mm256_unpacklo_epi32(two[2], two[3]));
            let (high, high_next) = (_mm256_unpackhi_epi32(two[0], two[1]), _mm256_unpackhi_epi32(two[2], two[3]));
            [
                _mm256_unpacklo_epi64(low, low_next),
                _mm256_unpackhi_epi64(low, low_next),
                _mm256_unpacklo_epi64(high, high_next),
                _mm256_unpackhi_epi64(high, high_next),
            ]
        }
    }

    /// As [`eight_rows`], of sixteen.
    #[inline(always)]
    unsafe fn sixteen_rows(rows: Sixteen, at: usize) -> [__m512i; 4] {
        // SAFETY: callers are compiled for AVX-512 and have sixteen bytes there in every row
        unsafe {
            let mut four = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                four[i] = _mm512_castsi128_si512(_mm_loadu_si128(rows.row(i).add(at).cast()));
                four[i] = _mm512_inserti32x4::<1>(four[i], _mm_loadu_si128(rows.row(i + 4).add(at).cast()));
                four[i] = _mm512_inserti32x4::<2>(four[i], _mm_loadu_si128(rows.row(i + 8).add(at).cast()));
                four[i] = _mm512_inserti32x4::<3>(four[i], _mm_loadu_si128(rows.row(i + 12).add(at).cast()));
            }
            let (low, low_next) = (_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpacklo_epi32(four[2], four[3]));
            let (high, high_next) = (_mm512_unpackhi_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[2], four[3]));
            [
                _mm512_unpacklo_epi64(low, low_next),
                _mm512_unpackhi_epi64(low, low_next),
                _mm512_unpacklo_epi64(high, high_next),
                _mm512_unpackhi_epi64(high, high_next),
            ]
        }
    }

    // SAFETY (all blocks below): `Dots`' contract: the processor has the instruction set and pointers are valid
    impl Dots<Self> for Avx2 {
        type I = [__m256i; 2];

        #[inline(always)]
        fn zero() -> [__m256i; 2] {
            // SAFETY: see above
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        unsafe fn words(rows: Sixteen, at: usize) -> [[__m256i; 2]; 4] {
            // SAFETY: see above
            unsafe {
                let (upper, lower) = (eight_rows(rows, 0, at), eight_rows(rows, 8, at));
                [[upper[0], lower[0]], [upper[1], lower[1]], [upper[2], lower[2]], [upper[3], lower[3]]]
            }
        }
        #[inline(always)]
        unsafe fn nibbles(bytes: [__m256i; 2]) -> [[__m256i; 2]; 2] {
            // SAFETY: see above
            unsafe {
                let mask = _mm256_set1_epi8(15);
                let [a, b] = bytes;
                let (low_a, low_b) = (_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
                let (a, b) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
                [[low_a, low_b], [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)]]
            }
        }
        #[inline(always)]
        unsafe fn bf16(pairs: [__m256i; 2]) -> [[__m256; 2]; 2] {
            // SAFETY: see above
            unsafe {
                let [a, b] = pairs;
                let (low_a, low_b) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
                let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let (a, b) = (_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
                let low = [_mm256_castsi256_ps(low_a), _mm256_castsi256_ps(low_b)];
                [low, [_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)]]
            }
        }
        #[inline(always)]
        unsafe fn dot<const BITS: usize>(acc: [__m256i; 2], codes: [__m256i; 2], x: *const i8) -> [__m256i; 2] {
            // SAFETY: see above
            unsafe {
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                let (even_x, odd_x) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x));
                let mut sums = acc;
                for half in 0..2 {
                    let products = if BITS == 4 {
                        _mm256_madd_epi16(_mm256_maddubs_epi16(codes[half], x), _mm256_set1_epi16(1))
                    } else {
                        // a sum of two products would not fit in sixteen bits
                        let even = _mm256_and_si256(codes[half], _mm256_set1_epi16(255));
                        let odd = _mm256_srli_epi16::<8>(codes[half]);
                        _mm256_add_epi32(_mm256_madd_epi16(even, even_x), _mm256_madd_epi16(odd, odd_x))
                    };
                    sums[half] = _mm256_add_epi32(sums[half], products);
                }
                sums
            }
        }
        #[inline(always)]
        unsafe fn sums(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256; 2] {
            // SAFETY: see above
            unsafe {
                let (first, second) = (_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1]));
                [_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second)]
            }
        }
    }

    // SAFETY (all blocks below): as above; callers are compiled for AVX512-VNNI
    impl Dots<Self> for Avx512 {
        type I = __m512i;

        #[inline(always)]
        fn zero() -> __m512i {
            // SAFETY: see above
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn words(rows: Sixteen, at: usize) -> [__m512i; 4] {
            // SAFETY: see above
            unsafe { sixteen_rows(rows, at) }
        }
        #[inline(always)]
        unsafe fn nibbles(bytes: __m512i) -> [__m512i; 2] {
            // SAFETY: see above
            unsafe {
                let mask = _mm512_set1_epi8(15);
                [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
            }
        }
        #[inline(always)]
        unsafe fn bf16(pairs: __m512i) -> [__m512; 2] {
            // SAFETY: see above
            unsafe {
                let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(high)]
            }
        }
        #[inline(always)]
        unsafe fn dot<const BITS: usize>(acc: __m512i, codes: __m512i, x: *const i8) -> __m512i {
            // SAFETY: see above
            unsafe { _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn sums(a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: see above
            unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(a, b)) }
        }
    }
}

/// NEON with the dot products of ARMv8.2.
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::super::neon::Neon;
    use super::{Dots, Sixteen};

    /// Adds the products of four signed bytes a lane. The intrinsic is not stable yet.
    #[inline(always)]
    unsafe fn sdot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let mut sums = acc;
        // SAFETY: one instruction between registers, which the processor has by `Dots`' contract
        unsafe {
            asm!("sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b", sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }

    /// The sixteen bytes at `at` of the four rows from `first` on, four columns a register.
    #[inline(always)]
    unsafe fn four_rows(rows: Sixteen, first: usize, at: usize) -> [uint8x16_t; 4] {
        // SAFETY: sixteen bytes are readable there in every row
        unsafe {
            let row = |i: usize| vreinterpretq_u32_u8(vld1q_u8(rows.row(first + i).add(at)));
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let (even, odd) = ([vtrn1q_u32(a, b), vtrn1q_u32(c, d)], [vtrn2q_u32(a, b), vtrn2q_u32(c, d)]);
            let low = |[x, y]: [uint32x4_t; 2]| vtrn1q_u64(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y));
            let high = |[x, y]: [uint32x4_t; 2]| vtrn2q_u64(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y));
            [low(even), low(odd), high(even), high(odd)].map(|columns| vreinterpretq_u8_u64(columns))
        }
    }

    // SAFETY (all blocks below): `Dots`' contract; callers are compiled for the dot products
    impl Dots<Self> for Neon {
        type I = [uint8x16_t; 4];

        #[inline(always)]
        fn zero() -> [uint8x16_t; 4] {
            // SAFETY: every aarch64 processor has NEON
            unsafe { [vdupq_n_u8(0); 4] }
        }
        #[inline(always)]
        unsafe fn words(rows: Sixteen, at: usize) -> [[uint8x16_t; 4]; 4] {
            // SAFETY: see above
            unsafe {
                let (a, b) = (four_rows(rows, 0, at), four_rows(rows, 4, at));
                let (c, d) = (four_rows(rows, 8, at), four_rows(rows, 12, at));
                [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]], [a[2], b[2], c[2], d[2]], [a[3], b[3], c[3], d[3]]]
            }
        }
        #[inline(always)]
        unsafe fn nibbles(bytes: [uint8x16_t; 4]) -> [[uint8x16_t; 4]; 2] {
            // SAFETY: see above
            unsafe { [bytes.map(|four| vandq_u8(four, vdupq_n_u8(15))), bytes.map(|four| vshrq_n_u8::<4>(four))] }
        }
        #[inline(always)]
        unsafe fn bf16(pairs: [uint8x16_t; 4]) -> [[float32x4_t; 4]; 2] {
            // SAFETY: see above
            unsafe {
                let pairs = pairs.map(|four| vreinterpretq_u32_u8(four));
                [
                    pairs.map(|four| vreinterpretq_f32_u32(vshlq_n_u32::<16>(four))),
                    pairs.map(|four| vreinterpretq_f32_u32(vandq_u32(four, vdupq_n_u32(0xffff_0000)))),
                ]
            }
        }
        #[inline(always)]
        unsafe fn dot<const BITS: usize>(
            acc: [uint8x16_t; 4],
            codes: [uint8x16_t; 4],
            x: *const i8,
        ) -> [uint8x16_t; 4] {
            // SAFETY: see above
            unsafe {
                let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
                let mut sums = acc;
                for i in 0..4 {
                    let sum = vreinterpretq_s32_u8(acc[i]);
                    let sum = if BITS == 4 {
                        sdot(sum, vreinterpretq_s8_u8(codes[i]), x)
                    } else {
                        // both factors have signs, so a code is itself less 128, and twice 64
                        let less = vreinterpretq_s8_u8(veorq_u8(codes[i], vdupq_n_u8(128)));
                        sdot(sdot(sdot(sum, less, x), vdupq_n_s8(64), x), vdupq_n_s8(64), x)
                    };
                    sums[i] = vreinterpretq_u8_s32(sum);
                }
                sums
            }
        }
        #[inline(always)]
        unsafe fn sums(a: [uint8x16_t; 4], b: [uint8x16_t; 4]) -> [float32x4_t; 4] {
            // SAFETY: see above
            unsafe {
                let sum = |i: usize| vaddq_s32(vreinterpretq_s32_u8(a[i]), vreinterpretq_s32_u8(b[i]));
                [vcvtq_f32_s32(sum(0)), vcvtq_f32_s32(sum(1)), vcvtq_f32_s32(sum(2)), vcvtq_f32_s32(sum(3))]
            }
        }
    }
}
