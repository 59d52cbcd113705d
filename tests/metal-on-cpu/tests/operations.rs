//! Every operation as kernels against the CPU's, by every schedule.

use std::sync::Arc;

use metal_on_cpu::{Emulator, Options, Order};
use tbshard::backend::{Cpu, Metal};
use tbshard::selftest::{self, Case};

fn metal(options: Options) -> Metal {
    Metal::new(Arc::new(Emulator::new(options).unwrap()))
}

fn compare(options: Options, chosen: impl Fn(&Case) -> bool) {
    let cpu = Cpu::new(1).unwrap();
    let cases = selftest::all();
    let mut compared = 0;
    for case in cases.iter().filter(|case| chosen(case)) {
        let difference = case.compare(&metal(options), &cpu).unwrap_or_else(|error| panic!("{error:?}"));
        println!("{}: {:.1e} of {} values", case.name, difference.largest, difference.values);
        compared += 1;
    }
    assert!(compared > 0);
}

fn is_attention(case: &Case) -> bool {
    case.name.contains("attention")
}

#[test]
fn in_order() {
    compare(Options::default(), |case| !is_attention(case));
}

#[test]
fn attention_in_order() {
    compare(Options::default(), is_attention);
}

/// The schedules that must not change a bit: memory is NaN at first, and kept from who does not name it.
fn schedules() -> impl Iterator<Item = Options> {
    [Order::Reverse, Order::Random(2), Order::Random(3)].into_iter().map(|order| Options {
        groups: order,
        threads: order,
        calls: order,
        strict: true,
        ..Options::default()
    })
}

fn no_schedule_changes_a_bit(chosen: impl Fn(&Case) -> bool) {
    for case in selftest::all().iter().filter(|case| chosen(case)) {
        let forward = metal(Options::default());
        for options in schedules() {
            let difference = case.compare(&metal(options), &forward).unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(difference.largest, 0.0, "{} {options:?}", case.name);
        }
    }
}

#[test]
fn no_schedule_changes_a_bit_of_products() {
    no_schedule_changes_a_bit(|case| case.name.contains("linear") || case.name.contains("embed"));
}

/// Every fifth: what schedules change is not how a weight is read.
#[test]
fn no_schedule_changes_a_bit_of_experts() {
    let cases = selftest::all();
    let experts: Vec<&str> = cases.iter().map(|case| &*case.name).filter(|name| name.contains("experts")).collect();
    let some: Vec<&str> = experts.iter().step_by(5).copied().chain(experts.last().copied()).collect();
    no_schedule_changes_a_bit(|case| some.contains(&&*case.name));
}

#[test]
fn no_schedule_changes_a_bit_of_the_others() {
    let others = ["linear", "embed", "attention", "experts"];
    no_schedule_changes_a_bit(|case| !others.iter().any(|name| case.name.contains(name)));
}

#[test]
fn a_call_touches_only_the_bytes_that_it_names() {
    compare(Options { isolated: true, ..Options::default() }, |case| !is_attention(case));
}

#[test]
fn attention_touches_only_the_bytes_that_it_names() {
    compare(Options { isolated: true, ..Options::default() }, |case| {
        is_attention(case) && !case.name.contains("1 heads")
    });
}
