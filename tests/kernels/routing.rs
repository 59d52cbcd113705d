//! The choice of experts.

use tbshard::backend::{Backend, Router, Scores, Tensor};

use super::check::{cpu, near, same, same_everywhere};
use super::random::Rng;
use super::reference::{Bound, exact, softmax};

const ROWS: [usize; 5] = [1, 3, 8, 70, 2];
const EXPERTS: [usize; 7] = [8, 16, 5, 64, 1, 17, 300];

/// Logits: continuous, of few values so that most are tied, or far apart.
fn logits(case: usize) -> Tensor {
    let mut rng = Rng::new(case as u64);
    let (rows, experts) = (ROWS[case % ROWS.len()], EXPERTS[case % EXPERTS.len()]);
    let mut logits = rng.tensor(rows, experts, [4.0, 2.0, 40.0][case % 3]);
    if case % 3 == 1 {
        logits.data_mut().iter_mut().for_each(|x| *x = x.round());
    }
    logits
}

/// The router of Qwen's mixtures.
pub fn softmax_router(top_k: usize, normalise: bool) -> Router<'static> {
    Router { scores: Scores::Softmax, top_k, normalise, scale: 1.0 }
}

#[test]
fn agrees_with_candle_and_with_itself() {
    for case in 0..70 {
        let logits = logits(case);
        let experts = logits.cols();
        let (top_k, normalise) = ((case % 8 + 1).min(experts), case % 2 == 0);
        let what = format!("case {case}: {top_k} of {experts} experts, {} rows", logits.rows());
        let weights = same_everywhere(&what, |cpu| cpu.route(&logits, &softmax_router(top_k, normalise)).weights);
        let chosen = same_everywhere(&what, |cpu| {
            cpu.route(&logits, &softmax_router(top_k, normalise)).experts.iter().map(|expert| *expert as f32).collect()
        });
        // candle sorts stably: among equals the lower index is first
        let probabilities = softmax(&exact(&logits)).unwrap();
        let order = exact(&logits).arg_sort_last_dim(false).unwrap().narrow(1, 0, top_k).unwrap().contiguous().unwrap();
        let order_flat: Vec<u32> = order.flatten_all().unwrap().to_vec1().unwrap();
        let routes = cpu().route(&logits, &softmax_router(top_k, normalise));
        assert_eq!((routes.top_k, &routes.experts), (top_k, &order_flat), "{what}");
        same(&what, &chosen, &order_flat.iter().map(|expert| *expert as f32).collect::<Vec<_>>());
        let mut want = probabilities.gather(&order, 1).unwrap();
        if normalise {
            want = want.broadcast_div(&want.sum_keepdim(1).unwrap()).unwrap();
        }
        // the sums over all and over the chosen; exponentials, of up to 80 halves of an ulp by their argument; divisions
        near(&what, &weights, &Bound::rounded(want, (experts + top_k + 80 + 12) as f64).unwrap());
        for row in 0..logits.rows() {
            let alone = cpu().route(&logits.select_rows(&[row]), &softmax_router(top_k, normalise));
            assert_eq!(alone.experts, routes.experts[row * top_k..][..top_k], "{what}: row {row} alone");
            same(&format!("{what}: row {row} alone"), &alone.weights, &weights[row * top_k..][..top_k]);
        }
    }
}
