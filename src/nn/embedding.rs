//! The vocabulary at both ends: token ids to rows, rows to logits.

use std::ops::Range;

use super::{ColumnLinear, Context, Loader};
use crate::backend::{Backend, Tensor};
use crate::comm::Ranks;
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
        Ok(Self { table: loader.table(name, vocab, hidden)? })
    }

    /// `[ids, hidden]`.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn forward(&self, ids: &[u32], cx: &Context<'_>) -> Result<Tensor> {
        let hint = "tokenizer.json and the weights do not belong together, or the ids are another model's";
        cx.backend.embed(&self.table, ids).map_err(|error| error.hint(hint))
    }
}

/// Hidden states to logits: every rank of the last stage has a run of the vocabulary, rank 0 gets all of it.
#[derive(Debug)]
pub struct Head {
    // on the ranks of the last stage that have rows
    own: Option<ColumnLinear>,
    // who computes which part of the vocabulary, in its order
    owners: Vec<(usize, Range<usize>)>,
}

/// The vocabulary is cut at multiples of this.
const ROWS: usize = 16;

impl Head {
    /// Loads this rank's rows of `name`, `[vocab, hidden]`: the head's own weight, or the embedding's if they are tied.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn load(loader: &Loader<'_>, name: &str, vocab: usize, hidden: usize) -> Result<Self> {
        let (seat, plan) = (loader.seat(), loader.plan());
        let ranks = plan.ranks_of(plan.stages().len() - 1);
        let rows = |rank: usize| plan.seat(rank).group.rows(vocab, ROWS);
        let own = seat.last.then(|| loader.part(name, &[vocab, hidden], seat.group.rows(vocab, ROWS), 0..hidden));
        Ok(Self {
            own: own.transpose()?.filter(|own| own.out_features() > 0).map(ColumnLinear::of),
            owners: ranks.map(|rank| (rank, rows(rank))).filter(|(_, rows)| !rows.is_empty()).collect(),
        })
    }

    /// `[rows, hidden]` → this rank's columns of `[rows, vocab]`, which rank 0 keeps and the others send it. Only the last
    /// stage has an `x` to give.
    ///
    /// # Errors
    /// If the shapes do not fit, or a rank is lost.
    pub fn launch(&self, x: Option<&Tensor>, cx: &mut Context<'_>) -> Result<Option<Tensor>> {
        let own = match (&self.own, x) {
            (Some(linear), Some(x)) => Some(linear.forward(x, cx)?),
            _ => None,
        };
        if cx.ranks.world.rank() == 0 {
            return Ok(own);
        }
        let Some(own) = own else { return Ok(None) };
        cx.finish()?;
        cx.ranks.world.send(0, own.data()).map(|()| None)
    }

    /// `[rows, vocab]` on rank 0 from what [`Head::launch`] gave it and what the others have sent or will.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn collect(
        &self,
        mut own: Option<Tensor>,
        rows: usize,
        (backend, ranks): (&dyn Backend, &Ranks),
    ) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (owner, vocab) in &self.owners {
            let part = match own.take_if(|_| *owner == ranks.world.rank()) {
                Some(own) => own,
                None => Tensor::from_vec(rows, vocab.len(), ranks.world.recv(*owner, rows * vocab.len())?)?,
            };
            parts.push(part);
        }
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let whole = Tensor::beside(backend, rows, &parts.iter().collect::<Vec<_>>());
        backend.finish().map(|()| whole)
    }
}
