//! The hub over HTTP: the file list of a repository, the bytes of a file, and what its refusals mean.

use std::fmt::Write as _;
use std::io::Read;
use std::thread;
use std::time::Duration;

use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE, RETRY_AFTER};
use ureq::{Agent, Body};

use super::cache::Partial;
use super::listing::{Listing, Remote};
use crate::error::{Error, Result};

/// What a request ends with.
type Outcome<T> = std::result::Result<T, Fault>;

/// How often in a row asking for a file list may fail.
const LIST_ATTEMPTS: u32 = 4;

/// How often in a row asking for a file may fail without a byte of progress; the pauses add up to one timeout.
const FILE_ATTEMPTS: u32 = 8;

/// The longest pause a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The most bytes a file list may have.
const LONGEST_LIST: u64 = 64 << 20;

/// What went wrong with a request.
pub(super) enum Fault {
    /// The server answered, but not with what was asked for.
    Status { status: u16, code: String, message: String, pause: Option<Duration> },
    /// No answer, or none to the end.
    Network(String),
    /// An answer that cannot be right.
    Nonsense(String),
    /// The disk, not the network.
    Disk(Error),
    /// Another file failed.
    Stopped,
}

impl Fault {
    /// Returns whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Network(_) => true,
            Self::Nonsense(_) | Self::Disk(_) | Self::Stopped => false,
        }
    }
}

/// A client of one hub.
pub(super) struct Client {
    agent: Agent,
    /// The pause after the first failure; it doubles with each further one.
    pause: Duration,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    /// Returns a client of `endpoint` that shows `token`; fails if either cannot be sent.
    pub(super) fn new(endpoint: &str, token: Option<String>, timeout: Duration) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if !host.is_some_and(|host| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic())) {
            let error = Error::usage(format_args!("`{endpoint}` is not the address of a hub"));
            return Err(error.hint("write it as https://host"));
        }
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::usage("the hub token has characters that no token has").hint("set HF_TOKEN anew"));
        }
        Ok(Self { agent: agent(timeout), pause: timeout / 128, endpoint, token })
    }

    /// Sets how long a silent server is waited for.
    pub(super) fn with_timeout(self, timeout: Duration) -> Self {
        Self { agent: agent(timeout), pause: timeout / 128, ..self }
    }

    /// Returns the commit that `revision` means and its files.
    pub(super) fn list(&self, repo: &str, revision: &str) -> Outcome<Listing> {
        let url = format!("{}/api/models/{repo}/revision/{}?blobs=true", self.endpoint, encode(revision));
        self.persist(LIST_ATTEMPTS, |_| {
            let mut response = self.get(&url, 0)?;
            let text = response.body_mut().with_config().limit(LONGEST_LIST).read_to_vec().map_err(network)?;
            Listing::parse(&text).map_err(Fault::Nonsense)
        })
    }

    /// Appends to `partial` what it lacks of `file`, calling `reach` with each length on the disk; `reach` returns
    /// whether to go on.
    pub(super) fn download(
        &self,
        repo: &str,
        commit: &str,
        file: &Remote,
        partial: &mut Partial,
        reach: &mut dyn FnMut(u64) -> bool,
    ) -> Outcome<()> {
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encode(&file.name));
        let mut chunk = vec![0; 1 << 18];
        let mut furthest = partial.len();
        reach(furthest);
        self.persist(FILE_ATTEMPTS, |progressed| {
            if partial.len() == file.size {
                return Ok(());
            }
            let response = self.get(&url, partial.len())?;
            match total(&response, partial.len())? {
                (_, Some(total)) if total != file.size => {
                    let text = format!("the server has {total} bytes of it where {} are listed", file.size);
                    return Err(Fault::Nonsense(text));
                }
                (true, _) => {}
                (false, _) => partial.restart().map_err(Fault::Disk)?,
            }
            let mut body = response.into_body().into_reader().take(file.size - partial.len());
            loop {
                let read = body.read(&mut chunk).map_err(|error| network(error.into()))?;
                let bytes = chunk.get(..read).unwrap_or_default();
                if bytes.is_empty() {
                    break;
                }
                partial.write(bytes).map_err(Fault::Disk)?;
                // What a server without ranges sends a second time is no progress, or this might never end.
                *progressed |= partial.len() > furthest;
                furthest = furthest.max(partial.len());
                if !reach(partial.len()) {
                    return Err(Fault::Stopped);
                }
            }
            match partial.len() == file.size {
                true => Ok(()),
                false => Err(Fault::Network(format!("it ended after {} of {} bytes", partial.len(), file.size))),
            }
        })
    }

    /// Makes an attempt until one succeeds, fails for good, or `attempts` in a row said they made no progress.
    fn persist<T>(&self, attempts: u32, mut attempt: impl FnMut(&mut bool) -> Outcome<T>) -> Outcome<T> {
        let (mut failures, mut pause) = (0, self.pause);
        loop {
            let mut progressed = false;
            let fault = match attempt(&mut progressed) {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            (failures, pause) = if progressed { (1, self.pause) } else { (failures + 1, pause) };
            let asked = if let Fault::Status { pause, .. } = &fault { *pause } else { None };
            if !fault.is_transient() || failures >= attempts || asked > Some(LONGEST_PAUSE) {
                return Err(fault);
            }
            thread::sleep(asked.unwrap_or(pause));
            pause *= 2;
        }
    }

    /// Makes one request for the bytes from `from` on.
    fn get(&self, url: &str, from: u64) -> Outcome<Response<Body>> {
        // The size that counts is that of the file itself, not of a compressed copy.
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = request.call().map_err(network)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let text = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            value.trim_end_matches('.').chars().filter(|c| !c.is_control()).take(200).collect::<String>()
        };
        Err(Fault::Status {
            status: response.status().as_u16(),
            code: text("x-error-code"),
            message: text("x-error-message"),
            pause: text(RETRY_AFTER.as_str()).parse().ok().map(Duration::from_secs),
        })
    }

    /// Says what a fault of a request about `repo` means and what to do about it.
    pub(super) fn explain(&self, fault: Fault, repo: &str) -> Error {
        let endpoint = &self.endpoint;
        let local = "give a local directory with --model DIR";
        let spelling = format!("check the spelling of `{repo}`; a private repository needs HF_TOKEN");
        let (status, code, message) = match fault {
            Fault::Status { status, code, message, .. } => (status, code, message),
            Fault::Network(text) => {
                let error = Error::msg(text).context(format_args!("no answer from `{endpoint}` or where it redirects"));
                return error.hint(format_args!("check the network, or {local}"));
            }
            Fault::Nonsense(text) => {
                let error = Error::msg(text).context(format_args!("unusable answer from `{endpoint}`"));
                return error.hint("try again; if it stays so, HF_ENDPOINT is not a whole hub");
            }
            Fault::Disk(error) => return error,
            Fault::Stopped => return Error::msg("stopped"),
        };
        let hint = match (status, code.as_str()) {
            (_, "GatedRepo") => format!("accept the licence at {endpoint}/{repo} and set HF_TOKEN"),
            (_, "RevisionNotFound") => "check the spelling of the revision".to_owned(),
            (_, "EntryNotFound") => "the repository has changed: run again".to_owned(),
            (401, _) if self.token.is_some() => format!("HF_TOKEN may be wrong or out of date; or {spelling}"),
            (401 | 404, _) => spelling,
            (403, _) => format!("HF_TOKEN may not read `{repo}`: check its permissions"),
            (429, _) => "wait some minutes; a token (HF_TOKEN) is allowed more requests".to_owned(),
            (500.., _) => format!("the hub is in trouble: try later, or {local}"),
            _ => format!("try again, or {local}"),
        };
        let mut text = format!("the hub answered {status}");
        for part in [code, message].iter().filter(|part| !part.is_empty()) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {part}");
        }
        Error::msg(text).hint(hint)
    }
}

/// Returns whether a successful answer continues after `from` bytes, and the size of the whole file if it says so.
fn total(response: &Response<Body>, from: u64) -> Outcome<(bool, Option<u64>)> {
    if response.status() != 206 {
        return Ok((false, response.body().content_length()));
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (span, total) = range.split_once('/')?;
        Some((span.split_once('-')?.0.parse::<u64>().ok()?, total.parse().ok()))
    });
    match parsed {
        Some((start, total)) if start == from => Ok((true, total)),
        _ => Err(Fault::Nonsense(format!("asked for the bytes from {from} on, the server sent `{range}`"))),
    }
}

fn agent(timeout: Duration) -> Agent {
    let limit = Some(timeout);
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
        .user_agent(concat!("tbshard/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(limit)
        .timeout_connect(limit)
        .timeout_send_request(limit)
        .timeout_recv_response(limit)
        .timeout_per_read(limit);
    config.build().new_agent()
}

fn network(error: ureq::Error) -> Fault {
    match error {
        ureq::Error::Io(error) => Fault::Network(error.to_string()),
        ureq::Error::Timeout(_) => Fault::Network("timed out".to_owned()),
        error => Fault::Network(error.to_string()),
    }
}

/// Writes `text` as one part of a URL path.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}
