//! f32 values that begin at a line of memory, so that no load of a whole register touches two.

use std::ops::{Deref, DerefMut};

/// Values of a line of 64 bytes.
const LINE: usize = 16;

/// Values that begin at a line of memory, unless they came as a vector.
#[derive(Debug, Default)]
pub struct Lines {
    values: Vec<f32>,
    // where they are in `values`
    start: usize,
    len: usize,
}

impl Lines {
    /// `len` values; those that the vector has already are as they were, the others zero.
    pub(super) fn within(mut values: Vec<f32>, len: usize) -> Self {
        values.resize(Self::room(len), 0.0);
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        Self { values, start, len }
    }

    /// Values of a vector that has room for `len` wherever it lies.
    pub(super) fn room(len: usize) -> usize {
        len.saturating_add(LINE - 1)
    }

    /// The vector, for other values.
    pub(super) fn into_memory(self) -> Vec<f32> {
        self.values
    }

    /// Gives the values away.
    pub(super) fn into_vec(mut self) -> Vec<f32> {
        self.values.copy_within(self.start..self.start + self.len, 0);
        self.values.truncate(self.len);
        self.values
    }
}

impl From<Vec<f32>> for Lines {
    fn from(values: Vec<f32>) -> Self {
        Self { start: 0, len: values.len(), values }
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_at_a_line_and_are_given_away_in_order() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut lines = Lines::within(vec![7.0; 3], len);
            assert_eq!((lines.len(), lines.as_ptr().addr() % 64), (len, 0));
            lines.iter_mut().enumerate().for_each(|(i, value)| *value = i as f32);
            assert_eq!(lines.into_vec(), (0..len).map(|i| i as f32).collect::<Vec<_>>());
        }
        assert_eq!(Lines::from(vec![1.0, 2.0]).into_vec(), [1.0, 2.0]);
    }
}
