//! Tools as Kimi's templates get them: declarations in TypeScript, against what the model's own tokenizer code makes of them.

use serde_json::{Value, json};
use tbshard::text::{Message, RenderOptions, Template};

use super::Dir;
use crate::support::files;

const KIMI: &str = r#"{"tokenizer_class": "TikTokenTokenizer"}"#;

/// The template `source` beside the tokenizer of `config`.
fn template(config: &str, source: &str) -> Template {
    let dir = Dir::new(&[("tokenizer_config.json", config), ("chat_template.jinja", source)]);
    Template::open(&dir.0).unwrap().unwrap()
}

fn with_tools(tools: &Value) -> RenderOptions {
    RenderOptions { tools: Some(tools.clone()), ..RenderOptions::default() }
}

#[test]
fn every_schema_becomes_what_kimi_s_own_code_makes_of_it() {
    let text = std::fs::read_to_string(files::fixtures().join("kimi_tools.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let template = template(KIMI, "{{ tools_ts_str if tools_ts_str else 'JSON' }}");
    let mut wrong = Vec::new();
    for case in &cases {
        let expected = case["declaration"].as_str().unwrap_or("JSON");
        let written = template.render(&[], &with_tools(&case["tools"])).unwrap();
        if written != expected {
            wrong.push(format!("{}\nis\n{written}\nnot\n{expected}", case["tools"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
    let refused = cases.iter().filter(|case| case["declaration"].is_null()).count();
    assert!(cases.len() > 100 && (20..cases.len() / 2).contains(&refused), "{refused} of {} refused", cases.len());
}

#[test]
fn the_template_is_asked_and_the_caller_may_say_otherwise() {
    let tools = json!([{"type": "function", "function": {"name": "now", "parameters": {}}}]);
    let source = "{{ tools_ts_str is defined }}";
    assert_eq!(template(KIMI, source).render(&[], &with_tools(&tools)).unwrap(), "True");
    assert_eq!(template(KIMI, source).render(&[], &RenderOptions::default()).unwrap(), "False");
    // the variable is Kimi's alone
    let qwen = template(r#"{"tokenizer_class": "Qwen2Tokenizer"}"#, source);
    assert_eq!(qwen.render(&[], &with_tools(&tools)).unwrap(), "False");
    let mut options = with_tools(&tools);
    options.variables.insert("tools_ts_str".to_owned(), "mine".into());
    assert_eq!(template(KIMI, "{{ tools_ts_str }}").render(&[], &options).unwrap(), "mine");
}

#[test]
fn the_real_template_declares_tools_so() {
    let Some(oracle) = files::oracle() else { return };
    let city = json!({"type": "object", "required": ["city"], "properties": {
        "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
        "city": {"type": "string", "description": "Where"}}});
    let tool = |parameters: &Value| {
        json!([{"type": "function", "function": {
        "name": "weather", "description": "How it is.", "parameters": parameters}}])
    };
    let declared = "<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\nnamespace functions {\n// How it is.\n\
        type weather = (_: {\n  // Where\n  city: string,\n  // Default: \"c\"\n  unit?: \"c\" | \"f\"\n}) => any;\n}\n<|im_end|>";
    let plain = "<|im_system|>tool_declare<|im_middle|>[{\"function\":{\"description\":";
    for name in ["Kimi-K2.5", "Kimi-K2.6"] {
        let source = std::fs::read_to_string(oracle.join(format!("templates/{name}.jinja"))).unwrap();
        let template = template(KIMI, &source);
        let render = |parameters| template.render(&[Message::user("Hi")], &with_tools(&tool(parameters))).unwrap();
        let prompt = render(&city);
        assert!(prompt.starts_with(declared), "{name}: {prompt}");
        // what cannot be declared stays JSON
        assert!(render(&json!({"type": "object", "properties": {"a": {"oneOf": []}}})).starts_with(plain));
    }
}
