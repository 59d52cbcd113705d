//! A number that the GPU raises when commands have run, and the host waits for with a deadline.

use std::fmt;
use std::time::Duration;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLDevice, MTLSharedEvent};

use crate::error::{Error, Result};
use crate::gpu::Event;

/// Metal's shared event.
pub(super) struct SharedEvent(Retained<ProtocolObject<dyn MTLSharedEvent>>);

// SAFETY: Metal's shared events are made to be waited for and raised by any thread
unsafe impl Send for SharedEvent {}
// SAFETY: as above
unsafe impl Sync for SharedEvent {}

impl SharedEvent {
    pub(super) fn new(device: &ProtocolObject<dyn MTLDevice>) -> Result<Self> {
        device.newSharedEvent().map(Self).ok_or_else(|| Error::msg("the GPU gives no shared event"))
    }

    pub(super) fn metal(&self) -> &ProtocolObject<dyn MTLSharedEvent> {
        &self.0
    }
}

impl fmt::Debug for SharedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedEvent").finish_non_exhaustive()
    }
}

impl Event for SharedEvent {
    fn wait(&self, number: u64, patience: Duration) -> bool {
        let reached = || autoreleasepool(|_| self.0.signaledValue() >= number);
        // what is nearly there is not slept for
        if reached() || patience.is_zero() {
            return reached();
        }
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1);
        autoreleasepool(|_| self.0.waitUntilSignaledValue_timeoutMS(number, millis))
    }
}
