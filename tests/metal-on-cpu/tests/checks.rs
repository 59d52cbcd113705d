//! Every check of the emulator finds the mistake that it is for.

use metal_on_cpu::compile::Build;
use metal_on_cpu::{Emulator, Library, Options, Order};
use tbshard::gpu::{Access, Argument, Call, Device};

use crate::support::{Work, argument, buffer, bytes, contents, random, schedules};

fn strict() -> Emulator {
    Emulator::with(Library::mistakes(Build::Fast).unwrap(), Options { strict: true, ..Options::default() })
}

/// What becomes of a kernel of one threadgroup.
fn run(name: &str, options: Options, params: &[u8]) -> Result<Vec<f32>, String> {
    let x = random(1, 64);
    let work = Work { name, reads: &[bytes(&x)], write: &[0; 256], params, groups: [1; 3], threads: 64 };
    let result = work
        .run_on(&Emulator::with(Library::mistakes(Build::Fast).unwrap(), options))
        .map_err(|error| error.to_string());
    result.map(|bytes| bytes.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
}

/// The kernel fails by every schedule and says so; `LINE n` is the n-th line after its first.
fn fails(name: &str, parts: &[&str]) {
    let source = include_str!("../mistakes/mistakes.metal");
    let first = 1 + source.lines().position(|line| line.contains(&format!("void {name}("))).unwrap();
    let line = |n: usize| (format!("LINE {n}"), format!("mistakes/mistakes.metal:{}", first + n));
    let parts: Vec<String> = parts
        .iter()
        .map(|part| (1..9).map(line).fold((*part).to_owned(), |text, (from, to)| text.replace(&from, &to)))
        .collect();
    for options in schedules() {
        let problem = run(name, options, &[]).unwrap_err();
        for part in [format!("kernel `{name}`")].iter().chain(&parts) {
            assert!(problem.contains(part), "{problem}\ndoes not say\n{part}");
        }
    }
}

#[test]
fn a_missing_barrier_changes_what_comes_out() {
    for name in ["no_barrier", "no_barrier_at_the_end"] {
        let results: Vec<_> = schedules().map(|options| run(name, options, &[]).unwrap()).collect();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(results.iter().any(|result| bits(result) != bits(&results[0])), "{name}");
    }
    let x = random(1, 64);
    let wanted: Vec<f32> = (0..64).map(|i| x[63 - i] + (x[63 - i] + 1.0)).collect();
    for options in schedules() {
        assert_eq!(run("mirror", options, &[]).unwrap(), wanted);
    }
}

#[test]
fn threads_that_wait_apart_are_named() {
    let stuck = ["20 threads at threadgroup_barrier (LINE 2)", "12 threads at simd_sum (LINE 3)", "32 threads at"];
    fails("barrier_for_some", &stuck);
    fails("barriers_apart", &["threadgroup_barrier (LINE 3)", "threadgroup_barrier (LINE 5)"]);
    fails("ends_before_barrier", &["1 threads have ended", "threadgroup_barrier (LINE 3)"]);
    fails("sum_of_some", &["simd_sum (LINE 3)", "simd_max (LINE 4)"]);
}

#[test]
fn what_a_kernel_may_not_touch_stops_it() {
    fails("reads_behind", &["thread 63 reads byte 256 of argument 0", "at LINE 2"]);
    fails("writes_before", &["writes byte", "of argument 1", "at LINE 2"]);
    fails("writes_what_it_reads", &["writes byte", "of argument 0"]);
    fails("overflows_its_stack", &["where there is no buffer"]);
    let params = run("reads_params_behind", Options::default(), &[0; 8]).unwrap_err();
    assert!(params.contains("where there is no buffer"), "{params}");
}

#[test]
fn an_emulator_goes_on_after_a_kernel_that_was_stopped() {
    let device = strict();
    let x = random(1, 64);
    let reads = [bytes(&x)];
    let work = |name| Work { name, reads: &reads, write: &[0; 256], params: &[], groups: [1; 3], threads: 64 };
    for name in ["reads_behind", "barrier_for_some", "sum_of_some"] {
        work(name).run_on(&device).unwrap_err();
        assert_eq!(work("copy").run_on(&device).unwrap(), bytes(&x));
    }
}

#[test]
fn an_address_in_a_table_leads_to_what_is_named_or_adopted() {
    let device = strict();
    let values = random(1, 64);
    let (elsewhere, y) = (buffer(&device, bytes(&values)), buffer(&device, &[0; 256]));
    let (adopted, start) = device.adopt(&bytes::Bytes::copy_from_slice(bytes(&values))).unwrap();
    let go = |address: u64| {
        let table = buffer(&device, bytes(&[address]));
        let arguments = [argument(&table, Access::Read), argument(&y, Access::Write)];
        let kernel = device.kernel("goes_elsewhere").unwrap();
        let mut commands = device.commands().unwrap();
        let call =
            Call { kernel, arguments: &arguments, params: &[], groups: [1; 3], counts: None, threads: [64, 1, 1] };
        commands.dispatch(&call).unwrap();
        commands.commit().unwrap().wait()
    };
    let problem = go(elsewhere.address()).unwrap_err().to_string();
    assert!(problem.contains("reads byte 0 of a buffer that it was not given"), "{problem}");
    go(adopted.address() + start as u64).unwrap();
    assert_eq!(contents(&y), bytes(&values));
}

#[test]
fn threadgroup_memory_is_short_and_not_zeroed() {
    fails("too_much_memory", &["32784 bytes of threadgroup memory with `second`"]);
    for options in schedules() {
        assert!(run("adds_to_nothing", options, &[]).unwrap().iter().all(|value| value.is_nan()));
    }
}

#[test]
fn fresh_memory_is_zero_or_poison() {
    let fresh = |poison| {
        let device = Emulator::new(Options { poison, ..Options::default() }).unwrap();
        contents(&device.allocate(100).unwrap())
    };
    assert_eq!(fresh(false), [0; 100]);
    assert_eq!(fresh(true), [0xff; 100]);
}

#[test]
fn calls_that_touch_the_same_bytes_need_a_barrier() {
    let device = strict();
    let (a, b, c) = (buffer(&device, &[1; 512]), buffer(&device, &[2; 512]), buffer(&device, &[3; 512]));
    let kernel = device.kernel("copy").unwrap();
    let part = |buffer, access, start| Argument { buffer, bytes: start..start + 256, access };
    let copies = |pairs: [(_, _, _, _); 2], barrier: bool| {
        let mut commands = device.commands().unwrap();
        for (from, from_start, to, to_start) in pairs {
            let arguments = [part(from, Access::Read, from_start), part(to, Access::Write, to_start)];
            let call =
                Call { kernel, arguments: &arguments, params: &[], groups: [1; 3], counts: None, threads: [64, 1, 1] };
            commands.dispatch(&call)?;
            if barrier {
                commands.barrier();
            }
        }
        commands.commit()?.wait()
    };
    let after = [(&a, 0, &b, 0), (&b, 128, &c, 0)];
    let problem = copies(after, false).unwrap_err().to_string();
    assert!(
        problem.contains("no barrier between kernel `copy`, whose argument 1 is written, and kernel `copy`"),
        "{problem}"
    );
    copies(after, true).unwrap();
    copies([(&a, 0, &b, 0), (&b, 256, &c, 0)], false).unwrap();
    copies([(&a, 0, &b, 0), (&a, 128, &c, 0)], false).unwrap();
    copies([(&a, 0, &b, 0), (&c, 0, &a, 0)], false).unwrap_err();
    copies([(&a, 0, &b, 0), (&c, 0, &b, 4)], false).unwrap_err();
}

#[test]
fn a_call_fits_its_kernel() {
    let device = strict();
    let (x, y) = (buffer(&device, &[0; 256]), buffer(&device, &[0; 256]));
    let kernel = device.kernel("copy").unwrap();
    let call = |access, params: &[u8], groups: u32, threads: u32| {
        let arguments = [argument(&x, Access::Read), argument(&y, access)];
        let call = Call {
            kernel,
            arguments: &arguments,
            params,
            groups: [groups, 1, 1],
            counts: None,
            threads: [threads, 1, 1],
        };
        device.commands().unwrap().dispatch(&call).map_err(|error| error.to_string())
    };
    call(Access::Write, &[], 1, 64).unwrap();
    assert!(call(Access::Read, &[], 1, 64).unwrap_err().contains("it may write argument 1"));
    assert!(call(Access::Write, &[0; 4], 1, 64).unwrap_err().contains("3 buffers are bound"));
    assert!(call(Access::Write, &[], 0, 64).unwrap_err().contains("without threadgroups"));
    assert!(call(Access::Write, &[], 1, 1025).unwrap_err().contains("1025 threads"));
    assert!(device.kernel("none").is_err());
}

#[test]
fn calls_threadgroups_and_threads_come_in_the_order_that_is_asked_for() {
    let order = |order: Order| {
        let options = Options { calls: order, groups: order, threads: order, ..Options::default() };
        let device = Emulator::with(Library::mistakes(Build::Fast).unwrap(), options);
        let log = buffer(&device, &[0; 1024]);
        let table = buffer(&device, bytes(&[log.address()]));
        let kernel = device.kernel("note").unwrap();
        let mut commands = device.commands().unwrap();
        for call in 0_u32..3 {
            let arguments = [argument(&table, Access::Read)];
            let params = bytes(std::slice::from_ref(&call));
            let call =
                Call { kernel, arguments: &arguments, params, groups: [2, 1, 1], counts: None, threads: [40, 1, 1] };
            commands.dispatch(&call).unwrap();
        }
        commands.commit().unwrap().wait().unwrap();
        let log: Vec<u32> = contents(&log).as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect();
        assert_eq!(log[0], 240);
        log[1..241].to_vec()
    };
    let forward: Vec<u32> = (0..3).flat_map(|call| (0..80).map(move |thread| call * 1000 + thread)).collect();
    assert_eq!(order(Order::Forward), forward);
    assert_eq!(order(Order::Reverse), forward.iter().rev().copied().collect::<Vec<_>>());
    let [one, other, again] = [1, 2, 1].map(|seed| order(Order::Random(seed)));
    assert!(one != forward && one != other && one == again);
    let mut sorted = one;
    sorted.sort_unstable();
    assert_eq!(sorted, forward);
}
