//! What every prompt was answered with, whatever it ran on: a wrong answer is no result.

use std::collections::BTreeMap;

use super::measure::{Kind, Test};
use crate::error::{Error, Result};

/// What was said, and where it was said first.
#[derive(Default)]
pub(super) struct Answers(BTreeMap<(Kind, usize, usize, usize), (String, String)>);

impl Answers {
    /// Remembers a digest of the answer to prompt `prompt` of `test`; `place` tells where it was given. How many prompts
    /// run at once is no part of the question.
    ///
    /// # Errors
    /// If it is not the one that was given before.
    pub(super) fn check(&mut self, test: &Test, prompt: usize, digest: &str, place: String) -> Result<()> {
        let question = (test.kind, test.tokens, test.depth, prompt);
        let (first, at) = self.0.entry(question).or_insert_with(|| (digest.to_owned(), place.clone()));
        if first == digest {
            return Ok(());
        }
        let error = format!("{place} answers {digest} where {at} answered {first}: a wrong answer is no result");
        Err(Error::msg(error)
            .hint("this is a bug or a broken machine; if it happens again, report it with this command"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_changes_is_an_error_that_names_both_places() {
        let test = |kind, depth, batch| Test { kind, tokens: 8, depth, batch };
        let mut answers = Answers::default();
        let mut check = |test, prompt, digest, place: &str| answers.check(&test, prompt, digest, place.to_owned());
        check(test(Kind::Answer, 0, 1), 0, "aa", "here").unwrap();
        check(test(Kind::Answer, 0, 4), 0, "aa", "in a batch").unwrap();
        // other questions have other answers
        check(test(Kind::Answer, 0, 4), 1, "bb", "here").unwrap();
        check(test(Kind::Answer, 9, 1), 0, "cc", "here").unwrap();
        check(test(Kind::Prompt, 0, 1), 0, "dd", "here").unwrap();
        let error = check(test(Kind::Answer, 0, 4), 1, "ee", "there").unwrap_err().to_string();
        assert!(error.contains("there answers ee where here answered bb"), "{error}");
    }
}
