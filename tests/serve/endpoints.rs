//! Every endpoint: what it answers, and that an answer is the one of `tbshard generate`.

use serde_json::{Value, json};

use super::clients::{CHAT, Server, chat, events, generated, soon, streamed, with};
use crate::support::program::command;

const FOX: &str = "Tell me a story about a fox.";

#[test]
fn answers_are_those_of_generate() {
    let server = Server::ready(&[]);
    let right = generated(FOX, 60);
    let whole = server.post(CHAT, &chat(FOX, 60));
    assert_eq!(whole.text(), right);
    let whole = whole.json();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("demo")));
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"), "{whole}");
    let usage = &whole["usage"];
    assert_eq!(usage["completion_tokens"], 60);
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), 60 + usage["prompt_tokens"].as_u64().unwrap());

    let asked = with(chat(FOX, 60), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let stream = server.post(CHAT, &asked);
    assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(streamed(&stream.body), right);
    let events = events(&stream.body);
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(chunks.len() > 40, "{chunks:?}");
    let last = chunks.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(60)));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"]));
    let reasons: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons.iter().filter(|reason| reason.is_string()).count(), 1, "{reasons:?}");
}

#[test]
fn a_stop_string_ends_the_answer() {
    let server = Server::ready(&[]);
    let right = generated(FOX, 60);
    let stop = right.split_whitespace().nth(9).unwrap();
    let before = right.split_once(stop).unwrap().0;
    let asked = with(chat(FOX, 60), json!({"stop": stop}));
    assert_eq!(server.post(CHAT, &asked).text(), before);
    assert_eq!(streamed(&server.post(CHAT, &with(asked, json!({"stream": true}))).body), before);
    // the server is told of the end, and the client at the same time
    soon("nothing runs", || (server.metric("tbshard_answers_running") == 0.0).then_some(()));
    assert_eq!(server.metric("tbshard_cancelled_total"), 0.0);
}

#[test]
fn plain_text_is_continued() {
    let server = Server::ready(&[]);
    let asked = json!({"model": "demo", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0});
    let answer = server.post("/v1/completions", &asked).json();
    let args = ["generate", "--raw", "--prompt", "Once upon a time", "-n", "20", "--temp", "0", "--json", "-q"];
    let right: Value = serde_json::from_slice(&command(&args).output().unwrap().stdout).unwrap();
    assert_eq!(answer["choices"][0]["text"], right["text"]);
    assert_eq!(answer["object"], "text_completion");
}

#[test]
fn models_health_and_metrics_are_told() {
    let server = Server::ready(&["--name", "someone/a-model"]);
    let list = server.get("/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("someone/a-model")));
    assert_eq!(server.get("/v1/models/someone/a-model").json(), list["data"][0]);
    let absent = server.get("/v1/models/gpt-4");
    assert_eq!((absent.status, absent.code().as_str()), (404, "model_not_found"));
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    server.post(CHAT, &with(chat(FOX, 30), json!({"model": "someone/a-model"})));
    let metrics = server.get("/metrics");
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for line in metrics.body.lines() {
        let fits =
            line.starts_with("# ") || line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
        assert!(fits, "{line}");
    }
    assert_eq!(server.metric("tbshard_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"}"), 1.0);
    assert_eq!(server.metric("tbshard_generated_tokens_total"), 30.0);
    assert_eq!(server.metric("tbshard_first_token_seconds_count"), 1.0);
    assert_eq!(server.metric("tbshard_token_seconds_count"), 29.0);
}

#[test]
fn what_is_wrong_is_an_error_object_with_its_status() {
    let server = Server::ready(&[]);
    let json = [("content-type", "application/json")];
    let (good, text) = (chat("Hello", 1).to_string(), [("content-type", "text/plain")]);
    let cases: [(&str, &str, &[(&str, &str)], &str, u16); 10] = [
        ("GET", "/v2/models", &[], "", 404),
        ("GET", "/v1/models/%ff", &[], "", 400),
        ("GET", "/v1/chat/completions", &[], "", 405),
        ("POST", "/v1/models", &json, "{}", 405),
        ("POST", CHAT, &json, "{\"messages\": ", 400),
        ("POST", CHAT, &json, "\u{e9}", 400),
        ("POST", CHAT, &json, "[]", 400),
        ("POST", "/v1/completions", &json, "{}", 400),
        ("POST", CHAT, &text, &good, 415),
        ("POST", CHAT, &[], &good, 415),
    ];
    for (method, path, headers, body, status) in cases {
        let response = server.ask(method, path, headers, body);
        assert_eq!(response.status, status, "{method} {path} {body}: {}", response.body);
        let error = response.json()["error"].clone();
        assert_eq!(error["type"], "invalid_request_error", "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
        assert!(["param", "code"].iter().all(|key| error.as_object().unwrap().contains_key(*key)), "{error}");
    }
    let long = server.post(CHAT, &chat(&"word ".repeat(5000), 1));
    assert_eq!((long.status, long.code().as_str()), (400, "context_length_exceeded"));
}

#[test]
fn the_page_may_do_little() {
    let server = Server::ready(&[]);
    let page = server.get("/");
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    assert!(page.body.starts_with("<!doctype html>"), "{}", page.body);
    let policy = &page.headers["content-security-policy"];
    for part in ["default-src 'none'", "script-src 'sha256-", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}

#[test]
fn a_request_is_a_line_in_the_log_without_what_was_said() {
    for form in ["text", "json"] {
        let server = Server::ready(&["--log", form]);
        server.post(CHAT, &chat("a secret", 5));
        let line = super::clients::soon("it is logged", || {
            server.log().lines().find(|line| line.contains(CHAT)).map(str::to_owned)
        });
        let bodies = [
            json!({"messages": "a secret"}),
            json!({"x\nPOST forged 200": 1, "messages": []}),
            with(chat("Hello", 1), json!({"model": "a secret\nPOST forged 200"})),
            with(chat("Hello", 1), json!({"stop": {"a secret": "x".repeat(1 << 20)}})),
        ];
        for body in &bodies {
            let status = server.post(CHAT, body).status;
            assert!((400..500).contains(&status), "{status}: {body}");
        }
        super::clients::soon("all are logged", || (server.log().matches(CHAT).count() == 5).then_some(()));
        assert!(
            server.log().lines().all(|line| !line.starts_with("POST forged") && line.len() < 600),
            "{}",
            server.log()
        );
        assert!(!server.log().contains("secret"), "{}", server.log());
        if form == "text" {
            let begins = line.starts_with("POST /v1/chat/completions 200 · prompt ");
            assert!(begins && line.contains("answer 5 tok") && line.contains("first token"), "{line}");
            continue;
        }
        assert!(server.log().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", server.log());
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["event"], &line["status"], &line["answer_tokens"]),
            (&json!("request"), &json!(200), &json!(5))
        );
        assert!(line["first_token_ms"].as_f64().unwrap() <= line["total_ms"].as_f64().unwrap(), "{line}");
    }
}
