//! A server that is started for a test, and clients of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::program::{command, signal};

/// How long anything may take that is to happen soon.
pub const SOON: Duration = Duration::from_secs(20);

pub const CHAT: &str = "/v1/chat/completions";

/// A running server.
pub struct Server {
    pub child: Child,
    pub address: String,
    lines: Arc<Mutex<Vec<String>>>,
}

/// A response: its status, its headers and its body.
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Of an error object.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Of the first answer.
    pub fn text(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }
}

impl Server {
    /// Starts one that listens; the model may not be there yet.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    pub fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = command(&[&["serve", "--port", "0"], args].concat());
        command.envs(env.iter().copied());
        Self::of(command)
    }

    pub fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (reader, shared) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&lines));
        std::thread::spawn(move || {
            reader.lines().map_while(Result::ok).for_each(|line| shared.lock().unwrap().push(line))
        });
        let mut server = Self { child, address: String::new(), lines };
        server.address = soon("it listens", || {
            server.log().lines().find_map(|line| Some(line.split_once("http://")?.1.trim_end_matches("\"}").to_owned()))
        });
        server
    }

    /// Starts one and waits until it answers.
    pub fn ready(args: &[&str]) -> Self {
        let server = Self::start(args);
        server.await_ready();
        server
    }

    pub fn await_ready(&self) {
        soon("it is ready", || (self.get("/health").status == 200).then_some(()));
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    pub fn get(&self, path: &str) -> Response {
        self.ask("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.ask("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    /// One request over a connection of its own.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        Stream::open(&self.address, method, path, headers, body).finish()
    }

    /// A stream of chat chunks.
    pub fn stream(&self, body: &Value) -> Stream {
        let headers = [("content-type", "application/json")];
        Stream::open(&self.address, "POST", CHAT, &headers, &body.to_string())
    }

    /// A value of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    /// Processes that it has started.
    pub fn ranks(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task", self.child.id());
        let tasks = std::fs::read_dir(path).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        children.flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// How it ended, which it must soon.
    pub fn end(&mut self) -> ExitStatus {
        soon("it ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the server said:\n{}", self.log());
        }
    }
}

/// Waits until `check` has something.
pub fn soon<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A response that is read piece by piece.
pub struct Stream {
    reader: BufReader<TcpStream>,
    pub status: u16,
    pub headers: BTreeMap<String, String>,
}

impl Stream {
    pub fn open(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON * 2)).unwrap();
        stream.write_all(Self::text(address, method, path, headers, body).as_bytes()).unwrap();
        Self::of(stream)
    }

    /// The bytes of a request.
    pub fn text(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
        let mut text = format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        let host = [("host", address)].into_iter().filter(|_| headers.iter().all(|(name, _)| *name != "host"));
        let all: Vec<_> = host.chain(headers.iter().copied()).chain([("connection", "close")]).collect();
        all.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        text + "\r\n" + body
    }

    /// Reads the head of a response.
    pub fn of(stream: TcpStream) -> Self {
        let mut stream = Self { reader: BufReader::new(stream), status: 0, headers: BTreeMap::new() };
        let first = stream.line();
        stream.status = first.split(' ').nth(1).unwrap_or_else(|| panic!("{first:?} is no response")).parse().unwrap();
        loop {
            let line = stream.line();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            stream.headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        stream
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line
    }

    /// The rest of it.
    pub fn finish(mut self) -> Response {
        let mut body = Vec::new();
        if self.headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else {
            self.reader.read_to_end(&mut body).unwrap();
        }
        Response { status: self.status, headers: self.headers, body: String::from_utf8(body).unwrap() }
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(self.line().trim(), 16).unwrap();
        let mut bytes = vec![0; size + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes.truncate(size);
        (size > 0).then_some(bytes)
    }

    /// The next events; `None` after the last.
    pub fn next(&mut self) -> Option<String> {
        self.chunk().map(|bytes| String::from_utf8(bytes).unwrap())
    }
}

/// The data of all events.
pub fn events(text: &str) -> Vec<String> {
    text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: ").map(str::to_owned)).collect()
}

/// The text of a stream's first choice, which must have come to its end.
pub fn streamed(body: &str) -> String {
    let events = events(body);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{body}");
    let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

/// A conversation of one message, answered without chance.
pub fn chat(prompt: &str, tokens: usize) -> Value {
    json!({"model": "demo", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0})
}

/// `body` with more keys.
pub fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A long answer as a stream.
pub fn endless() -> Value {
    with(chat("Tell me a story.", 1900), json!({"ignore_eos": true, "stream": true}))
}

/// What `tbshard generate` answers.
pub fn generated(prompt: &str, tokens: usize) -> String {
    static KNOWN: OnceLock<Mutex<BTreeMap<(String, usize), String>>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap();
    let answer = known.entry((prompt.to_owned(), tokens)).or_insert_with(|| {
        let tokens = tokens.to_string();
        let args = ["generate", "--prompt", prompt, "-n", &tokens, "--temp", "0", "--json", "-q"];
        let output = command(&args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["text"].as_str().unwrap().to_owned()
    });
    answer.clone()
}
