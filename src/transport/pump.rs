//! Waiting for a completion: the one loop of the stream fabrics (shared memory, TCP).

use std::time::{Duration, Instant};

use super::backoff::{Backoff, Spin, Step};
use super::mail::Ready;
use super::{LinkError, Polled};

/// What a stream fabric does while somebody waits.
pub(super) trait Pump {
    /// Its completions.
    fn ready(&mut self) -> &mut Ready;
    /// How long it spins.
    fn spin(&mut self) -> &mut Spin;
    /// Moves what can be moved. Returns whether anything was.
    fn progress(&mut self) -> bool;
    /// Finds a peer that is gone and still wanted. Called after nothing moved.
    fn check(&mut self) -> Result<(), LinkError>;
    /// Sleeps until something may have happened, at most for `nap`. Returns whether something moved instead.
    fn park(&mut self, nap: Duration) -> bool;
}

/// The next completion of a stream fabric: [`super::Endpoint::poll`].
#[inline]
pub(super) fn poll(fabric: &mut impl Pump, deadline: Instant) -> Polled {
    let mut backoff = Backoff::new(*fabric.spin(), deadline);
    loop {
        if let Some(done) = fabric.ready().pop() {
            *fabric.spin() = backoff.reset();
            return Ok(Some(done));
        }
        let moved = fabric.progress();
        if !fabric.ready().is_empty() {
            continue;
        }
        if moved {
            backoff.reset();
        } else {
            fabric.check()?;
        }
        match backoff.step() {
            Step::Again => {}
            Step::Park(nap) => {
                if fabric.park(nap) {
                    backoff.reset();
                }
            }
            Step::Over => return Ok(fabric.ready().pop()),
        }
    }
}
