//! What a device gives: bytes a second, and the time from asking to having.

use std::time::{Duration, Instant};

use super::operands::Numbered;
use crate::backend::Backend;
use crate::error::Result;
use crate::partition::{Fold, Leaves};

/// A weight that no cache holds: 256 MiB in bf16.
const SHAPE: (usize, usize) = (8192, 16384);
/// How long is measured.
const LONG: Duration = Duration::from_millis(500);
/// Round trips.
const TRIPS: usize = 200;

/// Bytes of a bf16 weight that are read a second for one token; the best of some.
///
/// # Errors
/// If the device fails.
pub fn bandwidth(backend: &dyn Backend) -> Result<f64> {
    let (out, inner) = SHAPE;
    let w = Numbered::ones(out, inner)?;
    let x = backend.upload(Numbered::new(2).tensor(1, inner)?);
    let fold = Fold::whole(Leaves::unsharded(inner));
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    while began.elapsed() < LONG {
        let start = Instant::now();
        let y = backend.linear(&x, &w, &fold)?;
        backend.finish()?;
        drop(y);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(w.bytes() as f64 / best)
}

/// Seconds from asking for a small operation to having its result, as an all_reduce crosses from the device to the host and
/// back: the median.
///
/// # Errors
/// If the device fails.
pub fn crossing(backend: &dyn Backend) -> Result<f64> {
    let mut x = backend.upload(Numbered::new(3).tensor(1, 256)?);
    let y = backend.upload(Numbered::new(4).tensor(1, 256)?);
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        backend.add(&mut x, &y);
        backend.finish()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TRIPS / 2])
}
