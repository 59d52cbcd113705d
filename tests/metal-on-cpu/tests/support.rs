//! One call of a kernel on an emulator.

use std::sync::Arc;

use metal_on_cpu::compile::Build;
use metal_on_cpu::{Emulator, Library, Options, Order};
use tbshard::error::Result;
use tbshard::gpu::{Access, Argument, Buffer, Call, Device};

/// A call: what is read, what is written (with what is in it before), params, threadgroups and threads.
pub struct Work<'a> {
    pub name: &'a str,
    pub reads: &'a [&'a [u8]],
    pub write: &'a [u8],
    pub params: &'a [u8],
    pub groups: [u32; 3],
    pub threads: u32,
}

pub fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

pub fn buffer(device: &dyn Device, bytes: &[u8]) -> Arc<Buffer> {
    let buffer = device.allocate(bytes.len()).unwrap();
    // SAFETY: the buffer has room for them, and no kernel knows it yet
    unsafe { buffer.start().as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    Arc::new(buffer)
}

pub fn contents(buffer: &Buffer) -> Vec<u8> {
    // SAFETY: whoever calls this has waited for the kernels
    unsafe { std::slice::from_raw_parts(buffer.start().as_ptr(), buffer.len()) }.to_vec()
}

pub fn argument(buffer: &Arc<Buffer>, access: Access) -> Argument<'_> {
    Argument { buffer, bytes: 0..buffer.len(), access }
}

impl Work<'_> {
    /// What is written.
    pub fn run_on(&self, device: &dyn Device) -> Result<Vec<u8>> {
        let reads: Vec<_> = self.reads.iter().map(|bytes| buffer(device, bytes)).collect();
        let written = buffer(device, self.write);
        let mut arguments: Vec<_> = reads.iter().map(|buffer| argument(buffer, Access::Read)).collect();
        arguments.push(argument(&written, Access::Write));
        let (groups, threads) = (self.groups, [self.threads, 1, 1]);
        let kernel = device.kernel(self.name)?;
        let mut commands = device.commands()?;
        commands.dispatch(&Call {
            kernel,
            arguments: &arguments,
            params: self.params,
            groups,
            counts: None,
            threads,
        })?;
        commands.commit()?.wait()?;
        Ok(contents(&written))
    }

    /// The floats that are written, by every schedule alike.
    pub fn floats(&self) -> Vec<f32> {
        let run = |options| self.run_on(&Emulator::with(Library::kernels(Build::Fast).unwrap(), options)).unwrap();
        let first = run(Options::default());
        for options in schedules() {
            assert!(run(options) == first, "{} differs with {options:?}", self.name);
        }
        first.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
    }
}

/// Schedules that must not change any result; memory nobody has written is NaN in them.
pub fn schedules() -> impl Iterator<Item = Options> {
    let random = (1..4).map(Order::Random);
    let orders = [Order::Forward, Order::Reverse].into_iter().chain(random);
    orders.map(|order| Options {
        groups: order,
        threads: order,
        calls: order,
        strict: true,
        poison: true,
        workers: if order == Order::Reverse { 2 } else { 1 },
        ..Options::default()
    })
}

/// Random numbers of −1 to 1.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Whether `got` is `wanted` up to the error of sums in another order.
pub fn close(got: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len());
    for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let difference = (f64::from(*got) - wanted).abs();
        assert!(difference <= tolerance * (1.0 + wanted.abs()), "value {index}: {got} instead of {wanted}");
    }
}
