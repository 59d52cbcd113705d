//! `tbshard serve`: a model over HTTP, for as long as it is wanted.

mod engine;
mod flags;
mod log;

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

pub(super) use flags::Args;

use super::Outcome;
use crate::error::{Error, Result};
use crate::serve::{Desk, Ended, serve};

/// How long the ranks may take to end when all is answered.
const FAREWELL: Duration = Duration::from_secs(10);

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let (rules, model) = (args.rules()?, args.model()?);
    // before the model is loaded: a port that is taken is known at once
    let listener = listen(&args.host, args.port)?;
    let address = listener.local_addr().map_err(Error::from_std)?;
    let log = log::Lines::new(args.log, args.quiet());
    log.listening(address);
    if !address.ip().is_loopback() && rules.keys.is_empty() {
        log.warning(&format!("whoever reaches {address} may use the model: --api-key lets in only who has the key"));
    }
    let rules = args.called(rules, address.ip());
    let desk = Desk::new(args.many.max_concurrency, args.max_queue);
    let (ended, result) = sync_channel(1);
    let (keeper, keeping, telling) = (args.keeper(model), Arc::clone(&desk), log.clone());
    // a thread whose processors nobody has narrowed: every run of the engine pins its own
    let keep = move || {
        let _ = ended.send(keeper.keep(&keeping, &telling));
    };
    let thread = std::thread::Builder::new().name("tbshard-keeper".to_owned()).spawn(keep);
    thread.map_err(|error| Error::from_std(error).context("cannot start a thread"))?;
    let drain = args.drain_timeout;
    let told = || log.say(&format!("ending: what runs may finish within {drain} s, once more ends at once"));
    match serve(listener, &desk, rules, log.requests(), &told)? {
        Ended::Interrupted => Ok(Outcome::Interrupted),
        Ended::Over => result.recv().unwrap_or_else(|_| Err(Error::panicked("the engine's thread"))),
        Ended::Drained(left) => {
            if left > 0 {
                log.warning(&format!("{left} connections were cut off, their time was over"));
            }
            // one that is loading ends with the process
            let farewell = if desk.stop() { FAREWELL } else { Duration::ZERO };
            match result.recv_timeout(farewell) {
                Ok(result) => result,
                Err(RecvTimeoutError::Timeout) if farewell.is_zero() => Ok(Outcome::Done),
                Err(RecvTimeoutError::Timeout) => {
                    let error = Error::msg(format!("the engine did not end within {} s", FAREWELL.as_secs()));
                    Err(error.hint("all that was asked for is answered; look for ranks that are still there"))
                }
                Err(RecvTimeoutError::Disconnected) => Err(Error::panicked("the engine's thread")),
            }
        }
    }
}

/// Takes the port.
fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let wrong = |error: std::io::Error| {
        let error = Error::from_std(error).context(format!("--host {host}"));
        error.hint("127.0.0.1 is this machine alone, 0.0.0.0 whoever reaches it")
    };
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![(address, port).into()],
        Err(_) => (host, port).to_socket_addrs().map_err(wrong)?.collect(),
    };
    TcpListener::bind(&addresses[..]).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let error = Error::msg(format!("the port {port} of {host} is taken"));
            error.hint("--port 0 takes one that is free, --port N another")
        }
        std::io::ErrorKind::PermissionDenied => Error::from_std(error)
            .context(format!("port {port}"))
            .hint("ports below 1024 are the system's; take a larger one"),
        _ => wrong(error),
    })
}
