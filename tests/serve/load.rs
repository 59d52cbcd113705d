//! Many clients at once: every answer comes, to who asked for it, and is the one that it would be alone.

use std::sync::Mutex;

use serde_json::json;

use super::clients::{CHAT, Server, chat, generated, soon, streamed, with};

const CLIENTS: usize = 64;
const REQUESTS: usize = 4;

const PROMPTS: [&str; 8] = [
    "Tell me a story about a fox.",
    "Tell me a story about a bird.",
    "Tell me a story.",
    "Hello!",
    "What is 2 + 3?",
    "What colour is the sky?",
    "What is the opposite of hot?",
    "Tell me a story about a frog and a boat.",
];

#[test]
fn no_answer_is_lost_mixed_or_stuck() {
    for ranks in ["1", "2"] {
        let server = Server::ready(&["--local", ranks, "--max-concurrency", "8", "-q"]);
        let cases: Vec<(&str, usize, String)> = PROMPTS
            .iter()
            .enumerate()
            .map(|(at, prompt)| (*prompt, 8 + 3 * at, generated(prompt, 8 + 3 * at)))
            .collect();
        let wrong = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (server, cases, wrong) = (&server, &cases, &wrong);
                scope.spawn(move || {
                    for request in 0..REQUESTS {
                        let (prompt, tokens, right) = &cases[(client * 5 + request * 3) % cases.len()];
                        let stream = (client + request) % 2 == 0;
                        let response = server.post(CHAT, &with(chat(prompt, *tokens), json!({"stream": stream})));
                        let text = if stream { streamed(&response.body) } else { response.text() };
                        if text != *right {
                            wrong.lock().unwrap().push(format!("{client}.{request} {prompt:?}: {text:?}"));
                        }
                    }
                });
            }
        });
        assert_eq!(wrong.into_inner().unwrap(), Vec::<String>::new());
        assert_eq!(server.metric("tbshard_answers_running") + server.metric("tbshard_answers_waiting"), 0.0);
        let name = "tbshard_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"}";
        // a request is counted when its last byte is gone, and who has it may ask before
        let all = (CLIENTS * REQUESTS) as f64;
        soon("every request to be counted", || (server.metric(name) >= all).then_some(()));
        assert_eq!(server.metric(name), all);
        assert_eq!(server.metric("tbshard_first_token_seconds_count"), all);
    }
}
