//! What replies look like against the types of the official OpenAI client. Needs `TBSHARD_PYTHON` with it installed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tbshard::api::{Endpoint, Order};
use tbshard::engine::Finish;

use super::set;
use crate::api::{order, play, texts, with_template};

/// Whole responses and chunks of everything that a reply may have.
fn samples() -> Vec<Value> {
    let tokenizer = texts().tokenizer;
    let said = "Hm.</think>\n\nThe fox 🦊 ran.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let tokens = tokenizer.encode(said, false).unwrap();
    let template = "{{ tools }}{# <tool_call>{\"name\": x, \"arguments\": y} #}<think>";
    let tools = json!([{"type": "function", "function": {"name": "now"}}]);
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let mut samples = Vec::new();
    let mut add = |order: Order, finish: Finish| {
        let answers = vec![&tokens[..]; order.jobs.len()];
        let (reply, chunks) = play(order, &answers, finish);
        samples.push(reply.whole());
        samples.extend(chunks);
    };
    for usage in [false, true] {
        let mut body = json!({"messages": messages, "stream": true, "n": 2, "logprobs": true, "top_logprobs": 3});
        if usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        add(order(Endpoint::Chat, &body, &texts()).unwrap(), Finish::Length);
        body["tools"] = tools.clone();
        add(order(Endpoint::Chat, &body, &with_template(template)).unwrap(), Finish::Stop);
        let body = json!({"prompt": ["A", "B"], "stream": true, "logprobs": 2, "max_tokens": 99});
        add(order(Endpoint::Completions, &body, &texts()).unwrap(), Finish::Stop);
        let body = json!({"prompt": "A", "echo": true, "stream": true, "stop": "fox", "max_tokens": 99});
        add(order(Endpoint::Completions, &body, &texts()).unwrap(), Finish::Length);
    }
    samples
}

#[test]
fn replies_are_what_the_official_client_takes() {
    let Some(python) = set("TBSHARD_PYTHON") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/openai_shapes.py");
    let samples = samples();
    let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: String = samples.iter().map(|sample| format!("{}\n", json!([sample["object"], sample]))).collect();
    // it does not read what it has no types for
    let _ = input.write_all(lines.as_bytes());
    drop(input);
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        println!("skipped: `openai` is not installed there");
        return;
    }
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), samples.len().to_string());
    println!("{} objects", samples.len());
}
