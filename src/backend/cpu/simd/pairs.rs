//! Thirty-two bf16 at a time, multiplied in pairs: what AVX512-BF16 computes, with the same bits elsewhere.

use half::bf16;

use super::scalar::Scalar;
use super::{LANES, Simd};

/// Values of a register of bf16.
pub(in crate::backend::cpu) const PAIRED: usize = 2 * LANES;

/// Operations on thirty-two bf16, beside the f32 lanes of `S`.
///
/// Subnormal operands and results count as zero, as AVX512-BF16 has it; [`Unflushed`] is for where there are none.
///
/// # Safety
/// As [`Simd`]; pointers are valid for thirty-two values.
pub(in crate::backend::cpu) trait Pairs<S: Simd>: Copy {
    /// Thirty-two bf16.
    type P: Copy;
    /// What has the same bits, sooner, where no operand and no sum is subnormal.
    type Normal: Pairs<S>;
    /// Whether [`Pairs::Normal`] is another type.
    const CAREFUL: bool = false;
    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self::P {
        // SAFETY: the caller's pointer is valid for thirty-two values
        unsafe { from.cast::<Self::P>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u16, values: Self::P) {
        // SAFETY: as in `load`
        unsafe { to.cast::<Self::P>().write_unaligned(values) }
    }
    /// The two at `from`, in all lanes.
    #[inline(always)]
    unsafe fn splat(from: *const u16) -> Self::P {
        // SAFETY: the caller's pointer is valid for two values
        unsafe {
            let pairs = [from.cast::<[u16; 2]>().read_unaligned(); LANES];
            Self::load(pairs.as_ptr().cast())
        }
    }
    /// Rounds to the nearest, ties to even: `low` are the first sixteen.
    unsafe fn round(low: S::V, high: S::V) -> Self::P;
    /// Lane i of `acc` plus a[2i + 1] · b[2i + 1], rounded, plus a[2i] · b[2i], rounded.
    unsafe fn dot(acc: S::V, a: Self::P, b: Self::P) -> S::V;
}

/// Products of f32 lanes, the even ones and the odd ones, of which nothing is flushed.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Unflushed;

impl<S: Simd> Pairs<S> for Unflushed {
    type P = [S::V; 2];
    type Normal = Self;
    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self::P {
        // SAFETY: the caller's promise
        unsafe { S::split_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u16, [even, odd]: Self::P) {
        let mut lanes = [[0.0f32; LANES]; 2];
        // SAFETY: the caller's promise
        unsafe {
            S::store(lanes[0].as_mut_ptr(), even);
            S::store(lanes[1].as_mut_ptr(), odd);
            let values: [u16; PAIRED] = std::array::from_fn(|i| bf16::from_f32(lanes[i % 2][i / 2]).to_bits());
            to.cast::<[u16; PAIRED]>().write_unaligned(values);
        }
    }
    #[inline(always)]
    unsafe fn splat(from: *const u16) -> Self::P {
        // SAFETY: the caller's promise, for two values
        unsafe { S::splat_two_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn round(low: S::V, high: S::V) -> Self::P {
        let mut values = [0.0f32; PAIRED];
        // SAFETY: the caller's promise
        unsafe {
            S::store(values.as_mut_ptr(), low);
            S::store(values.as_mut_ptr().add(LANES), high);
            let rounded = values.map(|x| bf16::from_f32(x).to_bits());
            <Self as Pairs<S>>::load(rounded.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: S::V, a: Self::P, b: Self::P) -> S::V {
        // SAFETY: the caller's promise
        unsafe { S::fma(a[0], b[0], S::fma(a[1], b[1], acc)) }
    }
}

/// Zero, with its sign, for a subnormal.
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

fn widen(x: u16) -> f32 {
    flush(bf16::from_bits(x).to_f32())
}

impl Pairs<Self> for Scalar {
    type P = [u16; PAIRED];
    type Normal = Self;

    #[inline(always)]
    unsafe fn round(low: [f32; LANES], high: [f32; LANES]) -> Self::P {
        std::array::from_fn(|i| bf16::from_f32(flush(if i < LANES { low[i] } else { high[i - LANES] })).to_bits())
    }
    #[inline(always)]
    unsafe fn dot(acc: [f32; LANES], a: Self::P, b: Self::P) -> [f32; LANES] {
        std::array::from_fn(|i| {
            let odd = flush(widen(a[2 * i + 1]).mul_add(widen(b[2 * i + 1]), flush(acc[i])));
            flush(widen(a[2 * i]).mul_add(widen(b[2 * i]), odd))
        })
    }
}

/// AVX2 and AVX512-BF16.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::super::avx2::Avx2;
    use super::super::avx512::Avx512;
    use super::{Pairs, Unflushed};

    /// Zeros, with their signs, for subnormals.
    #[inline(always)]
    unsafe fn flush(x: __m256) -> __m256 {
        // SAFETY: callers are compiled for AVX2
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            let size = _mm256_andnot_ps(sign, x);
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(size, _mm256_set1_ps(f32::MIN_POSITIVE));
            _mm256_and_ps(x, _mm256_or_ps(normal, sign))
        }
    }

    /// The even and the odd ones of sixteen bf16.
    #[inline(always)]
    unsafe fn split(x: __m256i) -> [__m256; 2] {
        // SAFETY: callers are compiled for AVX2
        unsafe {
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(-0x1_0000));
            [flush(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))), flush(_mm256_castsi256_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn dot_eight(acc: __m256, a: __m256i, b: __m256i) -> __m256 {
        // SAFETY: callers are compiled for AVX2
        unsafe {
            let ([even_a, odd_a], [even_b, odd_b]) = (split(a), split(b));
            let odd = flush(_mm256_fmadd_ps(odd_a, odd_b, flush(acc)));
            flush(_mm256_fmadd_ps(even_a, even_b, odd))
        }
    }

    /// The nearest bf16, ties to even, in the lower halves.
    #[inline(always)]
    unsafe fn round_eight(x: __m256) -> __m256i {
        // SAFETY: callers are compiled for AVX2
        unsafe {
            let bits = _mm256_castps_si256(flush(x));
            let upper = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
            let nearest = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            _mm256_blendv_epi8(_mm256_srli_epi32::<16>(nearest), quiet, nan)
        }
    }

    #[inline(always)]
    unsafe fn round_sixteen(v: [__m256; 2]) -> __m256i {
        // SAFETY: callers are compiled for AVX2
        unsafe {
            let packed = _mm256_packus_epi32(round_eight(v[0]), round_eight(v[1]));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
        }
    }

    // SAFETY (all blocks below): `Simd`'s contract: the processor has the instruction set, pointers are valid
    impl Pairs<Self> for Avx2 {
        type P = [__m256i; 2];
        type Normal = Unflushed;
        const CAREFUL: bool = true;

        #[inline(always)]
        unsafe fn load(from: *const u16) -> Self::P {
            // SAFETY: see above
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast())] }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u16, values: Self::P) {
            // SAFETY: see above
            unsafe {
                _mm256_storeu_si256(to.cast(), values[0]);
                _mm256_storeu_si256(to.add(16).cast(), values[1]);
            }
        }
        #[inline(always)]
        unsafe fn splat(from: *const u16) -> Self::P {
            // SAFETY: see above, for two values
            unsafe { [_mm256_set1_epi32(from.cast::<i32>().read_unaligned()); 2] }
        }
        #[inline(always)]
        unsafe fn round(low: [__m256; 2], high: [__m256; 2]) -> Self::P {
            // SAFETY: see above
            unsafe { [round_sixteen(low), round_sixteen(high)] }
        }
        #[inline(always)]
        unsafe fn dot(acc: [__m256; 2], a: Self::P, b: Self::P) -> [__m256; 2] {
            // SAFETY: see above
            unsafe { [dot_eight(acc[0], a[0], b[0]), dot_eight(acc[1], a[1], b[1])] }
        }
    }

    // SAFETY (all blocks below): as above; callers are compiled for AVX512-BF16
    impl Pairs<Self> for Avx512 {
        type P = __m512i;
        type Normal = Self;

        #[inline(always)]
        unsafe fn load(from: *const u16) -> __m512i {
            // SAFETY: see above
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u16, values: __m512i) {
            // SAFETY: see above
            unsafe { _mm512_storeu_si512(to.cast(), values) }
        }
        #[inline(always)]
        unsafe fn splat(from: *const u16) -> __m512i {
            // SAFETY: see above, for two values
            unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn round(low: __m512, high: __m512) -> __m512i {
            // SAFETY: see above
            unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
        }
        #[inline(always)]
        unsafe fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: see above
            unsafe {
                let pairs = |v| transmute::<__m512i, __m512bh>(v);
                _mm512_dpbf16_ps(acc, pairs(a), pairs(b))
            }
        }
    }
}

/// NEON, whose own products of bf16 round otherwise: widened, multiplied and flushed step by step.
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::mem::transmute;

    use super::super::LANES;
    use super::super::neon::Neon;
    use super::super::scalar::Scalar;
    use super::{PAIRED, Pairs, Unflushed};

    /// Zeros, with their signs, for subnormals.
    #[inline(always)]
    unsafe fn flush(x: float32x4_t) -> float32x4_t {
        // SAFETY: every aarch64 processor has NEON
        unsafe {
            let subnormal = vcltq_f32(vabsq_f32(x), vdupq_n_f32(f32::MIN_POSITIVE));
            let magnitude = vandq_u32(subnormal, vdupq_n_u32(0x7fff_ffff));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), magnitude))
        }
    }

    /// The even and the odd ones of eight bf16.
    #[inline(always)]
    unsafe fn split(x: uint32x4_t) -> [float32x4_t; 2] {
        // SAFETY: as above
        unsafe {
            let odd = vandq_u32(x, vdupq_n_u32(0xffff_0000));
            [flush(vreinterpretq_f32_u32(vshlq_n_u32::<16>(x))), flush(vreinterpretq_f32_u32(odd))]
        }
    }

    // SAFETY (all blocks below): `Simd`'s contract: pointers are valid; every aarch64 processor has NEON
    impl Pairs<Self> for Neon {
        type P = [uint32x4_t; 4];
        type Normal = Unflushed;
        const CAREFUL: bool = true;

        #[inline(always)]
        unsafe fn splat(from: *const u16) -> Self::P {
            // SAFETY: see above, for two values
            unsafe { [vdupq_n_u32(from.cast::<u32>().read_unaligned()); 4] }
        }
        #[inline(always)]
        unsafe fn round(low: [float32x4_t; 4], high: [float32x4_t; 4]) -> Self::P {
            // SAFETY: see above; arrays of the same size
            unsafe {
                let lanes = |v| transmute::<[float32x4_t; 4], [f32; LANES]>(v);
                transmute::<[u16; PAIRED], Self::P>(Scalar::round(lanes(low), lanes(high)))
            }
        }
        #[inline(always)]
        unsafe fn dot(acc: [float32x4_t; 4], a: Self::P, b: Self::P) -> [float32x4_t; 4] {
            let mut sums = acc;
            for i in 0..4 {
                // SAFETY: see above
                unsafe {
                    let ([even_a, odd_a], [even_b, odd_b]) = (split(a[i]), split(b[i]));
                    let odd = flush(vfmaq_f32(flush(acc[i]), odd_a, odd_b));
                    sums[i] = flush(vfmaq_f32(odd, even_a, even_b));
                }
            }
            sums
        }
    }
}
