//! The vocabulary at both ends: token ids to rows, rows to logits.

use super::{ColumnLinear, Context, Loader};
use crate::backend::Tensor;
use crate::error::Result;
use crate::weights::Matrix;

/// Token ids to hidden states.
#[derive(Debug)]
pub struct Embedding {
    table: Matrix,
}

impl Embedding {
    /// Loads `name`, `[vocab, hidden]`.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn load(loader: &Loader<'_>, name: &str, vocab: usize, hidden: usize) -> Result<Self> {
        Ok(Self { table: loader.matrix(name, vocab, hidden)? })
    }

    /// `[ids, hidden]`.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn forward(&self, ids: &[u32], cx: &Context<'_>) -> Result<Tensor> {
        let hint = "tokenizer.json and the weights do not belong together, or the ids are another model's";
        cx.backend.embed(&self.table, ids).map_err(|error| error.hint(hint))
    }

    /// A head that shares this table.
    pub fn tied_head(&self) -> Head {
        Head(ColumnLinear::of(self.table.clone(), None))
    }
}

/// Hidden states to logits.
#[derive(Debug)]
pub struct Head(ColumnLinear);

impl Head {
    /// Loads `<prefix>.weight`, `[vocab, hidden]`.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn load(loader: &Loader<'_>, prefix: &str, vocab: usize, hidden: usize) -> Result<Self> {
        Ok(Self(ColumnLinear::load(loader, prefix, vocab, hidden, false)?))
    }

    /// `[rows, hidden]` → `[rows, vocab]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        self.0.forward(x, cx)
    }
}
