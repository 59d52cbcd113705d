//! Matrix products by their definition.

use tbshard::gpu::params::{LinearParams, StepParams};

use crate::formats::{FORMATS, Stored};
use crate::support::{Work, bytes, close, random};

/// `[rows, in] · [out, in]ᵀ` with leaves that end at `ends`, all in one tree.
fn product(stored: &Stored, (rows, inner, out): (usize, usize, usize), ends: &[usize]) {
    let x = random(1, rows * inner);
    let params = LinearParams { rows: rows as u32, in_features: inner as u32, steps: ends.len() as u32 };
    let starts = std::iter::once(&0).chain(ends);
    let steps: Vec<StepParams> = starts
        .zip(ends)
        .enumerate()
        .map(|(index, (start, end))| StepParams {
            start: *start as u32,
            end: *end as u32,
            merges: u32::from(index > 0),
            last: u32::from(index + 1 == ends.len()),
        })
        .collect();
    let params = [bytes(&[stored.params]), bytes(&[params]), bytes(&steps)].concat();
    let work = Work {
        name: &format!("linear_{}", stored.format),
        reads: &[bytes(&x), &stored.values, &stored.scales, &stored.biases],
        write: &vec![0xff; rows * out * 4],
        params: &params,
        groups: [out.div_ceil(16) as u32, rows.div_ceil(4) as u32, 1],
        threads: 128,
    };
    let value = |at: usize| {
        let (row, column) = (at / out, at % out);
        (0..inner).map(|i| f64::from(x[row * inner + i]) * f64::from(stored.at(column, i))).sum()
    };
    close(&work.floats(), &(0..rows * out).map(value).collect::<Vec<_>>(), 1e-4);
}

#[test]
fn products_of_every_format() {
    for format in FORMATS {
        for (rows, inner, out) in [(1, 64, 16), (5, 304, 19), (4, 8, 1)] {
            product(&Stored::random(format, out, inner), (rows, inner, out), &[inner]);
        }
    }
}

#[test]
fn products_of_odd_widths_and_several_leaves() {
    for format in &FORMATS[..5] {
        for (rows, inner, out, ends) in [(3, 1, 1, &[1][..]), (2, 1027, 33, &[500, 1000, 1027]), (1, 13, 5, &[3, 13])] {
            product(&Stored::random(*format, out, inner), (rows, inner, out), ends);
        }
    }
}

#[test]
fn values_of_every_format() {
    for format in FORMATS {
        for width in [8, 64, 520] {
            let (stored, columns) = (Stored::random(format, 7, width), [0, 5, width - 1]);
            // a product with a row that has a single one is a value
            let x: Vec<f32> =
                columns.iter().flat_map(|column| (0..width).map(move |i| f32::from(u8::from(i == *column)))).collect();
            let params = LinearParams { rows: columns.len() as u32, in_features: width as u32, steps: 1 };
            let step = StepParams { start: 0, end: width as u32, merges: 0, last: 1 };
            let work = Work {
                name: &format!("linear_{}", stored.format),
                reads: &[bytes(&x), &stored.values, &stored.scales, &stored.biases],
                write: &vec![0xff; columns.len() * 7 * 4],
                params: &[bytes(&[stored.params]), bytes(&[params]), bytes(&[step])].concat(),
                groups: [1, 1, 1],
                threads: 128,
            };
            let wanted: Vec<f32> =
                columns.iter().flat_map(|column| (0..7).map(|row| stored.at(row, *column))).collect();
            let got = work.floats();
            let differs = (0..wanted.len()).find(|at| got[*at] != wanted[*at]);
            assert_eq!(differs, None, "{format:?} of {width}");
        }
    }
}
