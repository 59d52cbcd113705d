//! An endpoint that does as it is told with what is to be sent.

use std::time::Instant;

use tbshard::error::Result;
use tbshard::transport::{Buffer, Endpoint, Polled};

/// What becomes of a message to a rank, given the endpoint that could send it.
type Sends = Box<dyn FnMut(&mut dyn Endpoint, usize, Buffer) -> Result<()> + Send>;

/// Whether a message is sent from where it lies.
type SendsNow = Box<dyn FnMut(&mut dyn Endpoint, usize, &[u8]) -> Result<bool> + Send>;

/// Another endpoint, but for what it sends.
pub struct Sending {
    inner: Box<dyn Endpoint>,
    sends: Sends,
    now: SendsNow,
}

impl Sending {
    pub fn by(
        inner: Box<dyn Endpoint>,
        sends: impl FnMut(&mut dyn Endpoint, usize, Buffer) -> Result<()> + Send + 'static,
    ) -> Box<dyn Endpoint> {
        Self::both_by(inner, sends, |_, _, _| Ok(false))
    }

    pub fn both_by(
        inner: Box<dyn Endpoint>,
        sends: impl FnMut(&mut dyn Endpoint, usize, Buffer) -> Result<()> + Send + 'static,
        now: impl FnMut(&mut dyn Endpoint, usize, &[u8]) -> Result<bool> + Send + 'static,
    ) -> Box<dyn Endpoint> {
        Box::new(Self { inner, sends: Box::new(sends), now: Box::new(now) })
    }
}

impl Endpoint for Sending {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> usize {
        self.inner.world_size()
    }
    fn peer(&self, rank: usize) -> String {
        self.inner.peer(rank)
    }
    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        (self.sends)(self.inner.as_mut(), peer, message)
    }
    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        self.inner.post_recv(peer, into)
    }
    fn send_now(&mut self, peer: usize, message: &[u8]) -> Result<bool> {
        (self.now)(self.inner.as_mut(), peer, message)
    }
    fn poll(&mut self, deadline: Instant) -> Polled {
        self.inner.poll(deadline)
    }
}
