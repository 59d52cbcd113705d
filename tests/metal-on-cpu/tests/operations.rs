//! Every operation as kernels against the CPU's, however freedom is used.

use std::sync::Arc;

use metal_on_cpu::{Emulator, Options, Order};
use tbshard::backend::{Cpu, Metal};
use tbshard::selftest::{self, Case};

fn metal(options: Options) -> Metal {
    Metal::new(Arc::new(Emulator::new(options)))
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

#[test]
fn isolated_and_late() {
    compare(Options { order: Order::Reverse, isolated: true, late: true }, |case| !is_attention(case));
}

#[test]
fn attention_isolated_and_late() {
    compare(Options { order: Order::Shuffled(5), isolated: true, late: true }, is_attention);
}

#[test]
fn no_order_changes_a_bit() {
    let orders = [Order::Reverse, Order::Shuffled(2), Order::Shuffled(3)];
    for case in selftest::all().iter().filter(|case| !is_attention(case)) {
        let forward = metal(Options::default());
        for order in orders {
            let other = metal(Options { order, late: true, ..Options::default() });
            let difference = case.compare(&other, &forward).unwrap_or_else(|error| panic!("{order:?}: {error:?}"));
            assert_eq!(difference.largest, 0.0, "{} {order:?}", case.name);
        }
    }
}
