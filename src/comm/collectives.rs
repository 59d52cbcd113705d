//! all_reduce over the fixed tree, reduce_scatter, all_gather, broadcast, barrier.

use std::ops::Range;

use super::communicator::{Algorithm, Communicator};
use super::control::Operation;
use super::tree::{Part, Vector, finish, read};
use super::wire::Wire;
use crate::error::{Error, Result};
use crate::partition::Fold;

/// Vectors of at least this many values are scattered, where there are three ranks or more.
const SCATTER_FROM: usize = 32 * 1024;

impl Communicator {
    /// Sums `values` over all ranks, in place: the same bits on every rank and for every algorithm, rank by rank in a
    /// binary tree.
    ///
    /// # Errors
    /// If a rank is lost, or has another number of values.
    pub fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let sum = self.reduce_tree(&self.fold, values, values.len())?;
        values.copy_from_slice(&sum);
        Ok(())
    }

    /// Finishes the fixed tree of a row-parallel product.
    ///
    /// `partial` holds one block of `len` values per subtree of `fold`; the sum of the whole tree is returned, the same
    /// bits on every rank.
    ///
    /// # Errors
    /// If `fold` is another group's, the sizes do not fit, or a rank is lost.
    pub fn reduce_tree(&self, fold: &Fold, partial: &[f32], len: usize) -> Result<Vec<f32>> {
        let mut sum = vec![0.0; len];
        self.reduce_tree_into(fold, partial, &mut sum)?;
        Ok(sum)
    }

    /// As [`Communicator::reduce_tree`], of blocks as long as `sum`, which is written.
    ///
    /// # Errors
    /// As [`Communicator::reduce_tree`].
    pub fn reduce_tree_into(&self, fold: &Fold, partial: &[f32], sum: &mut [f32]) -> Result<()> {
        let len = sum.len();
        if fold.ranks() != self.world_size() || fold.rank() != self.rank() || partial.len() != fold.roots.len() * len {
            let (rank, ranks, values) = (self.rank(), self.world_size(), partial.len());
            let tree = format!("{} subtrees of {len} for rank {} of {}", fold.roots.len(), fold.rank(), fold.ranks());
            return Err(Error::msg(format!("rank {rank} of {ranks} was given {values} values of a tree with {tree}")));
        }
        if self.world_size() == 1 {
            sum.copy_from_slice(partial);
            return Ok(());
        }
        let scattered = match self.algorithm {
            Algorithm::Auto => self.world_size() > 2 && len >= SCATTER_FROM,
            Algorithm::Direct => false,
            Algorithm::Scatter => true,
        };
        self.run(Operation::AllReduce, |wire| {
            if !scattered {
                return self.sum_of_slice(wire, fold, partial, len, &|_| 0..len, sum);
            }
            let slices = slices(len, self.world_size());
            let mut own = vec![0.0; slices[self.rank()].len()];
            self.sum_of_slice(wire, fold, partial, len, &|rank| slices[rank].clone(), &mut own)?;
            self.gather(wire, &own, &slices.iter().map(Range::len).collect::<Vec<_>>(), sum)
        })
    }

    /// Sums `values` over all ranks as [`Communicator::all_reduce`] does; returns this rank's slice of the sum. Slices are
    /// as even as whole values allow, in the order of the ranks.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn reduce_scatter(&self, values: &[f32]) -> Result<Vec<f32>> {
        if self.world_size() == 1 {
            return Ok(values.to_vec());
        }
        let slices = slices(values.len(), self.world_size());
        let mut own = vec![0.0; slices[self.rank()].len()];
        self.run(Operation::ReduceScatter, |wire| {
            self.sum_of_slice(wire, &self.fold, values, values.len(), &|rank| slices[rank].clone(), &mut own)
        })?;
        Ok(own)
    }

    /// Joins every rank's values in the order of the ranks; `counts` says how many each rank has.
    ///
    /// # Errors
    /// If `counts` is not what the ranks have, or a rank is lost.
    pub fn all_gather(&self, values: &[f32], counts: &[usize]) -> Result<Vec<f32>> {
        if counts.len() != self.world_size() || counts[self.rank()] != values.len() {
            let error = format!("rank {} has {} values, the counts are {counts:?}", self.rank(), values.len());
            return Err(Error::msg(error));
        }
        if self.world_size() == 1 {
            return Ok(values.to_vec());
        }
        let mut all = vec![0.0; counts.iter().sum()];
        self.run(Operation::AllGather, |wire| self.gather(wire, values, counts, &mut all))?;
        Ok(all)
    }

    /// Sends rank `root`'s values to all ranks, in place.
    ///
    /// # Errors
    /// If there is no such rank, a rank is lost, or has another number of values.
    pub fn broadcast(&self, values: &mut [f32], root: usize) -> Result<()> {
        if self.world_size() == 1 {
            return Ok(());
        }
        self.run(Operation::Broadcast, |wire| {
            if root == self.rank() {
                for peer in self.members.iter().filter(|peer| **peer != self.members[root]) {
                    wire.send_values(*peer, &[values])?;
                }
                return Ok(());
            }
            for message in wire.receive(&[(self.peer(root)?, values.len() * 4)])? {
                read(message.bytes(), values);
                wire.recycle(message);
            }
            Ok(())
        })
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn barrier(&self) -> Result<()> {
        if self.world_size() == 1 {
            return Ok(());
        }
        self.run(Operation::Barrier, |wire| self.gather(wire, &[], &vec![0; self.world_size()], &mut []))
    }

    /// Sends every rank its slice of this rank's blocks; `out` becomes the tree's sum of this rank's own slice.
    fn sum_of_slice(
        &self,
        wire: &mut Wire,
        fold: &Fold,
        partial: &[f32],
        len: usize,
        slice_of: &dyn Fn(usize) -> Range<usize>,
        out: &mut [f32],
    ) -> Result<()> {
        let me = self.rank();
        let others = || (0..self.world_size()).filter(move |rank| *rank != me);
        if !fold.roots.is_empty() {
            for rank in others() {
                let slice = slice_of(rank);
                let blocks = partial.chunks_exact(len.max(1)).take(fold.roots.len());
                let parts: Vec<&[f32]> = match slice.len() == len {
                    // they lie one behind the other
                    true => vec![partial],
                    false => blocks.map(|block| &block[slice.clone()]).collect(),
                };
                wire.send_values(self.peer(rank)?, &parts)?;
            }
        }
        let own = slice_of(me);
        let senders: Vec<usize> = others().filter(|rank| !fold.roots_of(*rank).is_empty()).collect();
        let bytes = |rank: usize| fold.roots_of(rank).len() * own.len() * 4;
        let from: Result<Vec<(usize, usize)>> =
            senders.iter().map(|rank| Ok((self.peer(*rank)?, bytes(*rank)))).collect();
        let messages = wire.receive(&from?)?;
        let mut parts = Vec::new();
        for rank in 0..self.world_size() {
            let message = senders.iter().position(|sender| *sender == rank).map(|at| messages[at].bytes());
            for (i, node) in fold.roots_of(rank).iter().enumerate() {
                let vector = match message {
                    Some(bytes) => Vector::Wire(&bytes[i * own.len() * 4..(i + 1) * own.len() * 4]),
                    None => Vector::Own(&partial[i * len + own.start..i * len + own.end]),
                };
                parts.push(Part { node: node.clone(), vector });
            }
        }
        finish(fold.leaves.count(), &parts, out, &mut wire.scratch);
        drop(parts);
        messages.into_iter().for_each(|message| wire.recycle(message));
        Ok(())
    }

    fn gather(&self, wire: &mut Wire, own: &[f32], counts: &[usize], all: &mut [f32]) -> Result<()> {
        let me = self.rank();
        let others: Vec<usize> = (0..self.world_size()).filter(|rank| *rank != me).collect();
        for rank in &others {
            wire.send_values(self.peer(*rank)?, &[own])?;
        }
        let from: Result<Vec<(usize, usize)>> =
            others.iter().map(|rank| Ok((self.peer(*rank)?, counts[*rank] * 4))).collect();
        let messages = wire.receive(&from?)?;
        let mut incoming = messages.into_iter();
        let mut at = 0;
        for (rank, count) in counts.iter().enumerate() {
            let to = &mut all[at..at + count];
            at += count;
            if rank == me {
                to.copy_from_slice(own);
            } else if let Some(message) = incoming.next() {
                read(message.bytes(), to);
                wire.recycle(message);
            }
        }
        Ok(())
    }
}

/// `len` values in a slice a rank.
fn slices(len: usize, ranks: usize) -> Vec<Range<usize>> {
    (0..ranks).map(|rank| rank * len / ranks..(rank + 1) * len / ranks).collect()
}
