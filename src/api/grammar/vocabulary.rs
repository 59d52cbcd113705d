//! A vocabulary as grammars need it: the bytes of every token, in a tree.

use std::sync::Arc;

use llguidance::ParserFactory;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::text::{CallForm, Tokenizer};

/// Makes it; a second or so for the largest.
pub(super) fn factory(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<ParserFactory, String> {
    let Some(end) = ends.iter().copied().find(|end| (*end as usize) < vocab) else {
        return Err("this model has no token that ends an answer, so none can be kept to a grammar".to_owned());
    };
    let words: Vec<Vec<u8>> = (0..vocab as u32).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|error| format!("{error:#}"))?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

/// The bytes of a token; those of special tokens begin with a byte that no text has, so that no grammar allows them by
/// their letters. Tokens that calls are made of are meant by their letters.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.bytes(id).unwrap_or_default();
    let forms = [CallForm::Hermes, CallForm::Xml, CallForm::Kimi];
    let is_marker = || forms.iter().flat_map(|form| form.markers()).any(|marker| marker.as_bytes() == bytes);
    if tokenizer.is_special(id) && !is_marker() {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat();
    }
    bytes
}
