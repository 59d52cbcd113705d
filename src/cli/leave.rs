//! The ways out of this process: whichever it takes, what RDMA devices gave it is given back first.

use std::ffi::c_int;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;

use super::{terminal, ui};
use crate::error::{Error, Result};
use crate::transport::{ignores, verbs};

/// How long that may take: an agent kills what has not ended two seconds after it was asked.
const CLOSING: Duration = Duration::from_secs(1);

/// Gives back what RDMA devices gave, also what another thread uses: there is no way back from here.
pub(super) fn close() {
    if !verbs::close(CLOSING) {
        ui::whisper(
            "a call to an RDMA device does not return: what it gave may be free only when this machine restarts",
        );
    }
}

/// Ends this process from a thread that cannot return from `main`.
#[allow(clippy::exit, reason = "there is nobody to return to")]
pub(super) fn leave(code: u8) -> ! {
    close();
    std::process::exit(i32::from(code))
}

/// Calls `act` in a thread of its own with each of these signals.
pub(super) fn on(signals: &[c_int], act: impl Fn(c_int) + Send + 'static) -> Result<()> {
    let wrong = |error: std::io::Error| Error::from_std(error).context("cannot listen to signals");
    let mut signals = Signals::new(signals).map_err(wrong)?;
    let listen = move || signals.forever().for_each(act);
    std::thread::Builder::new().name("tbshard-signals".to_owned()).spawn(listen).map_err(wrong)?;
    Ok(())
}

/// Lets the signals that end a program end this one no sooner than that; `draining` is for one that hears SIGTERM itself.
pub(super) fn listen(draining: bool) -> Result<()> {
    let elsewhere = |signal: &c_int| ignores(*signal) || (draining && *signal == SIGTERM);
    let ending = [SIGTERM, SIGHUP].into_iter().filter(|signal| !elsewhere(signal));
    on(&ending.collect::<Vec<_>>(), |signal| {
        terminal::restore();
        close();
        // ends this process as if nobody had listened
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    })
}
