//! Dot products of whole numbers: codes of weights, sixteen rows at a time, with activations of eight bits.
#![allow(clippy::needless_range_loop, reason = "registers are clearest, and unrolled, by index")]

use super::scalar::Scalar;
use super::{LANES, Simd};

/// Columns whose products are added as whole numbers.
pub(in crate::backend::cpu) const BLOCK: usize = 32;

/// Registers of codes in a block of sixteen rows: each has four columns of every row.
pub(in crate::backend::cpu) const QUADS: usize = BLOCK / 4;

/// Operations on whole numbers of sixteen rows, beside the f32 lanes of `S`: lane i belongs to row i.
///
/// # Safety
/// As [`Simd`]; pointers are valid for as many bytes as a method says.
pub(in crate::backend::cpu) trait Dots<S: Simd>: Copy {
    /// An i32 a lane, or four codes of eight bits.
    type I: Copy;
    fn zero() -> Self::I;
    /// Thirty-two codes of four bits from each of sixteen addresses (16 bytes). Of every eight columns the even ones come
    /// first, then the odd ones.
    unsafe fn nibbles(rows: &[*const u8; LANES]) -> [Self::I; QUADS];
    /// Thirty-two codes of eight bits from each of sixteen addresses.
    unsafe fn bytes(rows: &[*const u8; LANES]) -> [Self::I; QUADS];
    /// Adds the products of four codes of `BITS` bits a lane with the four activations at `x`, which are at least -127.
    unsafe fn dot<const BITS: usize>(acc: Self::I, codes: Self::I, x: *const i8) -> Self::I;
    /// The lanes as f32, which are exact up to 2²⁴.
    unsafe fn values(lanes: Self::I) -> S::V;
}

impl Dots<Self> for Scalar {
    type I = [i32; LANES];

    #[inline(always)]
    fn zero() -> [i32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn nibbles(rows: &[*const u8; LANES]) -> [[i32; LANES]; QUADS] {
        std::array::from_fn(|quad| {
            // SAFETY: sixteen bytes are readable at every address
            let words = rows.map(|row| unsafe { row.add(quad / 2 * 4).cast::<u32>().read_unaligned() });
            words.map(|word| (u32::from_le(word) >> (quad % 2 * 4) & 0x0f0f_0f0f) as i32)
        })
    }
    #[inline(always)]
    unsafe fn bytes(rows: &[*const u8; LANES]) -> [[i32; LANES]; QUADS] {
        std::array::from_fn(|quad| {
            // SAFETY: thirty-two bytes are readable at every address
            rows.map(|row| u32::from_le(unsafe { row.add(quad * 4).cast::<u32>().read_unaligned() }) as i32)
        })
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
    unsafe fn values(lanes: [i32; LANES]) -> [f32; LANES] {
        lanes.map(|lane| lane as f32)
    }
}

/// AVX2 and AVX512-VNNI.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::LANES;
    use super::super::avx2::Avx2;
    use super::super::avx512::Avx512;
    use super::{Dots, QUADS};

    // Everything is inlined into functions compiled for the instruction set, which closures would not be.

    /// Four columns of a register each: the sixteen bytes at `at` of the eight rows from `first` on.
    #[inline(always)]
    unsafe fn eight_rows(rows: &[*const u8; LANES], first: usize, at: usize) -> [__m256i; 4] {
        // SAFETY: callers are compiled for AVX2 and have sixteen bytes there in every row
        unsafe {
            let mut two = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                let low = _mm_loadu_si128(rows[first + i].add(at).cast());
                let high = _mm_loadu_si128(rows[first + i + 4].add(at).cast());
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
    unsafe fn sixteen_rows(rows: &[*const u8; LANES], at: usize) -> [__m512i; 4] {
        // SAFETY: callers are compiled for AVX-512 and have sixteen bytes there in every row
        unsafe {
            let mut four = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                four[i] = _mm512_castsi128_si512(_mm_loadu_si128(rows[i].add(at).cast()));
                four[i] = _mm512_inserti32x4::<1>(four[i], _mm_loadu_si128(rows[i + 4].add(at).cast()));
                four[i] = _mm512_inserti32x4::<2>(four[i], _mm_loadu_si128(rows[i + 8].add(at).cast()));
                four[i] = _mm512_inserti32x4::<3>(four[i], _mm_loadu_si128(rows[i + 12].add(at).cast()));
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
        unsafe fn nibbles(rows: &[*const u8; LANES]) -> [[__m256i; 2]; QUADS] {
            // SAFETY: see above
            unsafe {
                let mask = _mm256_set1_epi8(15);
                let mut quads = [[_mm256_setzero_si256(); 2]; QUADS];
                for half in 0..2 {
                    let words = eight_rows(rows, half * 8, 0);
                    for i in 0..4 {
                        quads[2 * i][half] = _mm256_and_si256(words[i], mask);
                        quads[2 * i + 1][half] = _mm256_and_si256(_mm256_srli_epi16::<4>(words[i]), mask);
                    }
                }
                quads
            }
        }
        #[inline(always)]
        unsafe fn bytes(rows: &[*const u8; LANES]) -> [[__m256i; 2]; QUADS] {
            // SAFETY: see above
            unsafe {
                let mut quads = [[_mm256_setzero_si256(); 2]; QUADS];
                for half in 0..2 {
                    let (upper, lower) = (eight_rows(rows, half * 8, 0), eight_rows(rows, half * 8, 16));
                    for i in 0..4 {
                        quads[i][half] = upper[i];
                        quads[i + 4][half] = lower[i];
                    }
                }
                quads
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
        unsafe fn values(lanes: [__m256i; 2]) -> [__m256; 2] {
            // SAFETY: see above
            unsafe { [_mm256_cvtepi32_ps(lanes[0]), _mm256_cvtepi32_ps(lanes[1])] }
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
        unsafe fn nibbles(rows: &[*const u8; LANES]) -> [__m512i; QUADS] {
            // SAFETY: see above
            unsafe {
                let mask = _mm512_set1_epi8(15);
                let words = sixteen_rows(rows, 0);
                let mut quads = [_mm512_setzero_si512(); QUADS];
                for i in 0..4 {
                    quads[2 * i] = _mm512_and_si512(words[i], mask);
                    quads[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(words[i]), mask);
                }
                quads
            }
        }
        #[inline(always)]
        unsafe fn bytes(rows: &[*const u8; LANES]) -> [__m512i; QUADS] {
            // SAFETY: see above
            unsafe {
                let (upper, lower) = (sixteen_rows(rows, 0), sixteen_rows(rows, 16));
                [upper[0], upper[1], upper[2], upper[3], lower[0], lower[1], lower[2], lower[3]]
            }
        }
        #[inline(always)]
        unsafe fn dot<const BITS: usize>(acc: __m512i, codes: __m512i, x: *const i8) -> __m512i {
            // SAFETY: see above
            unsafe { _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn values(lanes: __m512i) -> __m512 {
            // SAFETY: see above
            unsafe { _mm512_cvtepi32_ps(lanes) }
        }
    }
}
