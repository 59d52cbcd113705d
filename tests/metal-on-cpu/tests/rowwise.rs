//! Norms, rotations and operations on values by themselves.

use std::sync::Arc;

use metal_on_cpu::{Emulator, Options};
use tbshard::backend::{Backend, Metal, Tensor};
use tbshard::gpu::params::{NormParams, PieceParams, RopeParams, RunParams};

use crate::support::{Work, bytes, close, random};

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// What a kernel that has a thread a value makes of `x` and `y`.
fn each(name: &str, x: &[f32], y: &[f32], width: usize) -> Vec<f32> {
    let params = RunParams { count: x.len() as u32, width: width as u32 };
    let groups = [x.len().div_ceil(256) as u32, 1, 1];
    Work { name, reads: &[bytes(y)], write: bytes(x), params: bytes(&[params]), groups, threads: 256 }.floats()
}

#[test]
fn values_by_themselves() {
    for count in [1, 255, 1000] {
        let (x, y) = (random(1, count), random(2, count));
        let pairs = || x.iter().map(|x| f64::from(*x)).zip(y.iter().map(|y| f64::from(*y)));
        close(&each("add", &x, &y, 1), &pairs().map(|(x, y)| x + y).collect::<Vec<_>>(), 1e-6);
        close(&each("swiglu", &x, &y, 1), &pairs().map(|(x, y)| silu(x) * y).collect::<Vec<_>>(), 1e-6);
        let gated: Vec<f64> = pairs().map(|(x, y)| x / (1.0 + (-y).exp())).collect();
        close(&each("gate_sigmoid", &x, &y, 1), &gated, 1e-6);
        let biased: Vec<f64> = x.iter().enumerate().map(|(i, x)| f64::from(*x + y[i % count.min(5)])).collect();
        close(&each("add_bias", &x, &y[..count.min(5)], count.min(5)), &biased, 1e-6);
    }
}

#[test]
fn norms() {
    for (runs, width, gated) in [(1, 1, 0), (3, 64, 0), (2, 100, 1)] {
        let [x, weight, gate] = [(1, runs * width), (2, width), (3, runs * width)].map(|(seed, len)| random(seed, len));
        let params = [NormParams { width: width as u32, gated, eps: 1e-6 }];
        let work = Work {
            name: "rms_norm",
            reads: &[bytes(&x), bytes(&weight), bytes(&gate)],
            write: &vec![0xff; runs * width * 4],
            params: bytes(&params),
            groups: [runs as u32, 1, 1],
            threads: 32,
        };
        let value = |at: usize| {
            let run = &x[at / width * width..][..width];
            let squares: f64 = run.iter().map(|x| f64::from(*x).powi(2)).sum();
            let value = f64::from(x[at]) / (squares / width as f64 + 1e-6).sqrt() * f64::from(weight[at % width]);
            if gated == 1 { value * silu(f64::from(gate[at])) } else { value }
        };
        close(&work.floats(), &(0..runs * width).map(value).collect::<Vec<_>>(), 1e-5);
    }
}

#[test]
fn rotations_by_halves_and_by_pairs() {
    let (rows, heads, head_dim, half) = (3, 2, 80, 35);
    let (x, table) = (random(1, rows * heads * head_dim), random(2, rows * 2 * half));
    for pairs in [0, 1] {
        let sizes = [heads, head_dim, half].map(|size| size as u32);
        let params = [RopeParams { heads: sizes[0], head_dim: sizes[1], half_dim: sizes[2], pairs }];
        let work = Work {
            name: "rope",
            reads: &[bytes(&table)],
            write: bytes(&x),
            params: bytes(&params),
            groups: [half.div_ceil(32) as u32, heads as u32, rows as u32],
            threads: 32,
        };
        let mut wanted: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for (row, head, i) in (0..rows * heads * half).map(|at| (at / half / heads, at / half % heads, at % half)) {
            let start = (row * heads + head) * head_dim;
            let [first, second] = if pairs == 1 { [2 * i, 2 * i + 1] } else { [i, i + half] }.map(|at| start + at);
            let [c, s] = [i, half + i].map(|at| f64::from(table[row * 2 * half + at]));
            let (a, b) = (wanted[first], wanted[second]);
            (wanted[first], wanted[second]) = (a * c - b * s, b * c + a * s);
        }
        close(&work.floats(), &wanted, 1e-6);
    }
}

#[test]
fn pieces() {
    let (from, to) = (random(1, 100), random(2, 200));
    let params = PieceParams { width: 7, count: 5, from_start: 3, from_stride: 20, to_start: 11, to_stride: 31 };
    let (reads, params) = ([bytes(&from)], bytes(std::slice::from_ref(&params)));
    let work = Work { name: "arrange", reads: &reads, write: bytes(&to), params, groups: [2, 1, 1], threads: 32 };
    let mut wanted = to.clone();
    for (run, i) in (0..5).flat_map(|run| (0..7).map(move |i| (run, i))) {
        wanted[11 + run * 31 + i] = from[3 + run * 20 + i];
    }
    assert_eq!(work.floats(), wanted);
}

#[test]
fn a_norm_that_adds_has_the_bits_of_one_after_the_other() {
    for width in [40, 128, 1000] {
        let backend = Metal::new(Arc::new(Emulator::new(Options::default()).unwrap()));
        let tensor = |seed| Tensor::from_vec(3, 2 * width, random(seed, 6 * width)).unwrap();
        let (mut x, added, weight) = (tensor(1), tensor(2), random(3, width).into());
        let y = backend.add_rms_norm(&mut x, &added, &weight, 1e-5);
        let mut sum = tensor(1);
        backend.add(&mut sum, &added);
        let wanted = backend.rms_norm(&sum, &weight, 1e-5);
        assert!(x.data() == sum.data() && y.data() == wanted.data(), "{width}");
        assert!(x.data() != tensor(1).data());
    }
}
