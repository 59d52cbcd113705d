//! The pre-norm residual stack that every architecture fills with its own layers.

use super::{Embedding, Head, RmsNorm, Rotary};
use crate::backend::{Backend, Batch, LayerState, Tensor};
use crate::comm::Communicator;
use crate::error::Result;

/// What a layer needs beside its input.
pub struct Context<'a> {
    /// The device.
    pub backend: &'a dyn Backend,
    /// The ranks that share the layer.
    pub comm: &'a mut Communicator,
    /// Which rows belong to which sequence.
    pub batch: &'a Batch,
    /// The rotary angles of the batch, `[rows, cos | sin]`.
    pub rope: &'a Tensor,
}

/// Mixes a sequence's positions: attention or a recurrent layer.
pub trait Mixer: Send + Sync {
    /// `[rows, hidden]` → `[rows, hidden]`, reading and extending the layer's state.
    ///
    /// # Errors
    /// If the state is another layer's, or a rank is lost.
    fn forward(&self, x: &Tensor, state: &mut LayerState, cx: &mut Context<'_>) -> Result<Tensor>;

    /// An empty state for `pages` pages of the KV cache and `slots` sequences.
    ///
    /// # Errors
    /// If the system has no room for it.
    fn state(&self, pages: usize, slots: usize) -> Result<LayerState>;
}

/// Works on every position alone.
pub trait FeedForward: Send + Sync {
    /// `[rows, hidden]` → `[rows, hidden]`.
    ///
    /// # Errors
    /// If a rank is lost.
    fn forward(&self, x: &Tensor, cx: &mut Context<'_>) -> Result<Tensor>;
}

/// x + mixer(norm x), then + feed_forward(norm x).
pub struct Block {
    /// Before the mixer.
    pub input_norm: RmsNorm,
    /// Attention or a recurrent layer.
    pub mixer: Box<dyn Mixer>,
    /// Before the feed-forward layer.
    pub post_norm: RmsNorm,
    /// Dense or a mixture of experts.
    pub feed_forward: Box<dyn FeedForward>,
}

/// A decoder-only language model.
pub struct Decoder {
    /// Token ids to hidden states.
    pub embedding: Embedding,
    /// The layers in order.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: RmsNorm,
    /// Hidden states to logits.
    pub head: Head,
    /// The positions.
    pub rotary: Rotary,
}

/// Is shown the embeddings as layer 0 and the output of layer i as i + 1, the last one after the final norm.
pub type Observer<'a> = &'a mut dyn FnMut(usize, &Tensor);

impl Decoder {
    /// The logits of the rows `wanted`: `[wanted, vocab]`. `ids` are the tokens of the rows of `batch`.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or a rank is lost.
    pub fn forward(
        &self,
        ids: &[u32],
        wanted: &[usize],
        batch: &Batch,
        states: &mut [LayerState],
        (backend, comm): (&dyn Backend, &mut Communicator),
        mut observer: Option<Observer<'_>>,
    ) -> Result<Tensor> {
        let rope = self.rotary.table(batch);
        let mut cx = Context { backend, comm, batch, rope: &rope };
        let mut x = self.embedding.forward(ids, &cx)?;
        for (layer, (block, state)) in self.blocks.iter().zip(states).enumerate() {
            if let Some(observer) = &mut observer {
                observer(layer, &x);
            }
            let mixed = block.mixer.forward(&block.input_norm.forward(&x, &cx), state, &mut cx)?;
            backend.add(&mut x, &mixed);
            let fed = block.feed_forward.forward(&block.post_norm.forward(&x, &cx), &mut cx)?;
            backend.add(&mut x, &fed);
        }
        if let Some(observer) = &mut observer {
            observer(self.blocks.len(), &self.norm.forward(&x, &cx));
        }
        let x = self.norm.forward(&x.select_rows(wanted), &cx);
        self.head.forward(&x, &cx)
    }

    /// Empty states for all layers.
    ///
    /// # Errors
    /// If the system has no room for them.
    pub fn states(&self, pages: usize, slots: usize) -> Result<Vec<LayerState>> {
        self.blocks.iter().map(|block| block.mixer.state(pages, slots)).collect()
    }
}
