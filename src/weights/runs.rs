//! Where the bytes of a part of a matrix lie in what is stored: runs of one length, one after the other at one distance.

use bytes::Bytes;

/// `count` runs of `len` bytes, `every` bytes from start to start.
#[derive(Debug, Clone)]
pub struct Runs {
    // of what is stored, from the first run to the last
    span: Bytes,
    len: usize,
    every: usize,
    count: usize,
}

impl Runs {
    /// The columns `columns` of the rows `rows` of `stored`, both in bytes of a row of `every`.
    pub(super) fn of(
        stored: &Bytes,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        every: usize,
    ) -> Self {
        let (len, count) = (columns.len(), rows.len());
        let span = match count {
            0 => 0..0,
            _ if len == 0 => 0..0,
            _ => rows.start * every + columns.start..(rows.end - 1) * every + columns.end,
        };
        let every = if count > 1 { every } else { len };
        Self { span: stored.slice(span), len, every, count }
    }

    /// How many bytes they are.
    pub fn bytes(&self) -> usize {
        self.len * self.count
    }

    /// Bytes from the start of a run to the start of the next; of a run alone its length.
    pub fn every(&self) -> usize {
        self.every
    }

    /// Bytes of a run.
    pub fn run(&self) -> usize {
        self.len
    }

    /// From the first to the last, with what lies between them.
    pub fn span(&self) -> &Bytes {
        &self.span
    }

    /// Whether nothing lies between them.
    pub fn are_one(&self) -> bool {
        self.span.len() == self.bytes()
    }

    /// Copies them to `to`, which has room for them alone, one behind the other.
    pub fn copy_to(&self, to: &mut [u8]) {
        let from = self.span.chunks(self.every.max(1));
        for (to, from) in to.chunks_mut(self.len.max(1)).zip(from) {
            to.copy_from_slice(&from[..self.len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_runs_and_rows_are_one() {
        let stored = Bytes::from((0..60).collect::<Vec<u8>>());
        let of = |rows, columns| {
            let runs = Runs::of(&stored, rows, columns, 10);
            let mut copy = vec![0xff; runs.bytes()];
            runs.copy_to(&mut copy);
            (runs.are_one(), copy)
        };
        assert_eq!(of(1..3, 0..10), (true, (10..30).collect()));
        assert_eq!(of(2..5, 4..6), (false, vec![24, 25, 34, 35, 44, 45]));
        assert_eq!(of(4..6, 7..10), (false, vec![47, 48, 49, 57, 58, 59]));
        assert_eq!(of(3..4, 2..5), (true, vec![32, 33, 34]));
        assert_eq!(of(3..3, 2..5), (true, vec![]));
        assert_eq!(of(3..5, 2..2), (true, vec![]));
    }
}
