//! How fast this machine's cores together read memory: what decoding is bound by.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::error::{Error, Result};

/// 64-bit words that a thread reads, 128 MiB: many times its part of the largest caches there are.
const WORDS: usize = 1 << 24;

/// Passes over them; the fastest counts, because the others were disturbed.
const PASSES: usize = 5;

/// Bytes a second that `threads` threads together read from memory: each sums the words of 128 MiB of its own, which it wrote
/// itself before, from the first to the last; the fastest of five passes.
///
/// # Errors
/// If there is no memory for it.
pub(super) fn memory_bandwidth(threads: usize) -> Result<f64> {
    let barrier = Barrier::new(threads);
    let read = |index: usize| {
        let mut part: Vec<u64> = Vec::new();
        let reserved = part.try_reserve_exact(WORDS);
        if reserved.is_ok() {
            // pages that were never written are all the same one
            part.resize(WORDS, index as u64 + 1);
        }
        let mut fastest = f64::INFINITY;
        for _ in 0..PASSES {
            barrier.wait();
            let start = Instant::now();
            black_box(black_box(&part).iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
            barrier.wait();
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        reserved.map(|()| fastest)
    };
    let times: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (1..threads).map(|index| scope.spawn(move || read(index))).collect();
        let own = read(0);
        std::iter::once(own).chain(started.into_iter().filter_map(|thread| thread.join().ok())).collect()
    });
    let times: std::result::Result<Vec<f64>, _> = times.into_iter().collect();
    let slowest = times.map_err(|_| {
        let error = Error::msg("there is no memory to measure its bandwidth with, 128 MiB a core");
        error.hint("end other programs, or measure only prompts with --tg 0")
    })?;
    Ok((WORDS * threads * size_of::<u64>()) as f64 / slowest.into_iter().fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_one() {
        for threads in [1, 3] {
            let bandwidth = memory_bandwidth(threads).unwrap();
            // a slow disk and no machine yet
            assert!((1e8..1e13).contains(&bandwidth), "{bandwidth}");
        }
    }
}
