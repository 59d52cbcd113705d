//! Codes, scales and biases of ordinary and adversarial rows against those that MLX made of them.

use safetensors::SafeTensors;
use tbshard::weights::{Codes, Coding, Dtype, Numbers, quantise};

use crate::support::files;

const COLUMNS: usize = 256;

/// Values so far beyond what an NVFP4 scale reaches that MLX makes something else of them; see the last test.
const BEYOND_NVFP4: f32 = 1e9;

/// What `quantise` makes of whole rows: codes, scales, biases.
fn quantised(coding: Coding, dtype: Dtype, values: &[f32]) -> [Vec<u8>; 3] {
    let groups = values.len() / coding.group();
    let affine = matches!(coding, Coding::Affine { .. });
    let width = if affine { dtype.width() } else { 1 };
    let mut out = [vec![0; values.len() * coding.bits() / 8], vec![0; groups * width], vec![0; groups * width]];
    if !affine {
        out[2].clear();
    }
    let [codes, scales, biases] = &mut out;
    quantise(coding, dtype, values, Codes { codes, scales, biases }).unwrap();
    out
}

fn codings() -> Vec<(String, Coding)> {
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|group| (bits, group)));
    let affine = affine.map(|(bits, group)| (format!("affine.{bits}.{group}"), Coding::Affine { bits, group }));
    let others = [("mxfp4.4.32", Coding::Mxfp4), ("mxfp8.8.32", Coding::Mxfp8), ("nvfp4.4.16", Coding::Nvfp4)];
    affine.chain(others.map(|(name, coding)| (name.to_owned(), coding))).collect()
}

/// Compares what `tensors` has of MLX with what we make of the same rows of `columns` values: how many bytes there are,
/// and where they differ.
pub fn differences(tensors: &SafeTensors<'_>, columns: usize) -> (usize, Vec<String>) {
    let (mut compared, mut wrong) = (0, Vec::new());
    for (kind, dtype) in [("bf16", Dtype::Bf16), ("f16", Dtype::F16), ("f32", Dtype::F32)] {
        let bytes = tensors.tensor(kind).unwrap().data().to_vec();
        let values = Numbers { dtype, bytes: bytes.into() }.to_f32();
        let largest =
            |row: usize| values[row * columns..][..columns].iter().fold(0.0f32, |max, value| max.max(value.abs()));
        for (name, coding) in codings() {
            let beyond = |row: usize| coding == Coding::Nvfp4 && largest(row) > BEYOND_NVFP4;
            let ours = quantised(coding, dtype, &values);
            for (part, ours) in ["codes", "scales", "biases"].into_iter().zip(ours) {
                let Ok(theirs) = tensors.tensor(&format!("{kind}.{name}.{part}")) else {
                    assert!(ours.is_empty(), "{kind}.{name}.{part}");
                    continue;
                };
                assert_eq!(ours.len(), theirs.data().len());
                compared += ours.len();
                let per_row = ours.len() / (values.len() / columns);
                let differs = |i: &usize| ours[*i] != theirs.data()[*i] && !beyond(i / per_row);
                let bytes: Vec<usize> = (0..ours.len()).filter(differs).collect();
                if let Some(first) = bytes.first() {
                    let (row, at) = (first / per_row, first % per_row);
                    wrong.push(format!("{kind}.{name}.{part}: {} bytes, first {at} of row {row}", bytes.len()));
                }
            }
        }
    }
    (compared, wrong)
}

#[test]
fn every_byte_is_mlx_s() {
    let file = std::fs::read(files::fixtures().join("quantise.safetensors")).unwrap();
    let (compared, wrong) = differences(&SafeTensors::deserialize(&file).unwrap(), COLUMNS);
    assert_eq!(wrong, Vec::<String>::new());
    assert!(compared > 170_000, "{compared}");
}

#[test]
fn rows_of_one_call_or_of_many_are_the_same() {
    let values: Vec<f32> = (0..512).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 97.0).collect();
    for (name, coding) in codings() {
        let whole = quantised(coding, Dtype::F32, &values);
        let halves = [&values[..256], &values[256..]].map(|half| quantised(coding, Dtype::F32, half));
        for part in 0..3 {
            assert_eq!(whole[part], [halves[0][part].clone(), halves[1][part].clone()].concat(), "{name} {part}");
        }
    }
}

#[test]
fn what_cannot_be_quantised_is_found() {
    for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2e38, -3e38] {
        for (name, coding) in codings() {
            let mut values = vec![1.0; 256];
            values[77] = strange;
            values[200] = strange;
            let (mut codes, mut scales, mut biases) = ([0; 256], [0; 64], [0; 64]);
            let out = Codes { codes: &mut codes, scales: &mut scales, biases: &mut biases };
            assert_eq!(quantise(coding, Dtype::F32, &values, out), Err(77), "{name} {strange}");
        }
    }
}

/// E8M0 ends at 2⁻¹²⁷. MLX 0.32 lets a smaller scale wrap round to 2¹²⁸; here it stays the smallest there is.
#[test]
fn scales_too_small_for_e8m0_stay_small() {
    let values = vec![1e-39f32; 32];
    let [codes, scales, _] = quantised(Coding::Mxfp4, Dtype::F32, &values);
    assert_eq!(scales, [0]);
    // 1e-39 of 2⁻¹²⁷ is 0.17: nearer to 0 than to ½
    assert_eq!(codes, [0; 16]);
    let [codes, scales, _] = quantised(Coding::Mxfp8, Dtype::F32, &[1e-38f32; 32]);
    assert_eq!(scales, [0]);
    // 1.7 is nearest to 1.75
    assert_eq!(codes, [0x3e; 32]);
}

/// NVFP4's scales end at 448, its values at 2688. MLX lets values that are far beyond become zero; here they stay the
/// largest there is.
#[test]
fn values_too_large_for_nvfp4_stay_large() {
    let [codes, scales, _] = quantised(Coding::Nvfp4, Dtype::F32, &[1e38, -1e38].repeat(8));
    assert_eq!(scales, [0x7e]);
    assert_eq!(codes, [0xf7; 8]);
}
