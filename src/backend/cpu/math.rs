//! Transcendental functions on sixteen lanes, of our own so that every machine gives the same bits.

use super::simd::{LANES, Simd};

/// eˣ within 1.5 ulp for x in [-87.3, 88.7], clamped outside; NaN stays NaN.
///
/// Cody–Waite reduction and a degree-6 polynomial (Cephes `expf`).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise
    unsafe {
        // of a NaN and a number, `min` and `max` return their second operand: a NaN passes, an infinity does not
        let clamped = S::max(S::splat(-87.3), S::min(S::splat(88.7), x));
        let magic = S::splat(12_582_912.0);
        let t = S::fma(clamped, S::splat(std::f32::consts::LOG2_E), magic);
        let n = S::sub(t, magic);
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let y = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        // zero, or NaN where x is: the arithmetic on exponents loses that
        let nan = S::sub(clamped, clamped);
        S::add(S::add_exponent(y, t), nan)
    }
}

/// 1 / (1 + e⁻ˣ).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// x · sigmoid(x).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise
    unsafe { S::mul(x, sigmoid::<S>(x)) }
}

/// Loads the first `count` of sixteen values, zeros after them.
///
/// # Safety
/// As [`Simd`], for `count` values.
#[inline(always)]
pub(super) unsafe fn load_some<S: Simd>(from: *const f32, count: usize) -> S::V {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the caller's pointer is valid for `count` ≤ 16 values
    unsafe {
        std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count.min(LANES));
        S::load(lanes.as_ptr())
    }
}

/// Stores the first `count` lanes.
///
/// # Safety
/// As [`Simd`], for `count` values.
#[inline(always)]
pub(super) unsafe fn store_some<S: Simd>(to: *mut f32, v: S::V, count: usize) {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the caller's pointer is valid for `count` ≤ 16 values
    unsafe {
        S::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count.min(LANES));
    }
}

/// Writes an expression of the lanes `$x` of `$to` and `$y` of `$from` over `$to`, which is at most as long as `$from`.
///
/// A macro and not a function of a closure: a closure is not compiled for the instruction set, and its intrinsics
/// would be calls. Must stand in an `unsafe` block that fulfils [`Simd`].
macro_rules! zip {
    ($simd:ident, $to:expr, $from:expr, |$x:pat_param, $y:ident| $value:expr) => {{
        let (to, from): (&mut [f32], &[f32]) = ($to, $from);
        assert!(to.len() <= from.len());
        let whole = to.len() / LANES * LANES;
        let rest = to.len() - whole;
        let (to, from) = (to.as_mut_ptr(), from.as_ptr());
        let mut i = 0;
        while i < whole {
            let ($x, $y) = ($simd::load(to.add(i)), $simd::load(from.add(i)));
            $simd::store(to.add(i), $value);
            i += LANES;
        }
        if rest > 0 {
            let ($x, $y) = (load_some::<$simd>(to.add(whole), rest), load_some::<$simd>(from.add(whole), rest));
            store_some::<$simd>(to.add(whole), $value, rest);
        }
    }};
}
pub(super) use zip;

/// Multiplies `x` by `factor`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn scale_by<S: Simd>(x: &mut [f32], factor: f32) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for lanes in whole {
        // SAFETY: the chunk holds sixteen values
        unsafe { S::store(lanes.as_mut_ptr(), S::mul(S::load(lanes.as_ptr()), S::splat(factor))) };
    }
    rest.iter_mut().for_each(|x| *x *= factor);
}

/// to + x · w, value by value.
///
/// # Safety
/// As [`Simd`]; `x` and `w` are at least as long as `to`.
#[inline(always)]
pub(super) unsafe fn add_products<S: Simd>(to: &mut [f32], x: &[f32], w: &[f32]) {
    let len = to.len();
    let whole = len / LANES * LANES;
    let (to, x, w) = (to.as_mut_ptr(), x.as_ptr(), w.as_ptr());
    // SAFETY: all offsets lie inside the slices
    unsafe {
        for i in (0..whole).step_by(LANES) {
            S::store(to.add(i), S::fma(S::load(w.add(i)), S::load(x.add(i)), S::load(to.add(i))));
        }
        if whole < len {
            let some = |from: *const f32| load_some::<S>(from.add(whole), len - whole);
            store_some::<S>(to.add(whole), S::fma(some(w), some(x), some(to)), len - whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Isa, dispatch};
    use super::*;

    unsafe fn exp_all<S: Simd>(to: &mut [f32], from: &[f32]) {
        // SAFETY: called through `dispatch!` on an instruction set that is available
        unsafe { zip!(S, to, from, |_, x| exp::<S>(x)) }
    }

    #[test]
    fn exp_is_close_and_the_same_everywhere() {
        let inputs: Vec<f32> = (-87_000..88_000).map(|i| i as f32 * 1e-3 + 0.000_37).chain([0.0, -0.0]).collect();
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut out = vec![0.0; inputs.len()];
            let (to, from) = (&mut out[..], &inputs[..]);
            // SAFETY: the instruction set is available, the slices are of one length
            unsafe { dispatch!(isa, exp_all(to: &mut [f32], from: &[f32])) };
            for (x, y) in inputs.iter().zip(&out) {
                let exact = libm::exp(f64::from(*x));
                assert!((f64::from(*y) - exact).abs() <= exact * 1.8e-7, "{x}: {y} {exact}");
            }
            let bits: Vec<u32> = out.iter().map(|y| y.to_bits()).collect();
            assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{}", isa.name());
        }
        let mut out = [0.0; 3];
        let (to, from) = (&mut out[..], &[f32::NAN, -1e9, 1e9][..]);
        // SAFETY: as above
        unsafe { dispatch!(Isa::Scalar, exp_all(to: &mut [f32], from: &[f32])) };
        assert!(out[0].is_nan() && out[1] < 1.3e-38 && out[2] > 3e38);
    }
}
