//! A panic as an error, so that the other ranks are told and the exit code is the house's.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use crate::error::{Error, Result};

/// Runs `work`; a panic in it is an error. What it was working on must not be used again, other than to end.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::panicked(text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
