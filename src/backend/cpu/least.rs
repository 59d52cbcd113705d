//! How small bf16 operands are. Products of bf16 count subnormal sums as zero, which takes long where no instruction does it; where
//! operands are not small there are none.

/// The least magnitude of some bf16 that is not zero: its bits, less one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Least(u16);

impl Default for Least {
    /// That of values which nobody has looked at: it may be subnormal.
    fn default() -> Self {
        Self(0)
    }
}

impl Least {
    /// That of no values.
    pub(super) const NONE: Self = Self(u16::MAX);

    /// # Safety
    /// `from` is valid for `count` values, of any alignment.
    #[inline(always)]
    pub(super) unsafe fn of(from: *const u16, count: usize) -> Self {
        let mut least = u16::MAX;
        for i in 0..count {
            // SAFETY: the caller's promise
            let bits = unsafe { from.add(i).read_unaligned() };
            // zeros become the largest
            least = least.min((bits & 0x7fff).wrapping_sub(1));
        }
        Self(least)
    }

    pub(super) fn all(of: &[Self]) -> Self {
        of.iter().copied().fold(Self::NONE, Self::and)
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Whether all sums of products with others, rounded at each step, are zero or normal, as the operands are.
    ///
    /// An operand is a multiple of its last place, 2^(e − 134) where e is its biased exponent, so a product is one of
    /// g = 2^(e + e′ − 268), and so is a sum of such, which rounding takes to a multiple of a larger power of two or leaves as it
    /// is: it is zero or at least g, which is to be no less than 2^−126.
    #[inline(always)]
    pub(super) fn normal(self, other: Self) -> bool {
        let exponent = |least: Self| least.0.saturating_add(1) >> 7;
        let (own, others) = (exponent(self), exponent(other));
        own > 0 && others > 0 && own + others >= 142
    }
}
