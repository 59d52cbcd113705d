//! The vocabulary at both ends: token ids to rows, rows to logits.

use std::ops::Range;

use super::{ColumnLinear, Context, Loader};
use crate::backend::{Backend, Peak, Tensor};
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

/// Hidden states to logits: every rank of the last stage has a run of the vocabulary, rank 0 gets all of it, or of every run no
/// more than its peak.
#[derive(Debug)]
pub struct Head {
    // on the ranks of the last stage that have rows, and the first of these
    own: Option<(ColumnLinear, usize)>,
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
        let part = seat.group.rows(vocab, ROWS);
        let own = seat.last.then(|| loader.part(name, &[vocab, hidden], part.clone(), 0..hidden)).transpose()?;
        Ok(Self {
            own: own.filter(|own| own.out_features() > 0).map(|own| (ColumnLinear::of(own), part.start)),
            owners: ranks.map(|rank| (rank, rows(rank))).filter(|(_, rows)| !rows.is_empty()).collect(),
        })
    }

    /// `[rows, hidden]` → this rank's part of what is asked for, which rank 0 keeps and the others send it as one message: its
    /// columns of the first `logits` rows, and the peak of its columns of every other row. Only the last stage has an `x` to
    /// give.
    ///
    /// # Errors
    /// If the shapes do not fit, or a rank is lost.
    pub fn launch(&self, x: Option<&Tensor>, logits: usize, cx: &mut Context<'_>) -> Result<Option<Part>> {
        let (Some((linear, first)), Some(x)) = (&self.own, x) else { return Ok(None) };
        let columns = linear.forward(x, cx)?;
        let tokens = logits..columns.rows();
        let peaks = (!tokens.is_empty()).then(|| cx.backend.argmax(&columns, tokens, *first));
        if cx.ranks.world.rank() == 0 {
            return Ok(Some(Part { columns, peaks }));
        }
        cx.finish()?;
        let logits = &columns.data()[..logits * columns.cols()];
        match &peaks {
            None => cx.ranks.world.send(0, logits)?,
            Some(peaks) => cx.ranks.world.send_joined(0, &[logits, peaks.data()])?,
        }
        Ok(None)
    }

    /// What was asked for, on rank 0, from what [`Head::launch`] gave it and what the others have sent or will.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn collect(
        &self,
        mut own: Option<Part>,
        (logits, tokens): (usize, usize),
        (backend, ranks): (&dyn Backend, &Ranks),
    ) -> Result<Outputs> {
        let (mut parts, mut peaks) = (Vec::new(), Vec::new());
        for (owner, vocab) in &self.owners {
            let part = match own.take_if(|_| *owner == ranks.world.rank()) {
                Some(own) => own,
                None => {
                    let count = logits * vocab.len() + tokens * Peak::WORDS;
                    Part::received(ranks.world.recv(*owner, count)?, logits, vocab.len())?
                }
            };
            join(&mut peaks, part.peaks.as_ref());
            parts.push(part.columns);
        }
        let vocab = self.owners.last().map_or(0, |(_, vocab)| vocab.end);
        if logits == 0 {
            return Ok(Outputs { logits: Tensor::zeros(0, vocab), peaks });
        }
        if parts.len() == 1 && parts[0].rows() == logits {
            return Ok(Outputs { logits: parts.swap_remove(0), peaks });
        }
        let logits = Tensor::beside(backend, logits, &parts.iter().collect::<Vec<_>>());
        backend.finish().map(|()| Outputs { logits, peaks })
    }
}

/// What a rank of the last stage has of the logits of some rows, its part of the vocabulary.
#[derive(Debug)]
pub struct Part {
    // `[rows, part]`, of which the first rows are asked for
    columns: Tensor,
    // `[other rows, Peak::WORDS]`
    peaks: Option<Tensor>,
}

impl Part {
    /// From a message: `rows` rows of `width` columns, then peaks.
    fn received(mut values: Vec<f32>, rows: usize, width: usize) -> Result<Self> {
        let peaks = values.split_off(rows * width);
        let peaks = Tensor::from_vec(peaks.len() / Peak::WORDS, Peak::WORDS, peaks)?;
        Ok(Self { columns: Tensor::from_vec(rows, width, values)?, peaks: Some(peaks) })
    }
}

/// Joins the peaks of the columns so far with those of the columns after them.
fn join(peaks: &mut Vec<Peak>, later: Option<&Tensor>) {
    let words = later.map_or(&[][..], |later| later.data().as_chunks().0);
    for (row, words) in words.iter().enumerate() {
        let later = Peak::from_words(*words);
        match peaks.get_mut(row) {
            Some(peak) => *peak = peak.joined(later),
            None => peaks.push(later),
        }
    }
}

/// What a pass gives of the rows that something was asked of.
#[derive(Debug)]
pub struct Outputs {
    /// `[rows, vocab]`.
    pub logits: Tensor,
    /// Of the logits of every other row.
    pub peaks: Vec<Peak>,
}
