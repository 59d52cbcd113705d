//! Reasoning and answer, however a reply is cut into pieces.

use tbshard::text::{Part, Reasoning};

/// Pushes the pieces and joins neighbouring parts of one kind.
fn split(starts_inside: bool, pieces: &[&str]) -> (String, String) {
    let mut reasoning = Reasoning::new(starts_inside);
    let mut parts: Vec<(Part, String)> = pieces.iter().flat_map(|piece| reasoning.push(piece)).collect();
    parts.extend(reasoning.finish());
    assert!(
        parts.iter().all(|(_, text)| !text.is_empty()) && parts.is_sorted_by_key(|(part, _)| *part == Part::Answer)
    );
    let join = |kind| parts.iter().filter(|(part, _)| *part == kind).map(|(_, text)| text.as_str()).collect();
    (join(Part::Reasoning), join(Part::Answer))
}

#[test]
fn reasoning_is_split_off_wherever_the_pieces_are_cut() {
    for (inside, text, reasoning, answer) in [
        (true, "why é<b></thin\n</think>\n\n yes </think> <think>", "why é<b></thin\n", " yes </think> <think>"),
        (true, "\n<think>\nagain</think>yes", "\nagain", "yes"),
        (true, "never closed </thi", "never closed </thi", ""),
        (true, "</think>\r\n\nyes", "", "yes"),
        (true, "a<</think>", "a<", ""),
        (false, "<think>\nwhy</think>\n\nyes\n", "\nwhy", "yes\n"),
        (false, "\n yes <think>é</think>", "", "\n yes <think>é</think>"),
        (false, " <thin", "", " <thin"),
        (false, "</think>", "", "</think>"),
    ] {
        let expected = (reasoning.to_owned(), answer.to_owned());
        let cuts: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
        for &first in &cuts {
            for &second in cuts.iter().filter(|&&second| second >= first) {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(split(inside, &pieces), expected, "{pieces:?}");
            }
        }
        let characters: Vec<&str> = text.split("").collect();
        assert_eq!(split(inside, &characters), expected, "{text}");
    }
    let mut reasoning = Reasoning::new(true);
    assert_eq!(reasoning.push("so <b"), [(Part::Reasoning, "so <b".to_owned())]);
    assert_eq!(reasoning.push("x </th"), [(Part::Reasoning, "x ".to_owned())]);
    assert_eq!(reasoning.push("ink>\n"), []);
    assert_eq!(reasoning.push("\nyes"), [(Part::Answer, "yes".to_owned())]);
}

#[test]
fn a_prompt_tells_whether_the_reply_starts_with_reasoning() {
    for (prompt, open) in [
        ("<|im_start|>assistant\n<think>\n", true),
        ("<|im_assistant|>assistant<|im_middle|><think>", true),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", false),
        ("<|im_assistant|>assistant<|im_middle|><think></think>", false),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", false),
        ("", false),
    ] {
        assert_eq!(Reasoning::is_open_at_end(prompt), open);
        let part = if open { Part::Reasoning } else { Part::Answer };
        assert_eq!(Reasoning::for_prompt(prompt).push("x"), [(part, "x".to_owned())]);
    }
}
