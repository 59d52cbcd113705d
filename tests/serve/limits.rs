//! What a client may take: bytes, places, time.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::clients::{CHAT, SOON, Server, Stream, chat, endless, generated, soon, streamed, with};

#[test]
fn a_body_that_is_too_long_is_refused_unread() {
    let server = Server::ready(&["--max-body", "1000"]);
    let long = server.post(CHAT, &chat(&"word ".repeat(400), 1));
    assert_eq!((long.status, long.code().as_str()), (413, "too_large"));
    assert_eq!(server.post(CHAT, &chat("Hello", 1)).status, 200);
    // one that does not say how long it is
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    for _ in 0..5 {
        stream.write_all(format!("100\r\n{}\r\n", "x".repeat(256)).as_bytes()).unwrap();
    }
    assert_eq!(Stream::of(stream).status, 413);
}

#[test]
fn a_full_queue_is_said_to_be_full() {
    let server = Server::ready(&["--max-concurrency", "1", "--max-queue", "1"]);
    let running = server.stream(&endless());
    let waiting = TcpStream::connect(&server.address).unwrap();
    let text = Stream::text("localhost", "POST", CHAT, &[("content-type", "application/json")], &endless().to_string());
    (&waiting).write_all(text.as_bytes()).unwrap();
    soon("the second waits", || (server.metric("tbshard_answers_waiting") == 1.0).then_some(()));
    let third = server.post(CHAT, &chat("Hello", 1));
    assert_eq!((third.status, third.code().as_str()), (429, "queue_full"));
    assert_eq!(third.json()["error"]["type"], "rate_limit_error");
    assert_eq!(third.headers["retry-after"], "1");
    drop((running, waiting));
    soon("there is room again", || (server.post(CHAT, &chat("Hello", 1)).status == 200).then_some(()));
    assert_eq!(server.metric("tbshard_cancelled_total"), 2.0);
}

#[test]
fn a_request_has_room_for_all_of_its_answers_or_none() {
    let server = Server::ready(&["--max-concurrency", "2", "--max-queue", "2"]);
    let prompts = |many: usize, n: usize| {
        let prompts = vec!["Once upon a time"; many];
        json!({"model": "demo", "prompt": prompts, "n": n, "max_tokens": 2, "temperature": 0})
    };
    let asks = |many, n| server.post("/v1/completions", &prompts(many, n));
    assert_eq!(asks(2, 2).json()["choices"].as_array().unwrap().len(), 4);
    let never = asks(5, 1);
    assert_eq!((never.status, never.code().as_str()), (400, "too_many_answers"));
    assert_eq!(asks(2, 3).status, 400);
    let running = server.stream(&endless());
    let later = asks(2, 2);
    assert_eq!((later.status, later.code().as_str()), (429, "queue_full"));
    assert_eq!(asks(3, 1).status, 200);
    drop(running);
}

#[test]
fn an_answer_that_takes_too_long_is_ended() {
    let server = Server::ready(&["--request-timeout", "0.3"]);
    let whole = server.post(CHAT, &with(endless(), json!({"stream": false})));
    assert_eq!((whole.status, whole.code().as_str()), (504, "timeout"));
    // not now and then
    for _ in 0..8 {
        let stream = server.stream(&endless()).finish();
        assert_eq!(stream.status, 200);
        let last = super::clients::events(&stream.body).pop().unwrap();
        assert!(last.contains("\"error\"") && last.contains("timeout"), "{last}");
    }
    soon("the engine is free", || (server.metric("tbshard_answers_running") == 0.0).then_some(()));
}

#[test]
fn a_slow_request_is_not_waited_for() {
    let server = Server::ready(&["--read-timeout", "0.5"]);
    let open = |text: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let begun = Instant::now();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n");
    let lines = "content-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let mut silent = [open(""), open("GET / HTT"), open(&head)];
    let body = open(&format!("{head}{lines}"));
    assert_eq!(Stream::of(body).status, 408);
    for stream in &mut silent {
        // the end, whatever is said before it
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
    }
    // an idle connection is let go too
    let mut idle = open("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut said = String::new();
    idle.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn a_slow_reader_blocks_nobody() {
    let server = Server::ready(&[]);
    // as many bytes as no buffer of a connection holds
    let wide = with(endless(), json!({"logprobs": true, "top_logprobs": 20, "n": 4, "max_tokens": 600}));
    let slow: Vec<Stream> = (0..1).map(|_| server.stream(&wide)).collect();
    let right = generated("Tell me a story about a fox.", 20);
    assert_eq!(server.post(CHAT, &chat("Tell me a story about a fox.", 20)).text(), right);
    soon("all is computed, though nothing was read", || {
        (server.metric("tbshard_answers_running") == 0.0).then_some(())
    });
    assert_eq!(server.metric("tbshard_cancelled_total"), 0.0);
    let first = with(endless(), json!({"stream": false, "max_tokens": 600}));
    let right = server.post(CHAT, &first).text();
    for stream in slow {
        let body = stream.finish().body;
        assert!(body.len() > 3 << 20, "{}", body.len());
        let of_third = |event: &&str| !event.contains("\"index\":") || event.contains("\"index\":2");
        let third: Vec<&str> = body.split_inclusive("\n\n").filter(of_third).collect();
        assert_eq!(streamed(&third.concat()), right);
    }
}

/// Waits until the server has closed a connection of which nothing is read.
fn await_closed(mut stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    soon("it is let go", || {
        let error = stream.write(b"x").err()?;
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe).then_some(())
    });
}

#[test]
fn who_reads_nothing_is_let_go() {
    let server = Server::ready(&["--read-timeout", "0.5", "--request-timeout", "12"]);
    // as many pages as no buffer of a connection holds
    let mut pages = TcpStream::connect(&server.address).unwrap();
    pages.write_all("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(2000).as_bytes()).unwrap();
    let wide = json!({"stream": false, "logprobs": true, "top_logprobs": 20, "max_tokens": 600, "n": 4});
    let text = with(endless(), wide).to_string();
    let text = Stream::text("localhost", "POST", CHAT, &[("content-type", "application/json")], &text);
    let mut whole = TcpStream::connect(&server.address).unwrap();
    whole.write_all(text.as_bytes()).unwrap();
    await_closed(&pages);
    soon("it is answered", || (server.metric("tbshard_generated_tokens_total") == 2400.0).then_some(()));
    await_closed(&whole);
}
