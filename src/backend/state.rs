//! What a sequence leaves behind in a layer: keys and values in pages, or the state of a gated delta net.

use super::memory::no_room;
use super::{Backend, Memory};
use crate::error::Result;

/// Positions that attention folds in one step; a page of the cache is a whole number of them.
pub const TILE: usize = 32;

/// Positions of one page of the KV cache.
pub const PAGE: usize = 2 * TILE;

/// How the values of a KV cache are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, two in a word of 32 bits: of turned keys the positions j and j + 16 of a tile, of rows the positions 2i (in
    /// the lower half) and 2i + 1.
    Bf16,
}

impl KvType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Words of 32 bits that so many values take, which are those of whole tiles.
    pub(super) fn words(self, values: usize) -> usize {
        values / (size_of::<f32>() / self.bytes())
    }
}

fn zeros(backend: &dyn Backend, len: Option<usize>) -> Result<Memory> {
    backend.zeros(len.ok_or_else(no_room)?)
}

/// Keys and values of one attention layer, in pages shared by all sequences.
///
/// Inside a page, per kv head and tile: keys transposed `[head_dim, TILE]`, then values `[TILE, head_dim]`; see [`KvType`].
#[derive(Debug)]
pub struct KvStore {
    pub(super) kind: KvType,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) data: Memory,
}

impl KvStore {
    /// Reserves `pages` pages; memory is touched when positions are written.
    ///
    /// # Errors
    /// If the system has no room for them.
    pub fn new(backend: &dyn Backend, pages: usize, kv_heads: usize, head_dim: usize) -> Result<Self> {
        let kind = backend.kv_type();
        let data = zeros(backend, pages.checked_mul(kind.words(Self::page_values(kv_heads, head_dim))))?;
        Ok(Self { kind, kv_heads, head_dim, data })
    }

    /// Values of one page.
    pub fn page_values(kv_heads: usize, head_dim: usize) -> usize {
        PAGE * kv_heads * head_dim * 2
    }

    /// The word where the tile of `position` starts for `kv_head`: its keys, then its values.
    pub(super) fn tile_at(&self, pages: &[u32], kv_head: usize, position: usize) -> usize {
        let (page, tile) = (pages[position / PAGE] as usize, position % PAGE / TILE);
        ((page * self.kv_heads + kv_head) * (PAGE / TILE) + tile) * self.tile_words()
    }

    /// Words of a tile's keys and values.
    pub(super) fn tile_words(&self) -> usize {
        self.kind.words(TILE * self.head_dim * 2)
    }
}

/// The latent vectors of one layer of multi-head latent attention, in pages shared by all sequences: `[PAGE, width]` each; see
/// [`KvType`].
#[derive(Debug)]
pub struct LatentStore {
    pub(super) kind: KvType,
    pub(super) width: usize,
    pub(super) data: Memory,
}

impl LatentStore {
    /// Reserves `pages` pages; memory is touched when positions are written.
    ///
    /// # Errors
    /// If the system has no room for them.
    pub fn new(backend: &dyn Backend, pages: usize, width: usize) -> Result<Self> {
        let kind = backend.kv_type();
        Ok(Self { kind, width, data: zeros(backend, pages.checked_mul(kind.words(PAGE * width)))? })
    }

    /// The word where the tile of `position` starts; those of its page follow each other.
    pub(super) fn tile_at(&self, pages: &[u32], position: usize) -> usize {
        (pages[position / PAGE] as usize * (PAGE / TILE) + position % PAGE / TILE) * self.tile_words()
    }

    /// Words of a tile.
    pub(super) fn tile_words(&self) -> usize {
        self.kind.words(TILE * self.width)
    }
}

/// The recurrent state of one gated delta net layer: one slot a sequence.
#[derive(Debug)]
pub struct DeltaStore {
    pub(super) channels: usize,
    pub(super) taps: usize,
    pub(super) state_values: usize,
    // per slot: the last `taps` inputs of the causal convolution, oldest first, [taps, channels]
    pub(super) conv: Memory,
    // per slot: [v_heads, key_dim, value_dim]
    pub(super) state: Memory,
}

impl DeltaStore {
    /// Reserves `slots` zeroed states: `taps` past inputs of `channels`, and `state_values` values of recurrent state.
    ///
    /// # Errors
    /// If the system has no room for them.
    pub fn new(backend: &dyn Backend, slots: usize, channels: usize, taps: usize, state_values: usize) -> Result<Self> {
        let conv = zeros(backend, slots.checked_mul(taps * channels))?;
        let state = zeros(backend, slots.checked_mul(state_values))?;
        Ok(Self { channels, taps, state_values, conv, state })
    }

    /// Forgets the sequence in `slot`.
    pub fn reset(&mut self, slot: usize) {
        let conv = self.taps * self.channels;
        self.conv[slot * conv..][..conv].fill(0.0);
        self.state[slot * self.state_values..][..self.state_values].fill(0.0);
    }

    fn copy(&mut self, from: usize, to: usize) {
        copy(&mut self.conv, self.taps * self.channels, from, to);
        copy(&mut self.state, self.state_values, from, to);
    }
}

/// The state of one layer.
#[derive(Debug)]
pub enum LayerState {
    /// Of an attention layer.
    Kv(KvStore),
    /// Of a layer of multi-head latent attention.
    Latent(LatentStore),
    /// Of a gated delta net layer.
    Delta(DeltaStore),
}

impl LayerState {
    /// Forgets what does not stand in pages of the sequence in `slot`.
    pub fn reset(&mut self, slot: usize) {
        if let Self::Delta(store) = self {
            store.reset(slot);
        }
    }

    /// Makes the page `to` a copy of the page `from`.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        match self {
            Self::Kv(store) => {
                let words = store.kind.words(KvStore::page_values(store.kv_heads, store.head_dim));
                copy(&mut store.data, words, from, to);
            }
            Self::Latent(store) => {
                let words = store.kind.words(PAGE * store.width);
                copy(&mut store.data, words, from, to);
            }
            Self::Delta(_) => {}
        }
    }

    /// Makes what the slot `to` holds beside pages a copy of what the slot `from` does.
    pub fn copy_state(&mut self, from: usize, to: usize) {
        if let Self::Delta(store) = self {
            store.copy(from, to);
        }
    }
}

/// Copies one of the pieces of `len` values that `memory` is made of over another.
fn copy(memory: &mut Memory, len: usize, from: usize, to: usize) {
    memory.copy_within(from * len..(from + 1) * len, to * len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Arithmetic, Cpu};

    #[test]
    fn a_page_is_as_large_as_planned_and_copied_whole() {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let cpu = Cpu::new(1).unwrap().computing(arithmetic);
            let (heads, dim, width) = (3, 20, 7);
            let kv = KvStore::new(&cpu, 3, heads, dim).unwrap();
            let latent = LatentStore::new(&cpu, 3, width).unwrap();
            for (mut state, values) in
                [(LayerState::Kv(kv), KvStore::page_values(heads, dim)), (LayerState::Latent(latent), PAGE * width)]
            {
                let words = values * arithmetic.kv_type().bytes() / 4;
                data(&mut state).iter_mut().enumerate().for_each(|(i, word)| *word = i as f32);
                let before = data(&mut state).to_vec();
                assert_eq!(before.len(), 3 * words, "{arithmetic:?}");
                state.copy_page(0, 1);
                let after = data(&mut state);
                assert_eq!(after[..words], before[..words]);
                assert_eq!(after[words..2 * words], before[..words]);
                assert_eq!(after[2 * words..], before[2 * words..]);
            }
        }
    }

    fn data(state: &mut LayerState) -> &mut Memory {
        match state {
            LayerState::Kv(KvStore { data, .. }) | LayerState::Latent(LatentStore { data, .. }) => data,
            LayerState::Delta(_) => panic!("no pages"),
        }
    }
}
