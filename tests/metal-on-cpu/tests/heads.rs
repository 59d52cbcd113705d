//! A matrix a head for many tokens and for the same tokens a few at a time: here, where matrices and SIMD-groups add in the order
//! of their columns and lanes, they have the same bits.

use std::sync::Arc;

use metal_on_cpu::{Emulator, Options};
use tbshard::backend::{Backend, Metal, Tensor};
use tbshard::weights::{Matrix, Values};

use crate::support::{bytes, close, random, schedules};

/// Tokens, heads, and rows and columns of a head's matrix: fewer than a tile, a SIMD-group's columns and more, and rests.
const SHAPES: [[usize; 4]; 6] =
    [[16, 1, 1, 1], [33, 3, 7, 13], [17, 2, 33, 130], [40, 1, 64, 256], [20, 2, 5, 300], [31, 1, 70, 515]];

struct Case {
    tokens: usize,
    heads: Vec<Matrix>,
    /// What the matrices have.
    weights: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Case {
    fn new([tokens, heads, rows, columns]: [usize; 4]) -> Self {
        let weights = random(7, heads * rows * columns);
        let matrix = |values: &[f32]| Matrix::new(rows, columns, Values::F32(bytes(values).to_vec().into())).unwrap();
        Self { tokens, heads: weights.chunks(rows * columns).map(matrix).collect(), weights, rows, columns }
    }

    /// Values of a head before and after.
    fn widths(&self, turned: bool) -> [usize; 2] {
        if turned { [self.rows, self.columns] } else { [self.columns, self.rows] }
    }

    /// Every token is NaN from `broken` on.
    fn input(&self, turned: bool, broken: usize) -> Tensor {
        let width = self.heads.len() * self.widths(turned)[0];
        let mut values = random(3, self.tokens * width);
        values[broken * width..].fill(f32::NAN);
        Tensor::from_vec(self.tokens, width, values).unwrap()
    }

    /// The bits of every token's products.
    fn run(&self, options: Options, turned: bool, x: &Tensor, at_once: usize) -> Vec<u32> {
        let backend = Metal::new(Arc::new(Emulator::new(options).unwrap()));
        let all: Vec<usize> = (0..self.tokens).collect();
        let products = all.chunks(at_once).flat_map(|rows| {
            let y = backend.per_head(&x.select_rows(&backend, rows), &self.heads, turned).unwrap();
            y.data().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        });
        let products = products.collect();
        backend.finish().unwrap_or_else(|error| panic!("{error:?}"));
        products
    }

    /// By definition.
    fn wanted(&self, turned: bool, x: &Tensor) -> Vec<f64> {
        let ([inner, out], heads) = (self.widths(turned), self.heads.len());
        let weight = |head: usize, i: usize, o: usize| {
            let (row, column) = if turned { (i, o) } else { (o, i) };
            f64::from(self.weights[(head * self.rows + row) * self.columns + column])
        };
        let product = |at: usize| {
            let (token, head, o) = (at / (heads * out), at / out % heads, at % out);
            let x = &x.row(token)[head * inner..][..inner];
            x.iter().enumerate().map(|(i, x)| f64::from(*x) * weight(head, i, o)).sum()
        };
        (0..self.tokens * heads * out).map(product).collect()
    }
}

fn all() -> impl Iterator<Item = (Case, bool)> {
    SHAPES.into_iter().flat_map(|shape| [false, true].map(|turned| (Case::new(shape), turned)))
}

#[test]
fn many_tokens_have_the_bits_of_few() {
    for (case, turned) in all() {
        let x = case.input(turned, case.tokens);
        let many = case.run(Options::default(), turned, &x, case.tokens);
        let floats: Vec<f32> = many.iter().map(|bits| f32::from_bits(*bits)).collect();
        close(&floats, &case.wanted(turned, &x), 1e-4);
        for few in [1, 15] {
            assert!(
                case.run(Options::default(), turned, &x, few) == many,
                "{:?} {turned} by {few}",
                case.widths(turned)
            );
        }
    }
}

#[test]
fn a_tokens_products_are_its_own() {
    for (case, turned) in all() {
        let sound = case.tokens / 2;
        let run = |broken| case.run(Options::default(), turned, &case.input(turned, broken), case.tokens);
        let (whole, half) = (run(case.tokens), run(sound));
        let before = whole.len() * sound / case.tokens;
        assert!(half[..before] == whole[..before], "{:?} {turned}", case.widths(turned));
        assert!(half[before..].iter().all(|bits| f32::from_bits(*bits).is_nan()));
    }
}

#[test]
fn no_schedule_changes_a_bit_and_a_call_touches_what_it_names_without_races() {
    for (case, turned) in all() {
        let x = case.input(turned, case.tokens);
        let run = |options| case.run(options, turned, &x, case.tokens);
        let first = run(Options::default());
        let [races, isolated] = [true, false].map(|races| Options { races, isolated: !races, ..Options::default() });
        for options in schedules().chain([races, isolated]) {
            assert!(run(options) == first, "{:?} {turned} {options:?}", case.widths(turned));
        }
    }
}
