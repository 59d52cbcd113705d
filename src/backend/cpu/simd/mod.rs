//! Sixteen logical f32 lanes: one 512-bit register, two of 256 bits, four of 128, or an array; the same bits on all.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod dots;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod pairs;
pub(super) mod scalar;

/// The number of logical lanes.
pub(super) const LANES: usize = 16;

/// The values of codes of four bits.
static COUNT: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// The instruction set a kernel runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Portable code, the definition of every kernel's bits.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VBMI: Ice Lake, Zen 4 and later.
    Avx512,
    /// NEON, which every aarch64 processor has.
    Neon,
}

impl Isa {
    /// All of them, the widest last.
    const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Neon];

    /// The instruction sets that this processor has, the widest last.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The widest of them.
    pub(in crate::backend) fn best() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
                let wide = wide && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
                Self::Avx2.is_available() && wide && is_x86_feature_detected!("avx512vbmi")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            _ => false,
        }
    }

    /// The name of the instruction set.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

/// Operations on sixteen lanes. Every implementation gives the same bits for the same inputs.
///
/// # Safety
/// Callers must run on a processor that has the instruction set, from a function compiled for it, and pass pointers
/// valid for sixteen values (of the width the method names; no alignment is needed).
pub(super) trait Simd: Copy {
    /// Tokens whose sums with four rows are kept in registers: there are thirty-two of sixteen lanes, or eight.
    const TOKENS: usize = 1;
    /// Whether [`Simd::lookup_riffled`] costs less than [`Simd::unpack`] and [`Simd::lookup`].
    const RIFFLES: bool = false;
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen packed values, each in the low bits of its lane.
    type Codes: Copy;
    /// A scale and a bias, or the values that codes of up to four bits have with them: whatever is sooner used.
    type Affine: Copy;

    /// Asks for the cache line at `at`, which may be anywhere, to be fetched into the second-level cache.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    /// The same of one that is read once, soon: into the first-level cache alone.
    #[inline(always)]
    unsafe fn prefetch_once(_at: *const u8) {}
    unsafe fn splat(x: f32) -> Self::V;
    /// The bf16 at `from` in all lanes.
    #[inline(always)]
    unsafe fn splat_bf16(from: *const u8) -> Self::V {
        // SAFETY: the caller's promise, for two bytes
        unsafe { Self::splat(f32::from_bits(u32::from(u16::from_le(from.cast::<u16>().read_unaligned())) << 16)) }
    }
    /// The two bf16 at `from`, each in all lanes.
    #[inline(always)]
    unsafe fn splat_two_bf16(from: *const u8) -> [Self::V; 2] {
        // SAFETY: the caller's promise, for four bytes
        unsafe { [Self::splat_bf16(from), Self::splat_bf16(from.add(2))] }
    }
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn load_bf16(from: *const u8) -> Self::V;
    /// The lower and the upper bf16 of sixteen words of 32 bits.
    unsafe fn split_bf16(from: *const u8) -> [Self::V; 2];
    unsafe fn load_f16(from: *const u8) -> Self::V;
    /// E4M3 without infinities: 0x7f and 0xff are NaN.
    unsafe fn load_fp8(from: *const u8) -> Self::V;
    /// Sixteen values of `BITS` bits, LSB first, from `2 · BITS` bytes. With four bits, those above are undefined.
    unsafe fn unpack<const BITS: usize>(from: *const u8) -> Self::Codes;
    /// Codes of more than four bits, or less, as numbers.
    unsafe fn code_values(codes: Self::Codes) -> Self::V;
    /// The entries of `table` that the low four bits of the codes name.
    unsafe fn lookup(table: Self::V, codes: Self::Codes) -> Self::V;
    unsafe fn affine(scale: Self::V, bias: Self::V) -> Self::Affine;
    /// scale · q + bias, rounded once, of the low four bits of the codes.
    unsafe fn affine_values(of: Self::Affine, codes: Self::Codes) -> Self::V;
    /// The same of sixteen codes of four bits, in the order of [`Simd::riffle`].
    #[inline(always)]
    unsafe fn affine_riffled(of: Self::Affine, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise covers this call
        unsafe { Self::riffle(Self::affine_values(of, Self::unpack::<4>(from))) }
    }
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair; `b` if either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each pair; `b` if either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// y · 2ⁿ where n stands in the low bits of `t`'s mantissa.
    unsafe fn add_exponent(y: Self::V, t: Self::V) -> Self::V;
    /// The lanes of `a` and `b` by turns: those of the lower halves, and those of the upper ones.
    unsafe fn zip(a: Self::V, b: Self::V) -> [Self::V; 2];
    /// Lanes 0, 8, 1, 9 and so on, where [`Simd::RIFFLES`].
    #[inline(always)]
    unsafe fn riffle(v: Self::V) -> Self::V {
        v
    }
    /// The entries of `table` that sixteen codes of four bits name, in the order of [`Simd::riffle`].
    #[inline(always)]
    unsafe fn lookup_riffled(table: Self::V, from: *const u8) -> Self::V {
        // SAFETY: the caller's promise covers this call
        unsafe { Self::riffle(Self::lookup(table, Self::unpack::<4>(from))) }
    }
    /// The sum in the fixed order: lanes i and i+8, then i and i+4, i and i+2, i and i+1.
    unsafe fn sum(v: Self::V) -> f32;
    /// Four sums at once, each in the order of [`Simd::sum`].
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise covers this call
        unsafe { [Self::sum(v[0]), Self::sum(v[1]), Self::sum(v[2]), Self::sum(v[3])] }
    }
    /// Sixteen sums at once, each in the order of [`Simd::sum`].
    #[inline(always)]
    unsafe fn sum16(v: [[Self::V; 4]; 4]) -> [[f32; 4]; 4] {
        // SAFETY: the caller's promise covers this call
        unsafe { [Self::sum4(v[0]), Self::sum4(v[1]), Self::sum4(v[2]), Self::sum4(v[3])] }
    }
    /// [`Simd::sum4`] of vectors in the order of [`Simd::riffle`].
    #[inline(always)]
    unsafe fn sum4_riffled(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise covers this call
        unsafe { Self::sum4(v) }
    }
    /// [`Simd::sum16`] of vectors in the order of [`Simd::riffle`].
    #[inline(always)]
    unsafe fn sum16_riffled(v: [[Self::V; 4]; 4]) -> [[f32; 4]; 4] {
        // SAFETY: the caller's promise covers this call
        unsafe { Self::sum16(v) }
    }
}

/// [`Simd::Affine`] where looking a code up costs less than computing its value.
macro_rules! tabled {
    () => {
        type Affine = Self::V;
        #[inline(always)]
        unsafe fn affine(scale: Self::V, bias: Self::V) -> Self::V {
            // SAFETY: the caller's promise
            unsafe { Self::fma(Self::load($crate::backend::cpu::simd::COUNT.as_ptr()), scale, bias) }
        }
        #[inline(always)]
        unsafe fn affine_values(table: Self::V, codes: Self::Codes) -> Self::V {
            // SAFETY: the caller's promise
            unsafe { Self::lookup(table, codes) }
        }
    };
}
use tabled;

/// Calls a generic kernel for the instruction set `$isa`, compiled for it. It may have another parameter: `kernel[R: Rows](w: R)`.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident $([$generic:ident : $bound:path])? ( $($arg:ident : $type:ty),* $(,)? )) => {{
        use $crate::backend::cpu::simd::{Isa, scalar::Scalar};
        #[cfg(target_arch = "x86_64")]
        use $crate::backend::cpu::simd::{avx2::Avx2, avx512::Avx512};
        #[cfg(target_arch = "aarch64")]
        use $crate::backend::cpu::simd::neon::Neon;
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn on_avx2$(<$generic: $bound>)?($($arg: $type),*) {
            // SAFETY: this function is compiled for the instruction set; the rest is the caller's promise
            unsafe { $kernel::<Avx2 $(, $generic)?>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c")]
        unsafe fn on_avx512$(<$generic: $bound>)?($($arg: $type),*) {
            // SAFETY: as above
            unsafe { $kernel::<Avx512 $(, $generic)?>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => on_avx2($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => on_avx512($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => $kernel::<Neon $(, $generic)?>($($arg),*),
            // the others are not of this architecture
            _ => $kernel::<Scalar $(, $generic)?>($($arg),*),
        }
    }};
}
pub(super) use dispatch;

/// Calls a kernel that is generic over [`Simd`] and products of bf16 pairs.
macro_rules! dispatch_fast {
    ($isa:expr, $kernel:ident $([$generic:ident : $bound:path])? ( $($arg:ident : $type:ty),* $(,)? )) => {{
        use $crate::backend::cpu::arithmetic::Fast;
        use $crate::backend::cpu::simd::{Isa, scalar::Scalar};
        #[cfg(target_arch = "x86_64")]
        use $crate::backend::cpu::simd::{avx2::Avx2, avx512::Avx512};
        #[cfg(target_arch = "aarch64")]
        use $crate::backend::cpu::simd::neon::Neon;
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn on_avx2$(<$generic: $bound>)?($($arg: $type),*) {
            // SAFETY: this function is compiled for the instruction set; the rest is the caller's promise
            unsafe { $kernel::<Avx2, Fast<Avx2> $(, $generic)?>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma,f16c")]
        unsafe fn on_avx512$(<$generic: $bound>)?($($arg: $type),*) {
            // SAFETY: as above
            unsafe { $kernel::<Avx512, Fast<Avx512> $(, $generic)?>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512bf16") => on_avx512($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => on_avx2($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => $kernel::<Neon, Fast<Neon> $(, $generic)?>($($arg),*),
            // the others are not of this architecture
            _ => $kernel::<Scalar, Fast<Scalar> $(, $generic)?>($($arg),*),
        }
    }};
}
pub(super) use dispatch_fast;

/// Calls a kernel that is generic over [`Simd`] and [`dots::Dots`].
macro_rules! dispatch_dots {
    ($isa:expr, $kernel:ident ( $($arg:ident : $type:ty),* $(,)? )) => {{
        use $crate::backend::cpu::simd::{Isa, scalar::Scalar};
        #[cfg(target_arch = "x86_64")]
        use $crate::backend::cpu::simd::{avx2::Avx2, avx512::Avx512};
        #[cfg(target_arch = "aarch64")]
        use $crate::backend::cpu::simd::neon::Neon;
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn on_avx2($($arg: $type),*) {
            // SAFETY: this function is compiled for the instruction set; the rest is the caller's promise
            unsafe { $kernel::<Avx2, Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
        unsafe fn on_avx512($($arg: $type),*) {
            // SAFETY: as above
            unsafe { $kernel::<Avx512, Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod")]
        unsafe fn on_neon($($arg: $type),*) {
            // SAFETY: as above
            unsafe { $kernel::<Neon, Neon>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => on_avx512($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => on_avx2($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => on_neon($($arg),*),
            // and without dot products, what defines them
            _ => $kernel::<Scalar, Scalar>($($arg),*),
        }
    }};
}
pub(super) use dispatch_dots;

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: [f32; LANES] = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        3.25e-39,
        -1e-45,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-20,
        7e19,
        -0.1,
        12_582_919.0,
        f32::MIN_POSITIVE,
    ];

    unsafe fn operations<S: Simd>([a, b, c]: [&[f32]; 3], out: &mut Vec<f32>) {
        // SAFETY: called through `dispatch!` on an instruction set that is available, with sixteen values each
        unsafe {
            let (x, y, z) = (S::load(a.as_ptr()), S::load(b.as_ptr()), S::load(c.as_ptr()));
            let arithmetic = [S::add(x, y), S::sub(x, y), S::mul(x, y), S::div(x, y), S::fma(x, y, z)];
            for v in arithmetic.into_iter().chain(S::zip(x, y)).chain([
                S::max(x, y),
                S::min(x, y),
                S::add_exponent(x, y),
                S::splat(a[0]),
            ]) {
                let mut lanes = [0.0; LANES];
                S::store(lanes.as_mut_ptr(), v);
                out.extend(lanes);
            }
            out.push(S::sum(x));
            out.extend(S::sum4([x, y, z, y]));
            out.extend(S::sum16([[x, y, z, y], [y, x, y, z], [z, z, x, y], [x, x, x, z]]).concat());
        }
    }

    #[test]
    fn every_instruction_set_does_what_the_definition_does() {
        let turned = |by: usize| {
            let mut odd = ODD;
            odd.rotate_left(by % LANES);
            odd
        };
        // finite ones, whose sums depend on their order
        let plain = |by: usize| turned(by).map(|x| if x.abs() < 1e30 { x * 1.1 } else { by as f32 + 0.3 });
        for (isa, by) in Isa::available().into_iter().flat_map(|isa| (0..LANES * LANES).map(move |by| (isa, by))) {
            for [a, b, c] in
                [[turned(by), turned(by / LANES), turned(by * 5 + 1)], [plain(by), plain(by / LANES), plain(7)]]
            {
                let run = |isa| {
                    let (from, mut values) = ([&a[..], &b[..], &c[..]], Vec::new());
                    let out = &mut values;
                    // SAFETY: the instruction set is available
                    unsafe { dispatch!(isa, operations(from: [&[f32]; 3], out: &mut Vec<f32>)) };
                    // one NaN is as good as another
                    values.into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }.to_bits()).collect::<Vec<u32>>()
                };
                assert_eq!(run(isa), run(Isa::Scalar), "{} {a:?} {b:?} {c:?}", isa.name());
            }
        }
    }
}
