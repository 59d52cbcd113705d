//! The largest value of a row, and how those of a row's parts become the whole row's.

/// What a greedy choice needs of a row, or of neighbouring columns of one.
///
/// A walk over the columns ends at it: it begins at the row's first value, or below all values where the columns are not the
/// first of their row, and goes on to every value that is larger. So the first of equals has it, a NaN is never gone to, and a
/// NaN that a row begins with is never left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// The largest value; −∞ where no value could be gone to.
    pub value: f32,
    /// Its column in the whole row.
    pub column: u32,
    /// Whether all values are finite.
    pub finite: bool,
}

impl Peak {
    /// Words that it takes in a tensor.
    pub const WORDS: usize = 3;

    /// From words: the value, then the column and whether all is finite as the bits of the others.
    pub fn from_words([value, column, finite]: [f32; Self::WORDS]) -> Self {
        Self { value, column: column.to_bits(), finite: finite.to_bits() != 0 }
    }

    /// As words, which are copied and never computed with.
    pub fn words(self) -> [f32; Self::WORDS] {
        [self.value, f32::from_bits(self.column), f32::from_bits(self.finite.into())]
    }

    /// That of these columns and of the `later` ones of the same row.
    #[must_use]
    pub fn joined(self, later: Self) -> Self {
        let best = if later.value > self.value { later } else { self };
        Self { finite: self.finite && later.finite, ..best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive() {
        for (value, column, finite) in [(-0.0, 0, true), (f32::NEG_INFINITY, 163_839, false), (1e-45, u32::MAX, true)] {
            let peak = Peak { value, column, finite };
            let again = Peak::from_words(peak.words());
            assert_eq!((again.value.to_bits(), again.column, again.finite), (value.to_bits(), column, finite));
        }
    }

    #[test]
    fn the_first_of_equals_and_a_nan_that_comes_first_stay() {
        let peak = |value, column| Peak { value, column, finite: true };
        assert_eq!(peak(0.0, 3).joined(peak(0.0, 9)).column, 3);
        assert_eq!(peak(-0.0, 3).joined(peak(0.0, 9)).column, 3);
        assert_eq!(peak(0.0, 3).joined(peak(0.5, 9)).column, 9);
        assert_eq!(peak(f32::NEG_INFINITY, 3).joined(peak(f32::NEG_INFINITY, 9)).column, 3);
        let broken = Peak { finite: false, ..peak(f32::NAN, 0) };
        assert_eq!((broken.joined(peak(7.0, 9)).column, broken.joined(peak(7.0, 9)).finite), (0, false));
        assert!(!peak(0.0, 0).joined(broken).finite);
    }
}
