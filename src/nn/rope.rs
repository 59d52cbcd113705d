//! Rotary position embedding: the angles of a batch, computed once for all layers.

use crate::backend::{Batch, Tensor};

/// The frequencies of a rotary embedding (Su et al., arXiv 2104.09864).
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse_frequencies: Vec<f32>,
    // what cosines and sines are multiplied by
    length: f32,
}

/// How YaRN (Peng et al., arXiv 2309.00071) stretches a rotary embedding to more positions than it was made for.
#[derive(Debug, Clone, Copy)]
pub struct Yarn {
    /// How many times more positions.
    pub factor: f32,
    /// Rotations over the old positions from which a frequency stays as it is, and up to which it is divided by `factor`.
    pub betas: (f32, f32),
    /// Positions that it was made for.
    pub positions: usize,
    /// Whether the ramp between the two begins and ends at whole pairs.
    pub truncate: bool,
    /// What cosines and sines are multiplied by.
    pub length: f32,
}

impl Rotary {
    /// Rotates the first `dim` values of a head, pair i by position · theta^(−2i/dim).
    pub fn new(dim: usize, theta: f32) -> Self {
        let frequency = |i: usize| 1.0 / libm::powf(theta, (2 * i) as f32 / dim as f32);
        Self { inverse_frequencies: (0..dim / 2).map(frequency).collect(), length: 1.0 }
    }

    /// As [`Rotary::new`], stretched by `yarn`.
    pub fn yarn(dim: usize, theta: f32, yarn: &Yarn) -> Self {
        let Yarn { factor, betas, positions, truncate, length } = *yarn;
        // the pair that turns `rotations` times over the old positions
        let pair = |rotations: f32| {
            let turns = positions as f64 / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
            dim as f64 * libm::log(turns) / (2.0 * libm::log(f64::from(theta)))
        };
        let (low, high) = (pair(betas.0), pair(betas.1));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        let mut rotary = Self::new(dim, theta);
        for (i, frequency) in rotary.inverse_frequencies.iter_mut().enumerate() {
            let stretched = (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
            *frequency = *frequency / factor * stretched + *frequency * (1.0 - stretched);
        }
        Self { length, ..rotary }
    }

    /// Cosines, then sines, of every row's angles: `[rows, dim]`.
    pub fn table(&self, batch: &Batch) -> Tensor {
        let half = self.inverse_frequencies.len();
        let mut table = Tensor::zeros(batch.rows(), 2 * half);
        for (row, position) in batch.positions().enumerate() {
            let (cos, sin) = table.row_mut(row).split_at_mut(half);
            for (i, frequency) in self.inverse_frequencies.iter().enumerate() {
                let (s, c) = libm::sincosf(position as f32 * frequency);
                (sin[i], cos[i]) = (s * self.length, c * self.length);
            }
        }
        table
    }
}
