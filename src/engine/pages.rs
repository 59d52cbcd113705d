//! The pages of the KV cache that no sequence holds.

use crate::backend::PAGE;
use crate::error::{Error, Result};

/// How many pages of the KV cache `slots` sequences of `positions` positions need.
///
/// # Errors
/// If they cannot be counted in 32 bits.
pub fn pages(positions: usize, slots: usize) -> Result<usize> {
    let total = positions.div_ceil(PAGE).checked_mul(slots).and_then(|total| u32::try_from(total).ok());
    let error = || Error::msg(format!("{slots} × {positions} positions are too many")).hint("lower --ctx");
    total.map(|total| total as usize).ok_or_else(error)
}

/// A free list of pages.
#[derive(Debug)]
pub(super) struct PagePool {
    free: Vec<u32>,
    total: usize,
}

impl PagePool {
    /// A pool of `total` pages, which the cache has memory for.
    pub(super) fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total }
    }

    /// Extends `pages` so that it covers `positions` positions.
    ///
    /// # Errors
    /// If there are not enough free pages; `pages` keeps what it had.
    pub(super) fn extend(&mut self, pages: &mut Vec<u32>, positions: usize) -> Result<()> {
        let missing = positions.div_ceil(PAGE).saturating_sub(pages.len());
        if missing > self.free.len() {
            let all = self.total * PAGE;
            let error = format!("{positions} positions do not fit a context of {all}");
            return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
        }
        pages.extend(self.free.drain(self.free.len() - missing..).rev());
        Ok(())
    }

    /// Takes pages back.
    pub(super) fn release(&mut self, pages: &mut Vec<u32>) {
        self.free.extend(pages.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_handed_out_once_and_come_back() {
        let mut pool = PagePool::new(pages(5 * PAGE, 2).unwrap());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        pool.extend(&mut a, 3 * PAGE + 1).unwrap();
        pool.extend(&mut b, 6 * PAGE).unwrap();
        let mut all: Vec<_> = a.iter().chain(&b).copied().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10);
        assert!(pool.extend(&mut b, 6 * PAGE + 1).is_err());
        assert_eq!(b.len(), 6);
        pool.release(&mut a);
        pool.extend(&mut b, 10 * PAGE).unwrap();
        assert_eq!(b.len(), 10);
    }
}
