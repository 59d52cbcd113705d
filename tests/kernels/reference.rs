//! The operations in readable form: candle tensors in f64, each with a bound on what rounding to f32 adds.
//!
//! The bounds are running error analysis: an operation adds half an ulp of its result, a sum of products half an ulp of
//! Σ|products| for every addition that a product passes through, and errors of inputs go on by the derivative.

use candle_core::{D, DType, Device, Result};
use half::bf16;
use tbshard::backend::{Arithmetic, RopeStyle, Tensor};

use super::schedule::{Run, Schedule};

/// A tensor of f64.
pub type Exact = candle_core::Tensor;

/// Half an ulp of one: what rounding to f32 adds, relative to the result.
pub const U: f64 = 1.0 / (1 << 24) as f64;

/// Sigmoids do not fall below this: the kernels clamp eˣ at x = 88.7.
const LEAST: f64 = 4.0e-39;

/// `[rows, cols]` in f64.
pub fn exact(x: &Tensor) -> Exact {
    exact_of(x.data(), x.rows(), x.cols())
}

/// `[rows, cols]` in f64.
pub fn exact_of(values: &[f32], rows: usize, cols: usize) -> Exact {
    Exact::from_slice(values, (rows, cols), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

/// What a cache keeps of the values in this arithmetic.
pub fn kept(arithmetic: Arithmetic, x: &Tensor) -> Exact {
    match arithmetic {
        Arithmetic::Exact => exact(x),
        Arithmetic::Fast => {
            let rounded: Vec<f32> = x.data().iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            exact_of(&rounded, x.rows(), x.cols())
        }
    }
}

/// A result, and how far the same computation in f32 may be from it.
#[derive(Debug, Clone)]
pub struct Bound {
    pub value: Exact,
    pub error: Exact,
}

impl Bound {
    /// An input: no error yet.
    pub fn input(x: &Tensor) -> Self {
        Self::exactly(exact(x))
    }

    /// A value without error.
    pub fn exactly(value: Exact) -> Self {
        Self { error: value.zeros_like().unwrap(), value }
    }

    /// A value with as many roundings, each relative to it.
    pub fn rounded(value: Exact, roundings: f64) -> Result<Self> {
        Ok(Self { error: (value.abs()? * (roundings * U))?, value })
    }

    /// Values and errors, flat.
    pub fn flat(&self) -> (Vec<f64>, Vec<f64>) {
        let flat = |x: &Exact| x.flatten_all().unwrap().to_vec1().unwrap();
        (flat(&self.value), flat(&self.error))
    }

    /// x · wᵀ, where a product passes `depth` roundings.
    pub fn linear(&self, w: &Exact, depth: usize) -> Result<Self> {
        let (wt, size) = (w.t()?, w.abs()?.t()?);
        let error = ((self.value.abs()? * (depth as f64 * U))? + &self.error)?.matmul(&size)?;
        Ok(Self { value: self.value.matmul(&wt)?, error })
    }

    /// 1 / (1 + e⁻ˣ): exp is right to 3 roundings, then an addition and a division.
    pub fn sigmoid(&self) -> Result<Self> {
        let value = (self.value.neg()?.exp()? + 1.0)?.recip()?;
        let error = ((&value * (5.0 * U))? + (&self.error * 0.25)?)?;
        Ok(Self { value, error: (error + LEAST)? })
    }

    /// x · sigmoid(x), whose slope is below 1.1.
    pub fn silu(&self) -> Result<Self> {
        let sigmoid = (self.value.neg()?.exp()? + 1.0)?.recip()?;
        let value = (&self.value * sigmoid)?;
        let error = ((value.abs()? * (6.0 * U))? + (&self.error * 1.1)?)?;
        Ok(Self { error: (error + (self.value.abs()? * LEAST)?)?, value })
    }

    /// The product, value by value.
    pub fn times(&self, other: &Self) -> Result<Self> {
        let value = (&self.value * &other.value)?;
        let passed_on = ((self.value.abs()? * &other.error)? + (other.value.abs()? * &self.error)?)?;
        let error = ((value.abs()? * U)? + (passed_on + (&self.error * &other.error)?)?)?;
        Ok(Self { value, error })
    }

    /// The sum; its rounding is counted by the caller.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        Ok(Self { value: (&self.value + &other.value)?, error: (&self.error + &other.error)? })
    }

    /// Multiplied by an exact number.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        Ok(Self { value: (&self.value * factor)?, error: (&self.error * factor.abs())? })
    }
}

/// x / √(mean x² + eps) · weight over runs of `weight.len()` values.
pub fn rms_norm(x: &Tensor, weight: &[f32], eps: f32) -> Result<Bound> {
    let width = weight.len();
    let x = exact_of(x.data(), x.data().len() / width, width);
    let root = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
    let value = x.broadcast_div(&root)?.broadcast_mul(&exact_of(weight, 1, width))?;
    // the squares pass `width / 16 + 5` additions and two divisions, and the root halves their error
    Bound::rounded(value, width as f64 / 32.0 + 8.0)
}

/// Rotates pairs (a, b) of every head to (a·cos − b·sin, b·cos + a·sin).
pub fn rope(x: &Tensor, head_dim: usize, table: &Tensor, style: RopeStyle) -> Result<Bound> {
    let (rows, heads, half) = (x.rows(), x.cols() / head_dim, table.cols() / 2);
    let x = exact(x).reshape((rows, heads, head_dim))?;
    let table = exact(table).reshape((rows, 1, 2 * half))?;
    let shape = (rows, heads, half);
    let (cos, sin) =
        (table.narrow(2, 0, half)?.broadcast_as(shape)?, table.narrow(2, half, half)?.broadcast_as(shape)?);
    let rotated = x.narrow(2, 0, 2 * half)?;
    let (a, b) = match style {
        RopeStyle::Halves => (rotated.narrow(2, 0, half)?, rotated.narrow(2, half, half)?),
        RopeStyle::Pairs => {
            let pairs = rotated.reshape((rows, heads, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let join = |a: Exact, b: Exact| match style {
        RopeStyle::Halves => Exact::cat(&[a, b], 2),
        RopeStyle::Pairs => Exact::stack(&[a, b], 3)?.reshape((rows, heads, 2 * half)),
    };
    let value = join(((&a * &cos)? - (&b * &sin)?)?, ((&b * &cos)? + (&a * &sin)?)?)?;
    let (a, b, cos, sin) = (a.abs()?, b.abs()?, cos.abs()?, sin.abs()?);
    let size = join(((&a * &cos)? + (&b * &sin)?)?, ((&b * &cos)? + (&a * &sin)?)?)?;
    let rest = x.narrow(2, 2 * half, head_dim - 2 * half)?;
    let value = Exact::cat(&[&value, &rest], 2)?;
    Ok(Bound { value, error: Exact::cat(&[(size * (2.0 * U))?, rest.zeros_like()?], 2)? })
}

/// The softmax over the last dimension.
pub fn softmax(x: &Exact) -> Result<Exact> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// The rows of every run of `schedule`, one run after the other: `heads` is given a run and the rows of its sequence so far,
/// and makes the heads that stand side by side.
pub fn by_runs(schedule: &Schedule, heads: impl Fn(&Run, &Exact) -> Result<Vec<Bound>>) -> Result<Bound> {
    let mut rows_of = vec![Vec::new(); schedule.sequences()];
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for run in schedule.runs() {
        let past: &mut Vec<u32> = &mut rows_of[run.sequence];
        past.truncate(run.start);
        past.extend(run.rows.clone().map(|row| row as u32));
        let heads = heads(run, &Exact::new(&past[..], &Device::Cpu)?)?;
        values.push(Exact::cat(&heads.iter().map(|head| &head.value).collect::<Vec<_>>(), 1)?);
        errors.push(Exact::cat(&heads.iter().map(|head| &head.error).collect::<Vec<_>>(), 1)?);
    }
    Ok(Bound { value: Exact::cat(&values, 0)?, error: Exact::cat(&errors, 0)? })
}

/// softmax(q kᵀ · scale) v of one head: `q` `[rows, dim]`, `k` and `v` `[positions, dim]`; the rows are the last ones.
pub fn attention(q: &Exact, k: &Exact, v: &Exact, scale: f64) -> Result<Bound> {
    let ((rows, dim), positions) = (q.dims2()?, k.dim(0)?);
    let seen = |i: usize| if i % positions <= positions - rows + i / positions { 1.0 } else { 0.0 };
    let seen: Vec<f64> = (0..rows * positions).map(seen).collect();
    let seen = Exact::from_vec(seen, (rows, positions), &Device::Cpu)?;
    // unseen scores are −10³⁰
    let mask = ((&seen - 1.0)? * 1e30)?;
    let weights = softmax(&((q.matmul(&k.t()?)? * scale)? + mask)?)?;
    // a score is off by `dim` additions and its scaling; twice, because the largest is subtracted
    let size = ((q.abs()?.matmul(&k.abs()?.t()?)? * scale.abs())? * seen)?.max_keepdim(1)?;
    let of_scores = (size * (2.0 * (dim as f64 + 4.0) * U))?;
    // every position adds to the output and to the sum; a tile may shrink both by an exponential
    let tiles = positions.div_ceil(tbshard::backend::TILE);
    let of_sums = (2 * positions + 6 * tiles + 10) as f64 * U;
    let error = weights.matmul(&v.abs()?)?.broadcast_mul(&(of_scores + of_sums)?)?;
    // exponentials do not fall below 1.2 · 10⁻³⁸
    Ok(Bound { value: weights.matmul(v)?, error: (error + 1e-35)? })
}
