//! The text room: tokenizers and streams here, against the real ones' recorded output and against small ones
//! written here; templates and reasoning in files of their own.

mod declarations;
mod reasoning;
mod template;
mod tiktoken;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tbshard::text::Tokenizer;

use crate::support::files;

/// Joined emoji, rare ideographs, combining marks, right-to-left and Indic text: most characters take several tokens.
const MULTI_BYTE: &str =
    "👩‍👩‍👧‍👦🏳️‍🌈🏃🏽‍♂️ 𠮷野家𰻞麵 漢字かな交じり文 e\u{301}\u{327}a\u{30a} नमस्ते สวัสดี שָׁלוֹם 𑂙𑂫ⓩ 𝔘𝔫𝔦 ﷽ \u{200d}\u{feff}end";

/// A directory of its own, removed at the end of the test.
struct Dir(PathBuf);

impl Dir {
    fn new(files: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tbshard-text-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&dir.0).unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.0.join(name), text).unwrap());
        dir
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The real tokenizers with the suffix of their id files; read once.
fn real(oracle: &Path) -> &'static [(Tokenizer, &'static str); 2] {
    static REAL: OnceLock<[(Tokenizer, &str); 2]> = OnceLock::new();
    REAL.get_or_init(|| {
        [("qwen36", "qwen35"), ("kimi", "kimi_k2")].map(|(name, ids)| {
            let json = fs::read_to_string(oracle.join(format!("tokenizers/{name}_tokenizer.json"))).unwrap();
            (Tokenizer::open(&Dir::new(&[("tokenizer.json", &json)]).0).unwrap(), ids)
        })
    })
}

fn ids(line: &str) -> Vec<u32> {
    line.split(',').map(|id| id.trim().parse().unwrap()).collect()
}

/// The recorded (text, ids, decoded text where recorded) of one tokenizer. Lines write a newline as `\n` and a
/// space at the end as `\s`.
fn recorded(oracle: &Path, name: &str) -> Vec<(String, Vec<u32>, Option<String>)> {
    let read = |file: String| fs::read_to_string(oracle.join("tokenizers").join(file)).ok();
    let plain = |line: &str| match line.strip_suffix("\\s") {
        Some(start) => format!("{start} "),
        None => line.replace("\\n", "\n"),
    };
    let mut all = Vec::new();
    for set in ["small", "mixed"] {
        let (input, tokens) =
            (read(format!("{set}_input.txt")).unwrap(), read(format!("{set}_tokens_{name}.txt")).unwrap());
        let output = read(format!("{set}_output_{name}.txt"));
        assert_eq!(input.lines().count(), tokens.lines().count());
        let mut output = output.as_deref().map(str::lines);
        for (text, line) in input.lines().zip(tokens.lines()) {
            let output = output.as_mut().map(|lines| plain(lines.next().unwrap()));
            all.push((plain(text), ids(line), output));
        }
    }
    let tokens = read(format!("utf8_tokens_{name}.txt")).unwrap();
    all.push((read("utf8_input.txt".into()).unwrap(), ids(&tokens), read(format!("utf8_output_{name}.txt"))));
    all
}

/// A byte-level vocabulary: 256 bytes in the order of their ids, the merge `Ġa`, a special and a plain added token.
fn byte_level() -> Tokenizer {
    let symbol = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let before = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count();
            char::from_u32(256 + u32::try_from(before).unwrap()).unwrap()
        }
    };
    let mut vocab: serde_json::Map<String, Value> = (0..=255).map(|b| (symbol(b).to_string(), json!(b))).collect();
    vocab.insert("Ġa".into(), json!(256));
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "padding": null, "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "post_processor": {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<end｜>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<end｜>": {"id": "<end｜>", "ids": [257], "tokens": ["<end｜>"]}}},
        "added_tokens": [added(257, "<end｜>", true), added(258, "<think>", false)],
        "model": {"type": "BPE", "vocab": vocab, "merges": ["Ġ a"], "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false},
    });
    Tokenizer::open(&Dir::new(&[("tokenizer.json", &json.to_string())]).0).unwrap()
}

/// A vocabulary of words and `<0x..>` bytes, whose decoder joins runs of bytes and strips the first space.
fn byte_fallback() -> Tokenizer {
    let mut vocab: serde_json::Map<String, Value> = (0..=255).map(|b| (format!("<0x{b:02X}>"), json!(b))).collect();
    vocab.extend([("▁hello".to_owned(), json!(256)), ("▁".to_owned(), json!(257)), ("ab".to_owned(), json!(258))]);
    let json = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true},
    });
    Tokenizer::open(&Dir::new(&[("tokenizer.json", &json.to_string())]).0).unwrap()
}

/// Pushes the ids one by one; returns every piece, the flushed one last.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

/// Pseudo-random numbers, the same on every run.
fn noise(seed: u64) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(seed), |x| Some(x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)))
        .map(|x| (x >> 33) as u32)
}

#[test]
fn real_tokenizers_give_the_recorded_ids_and_texts() {
    let Some(oracle) = files::oracle() else { return };
    for (tokenizer, name) in real(&oracle) {
        for (text, expected, output) in recorded(&oracle, name) {
            // The recording was made without this special token, which the model's own vocabulary has.
            let special = *name == "kimi_k2" && text.contains("[PAD]");
            assert_eq!(tokenizer.encode(&text, true).unwrap() == expected, !special, "{name}: {text}");
            assert_eq!(tokenizer.decode(&expected, false).unwrap(), output.unwrap_or(text), "{name}");
        }
    }
}

#[test]
fn real_tokenizers_know_their_special_tokens() {
    let Some(oracle) = files::oracle() else { return };
    for (tokenizer, name) in real(&oracle) {
        let (size, end, think) =
            if *name == "qwen35" { (248_077, 248_046, 248_068) } else { (163_840, 163_586, 163_606) };
        assert_eq!(tokenizer.vocab_size(), size);
        assert_eq!((tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<think>")), (Some(end), Some(think)));
        assert_eq!(tokenizer.token(end).as_deref(), Some("<|im_end|>"));
        assert!(tokenizer.is_special(end) && !tokenizer.is_special(think) && !tokenizer.is_special(100));
        let text = tokenizer.encode("<think>ok<|im_end|>", false).unwrap();
        assert_eq!(tokenizer.decode(&text, true).unwrap(), "<think>ok");
    }
}

#[test]
fn real_streams_give_whole_characters_and_the_same_text() {
    let Some(oracle) = files::oracle() else { return };
    for (tokenizer, name) in real(&oracle) {
        let mut texts: Vec<Vec<u32>> = recorded(&oracle, name).into_iter().map(|(_, ids, _)| ids).collect();
        texts.push(tokenizer.encode(MULTI_BYTE, false).unwrap());
        for ids in &texts {
            let whole = tokenizer.decode(ids, false).unwrap();
            let pieces = pieces(tokenizer, ids, false);
            assert_eq!(pieces.concat(), whole, "{name}");
            if !whole.contains('\u{fffd}') {
                assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{name}: {pieces:?}");
            }
        }
        let ids = texts.last().unwrap();
        let split = pieces(tokenizer, ids, false).iter().filter(|piece| piece.is_empty()).count();
        assert!(split > 10, "{name}: the text must have characters of several tokens, {split}");
        let size = u32::try_from(tokenizer.vocab_size()).unwrap() + 200;
        for (seed, skip) in [(1, false), (2, true)] {
            let ids: Vec<u32> = noise(seed).take(20_000).map(|x| x % size).collect();
            assert!(pieces(tokenizer, &ids, skip).concat() == tokenizer.decode(&ids, skip).unwrap(), "{name}");
        }
    }
}

#[test]
fn the_file_decides_about_special_tokens_but_never_cuts_the_text() {
    let tokenizer = byte_level();
    assert_eq!(tokenizer.encode("hi a<end｜>é", false).unwrap(), [104, 105, 256, 257, 0xc3, 0xa9]);
    assert_eq!(tokenizer.encode("hi", true).unwrap(), [257, 104, 105]);
    assert_eq!(tokenizer.decode(&[257, 104, 258, 256, 280, 9999], true).unwrap(), "h<think> a");
    assert_eq!(tokenizer.decode(&[257, 104], false).unwrap(), "<end｜>h");
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("Ġa"), tokenizer.token(280)), (259, Some(256), None));
    assert!(tokenizer.is_special(257) && !tokenizer.is_special(258) && !tokenizer.is_special(9999));
}

#[test]
fn a_vocabulary_with_gaps_ends_after_its_highest_id() {
    let file = r#"{"version": "1.0", "added_tokens": [], "model":
        {"type": "WordLevel", "vocab": {"a": 0, "b": 9, "?": 2}, "unk_token": "?"}}"#;
    let tokenizer = Tokenizer::from_bytes(file.as_bytes()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("b"), tokenizer.token(1)), (10, Some(9), None));
}

#[test]
fn a_stream_of_bytes_is_the_text_for_any_bytes() {
    let tokenizer = byte_level();
    let mut stream = tokenizer.stream(true);
    let family: Vec<String> = "é👩".bytes().map(|byte| stream.push(byte.into()).unwrap()).collect();
    assert_eq!(family, ["", "é", "", "", "", "👩"]);
    assert_eq!((stream.push(257).unwrap(), stream.push(9999).unwrap()), (String::new(), String::new()));
    assert_eq!((stream.push(0xe6).unwrap(), stream.push(258).unwrap()), (String::new(), "\u{fffd}<think>".to_owned()));
    assert_eq!((stream.push(0xf0).unwrap(), stream.finish().unwrap()), (String::new(), "\u{fffd}".to_owned()));
    assert_eq!(stream.push(b'a'.into()).unwrap(), "a");
    let text: Vec<u32> = MULTI_BYTE.bytes().map(u32::from).collect();
    assert_eq!(pieces(&tokenizer, &text, true).concat(), MULTI_BYTE);
    for (seed, from) in [(3, 0), (4, 128), (5, 192)] {
        let ids: Vec<u32> = noise(seed).take(5000).map(|x| from + x % (270 - from)).collect();
        assert!(pieces(&tokenizer, &ids, false).concat() == tokenizer.decode(&ids, false).unwrap(), "from {from}");
    }
}

#[test]
fn invalid_bytes_do_not_hold_a_stream_up() {
    for tokenizer in [byte_level(), byte_fallback()] {
        for byte in [0x80, 0xc3, 0xe6, 0xf0, 0xff] {
            let mut stream = tokenizer.stream(true);
            let mut shown = 0;
            for count in 1..=100 {
                shown += stream.push(byte).unwrap().chars().filter(|&c| c == '\u{fffd}').count();
                assert!((count.max(3) - 3..=count).contains(&shown), "byte {byte:#x}: {shown} of {count}");
            }
            let rest = stream.finish().unwrap().chars().count();
            assert_eq!(shown + rest, 100, "byte {byte:#x}");
        }
    }
}

#[test]
fn a_stream_follows_a_decoder_that_looks_at_neighbours() {
    let tokenizer = byte_fallback();
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    for ids in [vec![256, 256, 258, 257, 256], [vec![257], bytes(MULTI_BYTE), vec![256]].concat(), vec![258, 9999, 256]]
    {
        let whole = tokenizer.decode(&ids, true).unwrap();
        let pieces = pieces(&tokenizer, &ids, true);
        assert_eq!(pieces.concat(), whole);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    }
    let damaged = [vec![256, 0xff, 0xff, 0xff, 0xff], bytes("é👩\n"), vec![256]].concat();
    assert_eq!(pieces(&tokenizer, &damaged, true).concat(), "hello\u{fffd}\u{fffd}\u{fffd}\u{fffd}é👩\n hello");
}

#[test]
fn a_tokenizer_that_cannot_be_read_is_an_error_that_names_the_file() {
    let gap = r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 5,
        "content": "<x>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}]}"#;
    for (files, words) in [
        (&[][..], "tokenizer.json` does not exist, nor does `tiktoken.model` beside it"),
        (&[("tokenizer.json", "{\"version\"")], "tokenizer.json`: "),
        (&[("tokenizer.json", gap)], "tokenizer.json`: added token `<x>` cannot have the id 5"),
    ] {
        let dir = Dir::new(files);
        let error = Tokenizer::open(&dir.0).unwrap_err();
        assert!(error.to_string().contains(words) && error.to_string().contains(dir.0.to_str().unwrap()), "{error}");
        assert!(error.hint_text().is_some());
    }
}
