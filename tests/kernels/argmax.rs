//! The largest value of a row, whole and in parts.

use tbshard::backend::{Backend, Cpu, Peak, Tensor};

use super::check::{cpu, same, same_everywhere};
use super::random::Rng;
use super::reference::exact;

const WIDTHS: [usize; 9] = [1, 2, 15, 33, 300, 4096, 4097, 9000, 50_000];

/// Values that ties, signs of zero and what is no number come from.
const ODD: [f32; 10] =
    [0.0, -0.0, 1e-45, -1e-45, 3.0, 3.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE];

/// Rows of numbers, of few numbers so that most are tied, or of odd ones.
fn rows(case: usize) -> Tensor {
    let mut rng = Rng::new(case as u64);
    let mut x = rng.tensor(1 + case % 5, WIDTHS[case % WIDTHS.len()], 4.0);
    match case % 4 {
        1 => x.data_mut().iter_mut().for_each(|x| *x = x.round()),
        2 => x.data_mut().iter_mut().for_each(|x| *x = ODD[rng.below(ODD.len())]),
        3 => {
            // below all but some
            x.data_mut().iter_mut().for_each(|x| *x -= 100.0);
            for _ in 0..3 * x.rows() {
                let at = rng.below(x.data().len());
                x.data_mut()[at] = ODD[rng.below(ODD.len())];
            }
        }
        _ => {}
    }
    x
}

/// What is taken of a whole row: the first value, then whatever is larger.
fn defined(row: &[f32]) -> Peak {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    Peak { value: row[best], column: best as u32, finite: row.iter().all(|value| value.is_finite()) }
}

fn peaks(words: &[f32]) -> Vec<Peak> {
    words.as_chunks().0.iter().map(|words| Peak::from_words(*words)).collect()
}

fn bits(peak: &Peak) -> (u32, u32, bool) {
    (peak.value.to_bits(), peak.column, peak.finite)
}

#[test]
fn a_whole_row_is_walked_from_its_first_value() {
    for case in 0..144 {
        let x = rows(case);
        let what = format!("case {case}: {} rows of {}", x.rows(), x.cols());
        let words = same_everywhere(&what, |cpu| cpu.argmax(&x, 0..x.rows(), 0).into_vec());
        for (row, peak) in x.rows_iter().zip(peaks(&words)) {
            assert_eq!(bits(&peak), bits(&defined(row)), "{what}");
        }
        let some = cpu().argmax(&x, x.rows() / 2..x.rows(), 0);
        same(&format!("{what}: some rows"), some.data(), &words[x.rows() / 2 * Peak::WORDS..]);
        if case.is_multiple_of(4) {
            // numbers that all differ
            let candle: Vec<u32> = exact(&x).argmax(1).unwrap().to_vec1().unwrap();
            assert_eq!(peaks(&words).iter().map(|peak| peak.column).collect::<Vec<_>>(), candle, "{what}");
        }
    }
}

#[test]
fn parts_of_rows_become_whole_ones() {
    let backends: Vec<Cpu> = [1, 2].map(|threads| Cpu::new(threads).unwrap()).into();
    for case in 0..144 {
        let x = rows(case);
        for (parts, cpu) in [(2, 0), (3, 1), (7, 0)] {
            let cut = |part: usize| x.cols() * part / parts;
            let mut whole: Vec<Peak> = Vec::new();
            for part in (0..parts).filter(|part| cut(*part) < cut(part + 1)) {
                let run = cut(part)..cut(part + 1);
                let columns = x.columns(&backends[cpu], std::slice::from_ref(&run));
                let found = backends[cpu].argmax(&columns, 0..x.rows(), cut(part));
                let found = peaks(found.data());
                whole = if whole.is_empty() {
                    found
                } else {
                    whole.iter().zip(found).map(|(peak, later)| peak.joined(later)).collect()
                };
            }
            for (row, peak) in x.rows_iter().zip(&whole) {
                assert_eq!(bits(peak), bits(&defined(row)), "case {case} in {parts} parts");
            }
        }
    }
}

/// A part that is not a row's first begins below all values: what it begins with does not hide what comes after.
#[test]
fn a_nan_that_a_part_begins_with_hides_nothing() {
    let x = Tensor::from_vec(3, 2, vec![f32::NAN, 5.0, f32::NAN, f32::NEG_INFINITY, f32::NAN, f32::NAN]).unwrap();
    let of = |first: usize| peaks(cpu().argmax(&x, 0..3, first).data());
    assert_eq!(of(8)[0], Peak { value: 5.0, column: 9, finite: false });
    assert_eq!(of(8)[1..], [Peak { value: f32::NEG_INFINITY, column: 8, finite: false }; 2]);
    for peak in of(0) {
        assert!(peak.value.is_nan() && peak.column == 0 && !peak.finite);
    }
    assert!(cpu().argmax(&x, 1..1, 0).data().is_empty());
}
