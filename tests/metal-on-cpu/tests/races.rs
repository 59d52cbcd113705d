//! Races: found whatever the schedule, and there are none in the project's kernels.

use metal_on_cpu::compile::Build;
use metal_on_cpu::{Emulator, Library, Options, Order};

use crate::support::{Work, bytes, random};

fn run(name: &str, threads: Order, groups: u32) -> Result<Vec<u8>, String> {
    let options = Options { threads, races: true, ..Options::default() };
    let device = Emulator::with(Library::mistakes(Build::Races).unwrap(), options);
    let x = random(1, 64 * groups as usize);
    let write = vec![0; 256 * groups as usize];
    let work = Work { name, reads: &[bytes(&x)], write: &write, params: &[], groups: [groups, 1, 1], threads: 64 };
    work.run_on(&device).map_err(|error| error.to_string())
}

#[test]
fn what_no_barrier_orders_is_found_by_any_schedule() {
    let both = ["threadgroup memory: thread", "mistakes/mistakes.metal:"];
    let groups = ["device memory: thread", "of another threadgroup writes"];
    for (name, count, parts) in [
        ("no_barrier", 1, both),
        ("no_barrier_at_the_end", 1, both),
        ("barrier_for_other_memory", 1, both),
        ("barrier_of_a_simd_group", 1, both),
        ("sum_for_a_barrier", 1, ["device memory: thread", "mistakes/mistakes.metal:"]),
        ("groups_in_one_place", 2, groups),
    ] {
        for order in [Order::Forward, Order::Reverse, Order::Random(1)] {
            let problem = run(name, order, count).unwrap_err();
            assert!(problem.contains("no barrier orders"), "{name}: {problem}");
            parts.iter().for_each(|part| assert!(problem.contains(part), "{name}: {problem}"));
        }
    }
}

#[test]
fn what_a_barrier_orders_is_no_race() {
    for (name, groups) in [("copy", 3), ("mirror", 1), ("groups_in_one_place", 1)] {
        for order in [Order::Forward, Order::Reverse, Order::Random(1)] {
            run(name, order, groups).unwrap();
        }
    }
}
