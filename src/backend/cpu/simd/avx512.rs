//! Sixteen lanes in one 512-bit register.

use std::arch::x86_64::*;

use super::{Simd, tabled};

/// AVX-512 lanes.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Avx512;

/// Adds the halves twice: lanes i and i+8, then i and i+4.
#[inline(always)]
unsafe fn quarter(v: __m512) -> __m128 {
    // SAFETY: callers are compiled for AVX-512
    unsafe {
        let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
    }
}

/// For the bytes of a register, where in their 64-bit lane the eight bits start that hold the value of their 32-bit lane.
const fn starts(bits: usize) -> [u8; 64] {
    let mut starts = [0; 64];
    let mut lane = 0;
    while lane < 16 {
        // the upper lanes' words end with the last value where two words are needed
        let skipped = if lane >= 8 && bits > 4 { 8 * (2 * bits - 8) } else { 0 };
        starts[4 * lane] = (lane * bits - skipped) as u8;
        // of the other bytes only the mask's are kept
        lane += 1;
    }
    starts
}

// Sixteen sums are narrow from the start: a shuffle of 512 bits holds up the products that follow twice as long. Where one
// shuffle and a blend do, the terms of half of the sums are swapped.

/// Four lanes of `a`, and then those of `b`.
#[inline(always)]
unsafe fn fours(a: __m512, b: __m512) -> __m256 {
    // SAFETY: callers are compiled for AVX-512
    unsafe {
        let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
        let b = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps::<1>(b));
        _mm256_add_ps(_mm256_blend_ps::<0b1111_0000>(a, b), _mm256_permute2f128_ps::<0x21>(a, b))
    }
}

/// Two lanes each of what lies in the lower halves, and then of what lies in the upper ones.
#[inline(always)]
unsafe fn twos(a: __m256, b: __m256) -> __m256 {
    // SAFETY: callers are compiled for AVX-512
    unsafe {
        let turned = _mm256_shuffle_pd::<0b0101>(_mm256_castps_pd(a), _mm256_castps_pd(b));
        _mm256_add_ps(_mm256_blend_ps::<0b1100_1100>(a, b), _mm256_castpd_ps(turned))
    }
}

/// The sums of `a`, and then those of `b`.
#[inline(always)]
unsafe fn sums(a: [__m512; 4], b: [__m512; 4]) -> __m256 {
    // SAFETY: callers are compiled for AVX-512
    unsafe {
        let x = twos(fours(a[0], b[0]), fours(a[1], b[1]));
        let y = twos(fours(a[2], b[2]), fours(a[3], b[3]));
        _mm256_add_ps(_mm256_shuffle_ps::<0b10_00_10_00>(x, y), _mm256_shuffle_ps::<0b11_01_11_01>(x, y))
    }
}

/// Neighbouring lanes added: in every quarter the two sums of `a`, then those of `b`.
#[inline(always)]
unsafe fn pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: callers are compiled for AVX-512
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b)) }
}

/// Neighbouring quarters added: the two sums of `a`, then those of `b`.
#[inline(always)]
unsafe fn pair_quarters(a: __m512, b: __m512) -> __m512 {
    // SAFETY: callers are compiled for AVX-512
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)) }
}

/// Of riffled vectors: lanes i and i+8 added, then i and i+4. Quarters: 0 and 1 of `a` and of `b`, 2 and 3, those of `c` and `d`.
#[inline(always)]
unsafe fn riffled_fours(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    // SAFETY: callers are compiled for AVX-512
    unsafe {
        let (x, y) = (pairs(a, b), pairs(c, d));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(x, y), _mm512_shuffle_f32x4::<0b11_10_11_10>(x, y))
    }
}

// SAFETY (all blocks below): `Simd`'s contract: the processor has AVX-512 and pointers are valid for sixteen values
impl Simd for Avx512 {
    const TOKENS: usize = 4;
    const RIFFLES: bool = true;
    type V = __m512;
    type Codes = __m512i;
    tabled!();

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address is harmless
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_once(at: *const u8) {
        // SAFETY: as above
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_bf16(from: *const u8) -> __m512 {
        // SAFETY: see above, for two bytes
        unsafe {
            let halves = _mm512_set1_epi16(from.cast::<i16>().read_unaligned());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: see above
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        // SAFETY: see above
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn split_bf16(from: *const u8) -> [__m512; 2] {
        // SAFETY: see above
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let upper = _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(upper)]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_mul_ps(_mm512_cvtph_ps(super::avx2::fp8_as_f16(from)), _mm512_set1_ps(256.0)) }
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(from: *const u8) -> __m512i {
        // SAFETY: see above
        unsafe {
            if BITS == 8 {
                return _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            }
            // every 64-bit lane has the bytes that hold its two values; eight bits from where those start
            let words = match BITS {
                2 => _mm512_set1_epi64(i64::from(from.cast::<u32>().read_unaligned())),
                3 => {
                    let high = i64::from(from.add(4).cast::<u16>().read_unaligned());
                    _mm512_set1_epi64(i64::from(from.cast::<u32>().read_unaligned()) | high << 32)
                }
                4 => _mm512_set1_epi64(from.cast::<i64>().read_unaligned()),
                _ => {
                    let low = _mm512_set1_epi64(from.cast::<i64>().read_unaligned());
                    let high = _mm512_set1_epi64(from.add(2 * BITS - 8).cast::<i64>().read_unaligned());
                    _mm512_mask_blend_epi64(0xf0, low, high)
                }
            };
            let starts: __m512i = std::mem::transmute(const { starts(BITS) });
            let codes = _mm512_multishift_epi64_epi8(starts, words);
            if BITS == 4 { codes } else { _mm512_and_si512(codes, _mm512_set1_epi32((1 << BITS) - 1)) }
        }
    }
    #[inline(always)]
    unsafe fn code_values(codes: __m512i) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_cvtepi32_ps(codes) }
    }
    #[inline(always)]
    unsafe fn lookup(table: __m512, codes: __m512i) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_permutexvar_ps(codes, table) }
    }
    #[inline(always)]
    unsafe fn affine_riffled(table: __m512, from: *const u8) -> __m512 {
        // SAFETY: see above
        unsafe { Self::lookup_riffled(table, from) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn add_exponent(y: __m512, t: __m512) -> __m512 {
        // SAFETY: see above
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), exponent))
        }
    }
    #[inline(always)]
    unsafe fn zip(a: __m512, b: __m512) -> [__m512; 2] {
        // SAFETY: see above
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
        }
    }
    #[inline(always)]
    unsafe fn riffle(v: __m512) -> __m512 {
        // SAFETY: see above
        unsafe { _mm512_permutexvar_ps(_mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15), v) }
    }
    #[inline(always)]
    unsafe fn lookup_riffled(table: __m512, from: *const u8) -> __m512 {
        // SAFETY: see above, for eight bytes
        unsafe {
            let starts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
            let words = _mm512_set1_epi64(from.cast::<i64>().read_unaligned());
            _mm512_permutexvar_ps(_mm512_srlv_epi32(words, starts), table)
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: see above
        unsafe {
            let four = quarter(v);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn sum4(v: [__m512; 4]) -> [f32; 4] {
        // SAFETY: see above
        unsafe { super::avx2::sum_quarters([quarter(v[0]), quarter(v[1]), quarter(v[2]), quarter(v[3])]) }
    }
    #[inline(always)]
    unsafe fn sum16(v: [[__m512; 4]; 4]) -> [[f32; 4]; 4] {
        // SAFETY: see above
        unsafe { std::mem::transmute([sums(v[0], v[1]), sums(v[2], v[3])]) }
    }
    #[inline(always)]
    unsafe fn sum4_riffled(v: [__m512; 4]) -> [f32; 4] {
        // SAFETY: see above
        unsafe {
            let x = riffled_fours(v[0], v[1], v[2], v[3]);
            let twos = pair_quarters(x, x);
            let sums = _mm512_castps512_ps256(pairs(twos, twos));
            std::mem::transmute(_mm_movelh_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums)))
        }
    }
    #[inline(always)]
    unsafe fn sum16_riffled(v: [[__m512; 4]; 4]) -> [[f32; 4]; 4] {
        // SAFETY: see above
        unsafe {
            let left = pair_quarters(
                riffled_fours(v[0][0], v[0][1], v[1][0], v[1][1]),
                riffled_fours(v[2][0], v[2][1], v[3][0], v[3][1]),
            );
            let right = pair_quarters(
                riffled_fours(v[0][2], v[0][3], v[1][2], v[1][3]),
                riffled_fours(v[2][2], v[2][3], v[3][2], v[3][3]),
            );
            std::mem::transmute(pairs(left, right))
        }
    }
}
