//! The pages of the KV cache: which are free, and how many hold the others.

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

/// All pages, each with the number of its holders.
#[derive(Debug)]
pub(super) struct PagePool {
    free: Vec<u32>,
    holders: Vec<u32>,
}

impl PagePool {
    /// A pool of `total` pages, which the cache has memory for.
    pub(super) fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), holders: vec![0; total] }
    }

    /// All pages.
    pub(super) fn total(&self) -> usize {
        self.holders.len()
    }

    /// Pages that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` free pages; they have one holder then.
    ///
    /// # Errors
    /// If there are not so many; none is taken then.
    pub(super) fn take(&mut self, count: usize) -> Result<Vec<u32>> {
        if count > self.free.len() {
            let room = self.total() * PAGE;
            let error = format!("the KV cache is full: it has room for {room} positions");
            return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
        }
        let taken: Vec<u32> = self.free.drain(self.free.len() - count..).rev().collect();
        taken.iter().for_each(|page| self.holders[*page as usize] = 1);
        Ok(taken)
    }

    /// One more holds a page that somebody holds.
    pub(super) fn hold(&mut self, page: u32) {
        self.holders[page as usize] += 1;
    }

    /// One less holds it.
    pub(super) fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_handed_out_once_and_come_back_when_nobody_holds_them() {
        let mut pool = PagePool::new(pages(5 * PAGE, 2).unwrap());
        let a = pool.take(4).unwrap();
        let b = pool.take(6).unwrap();
        let mut all: Vec<_> = a.iter().chain(&b).copied().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10);
        assert!(pool.take(1).is_err());
        pool.hold(a[0]);
        a.iter().for_each(|page| pool.release(*page));
        assert_eq!(pool.free(), 3);
        pool.release(a[0]);
        assert_eq!((pool.free(), pool.total()), (4, 10));
        assert!(pool.take(5).is_err());
        assert_eq!(pool.take(4).unwrap().len(), 4);
    }
}
