//! Rotary position embedding: the angles of a batch, computed once for all layers.

use crate::backend::{Batch, Tensor};

/// The frequencies of a rotary embedding (Su et al., arXiv 2104.09864).
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse_frequencies: Vec<f32>,
}

impl Rotary {
    /// Rotates the first `dim` values of a head, pair i by position · theta^(−2i/dim).
    pub fn new(dim: usize, theta: f32) -> Self {
        let frequency = |i: usize| 1.0 / libm::powf(theta, (2 * i) as f32 / dim as f32);
        Self { inverse_frequencies: (0..dim / 2).map(frequency).collect() }
    }

    /// Cosines, then sines, of every row's angles: `[rows, dim]`.
    pub fn table(&self, batch: &Batch) -> Tensor {
        let half = self.inverse_frequencies.len();
        let mut table = Tensor::zeros(batch.rows(), 2 * half);
        for (row, position) in batch.positions().enumerate() {
            let (cos, sin) = table.row_mut(row).split_at_mut(half);
            for (i, frequency) in self.inverse_frequencies.iter().enumerate() {
                (sin[i], cos[i]) = libm::sincosf(position as f32 * frequency);
            }
        }
        table
    }
}
