//! What a rank owns of a model's tensors: pieces of them, and the bytes where those lie.

use std::collections::BTreeMap;
use std::ops::Range;

use super::stored::Dtype;

/// A run of rows and of columns of a stored tensor. The last dimension is the columns, all before it are rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The rows, counted in what is stored.
    pub rows: Range<usize>,
    /// The columns, counted likewise.
    pub columns: Range<usize>,
    /// Columns of the whole tensor.
    pub stride: usize,
    /// The element type.
    pub dtype: Dtype,
    /// The layer it belongs to; embedding, last norm and head belong to none.
    pub layer: Option<usize>,
    /// Whether a few rows are read at a time, so that owning it costs no memory where files are mapped.
    pub looked_up: bool,
}

impl Piece {
    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.rows.len() as u64 * self.columns.len() as u64 * self.dtype.width() as u64
    }

    /// Whether nothing lies between its rows.
    pub fn has_all_columns(&self) -> bool {
        self.columns.len() == self.stride
    }

    /// Where its bytes lie, counted from the start of the tensor: one range if it has all columns, else one a row.
    pub fn byte_ranges(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (runs, rows) = if self.has_all_columns() { (1, self.rows.len()) } else { (self.rows.len(), 1) };
        let Self { stride, dtype, .. } = *self;
        let (first, width, columns) = (self.rows.start, dtype.width() as u64, self.columns.clone());
        let empty = self.bytes() == 0;
        (0..runs).filter(move |_| !empty).map(move |run| {
            let start = (first + run) as u64 * stride as u64 + columns.start as u64;
            start * width..(start + rows as u64 * columns.len() as u64) * width
        })
    }

    /// Grows by the rows of `next`, if they follow and nothing else differs.
    fn extend(&mut self, next: &Self) -> bool {
        let follows = self.rows.end == next.rows.start;
        let grown = Self { rows: self.rows.start..next.rows.end, ..next.clone() };
        let alike = Self { rows: self.rows.clone(), ..next.clone() } == *self;
        if follows && alike {
            *self = grown;
        }
        follows && alike
    }
}

/// What one rank owns, by tensor. A tensor of which it owns nothing, but knows, has an empty piece.
#[derive(Debug, Clone, Default)]
pub struct Share {
    tensors: BTreeMap<String, Vec<Piece>>,
}

impl Share {
    /// Adds a piece of the tensor `name`; the same piece twice is one.
    pub fn add(&mut self, name: &str, piece: Piece) {
        match self.tensors.get_mut(name) {
            None => {
                self.tensors.insert(name.to_owned(), vec![piece]);
            }
            Some(pieces) if pieces.contains(&piece) => {}
            Some(pieces) => {
                if !pieces.last_mut().is_some_and(|last| last.extend(&piece)) {
                    pieces.push(piece);
                }
            }
        }
    }

    /// The names of all tensors and their pieces, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[Piece])> {
        self.tensors.iter().map(|(name, pieces)| (name.as_str(), &pieces[..]))
    }

    /// All pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.tensors.values().flatten()
    }

    /// Whether it has, or knows, the tensor.
    pub fn knows(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The bytes of the tensor `name` that are needed, each once and as few ranges as there can be.
    pub fn byte_ranges(&self, name: &str) -> Vec<Range<u64>> {
        let pieces = self.tensors.get(name).into_iter().flatten();
        let mut ranges: Vec<Range<u64>> = pieces.flat_map(Piece::byte_ranges).collect();
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        joined
    }

    /// Bytes that the rank holds; what is only looked up is not counted.
    pub fn bytes(&self) -> u64 {
        self.pieces().filter(|piece| !piece.looked_up).map(Piece::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(rows: Range<usize>, columns: Range<usize>) -> Piece {
        Piece { rows, columns, stride: 10, dtype: Dtype::Bf16, layer: None, looked_up: false }
    }

    #[test]
    fn rows_are_one_range_and_columns_one_a_row() {
        let ranges = |piece: Piece| piece.byte_ranges().collect::<Vec<_>>();
        assert_eq!(ranges(piece(2..5, 0..10)), vec![40..100; 1]);
        assert_eq!(ranges(piece(2..4, 3..7)), [46..54, 66..74]);
        assert_eq!(ranges(piece(2..4, 3..3)), []);
        assert_eq!(ranges(piece(2..2, 0..10)), []);
    }

    #[test]
    fn pieces_join_where_they_touch_and_count_once() {
        let mut share = Share::default();
        for piece in [piece(0..2, 0..10), piece(2..3, 0..10), piece(0..3, 0..10), piece(5..6, 0..4), piece(5..6, 4..9)]
        {
            share.add("a", piece);
        }
        assert_eq!(share.tensors().next().unwrap().1.len(), 3);
        assert_eq!(share.byte_ranges("a"), [0..60, 100..118]);
        share.add("b", Piece { looked_up: true, ..piece(0..9, 0..10) });
        assert_eq!(share.bytes(), 60 + 18);
        assert!(share.knows("b") && !share.knows("c"));
    }
}
