//! Replies: whole responses, and streams that say the same in pieces.

use serde_json::{Value, json};
use tbshard::api::{Endpoint, Reply};
use tbshard::engine::{Finish, Update};
use tbshard::error::Error;

use super::{chat, completions, done, order, play, play_text, stamp, texts, token, with_template};

fn body(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "stream": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The deltas of a choice, joined: content, reasoning, and the tokens of the probabilities.
fn joined(chunks: &[Value], index: usize) -> (String, String, Vec<Value>) {
    let (mut content, mut reasoning, mut logprobs) = (String::new(), String::new(), Vec::new());
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    for choice in choices.filter(|choice| choice["index"] == index) {
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        reasoning += choice["delta"]["reasoning_content"].as_str().unwrap_or_default();
        logprobs.extend(choice["logprobs"]["content"].as_array().into_iter().flatten().cloned());
        // no probability before its text; a stop string may cut the last
        let before = logprobs.len().saturating_sub(1);
        let sent: String = logprobs[..before].iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert!(
            content.starts_with(&sent) || sent.contains('\u{fffd}') || !reasoning.is_empty(),
            "{content:?} {sent:?}"
        );
    }
    (content, reasoning, logprobs)
}

fn message(reply: &Reply, index: usize) -> Value {
    reply.whole()["choices"][index]["message"].clone()
}

#[test]
fn a_chat_is_whole_as_openai_has_it() {
    let (reply, _) = play_text(chat(body(json!({"stream": false}))).unwrap(), "The fox ran.", Finish::Stop);
    let tokens = texts().tokenizer.encode("The fox ran.", false).unwrap().len();
    let prompt = reply.whole()["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    let expected = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "demo",
        "system_fingerprint": "fp_test",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "The fox ran.", "refusal": null},
            "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": prompt / 2}, "completion_tokens_details": {"reasoning_tokens": 0}},
    });
    assert_eq!(reply.whole(), expected);
    assert!(!reply.stream());
}

#[test]
fn a_stream_says_who_speaks_then_what_and_why_it_ends() {
    let options = json!({"stream_options": {"include_usage": true}});
    let (reply, chunks) = play_text(chat(body(options)).unwrap(), "The fox ran.", Finish::Length);
    let choice = |at: usize| chunks[at]["choices"][0].clone();
    assert_eq!(choice(0)["delta"], json!({"role": "assistant", "content": ""}));
    let last = chunks.len() - 1;
    assert_eq!(choice(last - 1), json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
    assert_eq!((&chunks[last]["choices"], &chunks[last]["usage"]), (&json!([]), &reply.whole()["usage"]));
    for chunk in &chunks[..last] {
        assert_eq!((&chunk["object"], &chunk["usage"]), (&json!("chat.completion.chunk"), &Value::Null));
        assert_eq!(chunk["id"], stamp().id);
    }
    assert_eq!(joined(&chunks, 0).0, "The fox ran.");
}

#[test]
fn a_stop_string_over_several_tokens_ends_the_answer_in_front_of_it() {
    let text = "The fox ran to the river. Then it slept.";
    for stop in ["river. Th", "T", "slept.", "x ran", "nowhere"] {
        let request = body(json!({"stop": [stop], "logprobs": true, "top_logprobs": 2}));
        let (reply, chunks) = play_text(chat(request).unwrap(), text, Finish::Length);
        let expected = text.find(stop).map_or(text, |at| &text[..at]);
        let (content, _, logprobs) = joined(&chunks, 0);
        assert_eq!(content, expected, "{stop}");
        assert_eq!(message(&reply, 0)["content"], expected);
        let whole = &reply.whole()["choices"][0];
        assert_eq!(whole["finish_reason"], if text.contains(stop) { "stop" } else { "length" });
        assert_eq!(whole["logprobs"]["content"].as_array().map_or(0, Vec::len), logprobs.len());
        // the token that the stop string begins in is there, those after it are not
        let said: String = logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert!(said.starts_with(expected) && text.starts_with(&said), "{stop}: {said:?}");
        assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
}

#[test]
fn reasoning_is_told_apart_from_the_answer() {
    let texts = with_template("{{ messages[0].content }}<think>\n");
    for (said, reasoning, answer) in [
        ("I think.\n</think>\n\nThe fox.", "I think.\n", "The fox."),
        ("I think on and on", "I think on and on", ""),
        ("</think>The fox.", "", "The fox."),
    ] {
        let order = order(Endpoint::Chat, &body(json!({"logprobs": true})), &texts).unwrap();
        let (reply, chunks) = play_text(order, said, Finish::Stop);
        let (content, thoughts, logprobs) = joined(&chunks, 0);
        assert_eq!((content.as_str(), thoughts.as_str()), (answer, reasoning));
        assert_eq!(message(&reply, 0)["content"], answer);
        assert_eq!(message(&reply, 0)["reasoning_content"].as_str().unwrap_or_default(), reasoning);
        let sent: String = logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert!(sent.ends_with(answer) && sent.len() < answer.len() + 5, "{sent:?}");
        let usage = &reply.usage();
        let thought = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        let all = usage["completion_tokens"].as_u64().unwrap();
        assert!(thought <= all && (thought == all) == answer.is_empty(), "{usage}");
    }
}

#[test]
fn characters_of_several_tokens_come_whole_with_all_their_probabilities() {
    let text = "Ünïcödé 🦊 fox 狐";
    let (reply, chunks) = play_text(chat(body(json!({"logprobs": true}))).unwrap(), text, Finish::Stop);
    let (content, _, logprobs) = joined(&chunks, 0);
    assert_eq!(content, text);
    let bytes: Vec<u8> =
        logprobs.iter().flat_map(|token| token["bytes"].as_array().unwrap().clone()).map(byte).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
    assert_eq!(logprobs.len() as u64, reply.usage()["completion_tokens"].as_u64().unwrap());
}

fn byte(value: Value) -> u8 {
    value.as_u64().unwrap() as u8
}

#[test]
fn answers_of_one_request_do_not_mix() {
    let order = chat(body(json!({"n": 3}))).unwrap();
    let tokenizer = texts().tokenizer;
    let answers = ["The fox.", "A bird sang.", "Yes"].map(|text| tokenizer.encode(text, false).unwrap());
    let jobs = order.jobs;
    let mut reply = order.reply;
    let mut chunks = Vec::new();
    for at in 0..20 {
        for (index, (job, answer)) in jobs.iter().zip(&answers).enumerate() {
            let update = match at.cmp(&answer.len()) {
                std::cmp::Ordering::Less => token(job, answer[at]),
                std::cmp::Ordering::Equal => done(job, Finish::Stop),
                std::cmp::Ordering::Greater => continue,
            };
            chunks.extend(reply.update(index, update).unwrap().chunks);
        }
    }
    for (index, text) in ["The fox.", "A bird sang.", "Yes"].iter().enumerate() {
        assert_eq!(joined(&chunks, index).0, *text);
        assert_eq!(message(&reply, index)["content"], *text);
    }
    assert!(reply.update(3, done(&jobs[0], Finish::Stop)).is_err());
    assert!(reply.update(0, token(&jobs[0], 5)).unwrap().chunks.is_empty(), "nothing follows the last word");
}

#[test]
fn completions_have_the_older_shape() {
    let request = json!({"prompt": ["Once upon", "The"], "n": 2, "echo": false, "logprobs": 2, "max_tokens": 50});
    let tokens = texts().tokenizer.encode(" a time", false).unwrap();
    let (reply, _) = play(completions(request).unwrap(), &[&tokens[..]; 4], Finish::Length);
    let whole = reply.whole();
    assert_eq!((&whole["object"], whole["choices"].as_array().unwrap().len()), (&json!("text_completion"), 4));
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(" a time")));
        let logprobs = &choice["logprobs"];
        let said: Vec<&str> =
            logprobs["tokens"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        assert_eq!(said.concat(), " a time");
        let mut offset = 0;
        for (at, text) in said.iter().enumerate() {
            assert_eq!(logprobs["text_offset"][at], offset);
            assert_eq!(logprobs["token_logprobs"][at], -0.5);
            assert_eq!(logprobs["top_logprobs"][at][*text], -0.5);
            offset += text.chars().count();
        }
    }
    let usage = &whole["usage"];
    let once = |text: &str| texts().tokenizer.encode(text, true).unwrap().len();
    assert_eq!(usage["prompt_tokens"], once("Once upon") + once("The"));
    assert_eq!(usage["completion_tokens"], 4 * tokens.len());
}

#[test]
fn an_echo_comes_first() {
    let (reply, chunks) = play_text(
        completions(json!({"prompt": "Once upon", "echo": true, "stream": true})).unwrap(),
        " a time",
        Finish::Stop,
    );
    let said: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(said, "Once upon a time");
    assert_eq!(reply.whole()["choices"][0]["text"], "Once upon a time");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_job_that_fails_is_an_error_and_the_last_word() {
    let order = chat(body(json!({}))).unwrap();
    let mut reply = order.reply;
    let failed = Update::Failed { id: 0, error: Error::msg("no token may follow") };
    assert!(reply.update(0, failed).unwrap_err().to_string().contains("no token may follow"));
    assert!(reply.is_done());
}

#[test]
fn replies_may_be_sent_to_threads() {
    fn sent<T: Send + 'static>() {}
    sent::<tbshard::api::Order>();
    sent::<tbshard::api::Texts>();
    fn shared<T: Sync>() {}
    shared::<tbshard::api::Texts>();
}
