//! The largest value of a row: kernels against a walk over the whole row.

use std::path::Path;
use std::sync::Arc;

use metal_on_cpu::compile::{Build, compile, join};
use metal_on_cpu::{Emulator, Library, Options};
use tbshard::backend::{Backend, Metal, Peak, Tensor};

use crate::support::{random, schedules};

/// Value, column, and whether all are finite.
type Found = (u32, u32, bool);

/// What a walk over a row ends at.
fn walked(row: &[f32]) -> Found {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    (row[best].to_bits(), best as u32, row.iter().all(|value| value.is_finite()))
}

/// Rows whose largest values are in the places `at`, one of them in each row.
fn rows(cols: usize, at: &[usize], largest: &[f32]) -> Vec<f32> {
    let mut values = random(cols as u64, cols * largest.len());
    values.iter_mut().for_each(|value| *value -= 2.0);
    for (row, largest) in values.chunks_exact_mut(cols).zip(largest) {
        at.iter().filter(|at| **at < cols).for_each(|at| row[*at] = *largest);
    }
    values
}

/// What is found in all rows but the first, which are in so many parts of about one width.
fn found(device: Emulator, (values, cols): &(Vec<f32>, usize), parts: usize) -> Vec<Found> {
    let backend = Metal::new(Arc::new(device));
    let x = Tensor::from_vec(values.len() / cols, *cols, values.clone()).unwrap();
    let cut = |part: usize| cols * part / parts;
    let mut whole: Vec<Peak> = Vec::new();
    for part in 0..parts {
        let run = cut(part)..cut(part + 1);
        let columns = x.columns(&backend, std::slice::from_ref(&run));
        let y = backend.argmax(&columns, 1..x.rows(), cut(part));
        backend.finish().unwrap();
        assert_eq!((y.rows(), y.cols()), (x.rows() - 1, Peak::WORDS));
        let peaks = y.data().as_chunks().0.iter().map(|words| Peak::from_words(*words));
        whole = match part {
            0 => peaks.collect(),
            _ => whole.iter().zip(peaks).map(|(peak, later)| peak.joined(later)).collect(),
        };
    }
    whole.iter().map(|peak| (peak.value.to_bits(), peak.column, peak.finite)).collect()
}

/// A SIMD-group's chunk of a row, as the host cuts it.
const CHUNK: usize = 1024;

/// The largest value in some places of rows of many widths.
fn ties() -> Vec<(Vec<f32>, usize)> {
    let largest = [7.0, 7.0, 0.0, 1e-45, -1e-45, f32::INFINITY];
    let mut all = Vec::new();
    for cols in [1, 31, 32, 33, 300, CHUNK, CHUNK + 1, 3 * CHUNK + 5, 40 * CHUNK + 7] {
        for at in [&[0][..], &[cols - 1], &[5, 37, 70], &[CHUNK - 1, CHUNK, 2 * CHUNK], &[CHUNK + 2, 33 * CHUNK + 9]] {
            all.push((rows(cols, at, &largest), cols));
        }
    }
    all
}

/// Few values, of which some are no numbers; then with many columns of infinities or NaNs between them.
fn odd() -> Vec<(Vec<f32>, usize)> {
    let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
    let few = [
        [0.0, 0.0, 0.0, 0.0],
        [-0.0, 0.0, -0.0, 0.0],
        [low, -0.0, 0.0, 1e-45],
        [nan, 1.0, 2.0, 2.0],
        [1.0, nan, 2.0, 2.0],
        [low, nan, low, nan],
        [low, nan, low, -5.0],
        [nan, nan, nan, nan],
        [low, low, low, low],
        [-nan, f32::INFINITY, -nan, f32::MAX],
    ];
    let mut all = vec![(few.as_flattened().to_vec(), 4)];
    for (cols, places) in [(100, [0, 1, 50, 99]), (5 * CHUNK, [0, CHUNK - 1, CHUNK, 4 * CHUNK])] {
        for between in [f32::NEG_INFINITY, f32::NAN] {
            let mut values = vec![between; few.len() * cols];
            for (row, few) in values.chunks_exact_mut(cols).zip(&few) {
                places.iter().zip(few).for_each(|(at, value)| row[*at] = *value);
            }
            all.push((values, cols));
        }
    }
    all
}

/// By every schedule, whole and in parts.
fn compare(case: &(Vec<f32>, usize)) {
    let (values, cols) = case;
    let wanted: Vec<_> = values.chunks_exact(*cols).skip(1).map(walked).collect();
    let races = Options { races: true, ..Options::default() };
    for parts in [1, 2, 3].into_iter().filter(|parts| parts <= cols) {
        for options in [Options::default(), races].into_iter().chain(schedules()) {
            let found = found(Emulator::new(options).unwrap(), case, parts);
            assert_eq!(found, wanted, "{cols} columns in {parts} parts, {options:?}");
        }
    }
}

#[test]
fn the_first_of_equals_wherever_it_is() {
    ties().iter().for_each(compare);
}

#[test]
fn signs_of_zero_are_alike_and_what_is_no_number_is_not_taken() {
    odd().iter().for_each(compare);
}

/// What could be wrong in the kernels, and is not.
const MISTAKES: [(&str, &str); 16] = [
    ("own > most", "own >= most"),
    ("column = simd_min(most == top ? column : end)", "column = simd_max(most == top ? column : 0)"),
    ("p.first + i == 0 ? NEVER_LEFT", "i == 0 ? NEVER_LEFT"),
    ("p.first + i == 0 ? NEVER_LEFT", "false ? NEVER_LEFT"),
    ("if (size > INFINITE) return of_nan;", ""),
    ("bits >> 31 ? -size : size", "int(bits)"),
    ("bits >> 31 ? -size : size", "int(bits) ^ (int(bits) >> 31 & 0x7fffffff)"),
    ("magnitude(values[i]) < INFINITE", "magnitude(values[i]) <= INFINITE"),
    ("top > -INFINITE ? values[column] : BELOW_ALL", "values[column]"),
    ("to[1] = p.first + column", "to[1] = column"),
    ("to[2] = finite ? 1 : 0", "to[2] = 1"),
    ("(ulong(p.row) + group.y) * p.width", "ulong(group.y) * p.width"),
    ("value > most", "value >= most"),
    ("place = simd_min(most == top ? place : p.chunks)", "place = simd_max(most == top ? place : 0)"),
    ("height(own[i * 3], NEVER_LEFT)", "height(own[i * 3], -INFINITE)"),
    ("own[i * 3 + 2] != 0", "true"),
];

#[test]
fn no_mistake_stays_unseen() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sources, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["common.h", "params.h"] {
        std::fs::copy(here.join("../../kernels").join(name), sources.path().join(name)).unwrap();
    }
    // `arrange` is what cuts columns out
    let source = |name: &str| std::fs::read_to_string(here.join("../../kernels").join(name)).unwrap();
    let (text, others) = (source("argmax.metal"), source("rowwise.metal"));
    let few = ties().into_iter().filter(|(_, cols)| [33, CHUNK + 1, 40 * CHUNK + 7].contains(cols));
    let cases: Vec<_> = odd().into_iter().chain(few).collect();
    let all = |text: &str, number: usize| -> Vec<Vec<Found>> {
        std::fs::write(sources.path().join("argmax.metal"), text).unwrap();
        std::fs::write(sources.path().join("rowwise.metal"), &others).unwrap();
        let joined = join(sources.path()).unwrap();
        let made = compile(&joined, Build::Fast, &here.join("shim"), out.path(), &format!("argmax{number}")).unwrap();
        let library = Library::load(&made).unwrap();
        let emulator = || Emulator::with(library.clone(), Options::default());
        cases.iter().flat_map(|case| [1, 3].map(|parts| found(emulator(), case, parts))).collect()
    };
    let wanted = all(&text, 0);
    for (number, (right, wrong)) in MISTAKES.iter().enumerate() {
        assert_eq!(text.matches(right).count(), 1, "{right}");
        assert!(all(&text.replace(right, wrong), number + 1) != wanted, "nothing shows that `{wrong}` is wrong");
    }
}
