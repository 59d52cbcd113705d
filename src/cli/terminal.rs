//! The terminal while the user is asked: an editor has made it raw, and however the program ends it must not stay so.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ends what an editor has begun: pasted text would come in brackets for ever.
const NO_BRACKETED_PASTE: &[u8] = b"\x1b[?2004l\n";

static ASKING: AtomicBool = AtomicBool::new(false);
// as it was before the editor; none if it is no terminal
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While this lives, the main thread waits for the user and notices nothing else.
pub(super) struct Asking(());

impl Asking {
    pub(super) fn begin() -> Self {
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = tcgetattr(std::io::stdin()).ok();
        ASKING.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKING.store(false, Ordering::SeqCst);
    }
}

/// Waits until the user is asked, at most for `patience`.
pub(super) fn await_asking(patience: Duration) {
    let until = Instant::now() + patience;
    while !ASKING.load(Ordering::SeqCst) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Leaves the terminal as it was before the user was asked, at the beginning of a line.
pub(super) fn restore() {
    if !ASKING.load(Ordering::SeqCst) {
        return;
    }
    if let Some(before) = &*BEFORE.lock().unwrap_or_else(PoisonError::into_inner) {
        // a terminal that is gone needs nothing
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, before);
        let _ = std::io::stdout().write_all(NO_BRACKETED_PASTE).and_then(|()| std::io::stdout().flush());
    }
}
