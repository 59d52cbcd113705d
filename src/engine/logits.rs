//! What a row of logits says: how likely tokens are, and in which order.

use std::cmp::Ordering;

/// log Σ exp(logits): a token's log-probability is its logit less this.
pub(super) fn log_sum(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(logit - max))).sum();
    libm::log(sum) + f64::from(max)
}

/// The logit of a token; −∞ for one that is not in the row.
pub(super) fn logit(logits: &[f32], token: u32) -> f64 {
    f64::from(logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY))
}

/// Sorts tokens, the likeliest first and of equals the lower, and keeps `count` of them.
pub(super) fn likeliest(logits: &[f32], tokens: &mut Vec<u32>, count: usize) {
    let likelier =
        |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, likelier);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(likelier);
}
