//! Clients that leave, and a server that ends.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::clients::{CHAT, Server, Stream, chat, endless, generated, soon, streamed, with};

/// A request whose answer nobody reads.
fn send(server: &Server, body: &serde_json::Value) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let text = Stream::text("localhost", "POST", CHAT, &[("content-type", "application/json")], &body.to_string());
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

fn leaving_cancels(args: &[&str]) {
    let server = Server::ready(&[args, &["--max-concurrency", "1"]].concat());
    let whole = with(endless(), json!({"stream": false}));
    for (round, body) in [endless(), whole].iter().enumerate() {
        let (running, waiting) = (send(&server, body), send(&server, body));
        let is = |name: &str, value: f64| soon(name, || (server.metric(name) == value).then_some(()));
        is("tbshard_answers_waiting", 1.0);
        is("tbshard_answers_running", 1.0);
        drop(waiting);
        is("tbshard_answers_waiting", 0.0);
        drop(running);
        is("tbshard_answers_running", 0.0);
        assert_eq!(server.metric("tbshard_cancelled_total"), 2.0 * (round + 1) as f64);
        let steps = server.metric("tbshard_steps_total");
        std::thread::sleep(Duration::from_millis(100));
        assert!(server.metric("tbshard_steps_total") <= steps + 1.0, "the engine goes on");
    }
    assert!(server.metric("tbshard_generated_tokens_total") < 3000.0);
    // every rank is still with the others
    assert_eq!(server.post(CHAT, &chat("Tell me a story.", 30)).text(), generated("Tell me a story.", 30));
    assert_eq!(server.metric("tbshard_relaunches_total"), 0.0);
}

#[test]
fn who_leaves_is_not_computed_for() {
    leaving_cancels(&[]);
}

#[test]
fn who_leaves_is_not_computed_for_on_any_rank() {
    leaving_cancels(&["--local", "2"]);
}

#[test]
fn who_leaves_while_their_prompt_is_read_is_not_read_on() {
    let server = Server::ready(&["--local", "2", "--no-prefix-cache"]);
    let prompts: Vec<String> = (0..64).map(|at| format!("{at} {}", "Once upon a time ".repeat(250))).collect();
    let asked = json!({"model": "demo", "prompt": prompts, "max_tokens": 100, "ignore_eos": true, "stream": true});
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let headers = [("content-type", "application/json")];
    let text = Stream::text("localhost", "POST", "/v1/completions", &headers, &asked.to_string());
    stream.write_all(text.as_bytes()).unwrap();
    soon("it is read", || (server.metric("tbshard_prompt_tokens_total") > 0.0).then_some(()));
    drop(stream);
    soon("it is let go", || (server.metric("tbshard_cancelled_total") > 0.0).then_some(()));
    for name in ["tbshard_answers_running", "tbshard_answers_waiting"] {
        soon(name, || (server.metric(name) == 0.0).then_some(()));
    }
    let read = server.metric("tbshard_prompt_tokens_total");
    assert!(read < 64.0 * 700.0, "{read}");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.metric("tbshard_prompt_tokens_total"), read);
    assert_eq!(server.post(CHAT, &chat("Tell me a story.", 30)).text(), generated("Tell me a story.", 30));
}

#[test]
fn what_runs_may_finish_when_the_server_ends() {
    for (name, ranks) in [("-TERM", "1"), ("-INT", "2")] {
        let mut server = Server::ready(&["--local", ranks]);
        let body = with(endless(), json!({"max_tokens": 600}));
        let right = server.post(CHAT, &with(body.clone(), json!({"stream": false}))).text();
        let mut running = server.stream(&body);
        let first = running.next().unwrap();
        let idle = TcpStream::connect(&server.address).unwrap();
        server.signal(name);
        soon("it says so", || server.log().contains("ending: ").then_some(()));
        let health = server.get("/health");
        assert_eq!((health.status, health.json()), (503, json!({"status": "draining"})));
        let late = server.post(CHAT, &chat("Hello", 1));
        assert_eq!((late.status, late.headers["connection"].as_str()), (503, "close"));
        assert_eq!(streamed(&(first + &running.finish().body)), right);
        assert_eq!(server.end().code(), Some(0), "{}", server.log());
        assert!(!server.log().contains("error"), "{}", server.log());
        drop(idle);
    }
}

#[test]
fn what_does_not_finish_in_time_is_cut() {
    let mut server = Server::ready(&["--drain-timeout", "0.2", "--max-concurrency", "1"]);
    let running = send(&server, &with(endless(), json!({"n": 16})));
    soon("it runs", || (server.metric("tbshard_answers_running") == 1.0).then_some(()));
    let begun = Instant::now();
    server.signal("-TERM");
    assert_eq!(server.end().code(), Some(0), "{}", server.log());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(server.log().contains("1 connections were cut off"), "{}", server.log());
    drop(running);
}

#[test]
fn who_asks_twice_does_not_wait() {
    let mut server = Server::ready(&["--local", "2", "--max-concurrency", "1"]);
    let running = send(&server, &with(endless(), json!({"n": 16})));
    soon("it runs", || (server.metric("tbshard_answers_running") == 1.0).then_some(()));
    let ranks = server.ranks();
    server.signal("-INT");
    soon("it says so", || server.log().contains("ending: ").then_some(()));
    server.signal("-INT");
    assert_eq!(server.end().code(), Some(130), "{}", server.log());
    assert_eq!(ranks.len(), 1);
    soon("its rank ends too", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", ranks[0])).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    drop(running);
}

#[test]
fn a_server_that_is_loading_ends_at_once() {
    let args = ["--local", "2", "--heartbeat-timeout", "60", "--fault", "1:loading:stop"];
    let mut server = Server::start(&args);
    soon("it loads", || server.log().contains("fault: rank 1 at loading").then_some(()));
    let begun = Instant::now();
    server.signal("-TERM");
    assert_eq!(server.end().code(), Some(0), "{}", server.log());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn an_idle_server_does_nothing() {
    let server = Server::ready(&["--local", "2"]);
    let ticks = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(500));
    let (own, rank) = (server.child.id(), server.ranks()[0]);
    let before = (ticks(own), ticks(rank));
    std::thread::sleep(Duration::from_secs(2));
    let spent = (ticks(own) - before.0, ticks(rank) - before.1);
    // hundredths of a second, of two
    assert!(spent.0 < 10 && spent.1 < 20, "{spent:?}");
}
