//! The fast arithmetic: operands of products rounded to bf16, or activations to eight bits; the same bits wherever it runs.

use half::bf16;
use tbshard::backend::{Arithmetic, Backend, Cpu, Tensor};
use tbshard::partition::{Fold, Leaves};
use tbshard::weights::{Coding, Dtype};

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
            .map(|(x, row)| match w.codes(row) {
                Some(codes) => order::dot(x, &codes, &fold.leaves, order::int8_leaf),
                None => order::dot(x, weights(row), &fold.leaves, order::paired_leaf),
            })
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

#[test]
fn activations_of_eight_bits_are_near_exact_ones() {
    for (case, bits) in [4, 8].into_iter().enumerate() {
        let mut rng = Rng::new(case as u64);
        let format = Format::Packed(Coding::Affine { bits, group: 64 }, Dtype::Bf16);
        let (x, w) = (rng.tensor(9, 1024, 1.0), Stored::random(&mut rng, format, 40, 1024));
        let fold = Fold::whole(Leaves::unsharded(1024));
        let matrix = w.matrix();
        let exact = cpu().linear(&x, &matrix, &fold).unwrap();
        let fast = same_everywhere_in(Arithmetic::Fast, "eight bits", |cpu| {
            cpu.linear(&x, &matrix, &fold).unwrap().data().to_vec()
        });
        // an activation is off by half a step of 1/127 at most, and in either direction
        let weights = w.widened();
        for (row, (exact, fast)) in exact.data().iter().zip(&fast).enumerate() {
            let squares = weights[row % 40 * 1024..][..1024].iter().map(|w| w * w).sum::<f32>();
            assert!((exact - fast).abs() < 5.0 * squares.sqrt() / 254.0 / 3f32.sqrt(), "{bits} bits: {exact} {fast}");
        }
        assert!(exact.data() != fast);
    }
}

#[test]
fn odd_activations_of_eight_bits_are_what_they_are_everywhere() {
    let mut rng = Rng::new(11);
    let format = Format::Packed(Coding::Affine { bits: 4, group: 32 }, Dtype::Bf16);
    let matrix = Stored::random(&mut rng, format, 21, 96).matrix();
    let fold = Fold::whole(Leaves::unsharded(96));
    let product = |x: &Tensor| {
        let run = |cpu: &Cpu| cpu.linear(x, &matrix, &fold).unwrap().data().to_vec();
        same_everywhere_in(Arithmetic::Fast, "odd", |cpu| {
            run(cpu).into_iter().map(|y| if y.is_nan() { f32::NAN } else { y }).collect()
        })
    };
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = rng.tensor(3, 96, 1.0);
        x.data_mut()[96 + 40] = odd;
        let y = product(&x);
        assert!(y[21..42].iter().all(|y| y.is_nan()), "{odd} is lost");
        assert!(y[..21].iter().chain(&y[42..]).all(|y| y.is_finite()));
    }
    for (tiny, zero) in [(0.0, true), (-0.0, true), (1e-45, true), (1e-31, true), (1e-28, false), (3e38, false)] {
        let y = product(&Tensor::from_vec(1, 96, vec![tiny; 96]).unwrap());
        assert_eq!(y.iter().all(|y| *y == 0.0), zero, "{tiny:e}: {y:?}");
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_whatever_is_beside_it() {
    // leaves end in the middle of a step, two sixteens of tokens and one more
    let (tokens, inner, out) = (33, 40, 9);
    let mut rng = Rng::new(11);
    for (arithmetic, format) in [(Arithmetic::Exact, Format::F32), (Arithmetic::Fast, Format::Bf16)] {
        let matrix = Stored::random(&mut rng, format, out, inner).matrix();
        let fold = Fold::whole(Leaves::of_units(inner, 20));
        for (odd, column) in [(f32::INFINITY, 20), (f32::NAN, 39), (f32::NEG_INFINITY, 0)] {
            let mut x = rng.tensor(tokens, inner, 1.0);
            x.data_mut()[5 * inner + column] = odd;
            let y = same_everywhere_in(arithmetic, "odd", |cpu| {
                let y = cpu.linear(&x, &matrix, &fold).unwrap().data().to_vec();
                y.into_iter().map(|y| if y.is_nan() { f32::NAN } else { y }).collect()
            });
            for (row, y) in y.chunks(out).enumerate() {
                assert!(y.iter().all(|y| y.is_finite() != (row == 5)), "{odd} at {column}, row {row}: {y:?}");
            }
        }
    }
}

#[test]
fn products_that_vanish_are_zero_everywhere() {
    let mut rng = Rng::new(3);
    let (out, inner) = (9, 72);
    let fold = Fold::whole(Leaves::of_units(inner, 36));
    let mut vanished = 0;
    // of a product: those of 2^-112 and more are never lost, all below 2^-126 are
    for exponent in (-132..=-104).flat_map(|exponent| [exponent; 2]) {
        let (of_x, tokens) = (-20 - rng.below(70) as i32, rng.pick(&[1, 5, 19]));
        let power = |exponent: i32| 2f64.powi(exponent) as f32;
        let mut w = Stored::random(&mut rng, Format::Bf16, out, inner);
        let weights: Vec<f32> = w.widened().iter().map(|w| w * power(exponent - of_x)).collect();
        w.bytes = weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
        let mut x = rng.tensor(tokens, inner, power(of_x));
        // zeros are not small
        x.data_mut().iter_mut().step_by(7).for_each(|x| *x = 0.0);
        let got = same_everywhere_in(Arithmetic::Fast, "small", |cpu| {
            cpu.linear(&x, &w.matrix(), &fold).unwrap().data().iter().map(|y| y + 0.0).collect()
        });
        let values = w.widened();
        for (i, got) in got.iter().enumerate() {
            let (x, w) = (x.row(i / out), &values[i % out * inner..][..inner]);
            let want = order::dot(x, w, &fold.leaves, order::paired_leaf);
            assert_eq!(*got, want, "2^{exponent}, value {i}");
            vanished += usize::from(want != order::dot(x, w, &fold.leaves, unflushed));
        }
    }
    assert!(vanished > 100, "{vanished} sums of {} lose something", 58 * out);
}

/// As [`order::paired_leaf`], with subnormals.
fn unflushed(x: &[f32], w: &[f32]) -> f32 {
    let odd_first: Vec<usize> =
        (0..x.len().next_multiple_of(32)).map(|i| i / 32 * 32 + i % 16 * 2 + 1 - i / 16 % 2).collect();
    let part = |of: &[f32]| odd_first.iter().map(|i| of.get(*i).map_or(0.0, |x| bf16::from_f32(*x).to_f32())).collect();
    let (x, w): (Vec<f32>, Vec<f32>) = (part(x), part(w));
    order::leaf(&x, &w)
}
