//! Bodies that are read, and bodies that are refused with the key that is wrong.

use proptest::prelude::*;
use serde_json::{Value, json};
use tbshard::api::{Endpoint, Stamp, prepare};
use tbshard::engine::Sampling;

use super::{chat, completions, order, texts, with_template};

fn with(key: &str, value: Value) -> Value {
    let mut body = json!({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]});
    body[key] = value;
    body
}

#[test]
fn every_choice_of_sampling_reaches_the_job() {
    let body = json!({
        "model": "demo", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "min_p": 0.1, "presence_penalty": 0.25, "frequency_penalty": -0.5, "repetition_penalty": 1.5, "seed": -3,
        "logit_bias": {"5": -100, "6": 1.5}, "max_completion_tokens": 9, "n": 2, "logprobs": true, "top_logprobs": 3,
        "user": "me", "metadata": {"a": "b"}, "store": true, "stop": null, "stream": false
    });
    let order = chat(body).unwrap();
    let expected = Sampling {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 7,
        min_p: 0.1,
        presence_penalty: 0.25,
        frequency_penalty: -0.5,
        repetition_penalty: 1.5,
        logit_bias: [(5, -100.0), (6, 1.5)].into(),
        seed: -3i64 as u64,
    };
    assert_eq!(order.jobs.len(), 2);
    for (choice, job) in order.jobs.iter().enumerate() {
        assert_eq!((job.id, job.choice), (choice as u64, choice as u64));
        assert_eq!((job.max_tokens, job.logprobs, &job.sampling), (9, Some(3), &expected));
        assert_eq!(job.eos, texts().defaults.eos);
    }
}

#[test]
fn what_is_left_open_comes_from_the_checkpoint_and_the_seed_from_the_id() {
    let job = |id: &str| {
        let stamp = Stamp { id: id.to_owned(), created: 0 };
        let body = json!({"messages": [{"role": "user", "content": "Hello"}]});
        prepare(Endpoint::Chat, &body, &texts(), &stamp).unwrap().jobs.remove(0)
    };
    let (a, b, c) = (job("a"), job("a"), job("b"));
    assert_eq!(a.sampling, b.sampling);
    assert_ne!(a.sampling.seed, c.sampling.seed);
    assert_eq!(Sampling { seed: 0, ..a.sampling }, texts().defaults.sampling);
    assert_eq!(a.max_tokens, 2048 + 1 - a.prompt.len());
}

#[test]
fn a_conversation_is_rendered_as_the_template_has_it() {
    let body = json!({"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Hi", "refusal": null, "annotations": [], "audio": null, "function_call": null,
            "tool_calls": null},
        {"role": "user", "name": "Ann", "content": "And?"}]});
    let prompt = chat(body).unwrap().jobs.remove(0).prompt;
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi\
                    <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(texts().tokenizer.decode(&prompt, false).unwrap(), expected);
}

#[test]
fn completions_take_a_prompt_in_four_ways() {
    let ids = texts().tokenizer.encode("Once upon", true).unwrap();
    for (prompt, count) in
        [(json!("Once upon"), 1), (json!(["Once upon", "Once upon"]), 2), (json!(ids), 1), (json!([ids, ids]), 2)]
    {
        let order = completions(json!({"prompt": prompt, "n": 2, "ignore_eos": true})).unwrap();
        assert_eq!(order.jobs.len(), 2 * count);
        for (index, job) in order.jobs.iter().enumerate() {
            assert_eq!((job.id, job.choice, job.max_tokens), (index as u64, index as u64 % 2, 16));
            assert!(job.prompt == ids && job.eos.is_empty());
        }
    }
}

#[test]
fn chats_that_cannot_be_are_refused_by_the_key_that_is_wrong() {
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let audio = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}]);
    let message = |message: Value| with("messages", json!([message]));
    for (body, param, words) in [
        (json!([]), None, "not a JSON object"),
        (json!({"model": "demo"}), Some("messages"), "missing"),
        (with("messages", json!([])), Some("messages"), "empty"),
        (with("colour", json!("red")), Some("colour"), "no parameter `colour`"),
        (with("prompt", json!("red")), Some("prompt"), "no parameter"),
        (with("functions", json!([])), Some("functions"), "no parameter"),
        (with("model", json!("gpt-7")), Some("model"), "no model `gpt-7` here, but `demo`"),
        (with("temperature", json!(2.5)), Some("temperature"), "2.5: it is a number from 0 to 2"),
        (with("temperature", json!("hot")), Some("temperature"), "expected f32"),
        (with("temperature", json!(1e300)), Some("temperature"), "inf"),
        (with("top_p", json!(-0.1)), Some("top_p"), "from 0 to 1"),
        (with("top_k", json!(-2)), Some("top_k"), "-2"),
        (with("frequency_penalty", json!(3)), Some("frequency_penalty"), "from -2 to 2"),
        (with("repetition_penalty", json!(0)), Some("repetition_penalty"), "from 0.01"),
        (with("logit_bias", json!({"x": 1})), Some("logit_bias.x"), "not a token id"),
        (with("logit_bias", json!({"99999999": 1})), Some("logit_bias.99999999"), "not a token id"),
        (with("logit_bias", json!({"1": 101})), Some("logit_bias.1"), "from -100 to 100"),
        (with("n", json!(0)), Some("n"), "from 1 to 128"),
        (with("n", json!(-1)), Some("n"), "`n`"),
        (with("stop", json!(["a", ""])), Some("stop"), "none of them empty"),
        (with("stop", json!(vec!["a"; 17])), Some("stop"), "at most 16"),
        (with("stop", json!(3)), Some("stop"), "a string or a list"),
        (with("stream_options", json!({"include_usage": true})), Some("stream_options"), "stream: true"),
        (with("top_logprobs", json!(3)), Some("top_logprobs"), "logprobs: true"),
        (with("max_tokens", json!(0)), Some("max_completion_tokens"), "at least 1"),
        (with("max_tokens", json!(5000)), Some("messages"), "room for 2048 tokens, but 50"),
        (with("modalities", json!(["text", "audio"])), Some("modalities"), "no `audio`"),
        (with("reasoning_effort", json!("low")), Some("reasoning_effort"), "no way of saying `low`"),
        (with("chat_template_kwargs", json!({"x": 1})), Some("chat_template_kwargs.x"), "no such choice"),
        (with("response_format", json!({"type": "yaml"})), Some("response_format.type"), "unknown variant"),
        (with("response_format", json!({"type": "json_schema"})), Some("response_format.json_schema"), "missing"),
        (with("tool_choice", json!("required")), Some("tool_choice"), "goes with `tools`"),
        (with("messages", image), Some("messages[0].content[0].type"), "`image_url`: models read text alone"),
        (with("messages", audio), Some("messages[0].content[1].type"), "`input_audio`"),
        (message(json!({"role": "king", "content": "a"})), Some("messages[0].role"), "unknown variant `king`"),
        (message(json!({"role": "user"})), Some("messages[0].content"), "missing"),
        (message(json!({"role": "user", "content": "a", "mood": 1})), Some("messages[0].mood"), "mood"),
        (message(json!({"role": "tool", "content": "a"})), Some("messages[0].tool_call_id"), "missing"),
        (message(json!({"role": "assistant", "content": null})), Some("messages[0].content"), "missing"),
    ] {
        let refusal = chat(body.clone()).expect_err(&body.to_string());
        assert_eq!(refusal.param.as_deref(), param, "{body}: {refusal:?}");
        assert!(refusal.message.contains(words), "{body}: {refusal:?}");
        let error = &refusal.body()["error"];
        assert_eq!((&error["type"], &error["message"]), (&json!("invalid_request_error"), &json!(refusal.message)));
    }
    assert_eq!(chat(with("model", json!("gpt-7"))).unwrap_err().status, 404);
    let code = chat(with("max_tokens", json!(5000))).unwrap_err().code;
    assert_eq!(code.as_deref(), Some("context_length_exceeded"));
}

#[test]
fn completions_that_cannot_be_are_refused_by_the_key_that_is_wrong() {
    for (body, param, words) in [
        (json!({}), "prompt", "missing"),
        (json!({"prompt": []}), "prompt", "is a string"),
        (json!({"prompt": ""}), "prompt", "no tokens"),
        (json!({"prompt": [[]]}), "prompt", "no tokens"),
        (json!({"prompt": [1, "a"]}), "prompt", "is a string"),
        (json!({"prompt": [1.5]}), "prompt", "1.5 is not a token id"),
        (json!({"prompt": [1_000_000]}), "prompt", "not a token id below"),
        (json!({"prompt": "a", "messages": []}), "messages", "no parameter"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix", "not inserted"),
        (json!({"prompt": "a", "best_of": 2}), "best_of", "not `n`"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs", "from 0 to 20"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs", "invalid type"),
        (json!({"prompt": "a", "logprobs": 1, "echo": true}), "echo", "none of a prompt"),
        (json!({"prompt": vec![5; 2048], "max_tokens": 2}), "prompt", "2050 were requested: 2048 in `prompt`, 2 for"),
    ] {
        let refusal = completions(body.clone()).expect_err(&body.to_string());
        assert_eq!(refusal.param.as_deref(), Some(param), "{body}: {refusal:?}");
        assert!(refusal.message.contains(words), "{body}: {refusal:?}");
    }
    assert!(completions(json!({"prompt": vec![5; 2048], "max_tokens": 1, "suffix": "", "best_of": 1})).is_ok());
    let many = |prompts: usize| completions(json!({"prompt": vec!["a"; prompts], "n": 128, "max_tokens": 1}));
    assert_eq!(many(16).unwrap().jobs.len(), 2048);
    assert_eq!(many(17).unwrap_err().param.as_deref(), Some("n"));
    let biases = |count: u32| {
        let biases: serde_json::Map<_, _> = (0..count).map(|at| (format!("{at:06}"), json!(1))).collect();
        completions(json!({"prompt": "a", "max_tokens": 1, "logit_bias": biases}))
    };
    assert!(biases(1025).unwrap_err().message.contains("at most 1024"));
}

#[test]
fn reasoning_is_switched_where_the_template_has_a_switch() {
    let template =
        "{{ messages[0].content }}|{{ enable_thinking | default('open') }}|{{ reasoning_effort | default('') }}";
    let texts = with_template(template);
    let prompt = |extra: Value| {
        let mut body = with("max_tokens", json!(1));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let tokens = order(Endpoint::Chat, &body, &texts).unwrap().jobs.remove(0).prompt;
        texts.tokenizer.decode(&tokens, false).unwrap()
    };
    assert_eq!(prompt(json!({})), "Hello|open|");
    assert_eq!(prompt(json!({"chat_template_kwargs": {"enable_thinking": false}})), "Hello|False|");
    assert_eq!(prompt(json!({"chat_template_kwargs": {"thinking": true}})), "Hello|True|");
    assert_eq!(prompt(json!({"reasoning_effort": "none"})), "Hello|False|");
    assert_eq!(prompt(json!({"reasoning_effort": "low"})), "Hello|open|low");
}

/// Any JSON, made of keys and values that bodies have and of others.
pub fn anything() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "user",
        "assistant",
        "tool",
        "text",
        "function",
        "auto",
        "required",
        "json_schema",
        "object",
        "a",
        "",
        "demo",
        "🦊",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    let key = prop::sample::select(KEYS.to_vec());
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

const KEYS: [&str; 48] = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "name",
    "tool_calls",
    "tool_call_id",
    "function",
    "arguments",
    "id",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "n",
    "stop",
    "stream",
    "stream_options",
    "include_usage",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "json_schema",
    "schema",
    "properties",
    "parameters",
    "required",
    "user",
    "metadata",
    "chat_template_kwargs",
    "reasoning_effort",
    "prompt",
    "echo",
    "suffix",
    "best_of",
    "x",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_body_is_a_panic(mut body in anything(), key in prop::sample::select(KEYS.to_vec()), value in anything()) {
        thread_local!(static TEXTS: tbshard::api::Texts = texts());
        TEXTS.with(|texts| {
            let stamp = super::stamp();
            for endpoint in Endpoint::ALL {
                let _ = prepare(endpoint, &body, texts, &stamp);
                if body.is_object() {
                    body["messages"] = json!([{"role": "user", "content": "a"}]);
                }
                let _ = prepare(endpoint, &body, texts, &stamp);
                let mut good = with(key, value.clone());
                let _ = prepare(endpoint, &good, texts, &stamp);
                good["prompt"] = json!("a");
                good.as_object_mut().unwrap().remove("messages");
                let _ = prepare(endpoint, &good, texts, &stamp);
            }
        });
    }
}
