//! Which rows of an activation belong to which sequence, and where in it they stand.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The rows of one forward pass: runs of consecutive positions, each of one sequence.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    segments: Vec<Segment>,
    rows: usize,
    id: u64,
}

/// Consecutive positions of one sequence.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The slot that holds the recurrent state of the sequence.
    pub slot: usize,
    /// The position of the first row in its sequence.
    pub start: usize,
    /// The rows of the activation.
    pub rows: Range<usize>,
    /// The page table: page `i` holds the positions `i * PAGE..(i + 1) * PAGE`.
    pub pages: Vec<u32>,
}

impl Segment {
    /// The position of row `row` in its sequence.
    pub fn position(&self, row: usize) -> usize {
        self.start + row - self.rows.start
    }
}

impl Batch {
    /// Appends `count` rows of a sequence whose first stands at position `start`.
    pub fn push(&mut self, slot: usize, start: usize, count: usize, pages: &[u32]) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.id = NEXT.fetch_add(1, Ordering::Relaxed);
        let rows = self.rows..self.rows + count;
        self.rows = rows.end;
        self.segments.push(Segment { slot, start, rows, pages: pages.to_vec() });
    }

    /// A number that no other contents have.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The runs, in the order of their rows.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The position of every row.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.segments.iter().flat_map(|segment| segment.rows.clone().map(|row| segment.position(row)))
    }
}
