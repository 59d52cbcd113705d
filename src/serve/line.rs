//! The bytes of a connection: who does not take what is written for too long is let go.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use super::Rules;

/// What a connection is told from inside.
#[derive(Clone, Default)]
pub(super) struct Closer(Arc<Told>);

#[derive(Default)]
struct Told {
    close: Notify,
    patient: AtomicBool,
}

impl Closer {
    pub(super) fn close(&self) {
        self.0.close.notify_one();
    }

    pub(super) async fn closed(&self) {
        self.0.close.notified().await;
    }

    /// Whether what is written now is an answer, which may be read slowly.
    pub(super) fn be_patient(&self, patient: bool) {
        self.0.patient.store(patient, Ordering::Relaxed);
    }
}

/// How long writing may stand still.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) answer: Duration,
    pub(super) other: Duration,
}

impl Patience {
    pub(super) fn of(rules: &Rules) -> Self {
        Self { answer: rules.request, other: rules.patience }
    }
}

/// A stream whose writes fail when they have waited for too long.
pub(super) struct Line {
    stream: TcpStream,
    closer: Closer,
    patience: Patience,
    // until when, if it stands still
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Line {
    pub(super) fn new(stream: TcpStream, closer: Closer, patience: Patience) -> Self {
        Self { stream, closer, patience, stalled: None }
    }

    fn bound<T>(&mut self, context: &mut Context<'_>, polled: Poll<Result<T>>) -> Poll<Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let patient = self.closer.0.patient.load(Ordering::Relaxed);
        let bound = if patient { self.patience.answer } else { self.patience.other };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(bound)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "nothing of it was read")))
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bound(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bound(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // a socket keeps nothing back
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
