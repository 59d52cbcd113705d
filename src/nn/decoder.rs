//! The pre-norm residual stack that every architecture fills with its own layers.

use super::embedding::Part;
use super::exchange::Promised;
use super::{Embedding, Head, Outputs, RmsNorm, Rotary};
use crate::backend::{Backend, Batch, KvType, LayerState, PAGE, Tensor};
use crate::comm::{Place, Ranks};
use crate::error::{Error, Result};

/// What a layer needs beside its input.
pub struct Context<'a> {
    /// The device.
    pub backend: &'a dyn Backend,
    /// The ranks that compute together.
    pub ranks: &'a mut Ranks,
    /// Which rows belong to which sequence.
    pub batch: &'a Batch,
    /// The rotary angles of the batch, `[rows, cos | sin]`.
    pub rope: &'a Tensor,
    /// Where in the model this rank is.
    pub(super) place: Place,
    /// A sum that the device was promised and the ranks have not begun.
    pub(super) promised: Option<Promised>,
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
    fn state(&self, backend: &dyn Backend, pages: usize, slots: usize) -> Result<LayerState>;

    /// The bytes of such a state, whose pages keep values as `kv`.
    fn state_bytes(&self, pages: usize, slots: usize, kv: KvType) -> u64;
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

/// A decoder-only language model, or the stage of it that a rank runs.
pub struct Decoder {
    /// Token ids to hidden states, on the first stage.
    pub embedding: Option<Embedding>,
    /// The first of this stage's layers.
    pub first_layer: usize,
    /// This stage's layers in order.
    pub blocks: Vec<Block>,
    /// Features of the residual stream.
    pub hidden: usize,
    /// Before the head, on the last stage.
    pub norm: Option<RmsNorm>,
    /// Hidden states to logits.
    pub head: Head,
    /// The positions.
    pub rotary: Rotary,
    /// The ranks of the stages before and after this one that this rank exchanges hidden states with.
    pub neighbours: (Option<usize>, Option<usize>),
}

/// The rows of a batch that something is asked of.
#[derive(Debug, Default)]
pub struct Asked {
    /// Those whose logits are.
    pub logits: Vec<usize>,
    /// Those of whose logits the peak is enough.
    pub tokens: Vec<usize>,
}

/// What was asked for and is not there yet.
#[derive(Debug)]
#[must_use = "ranks send it, and somebody is to receive it"]
pub struct Pending {
    own: Option<Part>,
    // rows, as in `Asked`
    logits: usize,
    tokens: usize,
}

/// Is shown the embeddings as layer 0 and the output of layer i as i + 1, the last one after the final norm.
pub type Observer<'a> = &'a mut dyn FnMut(usize, &Tensor);

impl Decoder {
    /// This rank's part of a forward pass that ends in what is `asked` for, for [`Decoder::collect`]. Further passes may be
    /// launched before. `ids` are the tokens of the rows of `batch`. All ranks call this with the same arguments.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or a rank is lost.
    pub fn launch(
        &self,
        ids: &[u32],
        asked: &Asked,
        batch: &Batch,
        states: &mut [LayerState],
        (backend, ranks): (&dyn Backend, &mut Ranks),
        mut observer: Option<Observer<'_>>,
    ) -> Result<Pending> {
        let rope = backend.upload(self.rotary.table(batch));
        let (before, after) = self.neighbours;
        let mut cx = Context { backend, ranks, batch, rope: &rope, place: Place::default(), promised: None };
        let mut x = match (&self.embedding, before) {
            (Some(embedding), _) => embedding.forward(ids, &cx)?,
            (None, Some(before)) => {
                cx.at(Place { layer: self.first_layer, part: "input" });
                let received = cx.ranks.world.recv(before, batch.rows() * self.hidden)?;
                backend.upload(Tensor::from_vec(batch.rows(), self.hidden, received)?)
            }
            (None, None) => return Err(Error::msg("a stage has neither an embedding nor a stage before it")),
        };
        // what the layer before is yet to add to `x`
        let mut fed: Option<Tensor> = None;
        for (i, (block, state)) in self.blocks.iter().zip(states).enumerate() {
            let layer = self.first_layer + i;
            let normed = match fed.take() {
                Some(fed) => block.input_norm.forward_added(&mut x, &fed, &cx),
                None => block.input_norm.forward(&x, &cx),
            };
            if let Some(observer) = &mut observer {
                cx.finish()?;
                observer(layer, &x);
            }
            cx.at(Place { layer, part: "mixer" });
            let mixed = block.mixer.forward(&normed, state, &mut cx)?;
            let normed = block.post_norm.forward_added(&mut x, &mixed, &cx);
            cx.at(Place { layer, part: "mlp" });
            fed = Some(block.feed_forward.forward(&normed, &mut cx)?);
        }
        if let Some(fed) = fed {
            backend.add(&mut x, &fed);
        }
        let layers = self.first_layer + self.blocks.len();
        cx.at(Place { layer: layers, part: "output" });
        if let Some(after) = after {
            cx.finish()?;
            cx.ranks.world.send(after, x.data())?;
        } else if let (Some(observer), Some(norm)) = (&mut observer, &self.norm) {
            cx.finish()?;
            observer(layers, &norm.forward(&x, &cx));
        }
        let (logits, tokens) = (asked.logits.len(), asked.tokens.len());
        if logits + tokens == 0 {
            return cx.finish().map(|()| Pending { own: None, logits, tokens });
        }
        // one product for both: the head's weights are read once
        let rows = [&asked.logits[..], &asked.tokens].concat();
        let x = self.norm.as_ref().map(|norm| norm.forward(&x.select_rows(backend, &rows), &cx));
        let own = self.head.launch(x.as_ref(), logits, &mut cx)?;
        cx.finish().map(|()| Pending { own, logits, tokens })
    }

    /// What was asked of a pass, on rank 0; nothing on other ranks, or if that was nothing. In the order in which passes were
    /// launched.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn collect(&self, pending: Pending, (backend, ranks): (&dyn Backend, &mut Ranks)) -> Result<Option<Outputs>> {
        let Pending { own, logits, tokens } = pending;
        if logits + tokens == 0 || ranks.world.rank() != 0 {
            return Ok(None);
        }
        ranks.at(Place { layer: self.first_layer + self.blocks.len(), part: "logits" });
        self.head.collect(own, (logits, tokens), (backend, ranks)).map(Some)
    }

    /// Bytes that a position of a sequence takes of a cache that keeps values as `kv`, all layers of this rank together.
    pub fn position_bytes(&self, kv: KvType) -> u64 {
        self.blocks.iter().map(|block| block.mixer.state_bytes(1, 0, kv)).sum::<u64>() / PAGE as u64
    }

    /// Whether a layer keeps more of a sequence than what stands in pages.
    pub fn is_recurrent(&self) -> bool {
        self.blocks.iter().any(|block| block.mixer.state_bytes(0, 1, KvType::default()) > 0)
    }

    /// Empty states for all layers.
    ///
    /// # Errors
    /// If the system has no room for them.
    pub fn states(&self, backend: &dyn Backend, pages: usize, slots: usize) -> Result<Vec<LayerState>> {
        self.blocks.iter().map(|block| block.mixer.state(backend, pages, slots)).collect()
    }
}
