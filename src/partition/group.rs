//! How the ranks of a tensor-parallel group share leaves and rows.

use std::ops::Range;
use std::sync::Arc;

use super::{Fold, Leaves, halves};

/// A tensor-parallel group as one of its ranks sees it. Every rank computes every rank's share alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    rank: usize,
    weights: Arc<[u64]>,
}

impl Group {
    /// A group of one.
    pub fn solo() -> Self {
        Self { rank: 0, weights: [1].into() }
    }

    /// Rank `rank` of a group whose members' shares are proportional to `weights` (memory, say); none may be zero.
    pub fn new(rank: usize, weights: &[u64]) -> Self {
        debug_assert!(rank < weights.len() && weights.iter().all(|weight| *weight > 0));
        Self { rank, weights: weights.into() }
    }

    /// This rank's number in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.weights.len()
    }

    /// This rank's part of the tree over `leaves`.
    pub fn fold(&self, leaves: Leaves) -> Fold {
        let cuts = self.cuts(leaves.count());
        Fold::shared(leaves, cuts, self.rank)
    }

    /// This rank's rows of a tensor of `rows` rows, cut at multiples of `unit`.
    pub fn rows(&self, rows: usize, unit: usize) -> Range<usize> {
        let units = rows.div_ceil(unit);
        let cut = |at: usize| (self.ideal(at, units).round() as usize * unit).min(rows);
        cut(self.rank)..cut(self.rank + 1)
    }

    /// Where the first `ranks` ranks' share of `count` units ends.
    fn ideal(&self, ranks: usize, count: usize) -> f64 {
        let sum = |weights: &[u64]| weights.iter().map(|weight| u128::from(*weight)).sum::<u128>() as f64;
        count as f64 * sum(&self.weights[..ranks]) / sum(&self.weights)
    }

    /// The boundaries of all ranks' runs of `count` leaves: rank r owns `cuts[r]..cuts[r + 1]`.
    ///
    /// A boundary moves from its ideal place to the shallowest node of the tree within an eighth of a mean share, because
    /// every level that a run's edge lies below the root costs that rank one more vector on the wire.
    fn cuts(&self, count: usize) -> Vec<usize> {
        let reach = count as f64 / (8 * self.size()) as f64 + 1e-9;
        let mut cuts = vec![0];
        for ranks in 1..self.size() {
            let ideal = self.ideal(ranks, count);
            // also the nearest whole leaf, where the reach is less than one
            let (low, high) = ((ideal - reach).ceil() as usize, (ideal + reach).floor() as usize);
            let nearest = ideal.round() as usize;
            let key = |at: &usize| (depth(count, *at), (ideal - *at as f64).abs());
            let best = (low..=high).chain([nearest]).filter(|at| *at <= count).min_by(|a, b| {
                let (a, b) = (key(a), key(b));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
            let last = cuts[ranks - 1];
            cuts.push(best.unwrap_or(nearest).max(last));
        }
        cuts.push(count);
        cuts
    }
}

/// The level of the tree over `count` leaves at which a node is split at `at`; the ends are no split at all.
fn depth(count: usize, at: usize) -> usize {
    let (mut node, mut level) = (0..count, 1);
    if at == 0 || at == count {
        return 0;
    }
    loop {
        let (left, right) = halves(&node);
        if left.end == at {
            return level;
        }
        node = if at < left.end { left } else { right };
        level += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(count: usize, ranks: usize) -> Vec<(usize, usize)> {
        let leaves = Leaves::of_units(count, 1);
        (0..ranks)
            .map(|rank| {
                let fold = Group::new(rank, &vec![1; ranks]).fold(leaves.clone());
                (fold.width(), fold.roots.len())
            })
            .collect()
    }

    #[test]
    fn powers_of_two_send_one_vector_and_three_send_two() {
        assert_eq!(vectors(32, 4), [(8, 1); 4]);
        assert_eq!(vectors(24, 2), [(12, 1); 2]);
        assert_eq!(vectors(32, 3), [(12, 2), (8, 2), (12, 2)]);
    }

    #[test]
    fn shares_cover_everything_once_for_any_sizes_and_weights() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for _ in 0..5000 {
            let (count, ranks) = (1 + next(32) as usize, 1 + next(12) as usize);
            let weights: Vec<u64> = (0..ranks).map(|_| 1 + next(9)).collect();
            let leaves = Leaves::of_units(count * 16, 16);
            let (mut columns, mut rows) = (0, 0);
            let total = 1 + next(5000) as usize;
            for rank in 0..ranks {
                let group = Group::new(rank, &weights);
                let fold = group.fold(leaves.clone());
                assert_eq!(fold.columns().start, columns);
                columns = fold.columns().end;
                let own = group.rows(total, 8);
                assert_eq!(own.start, rows);
                rows = own.end;
                // no share is further from its weight than a leaf and the snapping allow
                let fair = count as f64 * weights[rank] as f64 / weights.iter().sum::<u64>() as f64;
                let slack = 1.0 + 2.0 * (count as f64 / (8 * ranks) as f64 + 0.5);
                assert!((fold.width() as f64 / 16.0 - fair).abs() <= slack, "{weights:?} {count} {rank}");
            }
            assert_eq!((columns, rows), (count * 16, total));
        }
    }
}
