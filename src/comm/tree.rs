//! Finishing the fixed tree from the subtrees that the ranks sent.

use std::ops::Range;

use crate::partition::halves;

/// A summed subtree: which leaves, and its vector.
pub(super) struct Part<'a> {
    pub(super) node: Range<usize>,
    pub(super) vector: Vector<'a>,
}

/// A vector here, or as it came off the wire.
#[derive(Clone, Copy)]
pub(super) enum Vector<'a> {
    Own(&'a [f32]),
    Wire(&'a [u8]),
}

impl Vector<'_> {
    fn copy_to(self, out: &mut [f32]) {
        match self {
            Self::Own(values) => out.copy_from_slice(values),
            Self::Wire(bytes) => read(bytes, out),
        }
    }

    fn add_to(self, out: &mut [f32]) {
        match self {
            Self::Own(values) => out.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            Self::Wire(bytes) => {
                let (words, _) = bytes.as_chunks::<4>();
                out.iter_mut().zip(words).for_each(|(sum, word)| *sum += f32::from_le_bytes(*word));
            }
        }
    }
}

/// Reads little-endian values.
pub(super) fn read(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<4>();
    out.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
}

/// Writes little-endian values.
pub(super) fn write(values: &[f32], out: &mut [u8]) {
    let (words, _) = out.as_chunks_mut::<4>();
    words.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_le_bytes());
}

/// Sums the tree over `leaves` leaves from `parts`, which tile it from left to right, into `out`.
pub(super) fn finish(leaves: usize, parts: &[Part<'_>], out: &mut [f32], scratch: &mut Vec<f32>) {
    // two parts need none: the second is added where the first was copied to
    let levels = if parts.len() > 2 { (usize::BITS - leaves.leading_zeros() + 1) as usize } else { 0 };
    if scratch.len() < levels * out.len() {
        scratch.resize(levels * out.len(), 0.0);
    }
    sum(&(0..leaves), &mut &parts[..], out, scratch);
}

/// Takes the parts under `node` off the front of `parts`. The order of additions is the tree's: left plus right.
fn sum(node: &Range<usize>, parts: &mut &[Part<'_>], out: &mut [f32], scratch: &mut [f32]) {
    let Some((first, rest)) = parts.split_first() else { return };
    if first.node == *node {
        first.vector.copy_to(out);
        *parts = rest;
        return;
    }
    let (left, right) = halves(node);
    sum(&left, parts, out, scratch);
    match parts.split_first() {
        Some((part, rest)) if part.node == right => {
            part.vector.add_to(out);
            *parts = rest;
        }
        _ => {
            let (mine, rest) = scratch.split_at_mut(out.len());
            sum(&right, parts, mine, rest);
            Vector::Own(mine).add_to(out);
        }
    }
}
