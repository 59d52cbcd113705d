//! What a GPU would do silently is an error here that names the kernel and the place.

use std::process::Command;
use std::sync::Arc;

use metal_on_cpu::{Emulator, Options, Order};
use tbshard::error::Result;
use tbshard::gpu::{Access, Argument, Buffer, Call, Device};

/// Values of a threadgroup.
const COUNT: usize = 128;

struct Calls {
    device: Emulator,
    x: Arc<Buffer>,
    y: Arc<Buffer>,
}

impl Calls {
    fn new(options: Options) -> Self {
        let device = Emulator::new(options);
        let buffer = || Arc::new(device.allocate(COUNT * 4).unwrap());
        let (x, y) = (buffer(), buffer());
        for i in 0..COUNT {
            // SAFETY: the buffer has so many values, and nothing runs
            unsafe { x.start().as_ptr().cast::<f32>().add(i).write(i as f32 - 50.5) };
        }
        Self { device, x, y }
    }

    fn arguments(&self) -> [Argument<'_>; 2] {
        let argument = |buffer, access| Argument { buffer, bytes: 0..COUNT * 4, access };
        [argument(&self.x, Access::Read), argument(&self.y, Access::Write)]
    }

    fn call(&self, name: &str, arguments: &[Argument<'_>]) -> Result<Vec<f32>> {
        let mut commands = self.device.commands()?;
        let params = (COUNT as u32).to_le_bytes();
        let kernel = self.device.kernel(name)?;
        let threads = [COUNT as u32, 1, 1];
        commands.dispatch(&Call { kernel, arguments, params: &params, groups: [1; 3], threads })?;
        commands.commit()?.wait()?;
        // SAFETY: so many values, and nothing runs
        Ok(unsafe { std::slice::from_raw_parts(self.y.start().as_ptr().cast::<f32>(), COUNT) }.to_vec())
    }

    fn run(&self, name: &str) -> Result<Vec<f32>> {
        self.call(name, &self.arguments())
    }
}

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Shuffled(2), Order::Shuffled(9)];

fn in_order(order: Order) -> Options {
    Options { order, ..Options::default() }
}

fn error(result: Result<Vec<f32>>) -> String {
    result.expect_err("a mistake").to_string()
}

#[test]
fn a_right_kernel_is_right_in_every_order() {
    let expected: Vec<f32> = (0..COUNT).rev().map(|i| i as f32 - 50.5).collect();
    for order in ORDERS {
        for options in [in_order(order), Options { isolated: true, late: true, order }] {
            assert_eq!(Calls::new(options).run("shifted").unwrap(), expected);
        }
    }
}

#[test]
fn a_missing_barrier_shows_in_the_result() {
    let expected = Calls::new(Options::default()).run("shifted").unwrap();
    for order in ORDERS {
        let found = Calls::new(in_order(order)).run("mistake_no_barrier").unwrap();
        assert!(found.iter().zip(&expected).any(|(a, b)| a != b), "{order:?}");
    }
}

#[test]
fn threads_that_part_ways_are_a_deadlock_with_both_places() {
    for order in ORDERS {
        let said = error(Calls::new(in_order(order)).run("mistake_divergent_barrier"));
        assert!(said.contains("a deadlock") && said.contains("mistake_divergent_barrier"), "{said}");
        assert_eq!(said.matches("mistakes.in.cpp:").count(), 2, "{said}");
        let said = error(Calls::new(in_order(order)).run("mistake_divergent_sum"));
        assert!(said.contains("lanes of one SIMD-group wait at"), "{said}");
    }
}

#[test]
fn threadgroup_memory_is_bounded_and_uninitialised() {
    let said = error(Calls::new(Options::default()).run("mistake_too_much_memory"));
    assert!(said.contains("threadgroup variables of 32784 bytes"), "{said}");
    let found = Calls::new(Options::default()).run("mistake_uninitialised").unwrap();
    assert!(found[COUNT - 1].is_nan() && found[..COUNT - 1].iter().all(|value| !value.is_nan()));
}

#[test]
fn what_is_declared_is_what_is_touched() {
    let calls = Calls::new(Options { isolated: true, ..Options::default() });
    let said = error(calls.run("mistake_writes_what_it_reads"));
    assert!(said.contains("it wrote to buffer 0"), "{said}");
    let mut swapped = calls.arguments();
    swapped.swap(0, 1);
    let said = error(calls.call("shifted", &swapped));
    assert!(said.contains("it only reads buffer 0"), "{said}");
    let [x, mut same] = calls.arguments();
    same.buffer = &calls.x;
    let said = error(calls.call("shifted", &[x, same]));
    assert!(said.contains("arguments of `shifted` overlap"), "{said}");
    let [mut x, y] = calls.arguments();
    x.bytes = 0..COUNT * 4 + 4;
    let said = error(calls.call("shifted", &[x, y]));
    assert!(said.contains("bytes 0..516 of a buffer of 512"), "{said}");
    let said = error(calls.call("shifted", &calls.arguments()[..1]));
    assert!(said.contains("1 buffers"), "{said}");
    assert!(calls.device.kernel("nothing").is_err());
}

#[test]
fn calls_that_need_a_barrier_between_them_are_refused() {
    let calls = Calls::new(Options::default());
    let (params, kernel) = ((COUNT as u32).to_le_bytes(), calls.device.kernel("shifted").unwrap());
    let arguments = calls.arguments();
    let call = Call { kernel, arguments: &arguments, params: &params, groups: [1; 3], threads: [COUNT as u32, 1, 1] };
    let mut commands = calls.device.commands().unwrap();
    commands.dispatch(&call).unwrap();
    let said = commands.dispatch(&call).unwrap_err().to_string();
    assert!(said.contains("no barrier between `shifted` and `shifted`"), "{said}");
    commands.barrier();
    commands.dispatch(&call).unwrap();
    commands.commit().unwrap().wait().unwrap();
}

#[test]
fn nothing_runs_before_somebody_waits_if_it_may_be_late() {
    let calls = Calls::new(Options { late: true, ..Options::default() });
    let (params, kernel) = ((COUNT as u32).to_le_bytes(), calls.device.kernel("shifted").unwrap());
    let arguments = calls.arguments();
    let mut commands = calls.device.commands().unwrap();
    let call = Call { kernel, arguments: &arguments, params: &params, groups: [1; 3], threads: [COUNT as u32, 1, 1] };
    commands.dispatch(&call).unwrap();
    let pending = commands.commit().unwrap();
    assert!(!pending.done());
    // SAFETY: so many values, and nothing runs
    let first = || unsafe { calls.y.start().as_ptr().cast::<f32>().read() };
    assert_eq!(first(), 0.0);
    pending.wait().unwrap();
    assert!(pending.done() && first() == COUNT as f32 - 51.5);
}

#[test]
#[ignore = "ends its process: for the next test"]
fn reads_beyond_the_end() {
    _ = Calls::new(Options { isolated: true, ..Options::default() }).run("mistake_beyond_the_end");
}

#[test]
fn an_access_beyond_an_argument_names_the_kernel_and_ends_the_process() {
    let arguments = ["reads_beyond_the_end", "--exact", "--ignored", "--nocapture"];
    let child = Command::new(std::env::current_exe().unwrap()).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&child.stderr).into_owned();
    assert!(!child.status.success());
    assert!(said.contains("kernel `mistake_beyond_the_end` touched memory outside of its arguments"), "{said}");
}
