//! The canonical leaves of a dot product: boundaries that depend on the model alone.

use std::ops::Range;

/// No dot product is cut into more leaves than this.
pub const MAX_LEAVES: usize = 32;

/// Columns that a leaf of an unsharded dot product has at least, so that its operands stay in the first-level cache.
const BLOCK: usize = 512;

/// A cut of `in` features into at most [`MAX_LEAVES`] runs of whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaves {
    // leaf i covers bounds[i]..bounds[i + 1]
    bounds: Vec<usize>,
}

impl Leaves {
    /// Cuts `len` features into whole units of `unit` (a head, a quantisation group, 128 columns; the last unit may be short).
    pub fn of_units(len: usize, unit: usize) -> Self {
        let unit = unit.max(1);
        Self::into_parts(len, unit, MAX_LEAVES)
    }

    /// Cuts `len` features of a dot product that no rank shares, into blocks of at least 512 columns.
    pub fn unsharded(len: usize) -> Self {
        Self::into_parts(len, 128, (len / BLOCK).clamp(1, MAX_LEAVES))
    }

    /// Cuts `len` features into at most `parts` leaves of whole units, as evenly as units allow.
    pub fn into_parts(len: usize, unit: usize, parts: usize) -> Self {
        let units = len.div_ceil(unit);
        let leaves = units.min(parts).max(1);
        let bounds = (0..=leaves).map(|i| (i * units / leaves * unit).min(len)).collect();
        Self { bounds }
    }

    /// The number of leaves.
    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The columns of leaf `leaf`.
    pub fn columns(&self, leaf: usize) -> Range<usize> {
        self.bounds[leaf]..self.bounds[leaf + 1]
    }

    /// The number of features cut.
    pub fn len(&self) -> usize {
        self.bounds[self.bounds.len() - 1]
    }

    /// Whether there is nothing to sum.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_tile_the_columns_in_whole_units() {
        for (len, unit) in [(17408, 128), (6144, 128), (576, 64), (200, 128), (5, 128), (4096, 1), (1536, 128)] {
            let leaves = Leaves::of_units(len, unit);
            assert!(leaves.count() <= MAX_LEAVES);
            let mut next = 0;
            for leaf in 0..leaves.count() {
                let columns = leaves.columns(leaf);
                assert_eq!(columns.start, next);
                assert!(columns.start.is_multiple_of(unit) && columns.end > columns.start, "{len} {unit} {columns:?}");
                next = columns.end;
            }
            assert_eq!(next, len);
        }
    }

    #[test]
    fn figures_of_the_27b() {
        let down = Leaves::of_units(17408, 128);
        assert_eq!(down.count(), 32);
        let widths: Vec<_> = (0..32).map(|leaf| down.columns(leaf).len()).collect();
        assert_eq!((widths.iter().min(), widths.iter().max()), (Some(&512), Some(&640)));
        assert_eq!(Leaves::of_units(24 * 256, 256).count(), 24);
    }
}
