//! Who is let in.

use std::process::Output;

use super::clients::{CHAT, Server, chat, soon};
use crate::support::program::command;

const JSON: (&str, &str) = ("content-type", "application/json");

fn refused(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(&[&["serve"], args].concat()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_key_opens_the_door() {
    let server =
        Server::start_with(&["--api-key", "the-first-key", "--api-key", "two"], &[("TBSHARD_API_KEY", "three")]);
    server.await_ready();
    assert_eq!((server.get("/").status, server.get("/health").status), (200, 200));
    for path in ["/v1/models", "/metrics", "/v1/models/demo", "/elsewhere"] {
        let response = server.get(path);
        assert_eq!((response.status, response.code().as_str()), (401, "invalid_api_key"), "{path}");
        assert_eq!(response.headers["www-authenticate"], "Bearer");
        assert_eq!(response.json()["error"]["type"], "authentication_error");
    }
    let body = chat("Hello", 2).to_string();
    for (key, status) in [
        ("Bearer the-first-key", 200),
        ("Bearer two", 200),
        ("Bearer three", 200),
        ("Bearer the-first-ke", 401),
        ("the-first-key", 401),
    ] {
        let response = server.ask("POST", CHAT, &[JSON, ("authorization", key)], &body);
        assert_eq!(response.status, status, "{key}");
    }
    soon("all is logged", || (server.log().matches(CHAT).count() == 5).then_some(()));
    assert!(!server.log().contains("the-first"), "{}", server.log());
}

#[test]
fn a_name_that_was_made_to_point_here_is_refused() {
    let server = Server::ready(&["--allow-host", "box.lan"]);
    for (host, status) in [("localhost", 200), ("127.0.0.1:1", 200), ("box.lan", 200), ("evil.example:8080", 403)] {
        let response = server.ask("GET", "/v1/models", &[("host", host)], "");
        assert_eq!(response.status, status, "{host}");
    }
}

#[test]
fn other_origins_ask_only_where_they_may() {
    let server = Server::ready(&["--cors", "https://chat.example"]);
    let asks = |origin: &str, method: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-stainless-os"),
        ];
        server.ask(method, CHAT, &headers, "")
    };
    let allowed = asks("https://chat.example", "OPTIONS");
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://chat.example");
    assert_eq!(allowed.headers["access-control-allow-headers"], "authorization,x-stainless-os");
    assert!(!asks("https://evil.example", "OPTIONS").headers.contains_key("access-control-allow-origin"));
    let answer = server.ask("GET", "/v1/models", &[("origin", "https://chat.example")], "");
    assert_eq!(answer.headers["access-control-allow-origin"], "https://chat.example");
    assert_eq!(answer.headers["vary"], "Origin");
}

#[test]
fn a_port_that_is_taken_is_known_before_the_model_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // a model that is not there would be the next to be missed
    let (code, said) = refused(&["--port", &port, "--model", "./nowhere"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("error: the port {port} of 127.0.0.1 is taken")), "{said}");
    assert!(said.contains("hint: --port 0"), "{said}");
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let cases: [(&[&str], &str); 7] = [
        (&["--api-key", ""], "API key"),
        (&["--cors", "https://a.example/path"], "no origin"),
        (&["--max-body", "0"], "--max-body 0"),
        (&["--request-timeout", "nan"], "--request-timeout"),
        (&["--drain-timeout", "1e9"], "--drain-timeout"),
        (&["--max-concurrency", "0"], "--max-concurrency 0"),
        (&["--host", "256.0.0.1"], "256.0.0.1"),
    ];
    for (args, words) in cases {
        let (code, said) = refused(args);
        assert!(code == Some(2) || args[0] == "--host" && code == Some(1), "{args:?}: {said}");
        assert!(said.contains("error: ") && said.contains(words), "{args:?}: {said}");
    }
    // it would listen somewhere else
    let (code, said) = refused(&["--hosts", "one.example,two.example"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("none of the hosts") && said.contains("hint: run it there: `ssh -L"), "{said}");
    let (code, said) = refused(&["--port", "0", "--model", "./nowhere"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn an_open_door_to_everybody_is_warned_of() {
    let open = Server::ready(&["--host", "0.0.0.0"]);
    assert!(open.log().contains("warning: whoever reaches 0.0.0.0:"), "{}", open.log());
    let server = Server::start_with(&["--host", "0.0.0.0", "--api-key", "k"], &[]);
    assert!(!server.log().contains("warning"), "{}", server.log());
}
