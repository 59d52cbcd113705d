//! The endpoints that ask the model: a body becomes jobs, and their updates an object or a stream.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, Request, header};
use axum::response::Response;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::desk::{Held, News};
use super::events::{Writer, stream};
use super::health::now;
use super::line::Closer;
use super::record::Record;
use super::refuse::{BAD, TOO_LARGE, TOO_SLOW, UNSUPPORTED, failed, late, lost, object, respond};
use super::routes::Server;
use crate::api::{Endpoint, Order, Refusal, Reply, Stamp, prepare};
use crate::engine::Update;

/// How long a stream waits for the first news, so that what goes wrong at once has its status.
const FIRST: Duration = Duration::from_millis(500);

/// How long a stream says nothing.
const SILENT: Duration = Duration::from_secs(10);

/// How long the end of a stream may take to be read, however late it is.
const PARTING: Duration = Duration::from_secs(10);

/// Answers a request.
pub(super) async fn answer(server: Arc<Server>, endpoint: Endpoint, request: Request<Body>) -> Response {
    let record = request.extensions().get::<Arc<Record>>().cloned();
    let closer = request.extensions().get::<Closer>().cloned();
    let (Some(record), Some(closer)) = (record, closer) else { return respond(&failed("nobody records this")) };
    match try_answer(server, endpoint, request, &record, closer.clone()).await {
        Ok(response) => {
            closer.be_patient(true);
            response
        }
        Err(refusal) => {
            record.refused(&refusal);
            respond(&refusal)
        }
    }
}

async fn try_answer(
    server: Arc<Server>,
    endpoint: Endpoint,
    request: Request<Body>,
    record: &Arc<Record>,
    closer: Closer,
) -> Result<Response, Refusal> {
    // before the body is read: what cannot be answered need not be sent
    let texts = server.desk.admit()?;
    let (head, body) = request.into_parts();
    is_json(&head.headers)?;
    let bytes = timeout(server.rules.patience, read(body, server.rules.max_body)).await;
    let bytes = bytes.map_err(|_| Refusal::new(TOO_SLOW, "the body did not come in time"))??;
    let deadline = Instant::from_std(record.begun() + server.rules.request);
    let stamp = stamp(endpoint)?;
    // long texts take their time to become tokens
    let prepared = tokio::task::spawn_blocking(move || {
        let body: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Refusal::new(BAD, format!("the body is not JSON: {error}")).code("invalid_json"))?;
        prepare(endpoint, &body, &texts, &stamp)
    });
    let Order { jobs, reply } = prepared.await.map_err(failed)??;
    record.note().prompt_tokens = jobs.iter().map(|job| job.prompt.len()).sum();
    let held = server.desk.submit(jobs)?;
    let mut pump = Pump { reply, held, record: Arc::clone(record), deadline };
    if !pump.reply.stream() {
        while !pump.reply.is_done() {
            let news = pump.news().await?;
            pump.take(news)?;
        }
        return Ok(object(&pump.reply.whole()));
    }
    let first = match timeout(FIRST, pump.news()).await {
        Ok(news) => Some(pump.take(news?)?),
        Err(_) => None,
    };
    let (writer, response) = stream(Arc::clone(record));
    first.into_iter().flatten().for_each(|chunk| writer.event(&chunk));
    tokio::spawn(pump.run(writer, closer));
    Ok(response)
}

fn is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let what = if kind.is_empty() { "has none".to_owned() } else { format!("is {kind}") };
    Err(Refusal::new(UNSUPPORTED, format!("the content type must be application/json; this request's {what}")))
}

/// The whole body, if it is not too long.
async fn read(mut body: Body, most: usize) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::new(TOO_LARGE, format!("the body has more than {most} bytes")).code("too_large");
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| Refusal::new(BAD, format!("the body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Bytes::from(bytes))
}

/// A name for the answer, and when it was asked for.
fn stamp(endpoint: Endpoint) -> Result<Stamp, Refusal> {
    let mut random = [0_u8; 12];
    getrandom::fill(&mut random).map_err(failed)?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Stamp::new(endpoint, &hex, now()))
}

/// A reply and what it is fed with.
struct Pump {
    reply: Reply,
    held: Held,
    record: Arc<Record>,
    deadline: Instant,
}

impl Pump {
    /// The next news, in time.
    async fn news(&mut self) -> Result<News, Refusal> {
        let news = timeout_at(self.deadline, self.held.next()).await.map_err(|_| late())?;
        news.ok_or_else(|| lost("the engine failed"))
    }

    /// What the stream says of it.
    fn take(&mut self, news: News) -> Result<Vec<Value>, Refusal> {
        let (choice, update) = match news {
            News::Update(choice, update) => (choice, update),
            News::Lost(why) => return Err(lost(&why)),
        };
        if let Update::Failed { error, .. } = &update {
            return Err(failed(error));
        }
        if matches!(update, Update::Token { .. }) {
            self.record.token();
        }
        let progress = self.reply.update(choice, update).map_err(failed)?;
        if progress.end {
            self.held.end(choice);
        }
        Ok(progress.chunks)
    }

    /// Writes the stream to its end, the client's or its own.
    async fn run(mut self, writer: Writer, closer: Closer) {
        let kept_up = tokio::select! {
            kept_up = self.write(&writer) => kept_up,
            () = writer.closed() => return,
        };
        let (record, deadline) = (Arc::clone(&self.record), self.deadline);
        // the engine is free of it, however slowly it is read
        drop(self);
        writer.end();
        let deadline = deadline.max(Instant::now() + PARTING);
        if !kept_up || timeout_at(deadline, writer.closed()).await.is_err() {
            record.failed("the client did not read the answer in time");
            closer.close();
        }
    }

    /// Writes all there is; `false` if too much of it waits.
    async fn write(&mut self, writer: &Writer) -> bool {
        while !self.reply.is_done() {
            if writer.is_full() {
                return false;
            }
            let news = match timeout(SILENT, self.news()).await {
                Ok(news) => news,
                Err(_) => {
                    writer.alive();
                    continue;
                }
            };
            match news.and_then(|news| self.take(news)) {
                Ok(chunks) => chunks.iter().for_each(|chunk| writer.event(chunk)),
                Err(refusal) => {
                    self.record.refused(&refusal);
                    writer.event(&refusal.body());
                    return true;
                }
            }
        }
        writer.done();
        true
    }
}
