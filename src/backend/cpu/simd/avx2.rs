//! Sixteen lanes in two 256-bit registers.

use std::arch::x86_64::*;

use super::Simd;
use super::scalar::unpack;

/// AVX2 lanes: the lower eight, the upper eight.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Avx2;

/// Finishes four sums whose lanes i and i+8, i and i+4 are added already: lanes i and i+2, then i and i+1.
///
/// # Safety
/// The processor has AVX.
#[inline(always)]
pub(super) unsafe fn sum_quarters([a, b, c, d]: [__m128; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise
    unsafe {
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let sums = _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
        std::mem::transmute::<__m128, [f32; 4]>(sums)
    }
}

/// The entries of `table` that the low four bits of the codes name: bit 3, moved to the sign, chooses the half.
///
/// A function, as all that takes registers: closures are calls.
#[inline(always)]
unsafe fn lookup_eight(table: [__m256; 2], codes: __m256i) -> __m256 {
    // SAFETY: callers are compiled for AVX2
    unsafe {
        let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
        let (low, high) = (_mm256_permutevar8x32_ps(table[0], codes), _mm256_permutevar8x32_ps(table[1], codes));
        _mm256_blendv_ps(low, high, upper)
    }
}

/// Adds lanes i and i+8, then i and i+4.
#[inline(always)]
unsafe fn quarter([low, high]: [__m256; 2]) -> __m128 {
    // SAFETY: callers are compiled for AVX2
    unsafe {
        let eight = _mm256_add_ps(low, high);
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
    }
}

/// Sixteen E4M3 bytes as f16 bits of 1/256 of their value: f16 widens subnormals without the assist that f32 needs.
///
/// # Safety
/// The processor has AVX2; sixteen bytes are readable.
#[inline(always)]
pub(super) unsafe fn fp8_as_f16(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise
    unsafe {
        let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast()));
        let magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
        let sign = _mm256_slli_epi16::<8>(_mm256_xor_si256(wide, magnitude));
        let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
        let nan = _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00));
        _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16::<7>(magnitude), sign), nan)
    }
}

/// Multiplies eight values by 2ⁿ, n in the low bits of `t`.
#[inline(always)]
unsafe fn eight_add_exponent(y: __m256, t: __m256) -> __m256 {
    // SAFETY: callers are compiled for AVX2
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent))
    }
}

/// Applies a two-operand instruction to both halves.
macro_rules! halves {
    ($op:ident, $a:ident, $b:ident) => {
        // SAFETY: `Simd`'s contract: the processor has AVX2
        unsafe { [$op($a[0], $b[0]), $op($a[1], $b[1])] }
    };
}

// SAFETY (all blocks below): `Simd`'s contract: the processor has AVX2, FMA and F16C, pointers are valid
impl Simd for Avx2 {
    type V = [__m256; 2];
    type Codes = [__m256i; 2];
    type Affine = [Self::V; 2];

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
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see above
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: see above
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::V {
        // SAFETY: see above
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }
    #[inline(always)]
    unsafe fn split_bf16(from: *const u8) -> [Self::V; 2] {
        // SAFETY: see above
        unsafe {
            let words = [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())];
            let lower = |words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
            let upper = |words| _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-0x1_0000)));
            [[lower(words[0]), lower(words[1])], [upper(words[0]), upper(words[1])]]
        }
    }
    #[inline(always)]
    unsafe fn splat_two_bf16(from: *const u8) -> [Self::V; 2] {
        // SAFETY: see above, for four bytes
        unsafe {
            let words = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            let upper = _mm256_and_si256(words, _mm256_set1_epi32(-0x1_0000));
            [[_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)); 2], [_mm256_castsi256_ps(upper); 2]]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: see above
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> Self::V {
        // SAFETY: see above
        unsafe {
            let halves = fp8_as_f16(from);
            let scale = _mm256_set1_ps(256.0);
            [
                _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), scale),
                _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves)), scale),
            ]
        }
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(from: *const u8) -> Self::Codes {
        // SAFETY: see above
        unsafe {
            if BITS == 4 {
                let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
                let eight =
                    |at: *const u8| _mm256_srlv_epi32(_mm256_set1_epi32(at.cast::<i32>().read_unaligned()), shifts);
                return [eight(from), eight(from.add(4))];
            }
            let bytes = if BITS == 8 {
                _mm_loadu_si128(from.cast())
            } else {
                std::mem::transmute::<[u8; 16], __m128i>(unpack::<BITS>(from))
            };
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn code_values(codes: Self::Codes) -> Self::V {
        // SAFETY: see above
        unsafe { [_mm256_cvtepi32_ps(codes[0]), _mm256_cvtepi32_ps(codes[1])] }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::V, codes: Self::Codes) -> Self::V {
        // SAFETY: see above
        unsafe { [lookup_eight(table, codes[0]), lookup_eight(table, codes[1])] }
    }
    #[inline(always)]
    unsafe fn affine(scale: Self::V, bias: Self::V) -> [Self::V; 2] {
        [scale, bias]
    }
    #[inline(always)]
    unsafe fn affine_values([scale, bias]: [Self::V; 2], codes: Self::Codes) -> Self::V {
        // SAFETY: see above
        unsafe {
            let mask = _mm256_set1_epi32(15);
            let codes = [_mm256_and_si256(codes[0], mask), _mm256_and_si256(codes[1], mask)];
            Self::fma(Self::code_values(codes), scale, bias)
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn add_exponent(y: Self::V, t: Self::V) -> Self::V {
        // SAFETY: see above
        unsafe { [eight_add_exponent(y[0], t[0]), eight_add_exponent(y[1], t[1])] }
    }
    #[inline(always)]
    unsafe fn zip(a: Self::V, b: Self::V) -> [Self::V; 2] {
        // SAFETY: see above
        unsafe {
            let (low_a, high_a) = (_mm256_unpacklo_ps(a[0], b[0]), _mm256_unpackhi_ps(a[0], b[0]));
            let (low_b, high_b) = (_mm256_unpacklo_ps(a[1], b[1]), _mm256_unpackhi_ps(a[1], b[1]));
            [
                [_mm256_permute2f128_ps::<0x20>(low_a, high_a), _mm256_permute2f128_ps::<0x31>(low_a, high_a)],
                [_mm256_permute2f128_ps::<0x20>(low_b, high_b), _mm256_permute2f128_ps::<0x31>(low_b, high_b)],
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: see above
        unsafe {
            let four = quarter(v);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: see above
        unsafe { sum_quarters([quarter(v[0]), quarter(v[1]), quarter(v[2]), quarter(v[3])]) }
    }
}
