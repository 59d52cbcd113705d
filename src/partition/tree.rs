//! The fixed binary tree in which the leaves of a dot product are summed, whoever owns them.

use std::ops::Range;
use std::sync::Arc;

use super::Leaves;

/// Splits a tree node (a run of leaves) into its two children.
pub fn halves(node: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = node.start + node.len() / 2;
    (node.start..middle, middle..node.end)
}

/// A leaf of a subtree, and what follows it when the tree is summed from left to right with a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The leaf's columns, counted from the start of the rank's slice.
    pub columns: Range<usize>,
    /// How often the two uppermost sums of the stack become one after this leaf.
    pub merges: usize,
}

/// What one rank computes of a dot product: its leaves, and the maximal subtrees that lie inside its run of leaves.
///
/// A linear layer writes one vector per subtree; `all_reduce` finishes the same tree on every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The canonical cut of the whole dot product.
    pub leaves: Leaves,
    /// The subtrees of this rank, left to right, as runs of leaves.
    pub roots: Vec<Range<usize>>,
    // rank r owns the leaves cuts[r]..cuts[r + 1], which are these subtrees
    cuts: Vec<usize>,
    of_ranks: Arc<[Vec<Range<usize>>]>,
    rank: usize,
    // of every root
    steps: Arc<[Vec<Step>]>,
}

impl Fold {
    /// The whole tree on one rank.
    pub fn whole(leaves: Leaves) -> Self {
        let cuts = vec![0, leaves.count()];
        Self::shared(leaves, cuts, 0)
    }

    /// The part of rank `rank`, where rank r owns the leaves `cuts[r]..cuts[r + 1]` (it may be none).
    pub fn shared(leaves: Leaves, cuts: Vec<usize>, rank: usize) -> Self {
        let of_ranks: Arc<[Vec<Range<usize>>]> = cuts.windows(2).map(|run| subtrees(&leaves, run[0]..run[1])).collect();
        let roots = of_ranks[rank].clone();
        let mut fold = Self { leaves, roots, cuts, of_ranks, rank, steps: Arc::default() };
        fold.steps = fold.roots.iter().map(|root| fold.steps_below(root)).collect();
        fold
    }

    /// The number of ranks that share the tree.
    pub fn ranks(&self) -> usize {
        self.cuts.len() - 1
    }

    /// Whether this rank sums the whole tree, and nobody waits for a part of it.
    pub fn is_whole(&self) -> bool {
        self.ranks() == 1
    }

    /// The rank whose part this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The subtrees that rank `rank` sums, as runs of leaves.
    pub fn roots_of(&self, rank: usize) -> &[Range<usize>] {
        &self.of_ranks[rank]
    }

    /// The columns that this rank owns.
    pub fn columns(&self) -> Range<usize> {
        self.columns_of(self.rank)
    }

    /// The columns that rank `rank` owns.
    pub fn columns_of(&self, rank: usize) -> Range<usize> {
        let start =
            |leaf: usize| if leaf == self.leaves.count() { self.leaves.len() } else { self.leaves.columns(leaf).start };
        start(self.cuts[rank])..start(self.cuts[rank + 1])
    }

    /// The columns of leaf `leaf`, counted from the start of this rank's slice.
    pub fn local_columns(&self, leaf: usize) -> Range<usize> {
        let (columns, first) = (self.leaves.columns(leaf), self.columns().start);
        columns.start - first..columns.end - first
    }

    /// How root `root` is summed, leaf by leaf.
    pub fn steps(&self, root: usize) -> &[Step] {
        &self.steps[root]
    }

    fn steps_below(&self, node: &Range<usize>) -> Vec<Step> {
        if node.len() == 1 {
            return vec![Step { columns: self.local_columns(node.start), merges: 0 }];
        }
        let (left, right) = halves(node);
        let mut steps = self.steps_below(&left);
        steps.extend(self.steps_below(&right));
        if let Some(last) = steps.last_mut() {
            last.merges += 1;
        }
        steps
    }

    /// The number of columns this rank owns.
    pub fn width(&self) -> usize {
        self.columns().len()
    }
}

/// The maximal subtrees inside a run of leaves.
fn subtrees(leaves: &Leaves, run: Range<usize>) -> Vec<Range<usize>> {
    let mut roots = Vec::new();
    cover(&(0..leaves.count()), &run, &mut roots);
    roots
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
            let cuts: Vec<usize> = (0..=ranks).map(|rank| rank * 24 / ranks).collect();
            for rank in 0..ranks {
                let fold = Fold::shared(leaves.clone(), cuts.clone(), rank);
                assert_eq!(fold.roots, vec![cuts[rank]..cuts[rank + 1]]);
            }
        }
    }

    #[test]
    fn subtrees_tile_any_run() {
        for count in 1..=32 {
            let leaves = Leaves::of_units(count * 16, 16);
            for start in 0..count {
                for end in start..=count {
                    let fold = Fold::shared(leaves.clone(), vec![0, start, end, count], 1);
                    let covered: Vec<_> = fold.roots.iter().cloned().flatten().collect();
                    assert_eq!(covered, (start..end).collect::<Vec<_>>());
                    assert_eq!(fold.width(), (end - start) * 16);
                }
            }
        }
    }
}
