//! Metal's functions as the emulator has them.

use std::sync::atomic::{AtomicU32, Ordering};

use half::f16;
use metal_on_cpu::compile::Build;
use metal_on_cpu::{Emulator, Library, Options, Order};
use tbshard::gpu::{Access, Call, Device};

use crate::support::{Work, argument, buffer, bytes, random};

#[test]
fn lanes_see_each_other() {
    let x: Vec<f32> = random(3, 32).into_iter().map(|value| (value * 64.0).round()).collect();
    for order in [Order::Forward, Order::Reverse, Order::Random(1)] {
        let device =
            Emulator::with(Library::mistakes(Build::Fast).unwrap(), Options { threads: order, ..Options::default() });
        let work = Work {
            name: "lanes",
            reads: &[bytes(&x)],
            write: &[0; 15 * 32 * 4],
            params: &[],
            groups: [1; 3],
            threads: 32,
        };
        let y = work.run_on(&device).unwrap();
        let y: Vec<f32> = y.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect();
        let there = &x[..29];
        let positive = there.iter().filter(|value| **value > 0.0).count() as f32;
        let or_nan =
            |lane: i32| usize::try_from(lane).ok().and_then(|lane| there.get(lane)).copied().unwrap_or(f32::NAN);
        for i in 0..29 {
            let lane = i as i32;
            let wanted = [
                there.iter().sum(),
                there.iter().copied().fold(f32::MIN, f32::max),
                there.iter().copied().fold(f32::MAX, f32::min),
                there[..i].iter().sum(),
                there[..=i].iter().sum(),
                there[28 - i],
                or_nan(lane ^ 1),
                or_nan(lane + 2),
                or_nan(lane - 3),
                there[7],
                there[0],
                positive,
                1.0,
                f32::from(i == 0),
                (0..29).fold(0, |a, b| a ^ b) as f32,
            ];
            for (function, wanted) in wanted.into_iter().enumerate() {
                let got = y[function * 32 + i];
                assert!(got == wanted || got.is_nan() && wanted.is_nan(), "{function} {i}: {got} {wanted}");
            }
        }
    }
}

#[test]
fn matrices_of_a_simd_group_multiply() {
    let half = |seed| random(seed, 256).into_iter().map(f16::from_f32).collect::<Vec<_>>();
    let (a, b) = (half(1), half(2));
    let bits = |values: &[f16]| values.iter().flat_map(|value| value.to_bits().to_ne_bytes()).collect::<Vec<u8>>();
    let work = Work {
        name: "product",
        reads: &[&bits(&a), &bits(&b)],
        write: &[0; 1024],
        params: &[],
        groups: [1; 3],
        threads: 128,
    };
    let c = work.run_on(&Emulator::with(Library::mistakes(Build::Fast).unwrap(), Options::default())).unwrap();
    for (at, c) in c.as_chunks().0.iter().enumerate() {
        let (row, column) = (at / 16, at % 16);
        let sum: f32 = (0..16).map(|k| a[row * 16 + k].to_f32() * b[k * 16 + column].to_f32()).sum();
        assert!((f32::from_ne_bytes(*c) - 2.0 * sum).abs() < 1e-4);
    }
}

#[test]
fn a_kernel_and_the_host_run_at_the_same_time() {
    for strict in [false, true] {
        let device = Emulator::with(Library::mistakes(Build::Fast).unwrap(), Options { strict, ..Options::default() });
        let flags = buffer(&device, &[0; 8]);
        let kernel = device.kernel("answer").unwrap();
        let mut commands = device.commands().unwrap();
        let arguments = [argument(&flags, Access::Write)];
        commands
            .dispatch(&Call {
                kernel,
                arguments: &arguments,
                params: &[],
                groups: [1; 3],
                counts: None,
                threads: [32, 1, 1],
            })
            .unwrap();
        let pending = commands.commit().unwrap();
        // SAFETY: the buffer has two words, which host and kernel use atomically
        let words = unsafe { &*flags.start().as_ptr().cast::<[AtomicU32; 2]>() };
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!pending.done());
        words[0].store(41, Ordering::Release);
        pending.wait().unwrap();
        assert!(pending.done());
        assert_eq!(words[1].load(Ordering::Acquire), 42);
    }
}
