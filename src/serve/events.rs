//! A streamed answer: server-sent events, written as fast as they come and read as fast as the client likes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::record::Record;

/// The end of a stream that has gone well.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// What keeps proxies from calling the connection dead.
const ALIVE: &[u8] = b": keep-alive\n\n";

/// Bytes that may wait for a reader at most.
const WAITING: usize = 64 << 20;

enum Part {
    Bytes(Bytes),
    End,
}

/// Where events are put. What the client has not read waits.
pub(super) struct Writer {
    parts: UnboundedSender<Part>,
    waiting: Arc<AtomicUsize>,
}

impl Writer {
    pub(super) fn event(&self, value: &Value) {
        self.put(Bytes::from(format!("data: {value}\n\n")));
    }

    pub(super) fn done(&self) {
        self.put(Bytes::from_static(DONE));
    }

    pub(super) fn alive(&self) {
        self.put(Bytes::from_static(ALIVE));
    }

    pub(super) fn end(&self) {
        // one who has left needs no end
        let _ = self.parts.send(Part::End);
    }

    fn put(&self, bytes: Bytes) {
        self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        let _ = self.parts.send(Part::Bytes(bytes));
    }

    /// Whether more waits than a server should hold for one client.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > WAITING
    }

    /// Returns when the client has read all, or has left.
    pub(super) async fn closed(&self) {
        self.parts.closed().await;
    }
}

/// The reader's end, as a body.
struct Events {
    parts: UnboundedReceiver<Part>,
    waiting: Arc<AtomicUsize>,
    record: Arc<Record>,
    ended: bool,
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.parts.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Part::Bytes(bytes))) => {
                self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Part::End) | None) => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.ended {
            self.record.failed("the client left");
        }
    }
}

/// A stream that has not begun, and where to write it.
pub(super) fn stream(record: Arc<Record>) -> (Writer, Response) {
    let (sender, parts) = unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let writer = Writer { parts: sender, waiting: Arc::clone(&waiting) };
    let mut response = Response::new(Body::new(Events { parts, waiting, record, ended: false }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold events back
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (writer, response)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::serve::Desk;

    #[test]
    fn what_waits_is_counted_until_it_is_read() {
        let record = Record::begin("POST", "/", Desk::new(1, 1), Arc::new(|_| ()));
        let (writer, response) = stream(record);
        let half = Bytes::from(vec![0; WAITING / 2 + 1]);
        writer.put(half.clone());
        assert!(!writer.is_full());
        writer.put(half);
        assert!(writer.is_full());
        let mut body = response.into_body();
        let polled = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Some(Ok(_)))));
        assert!(!writer.is_full());
    }
}
