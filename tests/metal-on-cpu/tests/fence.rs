//! The fence at an all_reduce: by every way to meet the host the ranks compute the same bits, also when each wait gives up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metal_on_cpu::compile::{Build, compile, join};
use metal_on_cpu::{Emulator, Library, Options, Order};
use tbshard::backend::{Backend, Exchange, Fence, Metal, Tensor};
use tbshard::engine::{Engine, Wanted};
use tbshard::error::{Error, Result};
use tbshard::selftest::{crossings, exchanges};

use crate::ranks::{Emulators, Parts, layout, run, try_run, try_task, usual};
use crate::sending::Sending;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny").join(name)
}

/// The logits of so many ranks, and how many calls did nothing on any of them.
fn logits(dir: &Path, ranks: usize, fence: Fence, options: Options) -> (Vec<u32>, usize) {
    let emulators = Emulators::new(options);
    let logits = run(dir, &layout(ranks, 1), &Parts { fence, emulators: &emulators, endpoint: &usual });
    (logits, emulators.all().iter().map(|emulator| emulator.skipped()).sum())
}

#[test]
fn no_fence_changes_a_bit() {
    for name in ["llama", "qwen3_5", "deepseek_v3"] {
        let dir = tiny(name);
        let (one, _) = logits(&dir, 1, Fence::default(), Options::default());
        for (ranks, fence) in
            [(2, Fence::Drain), (2, Fence::SPIN), (3, Fence::SPIN), (2, Fence::Spin { looks: 1 << 30 })]
        {
            let (many, skipped) = logits(&dir, ranks, fence, Options::default());
            println!("{name}, {ranks} ranks, {fence:?}: {skipped} calls did nothing");
            assert!(many == one, "{name}: {fence:?} on {ranks} ranks has other bits");
        }
    }
}

#[test]
fn waits_that_give_up_are_asked_again() {
    for name in ["llama", "qwen3_5"] {
        let dir = tiny(name);
        let (one, _) = logits(&dir, 1, Fence::default(), Options::default());
        for (ranks, looks) in [(2, 0), (2, 1), (3, 1), (2, 64)] {
            let (many, skipped) = logits(&dir, ranks, Fence::Spin { looks }, Options::default());
            println!("{name}, {ranks} ranks, {looks} looks: {skipped} calls did nothing");
            assert!(many == one, "{name}: waits of {looks} looks on {ranks} ranks have other bits");
            assert!(skipped > 0 || looks > 1);
        }
    }
}

#[test]
fn no_schedule_changes_a_bit() {
    let dir = tiny("qwen3_5");
    let (one, _) = logits(&dir, 1, Fence::default(), Options::default());
    for order in [Order::Reverse, Order::Random(1)] {
        let options =
            Options { groups: order, threads: order, calls: order, strict: true, poison: true, ..Options::default() };
        for fence in [Fence::Event, Fence::SPIN] {
            let (many, _) = logits(&dir, 2, fence, options);
            assert!(many == one, "{fence:?} {options:?}");
        }
    }
}

#[test]
fn caches_hide_nothing_and_there_are_no_races() {
    for name in ["llama", "qwen3_5"] {
        let dir = tiny(name);
        let (one, _) = logits(&dir, 1, Fence::default(), Options::default());
        let options = Options { caches: true, races: true, poison: true, ..Options::default() };
        for fence in [Fence::Event, Fence::SPIN, Fence::Spin { looks: 1 }] {
            let (many, _) = logits(&dir, 2, fence, options);
            assert!(many == one, "{name}: {fence:?}");
        }
    }
}

#[test]
fn a_peer_that_is_slow_costs_time_and_nothing_else() {
    let dir = tiny("llama");
    let (one, _) = logits(&dir, 1, Fence::default(), Options::default());
    let slow = |inner| {
        let mut sent = 0;
        Sending::by(usual(inner), move |inner, peer, message| {
            // many times what the other's waits have patience for
            if inner.rank() == 1 && sent % 5 == 2 {
                std::thread::sleep(Duration::from_millis(200));
            }
            sent += 1;
            inner.post_send(peer, message)
        })
    };
    let (fence, emulators) = (Fence::Spin { looks: 1000 }, Emulators::new(Options::default()));
    assert!(run(&dir, &layout(2, 1), &Parts { fence, emulators: &emulators, endpoint: &slow }) == one);
    assert!(emulators.all().iter().any(|emulator| emulator.skipped() > 0));
}

#[test]
fn a_peer_that_dies_is_an_error_that_names_it_and_leaves_nothing() {
    let dir = tiny("llama");
    for fence in [Fence::Drain, Fence::Event, Fence::SPIN, Fence::Spin { looks: 3 }, Fence::Spin { looks: u32::MAX }] {
        for last in [0, 1, 2, 3, 5, 7, 9, 12] {
            let start = Instant::now();
            let dying = |inner| {
                let mut sent = 0;
                Sending::by(usual(inner), move |inner, peer, message| {
                    sent += 1;
                    match inner.rank() == 1 && sent > last {
                        true => Err(Error::msg("it dies")),
                        false => inner.post_send(peer, message),
                    }
                })
            };
            let emulators = Emulators::new(Options::default());
            let ended = try_run(&dir, &layout(2, 1), &Parts { fence, emulators: &emulators, endpoint: &dying });
            let Err(error) = &ended[0] else {
                assert!(last > 6, "{fence:?}: nobody missed message {last}");
                break;
            };
            // dropping the backend has waited for the device, whose waits have no end of their own here
            assert!(error.to_string().contains("rank 1"), "{fence:?}, message {last}: {error}");
            assert!(start.elapsed() < Duration::from_secs(4), "{fence:?}, message {last}");
        }
    }
}

#[test]
fn a_token_takes_no_memory_of_the_device() {
    for name in ["llama", "qwen3_5", "kimi_k25-int4"] {
        for fence in [Fence::Drain, Fence::Event, Fence::SPIN, Fence::Spin { looks: 1 }] {
            let emulators = Emulators::new(Options::default());
            let buffers = || emulators.all().iter().map(|emulator| emulator.buffers() as u32).sum();
            let task = |engine: &mut Engine| {
                let mut sequence = engine.start()?;
                let mut made = Vec::new();
                for token in 0..20 {
                    engine.forward(&mut [(&mut sequence, &[token])], Wanted::Last, None)?;
                    made.push(buffers());
                }
                engine.end(sequence);
                Ok(made)
            };
            let parts = Parts { fence, emulators: &emulators, endpoint: &usual };
            let made = try_task(&tiny(name), &layout(2, 1), &parts, &task).swap_remove(0).unwrap();
            let steady = &made[5..];
            assert!(steady.iter().all(|buffers| *buffers == steady[0]), "{name}, {fence:?}: {made:?}");
        }
    }
}

#[test]
fn what_is_given_up_or_done_out_of_turn_is_an_error() {
    for fence in [Fence::Event, Fence::Spin { looks: u32::MAX }] {
        let metal = || Metal::with_fence(Arc::new(Emulator::new(Options::default()).unwrap()), fence);
        let post = |metal: &Metal| match metal.post(Tensor::zeros(1, 8), (1, 8)) {
            Ok(Exchange::Posted(sum, crossing)) => Ok((sum, crossing)),
            Ok(Exchange::Here(_)) => panic!("the host need not wait"),
            Err(error) => Err(error.to_string()),
        };
        let says = |result: Result<()>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{fence:?}: {error}");
        };
        let device = metal();
        let (mut sum, crossing) = post(&device).unwrap();
        device.add(&mut sum, &Tensor::zeros(1, 8));
        drop(crossing);
        says(device.finish(), "given up");
        let device = metal();
        let _kept = post(&device).unwrap();
        says(device.finish(), "given up");
        let device = metal();
        let (_one, mut two) = (post(&device).unwrap(), post(&device).unwrap().1);
        assert!(post(&device).unwrap_err().contains("two sums"));
        says(two.arrive().map(drop), "in the order");
        says(device.finish(), "");
    }
}

#[test]
fn the_self_test_takes_every_fence_and_sees_a_wait_end() {
    for fence in [Fence::Drain, Fence::Event, Fence::SPIN] {
        let metal = Metal::with_fence(Arc::new(Emulator::new(Options::default()).unwrap()), fence);
        let found = crossings(&metal).unwrap();
        println!("{fence:?}: {found:?}");
        assert_eq!(found.resubmissions > 0, matches!(fence, Fence::Spin { .. }), "{fence:?}");
    }
    // a wait that no watchdog of this machine would end is an error there
    let metal =
        Metal::with_fence(Arc::new(Emulator::new(Options::default()).unwrap()), Fence::Spin { looks: u32::MAX });
    assert!(crossings(&metal).unwrap_err().to_string().contains("did not end within 2 s"));
}

/// The fence's kernels and those that the exchanges of the self-test need, as one text.
fn kernels() -> String {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("kernels");
    std::fs::create_dir(&to).unwrap();
    for file in ["fence.metal", "rowwise.metal", "common.h", "params.h"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    join(&to).unwrap()
}

fn sleep(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Waits until a list that gave up skips its calls.
fn just_too_slow(_: usize, emulator: &Emulator) {
    let (skipped, start) = (emulator.skipped(), Instant::now());
    while emulator.skipped() == skipped && start.elapsed() < Duration::from_secs(1) {
        std::thread::yield_now();
    }
}

/// A few exchanges with what `library` has, by hosts that are in time, too slow for a wait, just too slow, and far too slow.
fn problem(library: &Library) -> Option<String> {
    let run = |looks, watchdog, calls, pause: fn(usize, &Emulator)| {
        let options = Options { caches: true, races: true, poison: true, watchdog, ..Options::default() };
        let emulator = Arc::new(Emulator::with(library.clone(), options));
        let metal = Metal::with_fence(emulator.clone(), Fence::Spin { looks });
        exchanges(&metal, 6, calls, &mut |exchange| pause(exchange, &emulator)).err()
    };
    let (long, short) = (Duration::from_secs(20), Duration::from_secs(1));
    // the first answer may be there before the wait is, the others come while it looks
    let found = run(u32::MAX, short, 0, |exchange, _| sleep(if exchange == 0 { 0 } else { 20 }))
        .or_else(|| {
            run(2, long, 0, move |exchange, _| {
                if exchange != 4 {
                    sleep(5)
                }
            })
        })
        .or_else(|| run(20_000, long, 150, just_too_slow))
        .or_else(|| {
            run(2, short, 0, move |exchange, _| {
                if exchange == 1 {
                    sleep(2000)
                }
            })
        });
    found.map(|error| error.to_string())
}

#[test]
fn every_part_of_the_fence_is_needed() {
    let (text, out) = (kernels(), tempfile::tempdir().unwrap());
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let made =
        |text: &str, name: &str| Library::load(&compile(text, Build::Races, &shim, out.path(), name).unwrap()).unwrap();
    assert_eq!(problem(&made(&text, "whole")), None);
    let fence = "    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, SYSTEM);\n";
    let without = |before: &str| (format!("{before}\n{fence}"), format!("{before}\n"));
    let plain = |pointer: &str| (format!("volatile coherent(system) {pointer}"), pointer.to_owned());
    let instead = |old: &str, new: &str| (old.to_owned(), new.to_owned());
    let barrier = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n";
    let gives_up = "if (come == 0 && words[EXPIRED] == 0) words[EXPIRED] = p.number;";
    let mutants = [
        ("partial sums stay in a cache", plain("device float *landing")),
        ("no fence behind partial sums", without("    if (i < p.count) landing[i] = partial[i];")),
        (
            "no fence between partial sums and the signal",
            without("                         constant SignalParams &p [[buffer(2)]]) {"),
        ),
        ("no fence behind the signal", without("    words[SIGNALLED] = p.number;")),
        (
            "the signal stays in a cache",
            plain("device uint *words [[buffer(1)]],\n                         constant SignalParams"),
        ),
        ("a sum comes from a cache", plain("device const float *answer")),
        (
            "the wait looks at a cache",
            plain("device uint *words [[buffer(1)]],\n                       device uint *counts"),
        ),
        ("no fence between looks", (format!("look++) {{\n        {fence}"), "look++) {\n".to_owned())),
        ("no fence behind giving up", (format!("{gives_up}\n    {fence}"), format!("{gives_up}\n"))),
        ("a wait without end", instead("&& look < p.looks", "")),
        ("a wait that does not wait", instead("int((answered - p.number) << 1) >= 0 ? 1 : 0", "true ? 1 : 0")),
        ("giving up is not said", instead(gives_up, "")),
        ("later calls run all the same", instead("come != 0 ? asked[word] : 0", "asked[word]")),
        ("later lists wait again", instead("bool waits = words[EXPIRED] == 0", "bool waits = true")),
        ("threads do not wait for the wait", instead(&format!("{barrier}    for (uint word"), "    for (uint word")),
        ("a sum is not fetched", instead("sum[i] = answer[i]", "sum[i] = 0")),
    ];
    let mut unneeded = Vec::new();
    for (number, (what, (old, new))) in mutants.iter().enumerate() {
        assert!(text.contains(old.as_str()), "{what}: the test no longer finds its place");
        let mutant = made(&text.replacen(old.as_str(), new, 1), &format!("mutant{number}"));
        match problem(&mutant) {
            Some(how) => println!("{what}: {how}"),
            None => unneeded.push(*what),
        }
    }
    assert!(unneeded.is_empty(), "nothing shows: {unneeded:?}");
}
