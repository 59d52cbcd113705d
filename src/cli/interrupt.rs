//! Ctrl-C: the first ends the answer, one more (or one while there is no answer) the program.

use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;

use super::leave::{leave, on};
use super::{INTERRUPTED, ui};
use crate::error::{Error, Result};

static ANSWERING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);
static STAYING: AtomicBool = AtomicBool::new(false);

/// Starts listening. Must be called once.
///
/// # Errors
/// If the signal cannot be caught.
pub(super) fn listen() -> Result<()> {
    on(&[SIGINT], |_| {
        let again = !ANSWERING.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst);
        if again && STAYING.load(Ordering::SeqCst) {
            ui::whisper("/quit leaves");
        } else if again {
            leave(INTERRUPTED);
        }
    })
}

/// From now on Ctrl-C never ends the program: a conversation would be lost.
pub(super) fn stay() {
    STAYING.store(true, Ordering::SeqCst);
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

    /// Fails when the user asked to end.
    pub(super) fn check(&self) -> Result<()> {
        if self.interrupted() { Err(Error::interrupted()) } else { Ok(()) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, Ordering::SeqCst);
    }
}
