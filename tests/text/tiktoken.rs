//! Kimi's vocabulary files against what tiktoken makes of them, and what is wrong with damaged ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tbshard::engine::Defaults;
use tbshard::text::{Part, Reasoning, RenderOptions, Template, Tokenizer};

use super::{Dir, MULTI_BYTE, noise, pieces, real, recorded};
use crate::support::files;
use crate::support::tiny::tiny_checkpoints;

const FILES: [&str; 2] = ["tiktoken.model", "tokenizer_config.json"];

fn fixture() -> PathBuf {
    files::fixtures().join("tiktoken")
}

/// The two files in `dir`.
fn texts(dir: &Path) -> [String; 2] {
    FILES.map(|name| fs::read_to_string(dir.join(name)).unwrap())
}

/// Opens a directory that has these two files alone.
fn open([model, config]: &[String; 2]) -> Tokenizer {
    Tokenizer::open(&Dir::new(&[(FILES[0], model), (FILES[1], config)]).0).unwrap()
}

/// Texts of words, marks, numbers and spaces, and of any characters, the same on every run.
fn random_texts(count: usize) -> Vec<String> {
    const PIECES: [&str; 24] = [
        " ",
        "  ",
        "\n",
        "\r\n\n",
        "\t",
        "\u{a0}",
        "the lamp",
        "Don't",
        "HE'LL",
        "iPhone",
        "7",
        "12",
        "3456",
        "...",
        " !?",
        "_x",
        "漢字",
        "かな",
        "한국",
        "e\u{301}",
        "ǅ",
        "½",
        "👩‍🏃🏽",
        "[BOS]",
    ];
    let mut numbers = noise(7);
    let mut next = move |below: u32| numbers.next().unwrap() % below;
    let mut text = |_| {
        let mut text = String::new();
        for _ in 0..next(40) {
            match next(4) {
                0 => text.extend(char::from_u32(next(0x3000))),
                1 => text.extend(char::from_u32(next(0x11_0000))),
                _ => text.push_str(PIECES[next(24) as usize]),
            }
        }
        text
    };
    (0..count).map(&mut text).collect()
}

/// Joins a list of [piece, count].
fn repeated(list: &Value) -> impl Iterator<Item = (&Value, usize)> {
    list.as_array().unwrap().iter().map(|run| (&run[0], run[1].as_u64().unwrap() as usize))
}

#[test]
fn a_small_vocabulary_gives_the_ids_of_tiktoken() {
    let tokenizer = open(&texts(&fixture()));
    let cases: Vec<Value> = serde_json::from_str(&fs::read_to_string(fixture().join("ids.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 114);
    for case in &cases {
        let text: String =
            repeated(&case["text"]).map(|(piece, count)| piece.as_str().unwrap().repeat(count)).collect();
        let runs =
            repeated(&case["ids"]).flat_map(|(id, count)| std::iter::repeat_n(id.as_u64().unwrap() as u32, count));
        let ids: Vec<u32> = runs.collect();
        assert!(tokenizer.encode(&text, true).unwrap() == ids, "{}", case["text"]);
        assert!(tokenizer.decode(&ids, false).unwrap() == text, "{}", case["text"]);
        assert!(pieces(&tokenizer, &ids, false).concat() == text, "{}", case["text"]);
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("<|im_middle|>")), (676, Some(437)));
    assert_eq!(tokenizer.token(424).as_deref(), Some("<|im_assistant|>"));
    assert_eq!((tokenizer.token(425).as_deref(), tokenizer.token(676)), (Some("<|reserved_token_425|>"), None));
    let shown: Vec<u32> = (0..676).filter(|id| *id >= 420 && !tokenizer.is_special(*id)).collect();
    assert_eq!(shown, [431, 432, 433, 434, 435, 442, 443]);
}

#[test]
fn the_real_vocabulary_gives_the_recorded_ids() {
    let Some(oracle) = files::oracle() else { return println!("skipped: TBSHARD_ORACLE is not set") };
    let json = fs::read(oracle.join("tokenizers/kimi_tokenizer.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let named = json["added_tokens"].as_array().unwrap().iter();
    let named = named.filter(|token| !token["content"].as_str().unwrap().starts_with("<|reserved_token_"));
    let decoder: serde_json::Map<String, Value> = named.map(|token| (token["id"].to_string(), token.clone())).collect();
    assert_eq!(decoder.len(), 23);
    let config = json!({ "added_tokens_decoder": decoder }).to_string();
    let model = fs::read(oracle.join("tokenizers/kimi_k2.tiktoken")).unwrap();
    let started = Instant::now();
    let tokenizer = Tokenizer::from_tiktoken(&model, config.as_bytes()).unwrap();
    println!("opened in {:?}", started.elapsed());
    let (mut same, mut special) = (0, 0);
    for (text, expected, _) in recorded(&oracle, "kimi_k2") {
        // the recording was made without this special token
        let has_special = text.contains("[PAD]");
        assert_eq!(tokenizer.encode(&text, true).unwrap() == expected, !has_special, "{text}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), text);
        if has_special { special += 1 } else { same += 1 }
    }
    println!("{same} texts are the same, {special} has a special token");
    assert!(same >= 140 && special == 1, "{same} and {special}");
    let (converted, _) = real(&oracle).iter().find(|(_, name)| *name == "kimi_k2").unwrap();
    for text in random_texts(5000) {
        assert_eq!(tokenizer.encode(&text, true).unwrap(), converted.encode(&text, true).unwrap(), "{text:?}");
    }
    for id in 0..163_900 {
        assert_eq!((tokenizer.token(id), tokenizer.is_special(id)), (converted.token(id), converted.is_special(id)));
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_tokens()), (163_840, vec![163_585, 163_586]));
}

#[test]
fn tiny_checkpoints_are_encoded_as_their_fixtures_say() {
    let Some(oracle) = files::oracle() else { return println!("skipped: TBSHARD_ORACLE is not set") };
    let mut checked = 0;
    for name in ["deepseek_v3", "kimi_k25", "kimi_linear"] {
        let dir = oracle.join("tiny").join(name);
        let (ours, theirs) = (open(&texts(&dir)), Tokenizer::open(&dir).unwrap());
        let fixture: Value = serde_json::from_slice(&fs::read(dir.join("fixture.json")).unwrap()).unwrap();
        for prompt in fixture["prompts"].as_array().unwrap() {
            let ids = ours.encode(prompt["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(json!(ids), prompt["input_ids"], "{name}");
            checked += 1;
        }
        for text in random_texts(2000) {
            assert_eq!(ours.encode(&text, true).unwrap(), theirs.encode(&text, true).unwrap(), "{name}: {text:?}");
        }
        assert_eq!((ours.end_tokens(), theirs.end_tokens()), (vec![489, 490], vec![489, 490]));
    }
    println!("{checked} prompts are the same");
    assert!(checked >= 6);
}

#[test]
fn a_long_text_takes_no_longer_than_its_length() {
    let tokenizer = open(&texts(&fixture()));
    for piece in ["a", "A", " ", " \n", "\n", "7", "!", "漢", "é", "aA", "'s", "\u{301}", "<|im_end|>"] {
        // a regular expression that looks back gives up on a million spaces
        let length = if piece == " " { 1 << 20 } else { 1 << 18 };
        let text = piece.repeat(length / piece.len());
        for text in [text.clone(), text + "x"] {
            let started = Instant::now();
            let ids = tokenizer.encode(&text, true).unwrap();
            assert!(started.elapsed() < Duration::from_secs(20), "{piece:?}: {:?}", started.elapsed());
            assert!(tokenizer.decode(&ids, false).unwrap() == text, "{piece:?}");
        }
    }
}

/// What is wrong with the two files, and with the directory if they are in one.
#[track_caller]
fn refused(model: &[u8], config: &str, words: &[&str]) {
    let error = Tokenizer::from_tiktoken(model, config.as_bytes()).unwrap_err();
    let line = error.to_string();
    assert!(words.iter().all(|word| line.contains(word)), "{error:?}");
    assert!(error.hint_text().is_some() && !line.contains('\n'), "{error:?}");
}

#[test]
fn a_damaged_vocabulary_is_an_error_that_names_the_line() {
    let [model, config] = texts(&fixture());
    let lines: Vec<&str> = model.lines().collect();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line;
        lines.join("\n")
    };
    let long = format!("{} 300", "QUFB".repeat(342));
    for (at, line, words) in [
        (4, "IQ= 4", &["line 5", "`IQ=` is not base64"][..]),
        (4, "I\u{1b}é= 4", &["line 5", "is not base64"]),
        (4, " 4", &["line 5", "`4` is not a token and its rank"]),
        (4, "IQ== 4 4", &["line 5", "not a token and its rank"]),
        (4, "IQ==", &["line 5", "not a token and its rank"]),
        (4, "JQ== four", &["line 5", "rank is `four`, where 4 follows"]),
        (4, "JQ== 99999999999", &["line 5", "where 4 follows"]),
        (4, "JQ== -4", &["line 5", "where 4 follows"]),
        (4, "JQ== 3", &["line 5", "rank is `3`, where 4 follows"]),
        (4, "JQ== 5", &["line 5", "rank is `5`, where 4 follows"]),
        (4, "", &["line 6", "rank is `5`, where 4 follows"]),
        (300, "JQ== 300", &["line 301", "has the rank 4 already"]),
        (4, "JSUlJSUl 4", &["no token is the byte 0x25 alone"]),
        (300, &long, &["line 301", "1026 bytes"]),
    ] {
        refused(with(at, line).as_bytes(), &config, &[&["tiktoken.model: "], words].concat());
    }
    refused(b"", &config, &["tiktoken.model: no token is the byte 0x00 alone"]);
    refused(b"\xff\x00\xfe 0", &config, &["tiktoken.model: line 1"]);
    refused(&model.as_bytes()[..model.len() / 2], &config, &["tiktoken.model: "]);
    refused(lines[..419].join("\n").as_bytes(), &config, &["[PAD]` has the id 675, beyond the 675"]);
    let spaced = model.replace('\n', "\r\n\n");
    assert_eq!(Tokenizer::from_tiktoken(spaced.as_bytes(), config.as_bytes()).unwrap().vocab_size(), 676);
}

#[test]
fn special_tokens_that_cannot_be_are_an_error_that_names_one() {
    let [model, config] = texts(&fixture());
    let added = |id: &str, content: &str| {
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["added_tokens_decoder"][id] = json!({"content": content, "special": true});
        config.to_string()
    };
    for (config, words) in [
        (added("419", "<x>"), &["`<x>` has the id 419", "`tiktoken.model` gives to another token"][..]),
        (added("676", "<x>"), &["`<x>` has the id 676, beyond the 676"]),
        (added("18446744073709551616", "<x>"), &["`<x>` has the id `18446744073709551616`, which is not a number"]),
        (added("-1", "<x>"), &["`<x>` has the id `-1`"]),
        (added("430", ""), &["id 430 is empty"]),
        (added("0437", "<x>"), &["the id 437 is given twice"]),
        (added("427", "<|im_end|>"), &["`<|im_end|>` cannot have the id 427"]),
        (added("427", "the"), &["`the` cannot have the id 427"]),
        (added("427", "<|reserved_token_428|>"), &["`<|reserved_token_428|>` cannot have the id 428"]),
        ("{}".to_owned(), &["names no special token"]),
        ("[1]".to_owned(), &["tokenizer_config.json: "]),
        (r#"{"added_tokens_decoder": {"430": {"special": true}}}"#.to_owned(), &["missing field `content`"]),
        (config[..config.len() / 2].to_owned(), &["EOF"]),
    ] {
        refused(model.as_bytes(), &config, &[&["tokenizer_config.json: "], words].concat());
    }
    let named = added("427", "<x>");
    assert_eq!(open(&[model.clone(), named]).encode("a<x>", true).unwrap()[1..], [427]);
    let dir = Dir::new(&[(FILES[0], &model)]);
    let error = Tokenizer::open(&dir.0).unwrap_err();
    assert!(error.to_string().contains(dir.0.join(FILES[1]).to_str().unwrap()), "{error:?}");
    assert!(error.hint_text().unwrap().contains("fetch `tokenizer_config.json`"), "{error:?}");
    let dir = Dir::new(&[(FILES[0], &model[1..]), (FILES[1], &config)]);
    let error = Tokenizer::open(&dir.0).unwrap_err();
    assert!(error.to_string().starts_with(&format!("`{}`: tiktoken.model: line 1", dir.0.display())), "{error:?}");
}

#[test]
fn the_tokenizer_json_is_preferred() {
    let [model, config] = texts(&fixture());
    let dir = Dir::new(&[(FILES[0], &model), (FILES[1], &config), ("tokenizer.json", "{")]);
    assert!(Tokenizer::is_in(&dir.0) && Tokenizer::is_in(&fixture()));
    assert!(Tokenizer::open(&dir.0).unwrap_err().to_string().contains("tokenizer.json`"));
}

#[test]
fn answers_of_kimi_end_at_both_of_its_ends() {
    let tokenizer = open(&texts(&fixture()));
    assert_eq!(tokenizer.end_tokens(), [421, 422]);
    for (said, expected) in [(json!(421), [421, 422]), (json!(422), [422, 421]), (json!([422, 421]), [422, 421])] {
        let config = json!({ "eos_token_id": said });
        let defaults = Defaults::from_values(&Value::Null, &config).unwrap();
        assert_eq!(defaults.ending_at(&tokenizer.end_tokens()).eos, expected);
    }
    let others = tiny_checkpoints().into_iter().filter(|dir| dir.to_str().unwrap().contains("qwen"));
    let ends: Vec<_> = others.map(|dir| Tokenizer::open(&dir).unwrap().end_tokens()).collect();
    assert!(ends.len() > 5 && ends.iter().all(Vec::is_empty), "{ends:?}");
}

#[test]
fn reasoning_of_kimi_begins_in_the_prompt_and_ends_at_a_token_that_is_shown() {
    let tokenizer = open(&texts(&fixture()));
    let reply = tokenizer.encode(&format!("why {MULTI_BYTE}</think>the lamp<|im_end|>"), false).unwrap();
    for (prompt, inside) in
        [("<|im_assistant|>assistant<|im_middle|><think>", true), ("<|im_middle|><think></think>", false)]
    {
        let mut reasoning = Reasoning::for_prompt(prompt);
        let mut parts: Vec<(Part, String)> =
            pieces(&tokenizer, &reply, true).iter().flat_map(|piece| reasoning.push(piece)).collect();
        parts.extend(reasoning.finish());
        let join =
            |kind| parts.iter().filter(|(part, _)| *part == kind).map(|(_, text)| text.as_str()).collect::<String>();
        let (why, answer) = (join(Part::Reasoning), join(Part::Answer));
        if inside {
            assert_eq!((why, answer.as_str()), (format!("why {MULTI_BYTE}"), "the lamp"));
        } else {
            assert_eq!((why.as_str(), answer), ("", format!("why {MULTI_BYTE}</think>the lamp")));
        }
    }
}

#[test]
fn the_keys_of_tools_are_sorted_for_kimi_alone() {
    let source = "{{ tools | tojson(separators=(',', ':')) }}";
    let tools = json!([{"type": "function", "function": {"name": "f", "é": [{"b": 1, "a": 2}], "B": {}, "_": null}}]);
    for (class, expected) in [
        ("TikTokenTokenizer", r#"[{"function":{"B":{},"_":null,"name":"f","é":[{"a":2,"b":1}]},"type":"function"}]"#),
        ("Qwen2Tokenizer", r#"[{"type":"function","function":{"name":"f","é":[{"b":1,"a":2}],"B":{},"_":null}}]"#),
    ] {
        let config = json!({ "tokenizer_class": class, "chat_template": source }).to_string();
        for files in [vec![(FILES[1], config.as_str())], vec![(FILES[1], &config), ("chat_template.jinja", source)]] {
            let template = Template::open(&Dir::new(&files).0).unwrap().unwrap();
            let options = RenderOptions { tools: Some(tools.clone()), ..RenderOptions::default() };
            assert_eq!(template.render(&[], &options).unwrap(), expected);
        }
    }
}

#[test]
fn thinking_is_said_in_the_words_of_both_families() {
    let source =
        "{{ thinking is defined and thinking is false }} {{ enable_thinking is defined and enable_thinking is false }}";
    let template = Template::from_source(source, &[]).unwrap();
    for (thinking, expected) in [(None, "False False"), (Some(true), "False False"), (Some(false), "True True")] {
        let options = RenderOptions { thinking, ..RenderOptions::default() };
        assert_eq!(template.render(&[], &options).unwrap(), expected);
    }
}
