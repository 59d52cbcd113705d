//! The order in which the emulator does what a device may do in any.

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// From the first to the last.
    #[default]
    Forward,
    /// From the last to the first.
    Reverse,
    /// One that this number decides.
    Random(u64),
}

impl Order {
    pub(crate) fn seed(self) -> u64 {
        if let Self::Random(seed) = self { seed } else { 0 }
    }

    /// The numbers below `count`.
    pub(crate) fn of(self, count: usize, random: &mut Random) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        match self {
            Self::Forward => {}
            Self::Reverse => numbers.reverse(),
            Self::Random(_) => (1..count).rev().for_each(|last| numbers.swap(last, random.below(last + 1))),
        }
        numbers
    }
}

/// Random numbers (xorshift64*).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize) % end
    }
}
