//! The largest value of every row, and where it is.

use std::ops::Range;

use super::Cpu;
use super::rowwise::share_runs;
use super::simd::{Isa, LANES, Simd, dispatch};
use crate::backend::{Peak, Tensor};

/// Columns that are looked through again for the place of their largest value: what the first-level cache holds.
const BLOCK: usize = 4096;

/// The peaks of the rows `rows` of `x`, whose columns are those from `first` on of a whole row. A row is one thread's: every value
/// of it took a row of weights to compute.
pub(super) fn argmax(cpu: &Cpu, x: &Tensor, rows: Range<usize>, first: usize) -> Tensor {
    let mut y = Tensor::scratch(rows.len(), Peak::WORDS);
    let values = rows.len() * x.cols();
    share_runs(cpu, values, y.data_mut(), Peak::WORDS, |row, to| {
        to.copy_from_slice(&peak(cpu.isa, x.row(rows.start + row), first).words());
    });
    y
}

fn peak(isa: Isa, row: &[f32], first: usize) -> Peak {
    let (mut most, mut start, mut finite) = (f32::NEG_INFINITY, 0, true);
    for (number, block) in row.chunks(BLOCK).enumerate() {
        let mut found = [0.0; 2];
        let to = &mut found;
        // SAFETY: the instruction set is available
        unsafe { dispatch!(isa, scan(block: &[f32], to: &mut [f32; 2])) };
        let [top, zero] = found;
        finite = finite && !zero.is_nan();
        if top > most {
            (most, start) = (top, number * BLOCK);
        }
    }
    let at = row[start..].iter().position(|value| *value == most).filter(|_| most > f32::NEG_INFINITY);
    let (value, column) = at.map_or((most, first), |at| (row[start + at], first + start + at));
    let peak = Peak { value, column: column as u32, finite };
    match row.first() {
        Some(nan) if first == 0 && nan.is_nan() => Peak { value: *nan, column: 0, ..peak },
        _ => peak,
    }
}

/// The largest value of a block, which is −∞ if none is a number, and a zero, which is a NaN unless all are finite.
#[inline(always)]
unsafe fn scan<S: Simd>(block: &[f32], found: &mut [f32; 2]) {
    let (whole, rest) = block.as_chunks::<{ 2 * LANES }>();
    let mut lanes = [[0.0f32; LANES]; 4];
    // SAFETY: the caller's promise; every load and store is of sixteen values
    unsafe {
        let (least, none) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        let (mut tops, mut zeros) = ([least; 2], [none; 2]);
        for pair in whole {
            let (a, b) = (S::load(pair.as_ptr()), S::load(pair.as_ptr().add(LANES)));
            // of a NaN and a number the second operand is taken
            tops = [S::max(a, tops[0]), S::max(b, tops[1])];
            zeros = [S::add(zeros[0], S::mul(a, none)), S::add(zeros[1], S::mul(b, none))];
        }
        for (to, from) in lanes.iter_mut().zip([tops[0], tops[1], zeros[0], zeros[1]]) {
            S::store(to.as_mut_ptr(), from);
        }
    }
    let (mut top, mut zero) = (f32::NEG_INFINITY, 0.0);
    for value in lanes[..2].as_flattened().iter().chain(rest) {
        top = if *value > top { *value } else { top };
    }
    for value in lanes[2..].as_flattened().iter().chain(rest) {
        zero += value * 0.0;
    }
    *found = [top, zero];
}
