//! `bench all-reduce`: the columns of nccl-tests, and sums that are right.

use super::{done, formats_agree, json, refused};

#[test]
fn every_size_has_its_columns_and_nothing_is_wrong() {
    for more in [&["--local", "2"][..], &["--local", "3", "--transport", "tcp"], &["--plain"]] {
        let rows = json(&[&["all-reduce", "--sizes", "1,64,256", "--reps", "20"], more].concat());
        assert_eq!(rows.iter().map(|row| row["size"].as_u64().unwrap()).collect::<Vec<_>>(), [1024, 65_536, 262_144]);
        for row in rows {
            let number = |key: &str| row[key].as_f64().unwrap();
            assert_eq!((number("wrong"), number("count"), &row["type"]), (0.0, number("size") / 4.0, &"f32".into()));
            let mut samples: Vec<f64> =
                row["samples_us"].as_array().unwrap().iter().map(|us| us.as_f64().unwrap()).collect();
            assert_eq!(samples.len(), 20);
            samples.sort_by(f64::total_cmp);
            assert_eq!((number("time_us"), number("p99_us")), (samples[9], samples[18]));
            let (ranks, algbw) = (number("ranks"), number("size") / number("time_us") / 1e3);
            assert!((number("algbw") - algbw).abs() < 1e-9 * algbw);
            assert!((number("busbw") - algbw * 2.0 * (ranks - 1.0) / ranks).abs() < 1e-9 * algbw);
        }
    }
}

#[test]
fn all_formats_have_the_same_rows() {
    formats_agree(&["all-reduce", "--sizes", "4,20", "--reps", "10"], 2);
    let table = done(&["all-reduce", "--reps", "10"]);
    for word in ["size B", "count", "type", "median", "p99", "algbw GB/s", "busbw GB/s", "#wrong"] {
        assert!(table.lines().next().unwrap().contains(word), "{table}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    refused(&["all-reduce", "--reps", "0"], 2, &["--reps"]);
    refused(&["all-reduce", "--sizes", "0"], 2, &["--sizes"]);
    refused(&["all-reduce", "--local", "1"], 2, &["--local 1"]);
}
