//! Embedding: rows of a table in any format, and every bit pattern of every format.

use bytes::Bytes;
use candle_core::{DType, Device};
use tbshard::backend::{Backend, Cpu};
use tbshard::weights::{Matrix, Numbers, Values};

use super::check::{cpu, same, same_everywhere};
use super::random::Rng;
use super::reference::Exact;
use super::stored::{Format, Stored, e4m3, ieee};

const ROWS: [usize; 6] = [1, 2, 127, 128, 129, 300];
const COLS: [usize; 7] = [1, 15, 16, 17, 128, 200, 517];

#[test]
fn rows_are_candles_index_select() {
    for case in 0..168 {
        let mut rng = Rng::new(case as u64);
        let format = Format::of(case);
        let (rows, cols) = (ROWS[case / 2 % 6], format.width(COLS[case / 2 % 7]));
        let stored = Stored::random(&mut rng, format, rows, cols);
        let ids: Vec<u32> = (0..rng.pick(&[1, 2, 70])).map(|_| rng.below(rows) as u32).collect();
        let (table, what) = (stored.matrix(), format!("{format:?} [{rows}, {cols}]"));
        let got = same_everywhere(&what, |cpu| cpu.embed(&table, &ids).unwrap().data().to_vec());
        let index = Exact::new(&ids[..], &Device::Cpu).unwrap();
        let want = stored.exact().index_select(&index, 0).unwrap().to_dtype(DType::F32).unwrap();
        same(&what, &got, &want.flatten_all().unwrap().to_vec1().unwrap());
        for (id, row) in ids.iter().zip(got.chunks(cols)) {
            same(&format!("{what} row {id} alone"), cpu().embed(&table, &[*id]).unwrap().data(), row);
        }
    }
}

#[test]
fn an_id_outside_the_table_is_an_error_that_names_it() {
    let table = Stored::random(&mut Rng::new(1), Format::Bf16, 10, 16).matrix();
    let error = cpu().embed(&table, &[9, 10]).unwrap_err();
    assert!(error.to_string().contains("10"), "{error}");
}

/// Widens all of `values`, which is told its number of FP8 blocks, as rows of whole registers, of tails, of both.
fn widened(count: usize, values: &dyn Fn(usize) -> Values) -> Vec<Vec<f32>> {
    let rows_of = |width: usize| {
        let rows = count / width;
        let table = Matrix::new(rows, width, values(rows.div_ceil(128) * width.div_ceil(128))).unwrap();
        let ids: Vec<u32> = (0..rows as u32).collect();
        // one NaN is as good as another
        let plain = |x: &f32| if x.is_nan() { f32::NAN } else { *x };
        let run = |cpu: &Cpu| cpu.embed(&table, &ids).unwrap().data().iter().map(plain).collect();
        same_everywhere(&format!("rows of {width}"), run)
    };
    vec![rows_of(count), rows_of(16), rows_of(8), rows_of(1)]
}

fn matches(what: &str, got: &[f32], want: impl Fn(usize) -> f64) {
    for (pattern, got) in got.iter().enumerate() {
        let want = want(pattern) as f32;
        let equal = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(equal, "{what} {pattern:#x} is {got:e}, not {want:e}");
    }
}

#[test]
fn every_e4m3_byte() {
    let bytes: Bytes = (0..=255).collect();
    for scale in [1.0, 0.37, 1.0e-3] {
        let values = |blocks| Values::Fp8 { values: bytes.clone(), scales: Numbers::of_f32(&vec![scale; blocks]) };
        for got in widened(256, &values) {
            matches("E4M3", &got, |byte| e4m3(byte as u8) * f64::from(scale));
        }
    }
    let extremes = (e4m3(0x7e), e4m3(0x08), e4m3(0x01), e4m3(0xfe));
    assert_eq!(extremes, (448.0, 2f64.powi(-6), 2f64.powi(-9), -448.0), "as the specification lists them");
}

#[test]
fn every_f16_and_bf16_pattern() {
    let bytes: Bytes = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let f16 = |_| Values::F16(bytes.clone());
    let bf16 = |_| Values::Bf16(bytes.clone());
    let formats: [(&dyn Fn(usize) -> Values, DType, u32, u32); 2] =
        [(&f16, DType::F16, 5, 10), (&bf16, DType::BF16, 8, 7)];
    for (values, dtype, exponent_bits, mantissa_bits) in formats {
        let candle = Exact::from_raw_buffer(&bytes, dtype, &[1 << 16], &Device::Cpu).unwrap();
        let candle: Vec<f32> = candle.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        for got in widened(1 << 16, values) {
            matches("by definition,", &got, |bits| ieee(bits as u32, exponent_bits, mantissa_bits));
            matches("by candle,", &got, |bits| f64::from(candle[bits]));
        }
    }
}
