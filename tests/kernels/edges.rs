//! The edges of the contract: a rank that owns nothing, infinities, arguments that do not fit.

use tbshard::backend::{
    AttentionShape, Backend, Batch, Constant, DeltaGates, DeltaShape, DeltaStore, ExpertWeights, Experts, HeadGroups,
    KvStore, LatentShape, LatentStore, Routes, SharedExpert, Tensor,
};
use tbshard::partition::{Fold, Leaves};
use tbshard::weights::Matrix;

use super::run_of;

use super::check::{cpu, same};
use super::random::Rng;
use super::routing::softmax_router;
use super::stored::{Format, Stored};

fn batch(rows: usize) -> Batch {
    let mut batch = Batch::default();
    batch.push(0, 0, rows, &[0]);
    batch
}

fn weights(out: usize, inner: usize) -> Matrix {
    Stored::random(&mut Rng::new(1), Format::Bf16, out, inner).matrix()
}

#[test]
fn a_rank_without_leaves_sums_nothing() {
    let fold = run_of(Leaves::of_units(512, 128), 2..2);
    let y = cpu().linear(&Tensor::zeros(3, 0), &weights(40, 0), &fold).unwrap();
    assert_eq!((y.rows(), y.cols()), (0, 40));
    let routed = ExpertWeights { gate: vec![weights(0, 40)], up: vec![weights(0, 40)], down: vec![weights(40, 0)] };
    let routes = Routes::new(1, &[0; 3], vec![1.0; 3]).unwrap();
    let experts = Experts { routed: &routed, fold: &fold, shared: None };
    let y = cpu().experts(&Tensor::zeros(3, 40), &routes, &experts).unwrap();
    assert_eq!((y.rows(), y.cols()), (0, 40));
}

#[test]
fn a_rank_without_heads_attends_to_nothing() {
    let (empty, shape) = (Tensor::zeros(3, 0), AttentionShape { heads: HeadGroups::whole(4, 2).run(2..2), scale: 1.0 });
    let y = cpu().attention(&empty, &empty, &empty, &mut KvStore::new(cpu(), 1, 0, 64).unwrap(), &batch(3), &shape);
    assert_eq!((y.rows(), y.cols()), (3, 0));
}

#[test]
fn a_rank_without_heads_keeps_latent_vectors_and_makes_nothing_of_them() {
    let shape = LatentShape { heads: 0, width: 24, values: 16, scale: 1.0 };
    let (latent, mut store) = (Tensor::zeros(3, 24), LatentStore::new(cpu(), 1, 24).unwrap());
    let q = cpu().per_head(&Tensor::zeros(3, 0), &[], true).unwrap();
    let y = cpu().latent_attention(&q, &latent, &mut store, &batch(3), &shape);
    let y = cpu().per_head(&y, &[], false).unwrap();
    assert_eq!((y.rows(), y.cols()), (3, 0));
}

#[test]
fn a_rank_without_heads_has_no_recurrent_state() {
    let (empty, shape) =
        (Tensor::zeros(3, 0), DeltaShape { heads: HeadGroups::whole(4, 2).run(2..2), key_dim: 64, value_dim: 64 });
    let mut store = DeltaStore::new(cpu(), 1, 0, 3, 0).unwrap();
    let qkv = cpu().conv_silu(&empty, &Constant::default(), &mut store, &batch(3));
    let gates = cpu().delta_gates(&empty, &empty, &Constant::default(), &Constant::default());
    let y = cpu().delta_rule(qkv, &gates, &mut store, &batch(3), &shape);
    let y = cpu().rms_norm_gated(&y, &empty, &vec![1.0; 64].into(), 1e-6);
    assert_eq!((y.rows(), y.cols()), (3, 0));
}

#[test]
fn infinities_saturate() {
    let row = |values: &[f32]| Tensor::from_vec(1, values.len(), values.to_vec()).unwrap();
    let (inf, ones) = (f32::INFINITY, row(&[2.0; 3]));
    let mut gated = ones.clone();
    cpu().gate_sigmoid(&mut gated, &row(&[inf, 1e30, 0.0]));
    same("x · sigmoid(∞)", gated.data(), &[2.0, 2.0, 1.0]);
    let y = cpu().swiglu(row(&[inf, 1e30, 0.0]), &ones);
    same("silu(∞) · x", y.data(), &[inf, 2e30, 0.0]);
    let routes = cpu().route(&row(&[0.0, -inf, 0.0]), &softmax_router(2, true));
    assert_eq!(
        (routes.experts(), routes.weights.data()),
        (&[0, 2][..], &[0.5, 0.5][..]),
        "an expert that is ruled out"
    );
}

#[test]
fn experts_of_other_shapes_are_errors() {
    let right = || (weights(24, 40), weights(24, 40), weights(40, 24));
    let (fold, other) = (Fold::whole(Leaves::of_units(24, 8)), Fold::whole(Leaves::of_units(24, 12)));
    let x = Tensor::zeros(2, 40);
    let run = |routed: (Matrix, Matrix, Matrix), shared: Option<((Matrix, Matrix, Matrix), &Fold)>, chosen: u32| {
        let routed = ExpertWeights { gate: vec![routed.0], up: vec![routed.1], down: vec![routed.2] };
        let shared =
            shared.as_ref().map(|((gate, up, down), fold)| SharedExpert { gate, up, down, fold, weights: None });
        let routes = Routes::new(1, &[chosen; 2], vec![1.0; 2]).unwrap();
        cpu().experts(&x, &routes, &Experts { routed: &routed, fold: &fold, shared })
    };
    assert!(run(right(), None, 0).is_ok() && run(right(), Some((right(), &fold)), 0).is_ok());
    let wrong: [(&str, fn() -> (Matrix, Matrix, Matrix)); 5] = [
        ("gate has too few columns", || (weights(24, 39), weights(24, 40), weights(40, 24))),
        ("gate has too few rows", || (weights(23, 40), weights(24, 40), weights(40, 24))),
        ("up has too many columns", || (weights(24, 40), weights(24, 41), weights(40, 24))),
        ("down has too few columns", || (weights(24, 40), weights(24, 40), weights(40, 23))),
        ("down has too few rows", || (weights(24, 40), weights(24, 40), weights(39, 24))),
    ];
    for (what, wrong) in wrong {
        // what panics is no error
        let failed = |shared: bool| {
            let run = || if shared { run(right(), Some((wrong(), &fold)), 0) } else { run(wrong(), None, 0) };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok_and(|result| result.is_err())
        };
        assert!(failed(false), "a routed {what}");
        assert!(failed(true), "a shared {what}");
    }
    let caught = |run: &dyn Fn() -> bool| std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or(false);
    assert!(caught(&|| run(right(), Some((right(), &other)), 0).is_err()), "a shared expert of fewer leaves");
    assert!(caught(&|| run(right(), None, 1).is_err()), "an expert that is not there");
}

#[test]
#[should_panic(expected = "slot")]
fn a_batch_that_names_a_slot_twice_is_refused() {
    // two threads would write the same state
    let mut batch = Batch::default();
    batch.push(0, 0, 1, &[]);
    batch.push(0, 1, 1, &[]);
    let shape = DeltaShape { heads: HeadGroups::whole(1, 1), key_dim: 16, value_dim: 16 };
    let gates = DeltaGates { decay: Tensor::zeros(2, 1), beta: Tensor::zeros(2, 1) };
    cpu().delta_rule(Tensor::zeros(2, 48), &gates, &mut DeltaStore::new(cpu(), 1, 48, 3, 256).unwrap(), &batch, &shape);
}

#[test]
#[should_panic(expected = "heads")]
fn queries_of_another_width_are_refused() {
    // rows narrower than the heads would share their outputs
    let shape = AttentionShape { heads: HeadGroups::whole(2, 1), scale: 1.0 };
    let x = Tensor::zeros(2, 16);
    cpu().attention(&Tensor::zeros(2, 24), &x, &x, &mut KvStore::new(cpu(), 1, 1, 16).unwrap(), &batch(2), &shape);
}
