//! Every architecture on every layout: the SHA-256 of all logits is that of one rank.

use tbshard::backend::Arithmetic;
use tbshard::comm::Algorithm;
use tbshard::models::Blueprint;
use tbshard::partition::Layout;

use crate::support::ranks::{run, run_in};
use crate::support::tiny::tiny_checkpoints;
use crate::transport::fabric::Fabric;

fn same_bits(layouts: impl Fn(usize) -> Vec<Layout>) {
    for dir in tiny_checkpoints() {
        let open = || Blueprint::open(&dir).unwrap();
        let layers = open().geometry.layers;
        let alone = Layout { world_size: 1, ..Layout::default() };
        let one = run(&open, &alone, Algorithm::Auto, Fabric::Loopback.mesh(1));
        assert!(one.iter().all(|hash| *hash == one[0]), "{}: chunks differ", dir.display());
        let fast = |layout: &Layout| {
            run_in(Arithmetic::Fast, &open, layout, Algorithm::Auto, Fabric::Loopback.mesh(layout.world_size))
        };
        let fast_one = fast(&alone);
        assert!(fast_one.iter().all(|hash| *hash == fast_one[0]), "{}: chunks differ in fast", dir.display());
        assert_ne!(fast_one, one, "{}: fast is exact", dir.display());
        for layout in layouts(layers) {
            assert_eq!(fast(&layout), fast_one, "{} {layout:?} fast", dir.display());
            let ways = [
                (Fabric::Loopback, Algorithm::Direct),
                (Fabric::Loopback, Algorithm::Scatter),
                (Fabric::Shm, Algorithm::Auto),
                (Fabric::Noise, Algorithm::Auto),
            ];
            for (fabric, algorithm) in ways {
                let many = run(&open, &layout, algorithm, fabric.mesh(layout.world_size));
                assert_eq!(many, one, "{} {layout:?} {fabric:?} {algorithm:?}", dir.display());
            }
        }
    }
}

fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

#[test]
fn tensor_parallel_of_a_power_of_two() {
    same_bits(|_| [2, 4, 8].map(|tp| layout(tp, 1)).to_vec());
}

#[test]
fn tensor_parallel_of_an_odd_size() {
    same_bits(|_| [3, 5].map(|tp| layout(tp, 1)).to_vec());
}

#[test]
fn pipelines() {
    same_bits(|layers| (2..=4).filter(|pp| *pp <= layers).map(|pp| layout(1, pp)).collect());
}

#[test]
fn tensor_parallel_stages() {
    let shapes = [(2, 2), (3, 2), (4, 2), (2, 4)];
    same_bits(|layers| shapes.into_iter().filter(|(_, pp)| *pp <= layers).map(|(tp, pp)| layout(tp, pp)).collect());
}

#[test]
fn unequal_shares() {
    same_bits(|layers| {
        vec![
            Layout { weights: vec![512, 256, 256], ..layout(3, 1) },
            Layout { split: Some(vec![layers - 1, 1]), weights: vec![1, 5, 2, 2], ..layout(2, 2) },
        ]
    });
}
