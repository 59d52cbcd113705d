//! Packed formats: every coding against its definition, on every instruction set, up to the edges of its bytes.

use half::{bf16, f16};
use tbshard::backend::{Arithmetic, Backend, Cpu};
use tbshard::partition::{Fold, Leaves};
use tbshard::weights::{Coding, Dtype, Matrix, Numbers, Packed, Values};

use super::check::{cpu, same, same_everywhere, same_everywhere_in};
use super::guard::Edge;
use super::order;
use super::random::Rng;
use super::stored::{CENTRED, Format, PACKED, PLAIN, Stored, coded, encoded};

/// Groups of a row: odd numbers too, so that rows start anywhere in a cache line.
const GROUPS: [usize; 5] = [9, 1, 3, 4, 2];

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).collect()
}

#[test]
fn rows_are_by_definition() {
    for (case, format) in coded().enumerate() {
        let mut rng = Rng::new(case as u64);
        for (groups, edge) in GROUPS.into_iter().flat_map(|groups| [(groups, Edge::Start), (groups, Edge::End)]) {
            let stored = Stored::random(&mut rng, format, 5, format.width(1) * groups);
            let (table, what) =
                (stored.matrix_at(edge), format!("{format:?}, {groups} groups, guarded at the {edge:?}"));
            let got = same_everywhere(&what, |cpu| cpu.embed(&table, &ids(5)).unwrap().data().to_vec());
            same(&what, &got, &stored.widened());
        }
    }
}

#[test]
fn products_are_by_definition_for_any_number_of_tokens() {
    for (case, format) in coded().enumerate() {
        let mut rng = Rng::new(case as u64);
        for (turn, tokens) in (1..=9).chain([64]).enumerate() {
            let (groups, out) = (GROUPS[(case + turn) % GROUPS.len()], rng.pick(&[1, 3, 4, 5, 7, 33]));
            let (inner, edge) = (format.width(1) * groups, if rng.below(4) == 0 { Edge::Start } else { Edge::End });
            let (x, w) = (rng.tensor(tokens, inner, 1.0), Stored::random(&mut rng, format, out, inner));
            let fold = Fold::whole(Leaves::of_units(inner, format.width(1) * rng.pick(&[1, 2, 9])));
            let what = format!("{format:?} [{tokens}, {inner}] x [{out}, {inner}], guarded at the {edge:?}");
            let (values, matrix) = (w.widened(), w.matrix_at(edge));
            let products = |x| values.chunks(inner).map(move |row| (x, row));
            let want: Vec<f32> = x
                .rows_iter()
                .flat_map(products)
                .map(|(x, row)| order::dot(x, row, &fold.leaves, order::leaf))
                .collect();
            let got = same_everywhere(&what, |cpu| cpu.linear(&x, &matrix, &fold).unwrap().data().to_vec());
            same(&what, &got, &want);
        }
    }
}

/// What a rank holds is a part of what is mapped.
#[test]
fn parts_are_read_where_they_lie() {
    for (case, format) in coded().chain(PLAIN).enumerate() {
        let mut rng = Rng::new(case as u64);
        // parts of plain formats start at any column
        let unit = if PLAIN.contains(&format) { 20 } else { format.width(1) };
        let w = Stored::random(&mut rng, format, 11, 9 * unit);
        let (whole, values) = (w.matrix(), w.widened());
        for _ in 0..6 {
            let mut run = |count: usize| {
                let start = rng.below(count);
                start..start + 1 + rng.below(count - start)
            };
            let (rows, units) = (run(11), run(9));
            let (cols, tokens) = (units.start * unit..units.end * unit, rng.pick(&[1, 2, 3, 4, 8, 11]));
            let (part, what) =
                (whole.part(rows.clone(), cols.clone()).unwrap(), format!("{format:?} {rows:?} {cols:?}"));
            let row = |row: usize| &values[row * w.inner..][cols.clone()];
            let got = same_everywhere(&what, |cpu| cpu.embed(&part, &ids(rows.len())).unwrap().data().to_vec());
            same(&what, &got, &rows.clone().flat_map(row).copied().collect::<Vec<_>>());
            let (x, fold) = (rng.tensor(tokens, cols.len(), 1.0), Fold::whole(Leaves::of_units(cols.len(), unit)));
            let got = same_everywhere(&what, |cpu| cpu.linear(&x, &part, &fold).unwrap().data().to_vec());
            let want = x.rows_iter().flat_map(|x| rows.clone().map(move |row| (x, row)));
            same(
                &what,
                &got,
                &want.map(|(x, at)| order::dot(x, row(at), &fold.leaves, order::leaf)).collect::<Vec<_>>(),
            );
        }
    }
}

/// Widened rows, with one NaN for another.
fn numbers(cpu: &Cpu, stored: &Stored, matrix: &Matrix) -> Vec<f32> {
    let widened = cpu.embed(matrix, &ids(stored.out)).unwrap();
    widened.data().iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect()
}

fn check_patterns(stored: &Stored) {
    let (matrix, what) = (stored.matrix(), format!("every pattern of {:?}", stored.format));
    let got = same_everywhere(&what, |cpu| numbers(cpu, stored, &matrix));
    let want: Vec<f32> = stored.widened().iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect();
    same(&what, &got, &want);
}

#[test]
fn every_code_with_every_scale_of_eight_bits() {
    for coding in [Coding::Mxfp4, Coding::Mxfp8, Coding::Nvfp4] {
        let codes: Vec<u8> = match coding {
            Coding::Mxfp8 => (0..=255).collect(),
            // two codes a byte, the lower one first
            _ => (0..16).map(|byte| 2 * byte % 16 + (2 * byte % 16 + 1) * 16).collect(),
        };
        let (bytes, inner) = (codes.repeat(256), codes.len() * 8 / coding.bits());
        let scales = (0..=255).flat_map(|scale| vec![scale; inner / coding.group()]).collect();
        let format = Format::Packed(coding, Dtype::U8);
        check_patterns(&Stored { format, out: 256, inner, bytes, scales, biases: Vec::new() });
    }
}

/// The same codes and scales with biases that make the middle code zero.
fn with_biases(stored: &Stored) -> Stored {
    let Format::Centred(coding, dtype) = stored.format else { panic!("{:?}", stored.format) };
    let scales = stored.scales.chunks(dtype.width()).map(|scale| match dtype {
        Dtype::F32 => f32::from_le_bytes(scale.try_into().unwrap()),
        Dtype::F16 => f16::from_le_bytes(scale.try_into().unwrap()).to_f32(),
        _ => bf16::from_le_bytes(scale.try_into().unwrap()).to_f32(),
    });
    let centre = (1 << (coding.bits() - 1)) as f32;
    let biases = scales.flat_map(|scale| encoded(dtype, -centre * scale)).collect();
    let (bytes, scales) = (stored.bytes.clone(), stored.scales.clone());
    Stored { format: Format::Packed(coding, dtype), bytes, scales, biases, ..*stored }
}

#[test]
fn codes_without_biases_have_the_bits_of_those_with_the_biases_that_centre_them() {
    for (case, format) in CENTRED.into_iter().enumerate() {
        let mut rng = Rng::new(case as u64);
        for (tokens, edge) in [(1, Edge::End), (2, Edge::Start), (5, Edge::End), (64, Edge::Start)] {
            let inner = format.width(1) * 3;
            let (x, w) = (rng.tensor(tokens, inner, 1.0), Stored::random(&mut rng, format, 37, inner));
            let (fold, what) = (Fold::whole(Leaves::unsharded(inner)), format!("{format:?}, {tokens} tokens"));
            let (alone, both) = (w.matrix_at(edge), with_biases(&w).matrix_at(edge));
            for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
                let product = |w: &Matrix| {
                    let run = |cpu: &Cpu| cpu.linear(&x, w, &fold).unwrap().data().to_vec();
                    same_everywhere_in(arithmetic, &what, run)
                };
                same(&what, &product(&alone), &product(&both));
            }
        }
    }
}

#[test]
fn a_weight_of_kimis_experts_is_its_code_less_eight_times_its_scale() {
    let words = [0x7654_3210_u32, 0xfedc_ba98, 0x8888_8888, 0x0f0f_0f0f];
    let scale = bf16::from_f32(0.37);
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let stored =
        Stored { format: CENTRED[0], out: 1, inner: 32, bytes, scales: scale.to_le_bytes().to_vec(), biases: vec![] };
    let (matrix, scale) = (stored.matrix(), scale.to_f32());
    let codes = (0..16).chain([8; 8]).chain([15, 0, 15, 0, 15, 0, 15, 0]);
    let want: Vec<f32> = codes.map(|code| (code - 8) as f32 * scale).collect();
    same("INT4", &same_everywhere("INT4", |cpu| cpu.embed(&matrix, &[0]).unwrap().data().to_vec()), &want);
}

#[test]
fn every_code_with_odd_scales_and_biases() {
    let odd = [0.0, -0.0, 1.0, -0.37, 1e-5, 6.1e4, -3e38, 1e-40, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let pairs: Vec<(f32, f32)> = odd.iter().flat_map(|scale| odd.map(|bias| (*scale, bias))).collect();
    for format in PACKED.iter() {
        let Format::Packed(Coding::Affine { bits, group }, dtype) = *format else { continue };
        let groups = (1usize << bits).div_ceil(group.into());
        let inner = groups * usize::from(group);
        // codes in turn, written bit by bit
        let bit = |at: usize| ((at / usize::from(bits)) >> (at % usize::from(bits))) & 1;
        let byte = |byte: usize| (0..8).map(|n| (bit(byte * 8 + n) << n) as u8).sum::<u8>();
        let row: Vec<u8> = (0..inner * usize::from(bits) / 8).map(byte).collect();
        let all = |of: fn(&(f32, f32)) -> f32| {
            pairs.iter().flat_map(|pair| encoded(dtype, of(pair)).repeat(groups)).collect::<Vec<u8>>()
        };
        let (bytes, scales, biases) = (row.repeat(pairs.len()), all(|pair| pair.0), all(|pair| pair.1));
        check_patterns(&Stored { format: *format, out: pairs.len(), inner, bytes, scales, biases });
    }
}

#[test]
fn leaves_that_cut_a_group_are_errors() {
    let mut rng = Rng::new(5);
    for format in coded() {
        let (group, whole) = (format.width(1), |unit| Fold::whole(Leaves::of_units(512, unit)));
        let (x, w) = (rng.tensor(2, 512, 1.0), Stored::random(&mut rng, format, 4, 512).matrix());
        assert!(cpu().linear(&x, &w, &whole(group)).is_ok() && cpu().linear(&x, &w, &whole(2 * group)).is_ok());
        // no leaf has fewer than sixteen of 512 columns, and a group of sixteen is not cut by those
        for unit in [group / 2, group * 3 / 2, 1].into_iter().filter(|unit| group > 16 || *unit > 16) {
            assert!(cpu().linear(&x, &w, &whole(unit)).is_err(), "{format:?} in leaves of {unit}");
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let zeros = |dtype: Dtype, count: usize| Numbers { dtype, bytes: vec![0; count * dtype.width()].into() };
    let make = |coding: Coding, (out, inner): (usize, usize), bytes: usize, scales, biases| {
        let packed = Packed { coding, values: vec![0; bytes].into(), scales, biases };
        Matrix::new(out, inner, Values::Packed(packed)).map_err(|error| error.to_string())
    };
    let (affine, bf16) = (Coding::Affine { bits: 4, group: 64 }, |count| zeros(Dtype::Bf16, count));
    let shape = (3, 128);
    assert!(make(affine, shape, 192, bf16(6), Some(bf16(6))).is_ok());
    assert!(make(Coding::Nvfp4, shape, 192, zeros(Dtype::U8, 24), None).is_ok());
    for (what, made) in [
        ("191 bytes", make(affine, shape, 191, bf16(6), Some(bf16(6)))),
        ("values of another width", make(Coding::Affine { bits: 5, group: 64 }, shape, 192, bf16(6), Some(bf16(6)))),
        ("half a group", make(affine, (2, 96), 96, bf16(3), Some(bf16(3)))),
        ("too few scales", make(affine, shape, 192, bf16(5), Some(bf16(6)))),
        ("too many biases", make(affine, shape, 192, bf16(6), Some(bf16(7)))),
        ("no biases", make(affine, shape, 192, bf16(6), None)),
        ("biases of another type", make(affine, shape, 192, bf16(6), Some(zeros(Dtype::F16, 6)))),
        ("scales of eight bits", make(affine, shape, 192, zeros(Dtype::U8, 6), Some(zeros(Dtype::U8, 6)))),
        ("packed scales", make(affine, shape, 192, zeros(Dtype::U32, 6), Some(zeros(Dtype::U32, 6)))),
        ("biases in vain", make(Coding::Mxfp4, shape, 192, zeros(Dtype::U8, 12), Some(zeros(Dtype::U8, 12)))),
        ("plain scales", make(Coding::Mxfp4, shape, 192, bf16(12), None)),
        ("scales of FP8", make(Coding::Nvfp4, shape, 192, zeros(Dtype::Fp8, 24), None)),
    ] {
        assert!(made.is_err(), "{what}");
    }
    // mxfp4, in groups of 32
    let w = Stored::random(&mut Rng::new(1), PACKED[0], 4, 128).matrix();
    assert!(cpu().embed(&w, &[4]).is_err());
    assert!(w.part(1..3, 32..96).is_ok() && w.part(1..3, 64..64).is_ok());
    assert!(w.part(1..3, 16..96).is_err() && w.part(1..3, 32..80).is_err());
    assert!(w.part(1..3, 32..128).unwrap().part(0..1, 16..96).is_err());
}
