//! Ctrl-C: the first ends the answer, one more (or one while there is no answer) the program.

use std::sync::atomic::{AtomicBool, Ordering};

use super::INTERRUPTED;
use crate::error::{Error, Result};

static ANSWERING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Starts listening. Must be called once.
///
/// # Errors
/// If the signal cannot be caught.
pub(super) fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if !ANSWERING.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .map_err(Error::from_std)
}

/// While this lives, Ctrl-C only asks; [`Answering::interrupted`] tells.
pub(super) struct Answering(());

impl Answering {
    pub(super) fn begin() -> Self {
        ASKED.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        Self(())
    }

    pub(super) fn interrupted(&self) -> bool {
        ASKED.load(Ordering::SeqCst)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, Ordering::SeqCst);
    }
}
