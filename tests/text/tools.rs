//! Calls in answers: found wherever the text is cut, never lost, and what the real templates write is read back.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use tbshard::text::{Call, CallForm, Calls, Message, Piece, RenderOptions, Template};

use crate::support::files;

fn functions() -> Vec<(String, Value)> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "share": {"type": "number"}, "wet": {"type": "boolean"},
            "tags": {"type": "array"}, "more": {"$ref": "#/$defs/more"}, "maybe": {"type": ["string", "null"]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "unit": {"enum": ["c", "f"]}, "free": {},
        },
        "$defs": {"more": {"type": "object"}},
    });
    vec![("weather".to_owned(), parameters)]
}

fn all(form: CallForm, pieces: &[&str]) -> Vec<Piece> {
    let mut calls = Calls::new(form, functions());
    let mut found: Vec<Piece> = Vec::new();
    let mut add = |more: Vec<Piece>| {
        for piece in more {
            match (found.last_mut(), piece) {
                (Some(Piece::Text(last)), Piece::Text(text)) => last.push_str(&text),
                (_, piece) => found.push(piece),
            }
        }
    };
    pieces.iter().for_each(|piece| add(calls.push(piece)));
    add(calls.finish());
    assert_eq!(calls.held(), 0);
    found
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

fn call(id: Option<&str>, name: &str, arguments: &str) -> Piece {
    Piece::Call(Call { id: id.map(str::to_owned), name: name.to_owned(), arguments: arguments.to_owned() })
}

const SECTION: [&str; 2] = ["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"];

/// What is written in each form, and what is found in it.
fn cases() -> Vec<(CallForm, String, Vec<Piece>)> {
    let h = |text: &str| (CallForm::Hermes, text.to_owned());
    let x = |text: &str| (CallForm::Xml, text.to_owned());
    let k = |body: &str| (CallForm::Kimi, format!("Let me see.{}{body}{}", SECTION[0], SECTION[1]));
    let begin = |id: &str, arguments: &str| {
        format!("<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>")
    };
    let found = [
        (h("Just text, no call < here."), vec![text("Just text, no call < here.")]),
        (h("ends with space \n"), vec![text("ends with space \n")]),
        (
            h(
                "Let me see.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"n\": 1e400}}\n</tool_call>",
            ),
            vec![text("Let me see."), call(None, "weather", "{\"city\": \"Ulm\", \"n\": 1e400}")],
        ),
        (
            h("<tool_call>{\"arguments\":{},\"name\":\"a\"}</tool_call>\n<tool_call>{\"name\":\"b\"}</tool_call>\n"),
            vec![call(None, "a", "{}"), call(None, "b", "{}")],
        ),
        (
            h("<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"</tool_call>\"}}</tool_call> done 狐"),
            vec![call(None, "a", "{\"x\": \"</tool_call>\"}"), text(" done 狐")],
        ),
        (h("<tool_call>{\"name\": \"a\", \"arguments\": \"{}\"}"), vec![call(None, "a", "{}")]),
        (h("x <tool_call>{\"name\": \"a\""), vec![text("x <tool_call>{\"name\": \"a\"")]),
        (h("x <tool_call> y </tool_call>\n"), vec![text("x <tool_call> y </tool_call>\n")]),
        (
            h("<tool_call>{\"name\": \"a\", \"arguments\": [1]}</tool_call>"),
            vec![text("<tool_call>{\"name\": \"a\", \"arguments\": [1]}</tool_call>")],
        ),
        (
            h("<tool_call>oh <tool_call>{\"name\": \"a\"}</tool_call>"),
            vec![text("<tool_call>oh"), call(None, "a", "{}")],
        ),
        (
            x(
                "Hm.\n<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
               </function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            ),
            vec![text("Hm."), call(None, "weather", r#"{"city":"Ulm","days":3}"#), call(None, "now", "{}")],
        ),
        (
            x(
                "<tool_call><function=weather><parameter=city>\n<a>\n</parameter>\n</tool_call> & \"b\"\n</parameter></function></tool_call>",
            ),
            vec![call(None, "weather", r#"{"city":"<a>\n</parameter>\n</tool_call> & \"b\""}"#)],
        ),
        (
            x(
                "<tool_call>\n<function=f>\n<parameter=a>1</parameter>\n<parameter=a>2</parameter>\n</function>\n</tool_call>",
            ),
            vec![text(
                "<tool_call>\n<function=f>\n<parameter=a>1</parameter>\n<parameter=a>2</parameter>\n</function>\n</tool_call>",
            )],
        ),
        (x("<tool_call>{\"name\": \"a\"}</tool_call>!"), vec![text("<tool_call>{\"name\": \"a\"}</tool_call>!")]),
        (
            k(&(begin("functions.weather:0", "{\"city\": \"Ulm\"}") + &begin(" functions.a.b:12 ", " {} "))),
            vec![
                text("Let me see."),
                call(Some("functions.weather:0"), "weather", "{\"city\": \"Ulm\"}"),
                call(Some("functions.a.b:12"), "a.b", "{}"),
            ],
        ),
        (
            k(&begin("functions.a:0", "{\"x\": \"<|tool_call_end|><|tool_calls_section_end|>\"}")),
            vec![
                text("Let me see."),
                call(Some("functions.a:0"), "a", "{\"x\": \"<|tool_call_end|><|tool_calls_section_end|>\"}"),
            ],
        ),
        (k(""), vec![text(&format!("Let me see.{}{}", SECTION[0], SECTION[1]))]),
        (k("no"), vec![text(&format!("Let me see.{}no{}", SECTION[0], SECTION[1]))]),
    ];
    found.into_iter().map(|((form, text), pieces)| (form, text, pieces)).collect()
}

#[test]
fn calls_are_found_wherever_the_text_is_cut() {
    for (form, written, expected) in cases() {
        assert_eq!(all(form, &[&written]), expected, "{written}");
        for cut in written.char_indices().map(|(at, _)| at) {
            assert_eq!(all(form, &[&written[..cut], &written[cut..]]), expected, "{written} cut at {cut}");
        }
        let characters: Vec<String> = written.chars().map(String::from).collect();
        assert_eq!(all(form, &characters.iter().map(String::as_str).collect::<Vec<_>>()), expected, "{written}");
    }
}

#[test]
fn values_have_the_types_of_the_schema() {
    for (key, value, expected) in [
        ("city", "5", json!("5")),
        ("city", "{\"a\": 1}", json!("{\"a\": 1}")),
        ("days", "5", json!(5)),
        ("days", "five", json!("five")),
        ("share", "5", json!(5)),
        ("share", "0.5", json!(0.5)),
        ("wet", "true", json!(true)),
        ("wet", "False", json!(false)),
        ("tags", "[\"a\", 1]", json!(["a", 1])),
        ("more", "{\"a\": null}", json!({"a": null})),
        ("maybe", "null", json!(null)),
        ("maybe", "7", json!("7")),
        ("either", "7", json!(7)),
        ("either", "null", json!(null)),
        ("unit", "c", json!("c")),
        ("free", "[1]", json!([1])),
        ("free", "1", json!("1")),
        ("unknown", "two\nlines", json!("two\nlines")),
    ] {
        let written = format!(
            "<tool_call>\n<function=weather>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>"
        );
        let expected = json!({key: expected}).to_string();
        assert_eq!(all(CallForm::Xml, &[&written]), [call(None, "weather", &expected)]);
    }
}

/// Texts that are full of what calls are made of.
fn tangle() -> impl Strategy<Value = Vec<String>> {
    let words = [
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "\n",
        " ",
        "{\"name\": \"a\"",
        ", \"arguments\": {}",
        "}",
        "text",
        "é",
        "<function=weather>",
        "</function>",
        "<parameter=days>",
        "</parameter>",
        "3",
        SECTION[0],
        SECTION[1],
        "<|tool_call_begin|>",
        "functions.a:0",
        "<|tool_call_argument_begin|>",
        "{}",
        "<|tool_call_end|>",
        "<|",
        "{\"name\": \"a\"}",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()).prop_map(str::to_owned), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_say_the_same_as_the_whole_and_nothing_is_lost(words in tangle(), size in 1usize..7) {
        let written = words.concat();
        let characters: Vec<char> = written.chars().collect();
        let cut: Vec<String> = characters.chunks(size).map(|chunk| chunk.iter().collect()).collect();
        for form in [CallForm::Hermes, CallForm::Xml, CallForm::Kimi] {
            let whole = all(form, &[&written]);
            prop_assert_eq!(&whole, &all(form, &cut.iter().map(String::as_str).collect::<Vec<_>>()));
            prop_assert_eq!(&whole, &all(form, &words.iter().map(String::as_str).collect::<Vec<_>>()));
            if !whole.iter().any(|piece| matches!(piece, Piece::Call(_))) {
                let said = whole.first().cloned().unwrap_or_else(|| text(""));
                prop_assert_eq!(said, text(&written));
            }
        }
    }
}

/// A conversation whose last turn calls; rendered by the real templates, the calls are read back.
#[test]
fn what_real_templates_write_is_read_back() {
    let Some(oracle) = files::oracle() else { return };
    let arguments = [
        json!({"city": "Ulm \"on\" <Danube>\nGermany", "days": 3, "wet": true, "tags": ["a", {"b": null}], "share": 0.5}),
        json!({"city": "Köln 狐"}),
    ];
    let calls: Vec<Value> = arguments
        .iter()
        .enumerate()
        .map(|(n, arguments)| {
            let function = json!({"name": "weather", "arguments": arguments.to_string()});
            json!({"id": format!("functions.weather:{n}"), "type": "function", "function": function})
        })
        .collect();
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": functions()[0].1}}]);
    let mut read = 0;
    for (template, form) in [
        ("qwen2.5-instruct", Some(CallForm::Hermes)),
        ("qwen3", Some(CallForm::Hermes)),
        ("Qwen3-Instruct", Some(CallForm::Hermes)),
        ("Qwen3-Thinking", Some(CallForm::Hermes)),
        ("qwen3.5", Some(CallForm::Xml)),
        ("qwen3.6", Some(CallForm::Xml)),
        ("qwen3.8", Some(CallForm::Xml)),
        ("qwen3.8-max", Some(CallForm::Xml)),
        ("Kimi-K2.5", Some(CallForm::Kimi)),
        ("Kimi-K2.6", Some(CallForm::Kimi)),
        ("moonlight-16b-a3b-instruct", None),
    ] {
        let source = fs::read_to_string(oracle.join("templates").join(format!("{template}.jinja"))).unwrap();
        assert_eq!(CallForm::of(&source), form, "{template}");
        let Some(form) = form else { continue };
        let template_ = Template::from_source(&source, &[]).unwrap();
        for content in ["", "Let me see."] {
            let answer = json!({"role": "assistant", "content": content, "tool_calls": calls});
            let messages: Vec<Message> =
                serde_json::from_value(json!([{"role": "user", "content": "Weather?"}, answer])).unwrap();
            let options = RenderOptions { tools: Some(tools.clone()), ..RenderOptions::default() };
            let rendered = template_.render(&messages, &options).unwrap();
            let (_, turn) = rendered.rsplit_once("assistant").unwrap();
            let (answer, _) = turn.split_once("<|im_end|>").unwrap();
            let answer = answer.split_once("</think>").map_or(answer, |(_, answer)| answer);
            let answer = answer.trim_start_matches("<|im_middle|>").trim_start();
            let pieces = all(form, &[answer]);
            let said: Vec<&str> = pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Text(text) => Some(text.as_str()),
                    Piece::Call(_) => None,
                })
                .collect();
            assert_eq!(said.concat(), content, "{template}");
            let found: Vec<&Call> = pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Call(call) => Some(call),
                    Piece::Text(_) => None,
                })
                .collect();
            assert_eq!(found.len(), 2, "{template}: {answer}");
            for (n, (call, arguments)) in found.iter().zip(&arguments).enumerate() {
                assert_eq!(call.name, "weather");
                assert_eq!(&serde_json::from_str::<Value>(&call.arguments).unwrap(), arguments, "{template}");
                assert!(call.id.as_ref().is_none_or(|id| *id == format!("functions.weather:{n}")));
                read += 1;
            }
        }
    }
    assert_eq!(read, 10 * 2 * 2);
}
