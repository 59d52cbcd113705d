//! Chat templates against recorded renderings of the real ones, and against what Python prints.

use std::fs;

use serde_json::{Value, json};
use tbshard::error::Result;
use tbshard::text::{Message, RenderOptions, Role, Template};

use super::Dir;
use crate::support::files;

#[test]
fn every_recorded_rendering_of_the_real_templates_is_reproduced() {
    let Some(oracle) = files::oracle() else { return };
    let dir = oracle.join("templates");
    let cases: Vec<Value> = serde_json::from_str(&fs::read_to_string(dir.join("cases.json")).unwrap()).unwrap();
    let mut typed = 0;
    for case in &cases {
        let (name, context) = (case["template"].as_str().unwrap(), &case["ctx"]);
        let template = Template::from_source(&fs::read_to_string(dir.join(name)).unwrap(), &[]).unwrap();
        let check = |rendered: Result<String>| match (&rendered, case["expected"]["ok"].as_str()) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}: {context}"),
            (Err(error), None) => {
                let raised = case["expected"]["err"].as_str().unwrap().strip_prefix("TemplateError: ");
                assert!(raised.is_none_or(|words| error.to_string().ends_with(words)), "{name}: {error}");
            }
            _ => panic!("{name}: {rendered:?}, expected {}", case["expected"]),
        };
        check(template.render_value(context));
        if ["preserve_thinking", "reasoning_effort"].iter().all(|key| context.get(key).is_none()) {
            let messages: Vec<Message> = serde_json::from_value(context["messages"].clone()).unwrap();
            let (thinking, tools) = (context["enable_thinking"].as_bool(), context.get("tools").cloned());
            let options = RenderOptions { add_generation_prompt: true, thinking, tools, ..RenderOptions::default() };
            check(template.render(&messages, &options));
            typed += 1;
        }
    }
    assert!(cases.len() == 585 && typed == 13 * 9 * 2, "{} cases, {typed} typed", cases.len());
}

/// A template in the ChatML manner, with the whitespace control, methods and variables real ones use.
const CHAT: &str = r#"{% for m in messages %}
    {% if m.role == 'system' and not loop.first %}
        {{- raise_exception('system must come first') }}
    {% endif %}
    {{- '<|start|>' ~ m['role'] + '\n' + (m.content or '').strip() -}}
    {% for call in m.tool_calls or [] %}
        {% if not call.function.arguments %}{% continue %}{% endif %}
        {{- '[' ~ call.function.name ~ '|' ~ call.function.arguments.items() | map('join', '=') | join(',') ~ ']' -}}
    {% endfor %}
    {{- eos_token -}}
{% endfor %}
{% if tools %}{{ tools | tojson }}{% endif %}
{% if add_generation_prompt %}
    {{- '<|start|>assistant\n' + ('<think>' if enable_thinking is not defined or enable_thinking else '') }}
{%- endif %}
"#;

#[test]
fn a_small_template_renders_messages() {
    let template = Template::from_source(CHAT, &[("eos_token", "<|end|>")]).unwrap();
    let call = r#"{"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{\"x\": 1, \"b\": \"two\"}"}},
        {"function": {"name": "skipped"}}]}"#;
    let messages =
        [Message::new(Role::System, " be brief "), Message::user("1 + 2?"), serde_json::from_str(call).unwrap()];
    let tools = json!([{"name": "add", "about": "<sum> of 'both'"}]);
    let mut options = RenderOptions { add_generation_prompt: true, tools: Some(tools), ..RenderOptions::default() };
    let body = "<|start|>system\nbe brief<|end|><|start|>user\n1 + 2?<|end|><|start|>assistant\n[add|x=1,b=two]<|end|>";
    let tools = r#"[{"name": "add", "about": "<sum> of 'both'"}]"#;
    assert_eq!(template.render(&messages, &options).unwrap(), format!("{body}{tools}<|start|>assistant\n<think>"));
    options = RenderOptions { add_generation_prompt: true, thinking: Some(false), ..RenderOptions::default() };
    assert_eq!(template.render(&messages, &options).unwrap(), format!("{body}<|start|>assistant\n"));
    assert_eq!(template.render(&messages, &RenderOptions::default()).unwrap(), body);
    let late = template.render(&[Message::user("a"), Message::system("b")], &options).unwrap_err();
    assert_eq!(late.to_string(), "the chat template refuses this conversation: system must come first");
    assert!(template.render_value(&json!([])).is_err());
    let named = json!({"messages": [{"role": "user", "content": "a"}], "eos_token": "!"});
    assert_eq!(template.render_value(&named).unwrap(), "<|start|>user\na!");
    let broken = Template::from_source("a\n{% for %}", &[]).unwrap_err();
    assert!(broken.to_string().contains("line 2"), "{broken}");
}

#[test]
fn values_are_written_as_python_writes_them() {
    // The expected texts are CPython's `json.dumps` and `str` of the same object.
    let value: Value = serde_json::from_str(
        r#"{"z": [1.0, 1e16, 1e-5, 0.0001, 1.5e-7, 1e100, -0.0, 18446744073709551615], "k": [true, null, [], {}],
            "é": "\"\\\n\u0001\u007f\u2028😀'", "a": "e\u0301 it's \u200d"}"#,
    )
    .unwrap();
    for (source, expected) in [
        (
            "{{ v|tojson }}",
            "{\"z\": [1.0, 1e+16, 1e-05, 0.0001, 1.5e-07, 1e+100, -0.0, 18446744073709551615], \
             \"k\": [true, null, [], {}], \"é\": \"\\\"\\\\\\n\\u0001\u{7f}\u{2028}😀'\", \"a\": \"e\u{301} it's \u{200d}\"}",
        ),
        (
            "{{ {'b': v['é'], 'a': 1}|tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
            r#"{"a":1,"b":"\"\\\n\u0001\u007f\u2028\ud83d\ude00'"}"#,
        ),
        ("{{ v.k|tojson(indent=2) }}", "[\n  true,\n  null,\n  [],\n  {}\n]"),
        (
            "{{ v }}",
            "{'z': [1.0, 1e+16, 1e-05, 0.0001, 1.5e-07, 1e+100, -0.0, 18446744073709551615], \
             'k': [True, None, [], {}], 'é': '\"\\\\\\n\\x01\\x7f\\u2028😀\\'', 'a': \"e\u{301} it's \\u200d\"}",
        ),
        (
            "{{ v.k|string + '!' }} {{ v.z[1] }} {{ (1,) }} {{ true }} {{ none }} [{{ missing }}]",
            "[True, None, [], {}]! 1e+16 (1,) True None []",
        ),
    ] {
        let template = Template::from_source(source, &[]).unwrap();
        assert_eq!(template.render_value(&json!({"v": value})).unwrap(), expected, "{source}");
    }
    assert!(Template::from_source("{{ missing|tojson }}", &[]).unwrap().render_value(&json!({})).is_err());
    assert!(Template::from_source("{{ 1|tojson(sorted=true) }}", &[]).unwrap().render_value(&json!({})).is_err());
}

#[test]
fn a_template_is_found_where_models_keep_it() {
    let config = r#"{"chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "list{{ eos_token }}"}],
        "bos_token": null, "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}"#;
    let plain = r#"{"chat_template": "plain", "eos_token": "E"}"#;
    let jinja = ("chat_template.jinja", "jinja{{ eos_token }}{{ bos_token is defined }}");
    for (files, expected) in [
        (
            &[jinja, ("chat_template.json", r#"{"chat_template": "json"}"#), ("tokenizer_config.json", config)][..],
            Some("jinja</s>False"),
        ),
        (
            &[("chat_template.json", r#"{"chat_template": "json{{ pad_token }}"}"#), ("tokenizer_config.json", config)],
            Some("json<pad>"),
        ),
        (&[("tokenizer_config.json", config)], Some("list</s>")),
        (&[("tokenizer_config.json", plain)], Some("plain")),
        (&[jinja], Some("jinjaFalse")),
        (&[("tokenizer_config.json", "{}")], None),
        (&[], None),
    ] {
        let template = Template::open(&Dir::new(files).0).unwrap();
        assert_eq!(template.map(|template| template.render_value(&json!({})).unwrap()).as_deref(), expected);
    }
    for text in ["{", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#, r#"{"chat_template": "{{"}"#] {
        let error = Template::open(&Dir::new(&[("tokenizer_config.json", text)]).0).unwrap_err();
        assert!(error.to_string().contains("tokenizer_config.json`"), "{error}");
    }
}
