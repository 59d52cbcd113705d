//! Answers that are kept to a grammar: whatever the logits are, the text is what was asked for.

use proptest::prelude::*;
use serde_json::{Value, json};
use tbshard::api::{Endpoint, Order, Reply, Texts};
use tbshard::engine::{Constraint, Finish, Job, Sampler, Sampling};

use super::{done, order, stamp, texts, token, with_template};

/// Numbers that look random.
fn noise(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    })
}

/// Lets a model without sense answer; returns its tokens.
fn babble(job: &mut Job, vocab: usize, seed: u64) -> Vec<u32> {
    let mut numbers = noise(seed);
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling, 0);
    let mut tokens = Vec::new();
    while tokens.len() < 6000 {
        let mut logits: Vec<f32> = numbers.by_ref().take(vocab).map(|x| 3.0 * x).collect();
        let constraint = job.constraint.as_mut().unwrap();
        constraint.restrict(&mut logits).unwrap();
        let chosen = sampler.choose(&logits, tokens.len());
        assert!(logits[chosen as usize] > f32::NEG_INFINITY);
        constraint.accept(chosen).unwrap();
        if job.eos.contains(&chosen) {
            assert!(constraint.is_complete());
            return tokens;
        }
        tokens.push(chosen);
        if constraint.is_complete() {
            return tokens;
        }
    }
    panic!("no end of {:?}", texts().tokenizer.decode(&tokens, false));
}

/// The reply to a body, answered without sense.
fn answered(body: &Value, texts: &Texts, seed: u64) -> Reply {
    let Order { mut jobs, mut reply } = order(Endpoint::Chat, body, texts).unwrap();
    let tokens = babble(&mut jobs[0], texts.vocab, seed);
    for id in tokens {
        if reply.update(0, token(&jobs[0], id)).unwrap().end {
            return reply;
        }
    }
    reply.update(0, done(&jobs[0], Finish::Stop)).unwrap();
    reply
}

fn asking(format: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "Hello"}], "response_format": format})
}

fn schema(schema: Value) -> Value {
    asking(json!({"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": true}}))
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {
            "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "wet": {"type": "boolean"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
            "required": ["name", "age", "wet"], "additionalProperties": false}),
        json!({"type": "array", "items": {"$ref": "#/$defs/pair"}, "minItems": 1, "maxItems": 2,
            "$defs": {"pair": {"type": "object", "properties": {"x": {"type": "number", "minimum": -1, "maximum": 1},
                "y": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-f]{2,5}$"}]}},
                "required": ["x", "y"], "additionalProperties": false}}}),
        json!({"enum": ["red", "green", 3, null]}),
        json!({"type": "string", "format": "date"}),
    ]
}

#[test]
fn whatever_the_logits_are_the_text_is_what_the_schema_says() {
    let texts = texts();
    for schema_ in schemas() {
        let validator = jsonschema::validator_for(&schema_).unwrap();
        for seed in 0..15 {
            let reply = answered(&schema(schema_.clone()), &texts, seed);
            let text = reply.whole()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert!(validator.is_valid(&value), "{text}\n{schema_}");
        }
    }
    let request = asking(json!({"type": "json_object"}));
    let mut ended = 0;
    for seed in 0..10 {
        let Order { mut jobs, .. } = order(Endpoint::Chat, &request, &texts).unwrap();
        // objects have no end that is near: what there is begins one
        let tokens = start_of(jobs[0].constraint.as_mut().unwrap().as_mut(), texts.vocab, seed);
        let text = texts.tokenizer.decode(&tokens, false).unwrap();
        assert!(text.trim_start().starts_with('{'), "{text:?}");
        ended += usize::from(serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()));
    }
    println!("{ended} of 10 ended");
}

/// The first tokens of an answer without sense.
fn start_of(constraint: &mut dyn Constraint, vocab: usize, seed: u64) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut numbers = noise(seed);
    while tokens.len() < 100 && !constraint.is_complete() {
        let mut logits: Vec<f32> = numbers.by_ref().take(vocab).collect();
        if constraint.restrict(&mut logits).is_err() {
            break;
        }
        let best = (0..vocab as u32).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize])).unwrap();
        constraint.accept(best).unwrap();
        tokens.push(best);
    }
    tokens
}

#[test]
fn a_token_is_allowed_exactly_if_a_word_goes_on_with_it() {
    let texts = texts();
    let words = ["\"red\"", "\"green\"", "\"grey fox\"", "\"the fox said\"", "17"];
    let values: Vec<Value> = words.iter().map(|word| serde_json::from_str(word).unwrap()).collect();
    let request = schema(json!({"enum": values}));
    let bytes = |id: u32| texts.tokenizer.bytes(id).unwrap_or_default();
    for seed in 0..10 {
        let Order { mut jobs, .. } = order(Endpoint::Chat, &request, &texts).unwrap();
        let (eos, constraint) = (jobs[0].eos.clone(), jobs[0].constraint.as_mut().unwrap());
        let mut said = Vec::new();
        let mut numbers = noise(seed);
        while !constraint.is_complete() {
            let mut logits = vec![0.0; texts.vocab];
            constraint.restrict(&mut logits).unwrap();
            let mut may = Vec::new();
            for id in 0..texts.vocab as u32 {
                let longer = [&said[..], &bytes(id)].concat();
                let goes_on = !bytes(id).is_empty() && words.iter().any(|word| word.as_bytes().starts_with(&longer));
                let ends = eos.contains(&id) && words.iter().any(|word| word.as_bytes() == said);
                let is_allowed = logits[id as usize] == 0.0;
                assert_eq!(
                    is_allowed,
                    !texts.tokenizer.is_special(id) && goes_on || ends,
                    "{said:?} then {:?}",
                    bytes(id)
                );
                if is_allowed {
                    may.push(id);
                }
            }
            let chosen = may[(numbers.next().unwrap() * may.len() as f32) as usize];
            constraint.accept(chosen).unwrap();
            if !eos.contains(&chosen) {
                said.extend(bytes(chosen));
            }
        }
        assert!(words.iter().any(|word| word.as_bytes() == said));
        assert!(constraint.accept(5).is_err());
    }
}

#[test]
fn a_token_that_may_not_follow_is_an_error() {
    let Order { mut jobs, .. } = order(Endpoint::Chat, &schema(json!({"enum": ["red"]})), &texts()).unwrap();
    let id = texts().tokenizer.encode("x", false).unwrap()[0];
    let (end, constraint) = (jobs[0].eos[0], jobs[0].constraint.as_mut().unwrap());
    assert!(constraint.accept(end).unwrap_err().to_string().contains("cannot end here"));
    assert!(constraint.accept(id).is_err());
}

fn thinking(template: &str) -> Texts {
    let tokenizer = crate::support::files::fixtures().join("tiny/qwen3_5/tokenizer.json");
    let tokenizer = tbshard::text::Tokenizer::from_bytes(&std::fs::read(tokenizer).unwrap()).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let base = with_template(template);
    let defaults = tbshard::engine::Defaults { eos: vec![end], ..base.defaults.clone() };
    Texts { defaults, context: 2048, ..Texts::new("demo", std::sync::Arc::new(tokenizer), base.template) }
}

#[test]
fn a_grammar_begins_when_the_model_has_reasoned() {
    let asked = schema(json!({"enum": ["red"]}));
    let open = "{{ messages[0].content }}{% if enable_thinking %}{% endif %}<|im_start|>assistant\n<think>\n";
    let texts = thinking(open);
    let id = |text: &str| texts.tokenizer.token_id(text).unwrap();
    let Order { mut jobs, mut reply } = order(Endpoint::Chat, &asked, &texts).unwrap();
    let allowed = |job: &mut Job| {
        let mut logits = vec![0.0; texts.vocab];
        job.constraint.as_mut().unwrap().restrict(&mut logits).unwrap();
        logits.iter().filter(|logit| **logit == 0.0).count()
    };
    let mut tell = |job: &mut Job, token_: u32| {
        job.constraint.as_mut().unwrap().accept(token_).unwrap();
        reply.update(0, token(job, token_)).unwrap();
    };
    assert_eq!(allowed(&mut jobs[0]), texts.vocab - 1, "all but the end");
    for token in texts.tokenizer.encode("Hm", false).unwrap() {
        tell(&mut jobs[0], token);
    }
    assert_eq!(allowed(&mut jobs[0]), texts.vocab - 1);
    tell(&mut jobs[0], id("</think>"));
    assert!(allowed(&mut jobs[0]) < 10);
    for token in texts.tokenizer.encode("\"red\"", false).unwrap() {
        tell(&mut jobs[0], token);
    }
    assert!(jobs[0].constraint.as_ref().unwrap().is_complete());
    reply.update(0, done(&jobs[0], Finish::Stop)).unwrap();
    let message = &reply.whole()["choices"][0]["message"];
    assert_eq!((&message["content"], &message["reasoning_content"]), (&json!("\"red\""), &json!("Hm")));

    // a model that opens its reasoning itself may, where the template lets it
    for (template, may) in
        [("{{ enable_thinking }}<|im_start|>", true), ("{{ enable_thinking }}<think></think>", false)]
    {
        let texts = thinking(template);
        let Order { mut jobs, .. } = order(Endpoint::Chat, &asked, &texts).unwrap();
        let mut logits = vec![0.0; texts.vocab];
        jobs[0].constraint.as_mut().unwrap().restrict(&mut logits).unwrap();
        assert_eq!(logits[id("<think>") as usize] == 0.0, may, "{template}");
    }
}

/// Templates that have what tells the forms apart.
const FORMS: [&str; 3] = [
    "{{ tools }}{# <tool_call>{\"name\": x, \"arguments\": y}</tool_call> #}",
    "{{ tools }}{# <tool_call><function=x></function></tool_call> #}",
    "{{ tools }}{# <|tool_calls_section_begin|> #}",
];

fn tools() -> Value {
    let weather = json!({"type": "object", "properties": {"city": {"enum": ["Ulm", "Bonn"]}, "days": {"type": "integer",
        "minimum": 1, "maximum": 9}, "wet": {"type": "boolean"}}, "required": ["city", "days"], "additionalProperties": false});
    let plain = json!({"type": "object", "properties": {}, "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "It.", "parameters": weather, "strict": true}},
        {"type": "function", "function": {"name": "now", "parameters": plain}}])
}

#[test]
fn a_text_that_is_a_parameter_may_be_any_and_ends_with_its_tag() {
    let parameters = json!({"type": "object", "properties": {"note": {"type": "string"}, "more": {"type": "array"}},
        "required": ["note"]});
    let tools = json!([{"type": "function", "function": {"name": "write", "parameters": parameters}}]);
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "tools": tools, "tool_choice": "required"});
    let texts = with_template(FORMS[1]);
    for note in ["", "a \"quoted\"\n<b> fox & </parameter> 狐\n", "</function>"] {
        for more in ["", "<parameter=more>\n[1, {\"a\": null}]\n</parameter>\n"] {
            let written = format!(
                "<tool_call>\n<function=write>\n<parameter=note>\n{note}\n</parameter>\n{more}</function>\n</tool_call>"
            );
            let Order { mut jobs, mut reply } = order(Endpoint::Chat, &body, &texts).unwrap();
            for id in texts.tokenizer.encode(&written, false).unwrap() {
                let mut logits = vec![0.0; texts.vocab];
                let constraint = jobs[0].constraint.as_mut().unwrap();
                constraint.restrict(&mut logits).unwrap();
                assert_eq!(logits[id as usize], 0.0, "{written}");
                constraint.accept(id).unwrap();
                reply.update(0, token(&jobs[0], id)).unwrap();
            }
            reply.update(0, done(&jobs[0], Finish::Stop)).unwrap();
            let call = reply.whole()["choices"][0]["message"]["tool_calls"][0]["function"].clone();
            let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
            assert_eq!((&call["name"], &arguments["note"]), (&json!("write"), &json!(note)));
            assert_eq!(arguments["more"].is_array(), !more.is_empty());
        }
    }
}

#[test]
fn a_model_that_must_call_calls_with_arguments_of_the_schema() {
    let validator = jsonschema::validator_for(&tools()[0]["function"]["parameters"]).unwrap();
    for template in FORMS {
        let texts = with_template(template);
        for (choice, parallel) in [
            (json!("required"), true),
            (json!("required"), false),
            (json!({"type": "function", "function": {"name": "weather"}}), true),
        ] {
            let body = json!({"messages": [{"role": "user", "content": "Hello"}], "tools": tools(), "tool_choice": choice,
                "parallel_tool_calls": parallel});
            for seed in 0..6 {
                let reply = answered(&body, &texts, seed);
                let whole = &reply.whole()["choices"][0];
                assert_eq!(
                    (&whole["finish_reason"], &whole["message"]["content"]),
                    (&json!("tool_calls"), &Value::Null)
                );
                let calls = whole["message"]["tool_calls"].as_array().unwrap();
                assert!(calls.len() == 1 || parallel && choice.is_string(), "{whole}");
                for (index, call) in calls.iter().enumerate() {
                    let (name, arguments) =
                        (&call["function"]["name"], call["function"]["arguments"].as_str().unwrap());
                    let arguments: Value = serde_json::from_str(arguments).unwrap();
                    assert!(name == "weather" || name == "now" && choice.is_string(), "{whole}");
                    assert!(name == "now" && arguments == json!({}) || validator.is_valid(&arguments), "{arguments}");
                    let id = call["id"].as_str().unwrap();
                    let expected = format!("call_{}_0_{index}", stamp().id.trim_start_matches("chatcmpl-"));
                    assert!(id == expected || id.starts_with("functions."), "{id}");
                }
            }
        }
    }
}

#[test]
fn calls_in_a_stream_are_deltas_and_those_of_one_are_enough_if_so_wanted() {
    let texts = with_template(FORMS[0]);
    let written = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>\n\
                   <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    for parallel in [true, false] {
        let body = json!({"messages": [{"role": "user", "content": "Hello"}], "tools": tools(), "stream": true,
            "parallel_tool_calls": parallel});
        let order = order(Endpoint::Chat, &body, &texts).unwrap();
        let (reply, chunks) = super::play_text(order, written, Finish::Stop);
        let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
        let said: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(said, "Let me see.");
        let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta["tool_calls"].as_array()).flatten().collect();
        let call = |index: usize, name: &str, arguments: &str| {
            json!({"index": index, "id": format!("call_1_0_{index}"), "type": "function",
                "function": {"name": name, "arguments": arguments}})
        };
        let expected = [call(0, "weather", "{\"city\": \"Ulm\"}"), call(1, "now", "{}")];
        assert_eq!(calls, expected[..if parallel { 2 } else { 1 }].iter().collect::<Vec<_>>());
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(reply.whole()["choices"][0]["message"]["content"], "Let me see.");
    }
}

#[test]
fn what_no_grammar_can_be_made_of_is_refused() {
    let refused = |body: &Value, texts: &Texts| order(Endpoint::Chat, body, texts).unwrap_err();
    for schema_ in [
        json!({"type": "colour"}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "object", "unevaluatedProperties": 1, "if": {}}),
        json!({"$ref": "#/nowhere"}),
        json!(3),
        json!("text"),
    ] {
        let refusal = refused(&schema(schema_.clone()), &texts());
        assert_eq!(
            (refusal.status, refusal.param.as_deref()),
            (400, Some("response_format")),
            "{schema_}: {refusal:?}"
        );
    }
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "tools": tools()});
    assert_eq!(refused(&body, &texts()).param.as_deref(), Some("tools"), "the demo's template has no tools");
    body["tool_choice"] = json!({"type": "function", "function": {"name": "rain"}});
    assert!(refused(&body, &with_template(FORMS[0])).message.contains("`rain` is not one of the tools"));
    body["tools"][1]["function"]["name"] = json!("weather");
    assert_eq!(refused(&body, &with_template(FORMS[0])).param.as_deref(), Some("tools[1].function.name"));
    body["tools"][1]["function"] = json!({"name": "a b"});
    assert_eq!(refused(&body, &with_template(FORMS[0])).param.as_deref(), Some("tools[1].function.name"));
    body["tools"][1] = json!({"type": "web_search"});
    assert_eq!(refused(&body, &with_template(FORMS[0])).status, 400);
}

/// Schemas, or nearly.
fn nearly() -> impl Strategy<Value = Value> {
    let kind = prop::sample::select(vec!["object", "array", "string", "integer", "number", "null", "any"]);
    let leaf = prop_oneof![
        kind.prop_map(|kind| json!({"type": kind})),
        super::bodies::anything(),
        any::<u64>().prop_map(|n| json!({"type": "string", "minLength": n % 100, "maxLength": n})),
        any::<i64>().prop_map(|n| json!({"type": "integer", "minimum": n, "multipleOf": n % 10})),
        ".{0,6}".prop_map(|pattern| json!({"type": "string", "pattern": pattern})),
        Just(json!({"$ref": "#"})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|list| json!({"anyOf": list})),
            inner.clone().prop_map(|inner| json!({"type": "array", "items": inner, "x-guidance": {"lenient": 1}})),
            ("[a-c]{1,2}", inner).prop_map(|(key, inner)| json!({"type": "object", "properties": {key: inner}})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_schema_is_a_panic(asked in nearly(), seed in 0u64..100) {
        thread_local!(static TEXTS: Texts = texts());
        TEXTS.with(|texts| {
            if let Ok(Order { mut jobs, .. }) = order(Endpoint::Chat, &schema(asked), texts) {
                start_of(jobs[0].constraint.as_mut().unwrap().as_mut(), texts.vocab, seed);
            }
        });
    }
}
