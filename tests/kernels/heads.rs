//! A matrix of its own for every head, as it is stored and turned, in every format and cut out of a larger one.

use std::ops::Range;

use tbshard::backend::{Backend, Cpu, Tensor};
use tbshard::weights::Matrix;

use super::check::{cpu, near, same, same_everywhere};
use super::guard::Edge;

use super::order;
use super::random::Rng;
use super::reference::{Bound, Exact, exact};
use super::stored::{Format, PLAIN, Stored, coded};

const TOKENS: [usize; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 70];
const HEADS: [usize; 4] = [1, 3, 2, 5];
/// Rows of a head's matrix; 130 and 257 are more than one task has.
const ROWS: [usize; 7] = [24, 5, 130, 16, 64, 1, 257];
/// Its columns: fewer than a register, some registers, and a rest beyond four of them.
const COLUMNS: [usize; 8] = [16, 7, 80, 64, 33, 130, 1, 48];

struct Case {
    what: String,
    stored: Stored,
    heads: usize,
    /// Rows of a head that come before its matrix, those of the matrix, and all of the head.
    rows: (usize, usize, usize),
    edge: Edge,
    tokens: usize,
    rng: Rng,
}

/// As many heads as there are, of which a matrix is the middle of what is stored.
fn case(case: usize, format: Format) -> Case {
    let mut rng = Rng::new(case as u64);
    let (tokens, heads) = (TOKENS[case % TOKENS.len()], HEADS[case % HEADS.len()]);
    let (rows, columns) = (ROWS[case % ROWS.len()], format.width(COLUMNS[case % COLUMNS.len()]));
    let (before, after) = (rng.pick(&[0, 0, 3, 24]), rng.pick(&[0, 0, 1, 40]));
    let each = before + rows + after;
    let what =
        format!("case {case}: {format:?}, {tokens} tokens, {heads} heads of [{rows}, {columns}] at {before} of {each}");
    let stored = Stored::random(&mut rng, format, heads * each, columns);
    let edge = if case.is_multiple_of(3) { Edge::Start } else { Edge::End };
    Case { what, stored, heads, rows: (before, rows, each), edge, tokens, rng }
}

fn cases() -> impl Iterator<Item = Case> {
    let formats: Vec<Format> = PLAIN.into_iter().chain(coded()).chain(PLAIN).collect();
    (0..3 * formats.len()).map(move |number| case(number, formats[number % formats.len()]))
}

impl Case {
    fn range(&self, head: usize) -> Range<usize> {
        let (before, rows, each) = self.rows;
        head * each + before..head * each + before + rows
    }

    fn matrices(&self) -> Vec<Matrix> {
        let whole = self.stored.matrix_at(self.edge);
        (0..self.heads).map(|head| whole.part(self.range(head), 0..self.stored.inner).unwrap()).collect()
    }

    fn run(&self, x: &Tensor, turned: bool) -> Vec<f32> {
        let ws = self.matrices();
        let run = |cpu: &Cpu, x: &Tensor| cpu.per_head(x, &ws, turned).unwrap().data().to_vec();
        let got = same_everywhere(&self.what, |cpu| run(cpu, x));
        for (row, whole) in got.chunks(got.len() / x.rows()).enumerate() {
            same(&format!("{}: row {row} alone", self.what), &run(cpu(), &x.select_rows(cpu(), &[row])), whole);
        }
        got
    }

    /// The product of every head with its own values, by candle.
    fn reference(&self, x: &Tensor, turned: bool) -> candle_core::Result<Bound> {
        let (x, w, width) = (exact(x), self.stored.exact(), x.cols() / self.heads);
        let mut found = Vec::new();
        for head in 0..self.heads {
            let w = w.narrow(0, self.range(head).start, self.rows.1)?;
            let x = Bound::exactly(x.narrow(1, head * width, width)?.contiguous()?);
            // a turned product passes the additions of all rows
            let w = if turned { w.t()?.contiguous()? } else { w.contiguous()? };
            let roundings = if turned { self.rows.1 + 1 } else { 1 + width.div_ceil(16) + 4 };
            found.push(x.linear(&w, roundings)?);
        }
        let cat = |of: fn(&Bound) -> &Exact| Exact::cat(&found.iter().map(of).collect::<Vec<_>>(), 1);
        Ok(Bound { value: cat(|head| &head.value)?, error: cat(|head| &head.error)? })
    }

    /// The columns of `x` of every head of every row, with that head's rows of weights.
    fn products(&self, x: &Tensor, product: impl Fn(&[f32], Vec<&[f32]>) -> Vec<f32>) -> Vec<f32> {
        let (values, width) = (self.stored.widened(), x.cols() / self.heads);
        let weights = |head: usize| values.chunks(self.stored.inner).skip(self.range(head).start).take(self.rows.1);
        let heads = |x| (0..self.heads).map(move |head| (x, head));
        let of = |(x, head): (&[f32], usize)| product(&x[head * width..(head + 1) * width], weights(head).collect());
        x.rows_iter().flat_map(heads).flat_map(of).collect()
    }
}

#[test]
fn a_product_is_one_leaf_of_each_row() {
    for mut case in cases() {
        let x = case.rng.tensor(case.tokens, case.heads * case.stored.inner, 1.0);
        let got = case.run(&x, false);
        near(&case.what, &got, &case.reference(&x, false).unwrap());
        let want = case.products(&x, |x, rows| rows.into_iter().map(|w| order::leaf(x, w)).collect());
        same(&case.what, &got, &want);
    }
}

#[test]
fn a_turned_product_adds_the_rows_from_first_to_last() {
    for mut case in cases() {
        let x = case.rng.tensor(case.tokens, case.heads * case.rows.1, 1.0);
        let got = case.run(&x, true);
        near(&case.what, &got, &case.reference(&x, true).unwrap());
        let columns = case.stored.inner;
        let want = case.products(&x, |x, rows| {
            let sum = |column: usize| x.iter().zip(&rows).fold(0.0f32, |sum, (x, w)| x.mul_add(w[column], sum));
            (0..columns).map(sum).collect()
        });
        same(&case.what, &got, &want);
    }
}

#[test]
fn parts_of_a_heads_columns_are_read_where_they_lie() {
    for format in PLAIN {
        let mut rng = Rng::new(3);
        let stored = Stored::random(&mut rng, format, 140, 200);
        let (rows, columns) = (7..137, 101..160);
        let part = stored.matrix().part(rows.clone(), columns.clone()).unwrap();
        let (values, what) = (stored.widened(), format!("{format:?}"));
        let w = |row: usize| &values[row * 200..][columns.clone()];
        let x = rng.tensor(1, columns.len(), 1.0);
        let got =
            same_everywhere(&what, |cpu| cpu.per_head(&x, std::slice::from_ref(&part), false).unwrap().data().to_vec());
        same(&what, &got, &rows.clone().map(|row| order::leaf(x.row(0), w(row))).collect::<Vec<_>>());
        let x = rng.tensor(1, rows.len(), 1.0);
        let got =
            same_everywhere(&what, |cpu| cpu.per_head(&x, std::slice::from_ref(&part), true).unwrap().data().to_vec());
        let sum =
            |column: usize| rows.clone().zip(x.row(0)).fold(0.0f32, |sum, (row, x)| x.mul_add(w(row)[column], sum));
        same(&what, &got, &(0..columns.len()).map(sum).collect::<Vec<_>>());
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let w = |out: usize, inner: usize| Stored::random(&mut Rng::new(1), Format::Bf16, out, inner).matrix();
    let run = |columns: usize, ws: &[Matrix], turned| {
        cpu().per_head(&Tensor::zeros(2, columns), ws, turned).map(|y| y.cols()).map_err(|error| error.to_string())
    };
    assert_eq!(run(48, &[w(5, 24), w(5, 24)], false), Ok(10));
    assert_eq!(run(10, &[w(5, 24), w(5, 24)], true), Ok(48));
    for (columns, ws, turned) in [
        (48, vec![w(5, 24)], false),
        (24, vec![w(5, 24), w(5, 24)], false),
        (10, vec![w(5, 24), w(5, 24)], false),
        (48, vec![w(5, 24), w(5, 24)], true),
        (48, vec![w(5, 24), w(5, 23)], false),
        (48, vec![w(5, 24), w(6, 24)], false),
        (10, vec![w(5, 24), w(5, 25)], true),
        (0, vec![w(5, 24)], false),
    ] {
        let error = run(columns, &ws, turned).unwrap_err();
        assert!(error.contains(&format!("{columns} columns do not fit {} heads of [5, 24]", ws.len())), "{error}");
    }
}
