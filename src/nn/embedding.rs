//! The vocabulary at both ends: token ids to rows, rows to logits.

use std::ops::Range;

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

    /// `[rows, hidden]` → `[rows, vocab]` on rank 0, nothing on the others. Only the last stage has an `x` to give.
    ///
    /// # Errors
    /// If the shapes do not fit, or a rank is lost.
    pub fn forward(&self, x: Option<&Tensor>, rows: usize, cx: &mut Context<'_>) -> Result<Option<Tensor>> {
        let mut own = match (&self.own, x) {
            (Some(linear), Some(x)) => Some(linear.forward(x, cx)?),
            _ => None,
        };
        let rank = cx.ranks.world.rank();
        if rank != 0 {
            let Some(own) = own else { return Ok(None) };
            cx.backend.finish()?;
            return cx.ranks.world.send(0, own.data()).map(|()| None);
        }
        let mut parts = Vec::new();
        for (owner, vocab) in &self.owners {
            let part = match own.take_if(|_| *owner == rank) {
                Some(own) => own,
                None => Tensor::from_vec(rows, vocab.len(), cx.ranks.world.recv(*owner, rows * vocab.len())?)?,
            };
            parts.push(part);
        }
        match &parts[..] {
            [_] => Ok(parts.pop()),
            parts => Ok(Some(Tensor::beside(cx.backend, rows, &parts.iter().collect::<Vec<_>>()))),
        }
    }
}
