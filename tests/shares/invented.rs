//! Invented weights: a part is what the whole has there, and no more of it is made.

use std::ops::Range;

use proptest::prelude::*;
use tbshard::weights::{FP8_BLOCK, Invented, Matrix, Packed, Random, Source, Values};

use super::shapes::check;

/// The bytes of a matrix's values and the scale of each, row by row.
fn content(matrix: &Matrix) -> Vec<(Vec<u8>, f32)> {
    let ((top, left), stride) = (matrix.origin(), matrix.stride());
    let mut values = Vec::new();
    for row in top..top + matrix.out_features() {
        for column in left..left + matrix.in_features() {
            let at = row * stride + column;
            values.push(match matrix.values() {
                Values::Bf16(bytes) => (bytes[at * 2..at * 2 + 2].to_vec(), 1.0),
                Values::Fp8 { values, scales } => {
                    let scale = row / FP8_BLOCK * stride.div_ceil(FP8_BLOCK) + column / FP8_BLOCK;
                    (values[at..=at].to_vec(), scales.to_f32()[scale])
                }
                Values::Packed(Packed { coding, values, scales, biases: None }) => {
                    let scale = scales.to_f32()[at / coding.group()];
                    (vec![values[at / 2] >> (at % 2 * 4) & 15], scale)
                }
                other => panic!("{other:?} is not invented"),
            });
        }
    }
    values
}

fn made(matrix: &Matrix) -> usize {
    match matrix.values() {
        Values::Bf16(bytes) => bytes.len() / 2,
        Values::Fp8 { values, .. } => values.len(),
        Values::Packed(packed) => packed.values.len() * 2,
        other => panic!("{other:?} is not invented"),
    }
}

fn run(len: usize) -> impl Strategy<Value = Range<usize>> {
    (0..=len, 0..=len).prop_map(|(a, b)| a.min(b)..a.max(b))
}

#[test]
fn a_part_is_what_the_whole_has_there() {
    let kinds = prop::sample::select(vec![Invented::Bf16, Invented::BlockFp8, Invented::Int4Experts]);
    let shapes = (1..=400usize, 1..=700usize, any::<u64>(), kinds);
    let cases = shapes.prop_flat_map(|(out, inner, seed, kind)| {
        // groups are not cut
        let unit = if kind == Invented::Int4Experts { 32 } else { 1 };
        let units = inner.div_ceil(unit);
        let columns = prop_oneof![run(units), Just(0..units)];
        let columns = columns.prop_map(move |units| units.start * unit..units.end * unit);
        (Just((out, units * unit, seed, kind)), run(out), columns)
    });
    check(150, cases, |((out, inner, seed, kind), rows, columns)| {
        let source = Random::new(seed, kind);
        let name = "model.layers.3.mlp.experts.1.up_proj.weight";
        let whole = source.part(name, &[out, inner], 0..out, 0..inner).unwrap();
        let (Values::Bf16(bytes) | Values::Fp8 { values: bytes, .. } | Values::Packed(Packed { values: bytes, .. })) =
            whole.values()
        else {
            panic!("a format")
        };
        let told = source.info(name, &[out, inner]).unwrap();
        assert_eq!(*bytes, source.get(&told.name, &told.shape).unwrap().bytes);
        let part = source.part(name, &[out, inner], rows.clone(), columns.clone()).unwrap();
        assert_eq!((part.out_features(), part.in_features()), (rows.len(), columns.len()));
        let expected = whole.part(rows.clone(), columns.clone()).unwrap();
        assert!(content(&part) == content(&expected), "[{rows:?}, {columns:?}] of [{out}, {inner}]");
        // whole blocks at most
        let fp8 = kind == Invented::BlockFp8;
        let around = |run: &Range<usize>, all: usize| match (fp8, run.is_empty()) {
            (_, true) => 0,
            (false, _) => run.len(),
            (true, _) => run.end.next_multiple_of(FP8_BLOCK).min(all) - run.start / FP8_BLOCK * FP8_BLOCK,
        };
        let most = around(&rows, out) * around(&columns, inner);
        assert!(made(&part) <= most, "{} values were made for {most}", made(&part));
    });
}

#[test]
fn values_depend_on_name_place_and_seed() {
    let bytes = |seed: u64, name: &str| Random::new(seed, Invented::Bf16).get(name, &[64, 64]).unwrap().bytes;
    let one = bytes(1, "a");
    assert_eq!(one, bytes(1, "a"));
    assert!(one != bytes(2, "a") && one != bytes(1, "b"));
    // rows and words differ from each other
    let rows: std::collections::HashSet<&[u8]> = one.chunks(128).collect();
    let words: std::collections::HashSet<&[u8]> = one.chunks(8).collect();
    assert_eq!((rows.len(), words.len()), (64, 1024));
    // uniform in ±√(3 / 64): the mean is nothing and the variance 1 / 64
    let values = Random::new(1, Invented::Bf16).get("a", &[512, 64]).unwrap().to_f32().unwrap();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let variance = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
    assert!(mean.abs() < 0.003 && (variance * 64.0 - 1.0).abs() < 0.03, "{mean} {variance}");
    assert!(values.iter().all(|value| value.abs() <= (3.0f32 / 64.0).sqrt() * 1.01));
}
