//! Pairs of tokens and experts in the order of their experts.

use metal_on_cpu::compile::Build;
use metal_on_cpu::{Emulator, Library};
use tbshard::gpu::params::{PairRun, PairsParams};
use tbshard::gpu::{Access, Buffer, Call, Device};

use crate::support::{argument, buffer, bytes, contents, random, schedules};

/// Pairs of a run.
const RUN: usize = 32;

fn values<T: bytemuck::AnyBitPattern>(buffer: &Buffer) -> Vec<T> {
    contents(buffer).chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// The order of the pairs, and the runs.
fn grouped(device: &dyn Device, chosen: &[u32], experts: usize) -> (Vec<u32>, Vec<PairRun>) {
    let nothing = vec![0xff; (chosen.len() / RUN + experts) * size_of::<PairRun>()];
    let pairs = chosen.len();
    let (chosen, order, runs) =
        (buffer(device, bytes(chosen)), buffer(device, bytes(chosen)), buffer(device, &nothing));
    let params = PairsParams { pairs: pairs as u32 };
    let mut commands = device.commands().unwrap();
    let arguments = [(&chosen, Access::Read), (&order, Access::Write), (&runs, Access::Write)];
    commands
        .dispatch(&Call {
            kernel: device.kernel("group_pairs").unwrap(),
            arguments: &arguments.map(|(buffer, access)| argument(buffer, access)),
            params: bytes(&[params]),
            groups: [experts as u32, 1, 1],
            counts: None,
            threads: [32, 1, 1],
        })
        .unwrap();
    commands.commit().unwrap().wait().unwrap();
    (values(&order), values(&runs))
}

#[test]
fn runs_hold_every_pair_once_and_in_order() {
    let some = |pairs: usize, experts: usize| -> Vec<u32> {
        random(pairs as u64, pairs).iter().map(|x| ((x + 1.0) / 2.0 * experts as f32) as u32).collect()
    };
    let one = |pairs: usize, expert: u32| vec![expert; pairs];
    let halves = |pairs: usize| (0..pairs as u32).map(|pair| pair % 2 * 3).collect::<Vec<_>>();
    let cases = [
        (some(1, 5), 5),
        (some(300, 7), 7),
        (some(97, 70), 70),
        (one(64, 0), 3),
        (one(64, 2), 3),
        (one(33, 1), 3),
        (halves(64), 4),
        (halves(126), 5),
    ];
    for (chosen, experts) in cases {
        let mut wanted: Vec<u32> = (0..chosen.len() as u32).collect();
        wanted.sort_by_key(|pair| chosen[*pair as usize]);
        for options in schedules() {
            let device = Emulator::with(Library::kernels(Build::Fast).unwrap(), options);
            let (order, runs) = grouped(&device, &chosen, experts);
            assert_eq!(order, wanted, "{options:?}");
            let mut at = 0;
            for run in runs.iter().filter(|run| run.count > 0) {
                assert!(run.first as usize == at && run.count as usize <= RUN, "{run:?} does not begin at {at}");
                at += run.count as usize;
                let pairs = &order[run.first as usize..at];
                assert!(pairs.iter().all(|pair| chosen[*pair as usize] == run.expert), "{run:?} of {pairs:?}");
            }
            assert_eq!(at, chosen.len());
            let needed: usize = (0..experts as u32)
                .map(|expert| chosen.iter().filter(|chosen| **chosen == expert).count().div_ceil(RUN))
                .sum();
            assert_eq!(runs.iter().filter(|run| run.count > 0).count(), needed, "{runs:?}");
            assert!(runs.iter().all(|run| (run.expert as usize) < experts), "{runs:?}");
        }
    }
}
