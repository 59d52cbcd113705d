//! Independent pieces of work, shared among threads; the first that fails ends the rest.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, scope};

use crate::error::{Error, Result};

/// Does the jobs `0..count` on `threads` threads, this one among them. Each thread has memory of its own to work in.
///
/// # Errors
/// That of the first job that failed.
pub(super) fn in_parallel<S: Default>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut S) -> Result<()> + Sync,
) -> Result<()> {
    let (next, failure) = (AtomicUsize::new(0), OnceLock::<Error>::new());
    let worker = || {
        let mut scratch = S::default();
        while failure.get().is_none() {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= count {
                break;
            }
            if let Err(error) = work(job, &mut scratch) {
                // only the first is told
                let _ = failure.set(error);
            }
        }
    };
    scope(|scope| {
        for _ in 1..threads.min(count) {
            // where the system refuses a thread, the others do its work
            let _ = Builder::new().name("tbshard-quantise".to_owned()).spawn_scoped(scope, worker);
        }
        worker();
    });
    failure.into_inner().map_or(Ok(()), Err)
}
