//! Kimi's vocabulary, `tiktoken.model` and the special tokens of `tokenizer_config.json`, made into a tokenizer.

mod chunks;
mod merges;
mod ranks;

use std::collections::BTreeMap;
use std::path::Path;

use ranks::Ranks;
use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, OffsetReferential, OffsetType, SplitDelimiterBehavior, Tokenizer};

use super::tokenizer::{AGAIN, foreign};
use crate::error::{Context, Error, Result};

/// The file of ranks.
pub(super) const FILE: &str = "tiktoken.model";

const CONFIG: &str = "tokenizer_config.json";

/// Ids after the ranks that are special tokens, whether they have a name or not.
const SPECIALS: usize = 256;

/// What a word is: Han; other letters with the case changing at most once, a mark in front and an English ending; up
/// to three digits; a run of marks; line breaks; white space.
const WORDS: [&str; 8] = [
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

const TOGETHER: &str = "the two files do not belong together, or one is damaged: fetch both again";

/// Reads the vocabulary in `dir`.
pub(super) fn open(dir: &Path) -> Result<Tokenizer> {
    let read = |name: &str| std::fs::read(dir.join(name));
    let model = read(FILE).map_err(|error| Error::io(&dir.join(FILE), error).hint(AGAIN))?;
    let config = read(CONFIG).map_err(|error| {
        let error = Error::from_std(error).context(format_args!("`{}`", dir.join(CONFIG).display()));
        error.hint(format_args!("`{FILE}` has no special tokens of its own: fetch `{CONFIG}` from the same repository"))
    })?;
    build(&model, &config).with_context(|| format!("`{}`", dir.display()))
}

/// Makes a tokenizer of the texts of a `tiktoken.model` and a `tokenizer_config.json`.
pub(super) fn build(model: &[u8], config: &[u8]) -> Result<Tokenizer> {
    let ranks = Ranks::parse(model).context(FILE).map_err(|error| error.hint(AGAIN))?;
    let first = ranks.tokens.len();
    let specials = specials(config, first).context(CONFIG).map_err(|error| error.hint(AGAIN))?;
    let merges = merges::recover(&ranks);
    let bpe = BPE::builder().vocab_and_merges(ranks.ids, merges).ignore_merges(true);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(foreign)?);
    let words = SplitPattern::Regex(WORDS.join("|"));
    let words = Split::new(words, SplitDelimiterBehavior::Isolated, false).map_err(foreign)?;
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()]))).with_decoder(Some(bytes));
    tokenizer.add_tokens(specials.iter().cloned()).map_err(foreign)?;
    for (AddedToken { content, .. }, id) in specials.iter().zip(first..) {
        if tokenizer.token_to_id(content).map(|found| found as usize) != Some(id) {
            let error = format!("the added token `{content}` cannot have the id {id}: the text has another already");
            return Err(Error::msg(error).context(CONFIG).hint(TOGETHER));
        }
    }
    Ok(tokenizer)
}

/// Encodes as Kimi's own tokenizer does: special tokens are found first, and the text between two of them is cut where
/// it is long.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Vec<u32>> {
    if chunks::is_short(text.len()) {
        return Ok(tokenizer.encode_fast(text, false)?.get_ids().to_vec());
    }
    let mut ids = Vec::new();
    let found = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
    for (part, _, special) in found.get_splits(OffsetReferential::Original, OffsetType::None) {
        match special {
            Some(special) => ids.extend(special.iter().map(|token| token.id)),
            None => {
                for chunk in chunks::chunks(part) {
                    ids.extend(tokenizer.encode_fast(chunk, false)?.get_ids());
                }
            }
        }
    }
    Ok(ids)
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, Added>,
}

/// What a special token is; tiktoken looks for its text as it stands, whatever else is said of spaces around it.
#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    special: bool,
}

/// Returns the special tokens in the order of their ids, which begin at `first`.
fn specials(config: &[u8], first: usize) -> Result<Vec<AddedToken>> {
    let config: Config = serde_json::from_slice(config).map_err(Error::from_std)?;
    if config.added_tokens_decoder.is_empty() {
        return Err(Error::msg("`added_tokens_decoder` names no special token"));
    }
    let ids = first..first + SPECIALS;
    let mut named = BTreeMap::new();
    for (key, added) in config.added_tokens_decoder {
        let wrong = |what: String| Error::msg(format_args!("the added token `{}` {what}", added.content));
        let id: usize = key.parse().map_err(|_| wrong(format!("has the id `{key}`, which is not a number")))?;
        if id < ids.start {
            let error = format!("has the id {id}, which `{FILE}` gives to another token");
            return Err(wrong(error).hint(TOGETHER));
        }
        if id >= ids.end {
            let error = format!("has the id {id}, beyond the {} of the ranks and {SPECIALS} special tokens", ids.end);
            return Err(wrong(error).hint(TOGETHER));
        }
        if added.content.is_empty() {
            return Err(wrong(format!("with the id {id} is empty")));
        }
        let token = AddedToken::from(added.content, added.special).normalized(false);
        if let Some(other) = named.insert(id, token) {
            return Err(Error::msg(format_args!("the id {id} is given twice, once to `{}`", other.content)));
        }
    }
    let unnamed = |id: usize| AddedToken::from(format!("<|reserved_token_{id}|>"), true);
    Ok(ids.map(|id| named.remove(&id).unwrap_or_else(|| unnamed(id))).collect())
}
