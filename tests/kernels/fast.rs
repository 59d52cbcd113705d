//! The fast arithmetic: both operands of dense products rounded to bf16, the same bits wherever it runs.

use tbshard::backend::{Arithmetic, Backend, Tensor};
use tbshard::partition::{Fold, Leaves};

use super::check::{cpu, same, same_everywhere_in};
use super::linear::{Case, cases};
use super::order;
use super::random::Rng;
use super::stored::{Format, Stored};

#[test]
fn adds_rounded_operands_in_the_declared_order_everywhere() {
    for Case { what, x, w, leaves } in cases() {
        let (values, matrix, fold) = (w.widened(), w.matrix(), Fold::whole(leaves));
        let product = |x: &Tensor| {
            same_everywhere_in(Arithmetic::Fast, &what, |cpu| cpu.linear(x, &matrix, &fold).unwrap().data().to_vec())
        };
        let got = product(&x);
        let weights = |row: usize| &values[row * w.inner..][..w.inner];
        let want: Vec<f32> = x
            .rows_iter()
            .flat_map(|x| (0..w.out).map(move |row| (x, row)))
            .map(|(x, row)| order::dot(x, weights(row), &fold.leaves, order::paired_leaf))
            .collect();
        same(&what, &got, &want);
        same(
            &format!("{what}: the last row alone"),
            &product(&x.select_rows(cpu(), &[x.rows() - 1])),
            &got[got.len() - w.out..],
        );
    }
}

#[test]
fn is_near_the_exact_arithmetic_and_not_equal_to_it() {
    let mut rng = Rng::new(5);
    let (x, w) = (rng.tensor(9, 1024, 1.0), Stored::random(&mut rng, Format::F32, 40, 1024).matrix());
    let fold = Fold::whole(Leaves::unsharded(1024));
    let exact = cpu().linear(&x, &w, &fold).unwrap();
    let fast = same_everywhere_in(Arithmetic::Fast, "f32", |cpu| cpu.linear(&x, &w, &fold).unwrap().data().to_vec());
    // two operands with 2⁻⁹ each, of 1024 products of which each is below one
    let far = exact.data().iter().zip(&fast).map(|(exact, fast)| (exact - fast).abs()).fold(0.0, f32::max);
    assert!(far > 1e-4 && far < 1024f32.sqrt() * 2.0 / 512.0, "{far}");
}
