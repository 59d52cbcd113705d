//! Kimi's vocabulary files with random damage: refused with a line and a hint, or a tokenizer that gives texts back.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestCaseError;
use tbshard::text::Tokenizer;

use super::{Outcome, check_refusal, fuzz, watch};

const FILES: [&str; 2] =
    [include_str!("../fixtures/tiktoken/tiktoken.model"), include_str!("../fixtures/tiktoken/tokenizer_config.json")];

/// What is spliced in.
const FRAGMENTS: [&str; 20] = [
    "\n",
    " ",
    "=",
    "==",
    "A",
    "IQ==",
    "0",
    "-1",
    "4294967296",
    "\"",
    "\\u0000",
    "{",
    "}",
    "[",
    "null",
    "true",
    ":",
    ",",
    "\"999999\": {\"content\": \"x\"},",
    "\u{0}é",
];

#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Insert(Index, &'static str),
    Drop(Index, usize),
    Cut(Index),
    /// Two lines change places.
    Swap(Index, Index),
    Repeat(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, 1 << bit)),
        (at(), select(&FRAGMENTS[..])).prop_map(|(at, what)| Edit::Insert(at, what)),
        (at(), 1..40_usize).prop_map(|(at, count)| Edit::Drop(at, count)),
        at().prop_map(Edit::Cut),
        (at(), at()).prop_map(|(one, other)| Edit::Swap(one, other)),
        at().prop_map(Edit::Repeat),
    ]
}

fn damage(text: &str, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for edit in edits {
        let place = |at: &Index| at.index(bytes.len() + 1);
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.push(Vec::new());
        match edit {
            Edit::Flip(at, bit) => {
                let at = place(at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit);
            }
            Edit::Insert(at, what) => drop(bytes.splice(place(at)..place(at), what.bytes())),
            Edit::Drop(at, count) => drop(bytes.drain(place(at)..bytes.len().min(place(at) + count))),
            Edit::Cut(at) => bytes.truncate(place(at)),
            Edit::Swap(one, other) => {
                let count = lines.len();
                lines.swap(one.index(count), other.index(count));
                bytes = lines.concat();
            }
            Edit::Repeat(at) => {
                let at = at.index(lines.len());
                lines.insert(at, lines[at].clone());
                bytes = lines.concat();
            }
        }
    }
    bytes
}

fn check(model: &[u8], config: &[u8]) -> Outcome {
    // tokenizers asks for room before it knows how much it needs
    match watch(1 << 20, || Tokenizer::from_tiktoken(model, config))? {
        Err(error) => check_refusal(&error),
        Ok(tokenizer) => {
            let text = "The lamp's 漢字 é 1234\n\n  <|im_end|>\u{0}👩‍🏃🏽";
            let back = tokenizer.encode(text, false).and_then(|ids| tokenizer.decode(&ids, false));
            let back = back.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            prop_assert_eq!(back, text);
            Ok(true)
        }
    }
}

#[test]
fn damaged_vocabularies_are_refused_or_give_texts_back() {
    let edits = || prop::collection::vec(edit(), 0..3);
    fuzz(0.05, (edits(), edits()), |(model, config)| {
        let model = damage(FILES[0], &model);
        check(&model, &damage(FILES[1], &config))
    });
}
