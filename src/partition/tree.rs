//! The fixed binary tree in which the leaves of a dot product are summed, whoever owns them.

use std::ops::Range;

use super::Leaves;

/// Splits a tree node (a run of leaves) into its two children.
pub fn halves(node: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = node.start + node.len() / 2;
    (node.start..middle, middle..node.end)
}

/// What one rank computes of a dot product: its leaves, and the maximal subtrees that lie inside its run of leaves.
///
/// A linear layer writes one vector per subtree; `all_reduce` finishes the same tree on every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The canonical cut of the whole dot product.
    pub leaves: Leaves,
    /// The subtrees, left to right, as runs of leaves.
    pub roots: Vec<Range<usize>>,
    // the column that is column 0 of this rank's slice of the weight
    first_column: usize,
}

impl Fold {
    /// The whole tree on one rank.
    pub fn whole(leaves: Leaves) -> Self {
        let run = 0..leaves.count();
        Self::of_run(leaves, run)
    }

    /// The part of the tree inside `run`, a run of leaves that one rank owns (it may be empty).
    pub fn of_run(leaves: Leaves, run: Range<usize>) -> Self {
        let mut roots = Vec::new();
        cover(&(0..leaves.count()), &run, &mut roots);
        let first_column = if run.is_empty() { 0 } else { leaves.columns(run.start).start };
        Self { leaves, roots, first_column }
    }

    /// The columns of leaf `leaf`, counted from the start of this rank's slice.
    pub fn local_columns(&self, leaf: usize) -> Range<usize> {
        let columns = self.leaves.columns(leaf);
        columns.start - self.first_column..columns.end - self.first_column
    }

    /// The number of columns this rank owns.
    pub fn width(&self) -> usize {
        match (self.roots.first(), self.roots.last()) {
            (Some(first), Some(last)) => self.leaves.columns(last.end - 1).end - self.leaves.columns(first.start).start,
            _ => 0,
        }
    }
}

fn cover(node: &Range<usize>, run: &Range<usize>, roots: &mut Vec<Range<usize>>) {
    if node.start >= run.end || node.end <= run.start {
        return;
    }
    if run.start <= node.start && node.end <= run.end {
        roots.push(node.clone());
        return;
    }
    let (left, right) = halves(node);
    cover(&left, run, roots);
    cover(&right, run, roots);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_powers_of_two_own_one_subtree_each() {
        let leaves = Leaves::of_units(24 * 256, 256);
        for ranks in [1, 2, 4, 8] {
            for rank in 0..ranks {
                let run = rank * 24 / ranks..(rank + 1) * 24 / ranks;
                assert_eq!(Fold::of_run(leaves.clone(), run.clone()).roots, vec![run]);
            }
        }
    }

    #[test]
    fn subtrees_tile_any_run() {
        for count in 1..=32 {
            let leaves = Leaves::of_units(count * 16, 16);
            for start in 0..count {
                for end in start..=count {
                    let fold = Fold::of_run(leaves.clone(), start..end);
                    let covered: Vec<_> = fold.roots.iter().cloned().flatten().collect();
                    assert_eq!(covered, (start..end).collect::<Vec<_>>());
                    assert_eq!(fold.width(), (end - start) * 16);
                }
            }
        }
    }
}
