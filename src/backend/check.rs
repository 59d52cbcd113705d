//! What every backend checks of its operands before it computes.

use std::ops::Range;

use super::{ExpertWeights, Experts, Routes, Tensor};
use crate::error::{Error, Result};
use crate::partition::Fold;
use crate::weights::{Matrix, Values};

/// That activations, weight and leaves belong together.
pub(super) fn linear(x: &Tensor, w: &Matrix, fold: &Fold) -> Result<()> {
    let fits = x.cols() == w.in_features() && fold.width() == w.in_features();
    if !fits && !fold.roots.is_empty() {
        return Err(Error::msg(format!(
            "activations of {} columns and leaves of {} do not fit a [{}, {}] matrix",
            x.cols(),
            fold.width(),
            w.out_features(),
            w.in_features()
        )));
    }
    uncut(w, fold)
}

/// That no leaf ends inside a group of packed values.
fn uncut(w: &Matrix, fold: &Fold) -> Result<()> {
    let Values::Packed(packed) = w.values() else { return Ok(()) };
    let group = packed.coding.group();
    let cut = |columns: &Range<usize>| {
        !(columns.start + w.origin().1).is_multiple_of(group) || !columns.len().is_multiple_of(group)
    };
    let mut steps = (0..fold.roots.len()).flat_map(|root| fold.steps(root));
    match steps.find(|step| cut(&step.columns)) {
        Some(step) => Err(Error::msg(format!("the leaf {:?} cuts a group of {group} packed weights", step.columns))),
        None => Ok(()),
    }
}

/// That `ids` are rows of `table`.
pub(super) fn ids(table: &Matrix, ids: &[u32]) -> Result<()> {
    let rows = table.out_features();
    match ids.iter().find(|id| **id as usize >= rows) {
        Some(id) => Err(Error::msg(format!("token {id} is not in the embedding table of {rows} rows"))),
        None => Ok(()),
    }
}

/// The values of a head of `x` and of the product, where every head has a matrix of its own, all of one shape.
pub(super) fn per_head(x: &Tensor, ws: &[Matrix], turned: bool) -> Result<(usize, usize)> {
    let shape = |w: &Matrix| (w.out_features(), w.in_features());
    let (rows, columns) = ws.first().map_or((0, 0), shape);
    let (inner, out) = if turned { (rows, columns) } else { (columns, rows) };
    if x.cols() != ws.len() * inner || ws.iter().any(|w| shape(w) != (rows, columns)) {
        let error = format!("activations of {} columns do not fit {} heads of [{rows}, {columns}]", x.cols(), ws.len());
        return Err(Error::msg(error));
    }
    Ok((inner, out))
}

/// That the matrices of an expert fit the activations, and each other along the columns of `fold`.
fn expert(x: &Tensor, [gate, up, down]: [&Matrix; 3], fold: &Fold) -> Result<()> {
    let shape = |matrix: &Matrix| (matrix.out_features(), matrix.in_features());
    let (inner, hidden) = (fold.width(), x.cols());
    if shape(gate) == (inner, hidden) && shape(up) == (inner, hidden) && shape(down) == (hidden, inner) {
        return uncut(down, fold);
    }
    Err(Error::msg(format!(
        "an expert of gate {:?}, up {:?} and down {:?} does not fit {hidden} features and leaves of {inner}",
        shape(gate),
        shape(up),
        shape(down)
    )))
}

/// That routes are of the rows of `x`.
pub(super) fn routes(x: &Tensor, routes: &Routes) -> Result<()> {
    if routes.experts.rows() == x.rows() && routes.weights.rows() == x.rows() {
        return Ok(());
    }
    Err(Error::msg(format!("routes of {} tokens for {}", routes.experts.rows(), x.rows())))
}

/// That the experts `chosen` are there and fit, and the shared one with them.
pub(super) fn experts(x: &Tensor, chosen: impl Iterator<Item = usize>, experts: &Experts<'_>) -> Result<()> {
    let ExpertWeights { gate, up, down } = experts.routed;
    for number in chosen {
        match (gate.get(number), up.get(number), down.get(number)) {
            (Some(gate), Some(up), Some(down)) => expert(x, [gate, up, down], experts.fold)?,
            _ => return Err(Error::msg(format!("there is no expert {number}"))),
        }
    }
    if let Some(shared) = &experts.shared {
        expert(x, [shared.gate, shared.up, shared.down], shared.fold)?;
        if shared.fold.roots != experts.fold.roots {
            return Err(Error::msg("the shared expert is cut into other leaves than the routed ones"));
        }
    }
    Ok(())
}
