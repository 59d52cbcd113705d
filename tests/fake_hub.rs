//! A small hub and its content network on 127.0.0.1, answering as huggingface.co does for the repositories it is given.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// No connection outlives this, whatever a test does.
const LONGEST: Duration = Duration::from_secs(8);

/// One file of a commit: what is kept in git, or in large-file storage.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) large: bool,
}

impl Entry {
    pub(crate) fn small(name: &'static str, text: &str) -> Self {
        Self { name, bytes: text.as_bytes().to_vec(), large: false }
    }

    /// `len` bytes without a short period, so that a piece in the wrong place shows.
    pub(crate) fn large(name: &'static str, len: usize, seed: u32) -> Self {
        let bytes = (0..len as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        Self { name, bytes, large: true }
    }

    /// The ETag the hub gives it: sha256 of a large file, an opaque 40-digit git id of a small one.
    pub(crate) fn etag(&self) -> String {
        let hex: String = Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if self.large { hex } else { hex[..40].to_owned() }
    }
}

/// One model repository: its commits, what its branches point at, and who may read it.
#[derive(Clone, Default)]
pub(crate) struct Repo {
    pub(crate) name: &'static str,
    pub(crate) commits: BTreeMap<&'static str, Vec<Entry>>,
    pub(crate) refs: BTreeMap<&'static str, &'static str>,
    /// The only token that may fetch files, when the repository is gated.
    pub(crate) gate: Option<&'static str>,
}

/// What goes wrong with a request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answers this status with these extra header lines.
    Status(u16, &'static str),
    /// Sends this many bytes of the body and closes the connection.
    Cut(usize),
    /// The same without saying how long the body is, from the start of the file whatever range was asked for.
    CutWhole(usize),
    /// Sends this many bytes of the body and then nothing.
    Stall(usize),
    /// Answers 200 with this text.
    Says(&'static str),
    /// Accepts the request and says nothing.
    Silent,
    /// Answers 200 with the whole file although a range was asked for.
    NoRanges,
    /// Answers a range with the one from the start of the file.
    Shifted,
    /// Serves the file without its last byte, as if that were all of it.
    Short,
    /// Serves the file with one bit changed.
    Flipped,
}

/// One request as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) cdn: bool,
}

struct State {
    repos: Vec<Repo>,
    faults: Mutex<Vec<(&'static str, Fault, usize)>>,
    seen: Mutex<Vec<Seen>>,
    cdn: String,
    stop: AtomicBool,
}

/// The running server; dropping it closes both ports.
pub(crate) struct FakeHub {
    state: Arc<State>,
    ports: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
}

impl FakeHub {
    pub(crate) fn start(repos: Vec<Repo>) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = vec![hub.local_addr().unwrap(), cdn.local_addr().unwrap()];
        // Another host name, as the real one: a client must not carry its token there.
        let cdn_url = format!("http://localhost:{}", ports[1].port());
        let state = Arc::new(State {
            repos,
            faults: Mutex::default(),
            seen: Mutex::default(),
            cdn: cdn_url,
            stop: AtomicBool::new(false),
        });
        let threads = vec![serve(hub, Arc::clone(&state), false), serve(cdn, Arc::clone(&state), true)];
        Self { state, ports, threads }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.ports[0])
    }

    /// Lets the next `times` requests whose path contains `part` go wrong; `@cdn` in front means there only.
    pub(crate) fn fail(&self, part: &'static str, fault: Fault, times: usize) {
        self.state.faults.lock().unwrap().push((part, fault, times));
    }

    /// Everything asked for since the last call.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for port in &self.ports {
            let _ = TcpStream::connect(port);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: TcpListener, state: Arc<State>, cdn: bool) -> JoinHandle<()> {
    thread::spawn(move || {
        for stream in listener.incoming() {
            if state.stop.load(Ordering::Relaxed) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let state = Arc::clone(&state);
            thread::spawn(move || answer(stream, &state, cdn));
        }
    })
}

fn answer(mut stream: TcpStream, state: &State, cdn: bool) -> Option<()> {
    stream.set_read_timeout(Some(LONGEST)).ok()?;
    stream.set_write_timeout(Some(LONGEST)).ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let seen = Seen { path, range: header("range"), authorization: header("authorization"), cdn };
    state.seen.lock().unwrap().push(seen.clone());
    let fault = state.fault(&seen);
    let mut reply = match &fault {
        Some(Fault::Status(code, headers)) => Reply::new(*code, headers),
        Some(Fault::Says(text)) => Reply { body: text.as_bytes().to_vec(), ..Reply::new(200, "") },
        Some(Fault::Silent) => return silence(state),
        other => state.reply(&seen, other.as_ref()),
    };
    if !matches!(fault, Some(Fault::CutWhole(_))) {
        reply.headers += &format!("content-length: {}\r\n", reply.body.len());
    }
    let head = format!("HTTP/1.1 {} x\r\n{}connection: close\r\n\r\n", reply.code, reply.headers);
    if let Some(Fault::Cut(len) | Fault::CutWhole(len) | Fault::Stall(len)) = fault {
        reply.body.truncate(len);
    }
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&reply.body).ok()?;
    if matches!(fault, Some(Fault::Stall(_))) { silence(state) } else { Some(()) }
}

fn silence(state: &State) -> Option<()> {
    let start = Instant::now();
    while start.elapsed() < LONGEST && !state.stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
    None
}

struct Reply {
    code: u16,
    headers: String,
    body: Vec<u8>,
}

impl Reply {
    fn new(code: u16, headers: &str) -> Self {
        Self { code, headers: headers.to_owned(), body: Vec::new() }
    }

    fn error(code: u16, name: &str, message: &str) -> Self {
        let name = if name.is_empty() { String::new() } else { format!("X-Error-Code: {name}\r\n") };
        let headers = format!("{name}X-Error-Message: {message}\r\nContent-Type: application/json\r\n");
        Self { code, headers, body: format!("{{\"error\":\"{message}\"}}").into_bytes() }
    }
}

impl State {
    fn fault(&self, seen: &Seen) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let hit = faults.iter_mut().find(|(part, _, times)| {
            let (part, cdn_only) = part.strip_prefix("@cdn").map_or((*part, false), |rest| (rest, true));
            *times > 0 && seen.path.contains(part) && (!cdn_only || seen.cdn)
        })?;
        hit.2 -= 1;
        Some(hit.1.clone())
    }

    fn reply(&self, seen: &Seen, fault: Option<&Fault>) -> Reply {
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["cdn", etag] => self.cdn(etag, seen, fault),
            ["api", "resolve-cache", "models", owner, name, commit, file] => {
                self.file(&format!("{owner}/{name}"), commit, file, seen, fault, true)
            }
            ["api", "models", owner, name] => self.info(&format!("{owner}/{name}"), "main", query, seen),
            ["api", "models", owner, name, "revision", revision] => {
                self.info(&format!("{owner}/{name}"), &revision.replace("%2F", "/"), query, seen)
            }
            [owner, name, "resolve", revision, file] => {
                self.file(&format!("{owner}/{name}"), revision, file, seen, fault, false)
            }
            _ => Reply::error(404, "", "Sorry, we can't find the page you are looking for."),
        }
    }

    /// The repository and the commit a revision means, or the answer the hub gives instead.
    fn find(&self, name: &str, revision: &str, seen: &Seen) -> Result<(&Repo, &'static str), Reply> {
        let Some(repo) = self.repos.iter().find(|repo| repo.name == name) else {
            // Without a token the hub does not tell a missing repository from a private one.
            return Err(match seen.authorization {
                Some(_) => Reply::error(404, "RepoNotFound", "Repository not found"),
                None => Reply::error(401, "", "Invalid username or password."),
            });
        };
        let commit = repo.refs.get(revision).copied();
        let commit = commit.or_else(|| repo.commits.keys().copied().find(|commit| *commit == revision));
        let missing = || Reply::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
        Ok((repo, commit.ok_or_else(missing)?))
    }

    fn info(&self, name: &str, revision: &str, query: &str, seen: &Seen) -> Reply {
        let (repo, commit) = match self.find(name, revision, seen) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let siblings: Vec<String> = repo.commits[commit]
            .iter()
            .map(|entry| {
                let (name, size) = (entry.name, entry.bytes.len());
                if !query.to_lowercase().contains("blobs=true") {
                    return format!(r#"{{"rfilename":"{name}"}}"#);
                }
                let lfs = format!(r#","lfs":{{"sha256":"{}","size":{size},"pointerSize":134}}"#, entry.etag());
                let (id, lfs) = if entry.large { ("2".repeat(40), lfs) } else { (entry.etag(), String::new()) };
                format!(r#"{{"rfilename":"{name}","blobId":"{id}","size":{size}{lfs}}}"#)
            })
            .collect();
        let body = format!(r#"{{"id":"{name}","sha":"{commit}","gated":false,"siblings":[{}]}}"#, siblings.join(","));
        Reply { body: body.into_bytes(), ..Reply::new(200, "Content-Type: application/json\r\n") }
    }

    fn file(&self, name: &str, rev: &str, file: &str, seen: &Seen, fault: Option<&Fault>, cached: bool) -> Reply {
        let (repo, commit) = match self.find(name, rev, seen) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        if let Some(token) = repo.gate {
            let message = format!("Access to model {name} is restricted. You must have access to it.");
            match seen.authorization.as_deref() {
                None => return Reply::error(401, "GatedRepo", &message),
                Some(given) if given != format!("Bearer {token}") => return Reply::error(403, "GatedRepo", &message),
                Some(_) => {}
            }
        }
        let Some(entry) = repo.commits[commit].iter().find(|entry| entry.name == file) else {
            return Reply::error(404, "EntryNotFound", "Entry not found");
        };
        let (etag, size) = (entry.etag(), entry.bytes.len());
        let linked = format!("X-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n");
        if entry.large {
            return Reply::new(302, &format!("{linked}Location: {}/cdn/{etag}\r\n", self.cdn));
        }
        if !cached {
            let location = format!("/api/resolve-cache/models/{name}/{commit}/{file}?etag=%22{etag}%22");
            return Reply::new(307, &format!("{linked}Location: {location}\r\n"));
        }
        let headers = format!("X-Repo-Commit: {commit}\r\nETag: \"{etag}\"\r\n");
        body(&entry.bytes, &headers, seen, fault)
    }

    fn cdn(&self, etag: &str, seen: &Seen, fault: Option<&Fault>) -> Reply {
        let mut entries = self.repos.iter().flat_map(|repo| repo.commits.values()).flatten();
        match entries.find(|entry| entry.large && entry.etag() == etag) {
            // Its own ETag is not the hub's.
            Some(entry) => body(&entry.bytes, &format!("ETag: \"{}\"\r\n", "c".repeat(64)), seen, fault),
            None => Reply::new(404, ""),
        }
    }
}

/// The bytes, or the range of them that was asked for.
fn body(bytes: &[u8], headers: &str, seen: &Seen, fault: Option<&Fault>) -> Reply {
    let mut bytes = bytes.to_vec();
    match fault {
        Some(Fault::Short) => bytes.truncate(bytes.len() - 1),
        Some(Fault::Flipped) => bytes[0] ^= 1,
        _ => {}
    }
    let range = seen.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((start, end)) = range.filter(|_| !matches!(fault, Some(Fault::NoRanges | Fault::CutWhole(_)))) else {
        return Reply { body: bytes, ..Reply::new(200, headers) };
    };
    let start = if matches!(fault, Some(Fault::Shifted)) { 0 } else { start.parse().unwrap() };
    let total = bytes.len();
    let end = end.parse::<usize>().map_or(total, |last| total.min(last + 1));
    if start >= total {
        return Reply::new(416, &format!("Content-Range: bytes */{total}\r\n"));
    }
    let headers = format!("{headers}Content-Range: bytes {start}-{}/{total}\r\n", end - 1);
    Reply { body: bytes[start..end].to_vec(), ..Reply::new(206, &headers) }
}
