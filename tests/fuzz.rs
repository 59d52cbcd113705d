//! Random damage: reading it has to return, to reserve no more than there is to read, and to accept nothing that lies.
//!
//! The cases are the same on every run; `TBSHARD_FUZZ_SECONDS` (20, shared out over the tests) says how many are tried.

pub mod allocations;
mod checkpoints;
mod clusters;
mod configs;
mod headers;
mod mutation;
mod vocabularies;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tbshard::error::Error;

/// Cases that one seed gives.
const BATCH: u32 = 64;

/// Whether a case was accepted; if neither that nor refusing it was right, what is wrong.
type Outcome = Result<bool, TestCaseError>;

/// Tries `test` on values of `strategy` for its share of the time. Some of them have to be accepted and some refused.
#[allow(clippy::disallowed_methods, reason = "tests are configured by the environment")]
fn fuzz<S: Strategy>(share: f64, strategy: S, test: impl Fn(S::Value) -> Outcome) {
    let seconds = std::env::var("TBSHARD_FUZZ_SECONDS").map_or(20.0, |text| text.parse::<f64>().unwrap());
    let end = Instant::now() + Duration::from_secs_f64(seconds * share);
    let (accepted, mut batch) = (Cell::new(0_u64), 0_u64);
    while batch == 0 || Instant::now() < end {
        let seed = [batch.to_le_bytes(); 4].concat();
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let config = Config {
            cases: BATCH,
            failure_persistence: None,
            max_shrink_iters: 10_000,
            max_shrink_time: 10_000,
            ..Config::default()
        };
        let counted = |value| test(value).map(|ok| accepted.set(accepted.get() + u64::from(ok)));
        let result = TestRunner::new_with_rng(config, rng).run(&strategy, counted);
        result.unwrap_or_else(|error| panic!("batch {batch}: {error}"));
        batch += 1;
    }
    let (cases, accepted) = (batch * u64::from(BATCH), accepted.get());
    println!("{cases} cases, {accepted} accepted");
    assert!(accepted > 0 && accepted < cases, "{accepted} of {cases} cases were accepted: nothing was tried");
}

/// A refusal is one line with a hint.
fn check_refusal(error: &Error) -> Outcome {
    let line = error.to_string();
    if line.contains('\n') || line.is_empty() || error.hint_text().is_none() {
        return Err(TestCaseError::fail(format!("not one line with a hint: {error:?}")));
    }
    Ok(false)
}

/// Runs `read`, which may neither take long nor ask for more than `most` bytes at once.
fn watch<T>(most: usize, read: impl FnOnce() -> T) -> Result<T, TestCaseError> {
    let started = Instant::now();
    let (result, largest) = allocations::largest(read);
    if largest > most {
        return Err(TestCaseError::fail(format!("{largest} bytes were reserved at once")));
    }
    if started.elapsed() > Duration::from_secs(5) {
        return Err(TestCaseError::fail(format!("it took {:?}", started.elapsed())));
    }
    Ok(result)
}
