//! Connections: accepted, given little time to say what they want, and let go when the server ends.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Rules;
use super::desk::{Desk, Phase};
use super::line::{Closer, Line, Patience};
use super::record::Log;
use super::routes::{Server, router};
use crate::error::{Context, Error, Result};

/// Connections at once at most; more wait to be accepted.
const CONNECTIONS: usize = 1024;

/// Bytes of a request's headers at most.
const HEADERS: usize = 64 << 10;

/// Threads that read and write; the processors are the engine's.
const THREADS: usize = 2;

/// Threads that make tokens of texts.
const BLOCKING: usize = 4;

/// How long to wait when the system has no descriptor for a connection.
const SHORT: Duration = Duration::from_millis(50);

/// How long clients may take to hear that there will be no answer.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to end, and so many connections were still being answered when their time was over.
    Drained(usize),
    /// It was asked twice.
    Interrupted,
    /// The engine will not answer any more.
    Over,
}

/// Serves until a signal asks for the end or the engine is over. `told` hears when new requests are not let in any more.
///
/// # Errors
/// If the system refuses a thread, or its signals.
pub fn serve(listener: TcpListener, desk: &Arc<Desk>, rules: Rules, log: Log, told: &dyn Fn()) -> Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING)
        .thread_name("tbshard-http")
        .enable_all()
        .build();
    let runtime = runtime.map_err(Error::from_std).context("cannot start the HTTP threads")?;
    let ended = runtime.block_on(run(listener, Arc::clone(desk), rules, log, told));
    // whoever is still connected has had their time
    runtime.shutdown_timeout(Duration::from_millis(200));
    ended
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let one = |kind| signal(kind).map_err(Error::from_std).context("cannot listen to signals");
        Ok(Self { interrupt: one(SignalKind::interrupt())?, terminate: one(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn run(listener: TcpListener, desk: Arc<Desk>, rules: Rules, log: Log, told: &dyn Fn()) -> Result<Ended> {
    let mut signals = Signals::listen()?;
    listener.set_nonblocking(true).map_err(Error::from_std)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::from_std)?;
    let (patience, drain) = (Patience::of(&rules), rules.drain);
    let router = router(Server::new(Arc::clone(&desk), rules, log));
    let (ending, _) = watch::channel(false);
    let accepting = accept(listener, router, patience, ending.clone());
    tokio::pin!(accepting);
    tokio::select! {
        never = &mut accepting => match never {},
        () = signals.next() => {}
        () = over(&desk) => {
            ending.send_replace(true);
            // those who wait are told
            let told = timeout(LAST_WORD, ending.closed());
            tokio::select! {
                never = &mut accepting => match never {},
                _ = told => return Ok(Ended::Over),
            }
        }
    }
    desk.drain();
    told();
    ending.send_replace(true);
    // receivers are the connections that were there
    let finished = timeout(drain, ending.closed());
    Ok(tokio::select! {
        never = &mut accepting => match never {},
        () = signals.next() => Ended::Interrupted,
        done = finished => Ended::Drained(if done.is_ok() { 0 } else { ending.receiver_count() }),
        () = over(&desk) => {
            let _ = timeout(LAST_WORD, ending.closed()).await;
            Ended::Over
        }
    })
}

/// Returns when the engine will not answer any more.
async fn over(desk: &Desk) {
    let mut phases = desk.phases();
    // its sender is the desk, which is here
    let _ = phases.wait_for(|phase| *phase == Phase::Over).await;
}

/// Accepts connections for as long as it is polled.
async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    patience: Patience,
    ending: watch::Sender<bool>,
) -> std::convert::Infallible {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { continue };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(SHORT).await;
            continue;
        };
        // one that comes later is only told that the server is about to end
        let ending = (!*ending.borrow()).then(|| ending.subscribe());
        let connection = connection(stream, router.clone(), patience, ending);
        tasks.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
}

/// Answers the requests of one connection.
async fn connection(stream: TcpStream, router: Router, patience: Patience, ending: Option<watch::Receiver<bool>>) {
    // a token is a small packet; one that is held back would be late
    let _ = stream.set_nodelay(true);
    let closer = Closer::default();
    let service = tower_service(router, closer.clone());
    let stream = Line::new(stream, closer.clone(), patience);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience.other).max_buf_size(HEADERS);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut ending = ending;
    let asked = async {
        match &mut ending {
            Some(ending) => {
                let _ = ending.wait_for(|ending| *ending).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::pin!(asked);
    let mut told = false;
    loop {
        tokio::select! {
            // what a client does wrong, or that it leaves, is its own business
            _ = connection.as_mut() => return,
            () = &mut asked, if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = closer.closed() => return,
        }
    }
}

/// The router for one connection's requests.
fn tower_service(
    router: Router,
    closer: Closer,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future: Send,
> {
    let service = TowerToHyperService::new(router);
    hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        closer.be_patient(false);
        request.extensions_mut().insert(closer.clone());
        hyper::service::Service::call(&service, request)
    })
}
