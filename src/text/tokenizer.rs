//! A model's vocabulary: `tokenizer.json`, or Kimi's `tiktoken.model`, read into an encoder and a decoder.

use std::collections::HashSet;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::{DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use super::{Stream, alphabet, tiktoken};
use crate::error::{Context, Error, Result};

const FILE: &str = "tokenizer.json";
/// What marks turns in Kimi's format, and in no other.
const KIMI_TURN: &str = "<|im_middle|>";
/// What ends an answer in it.
const KIMI_ENDS: [&str; 2] = ["[EOS]", "<|im_end|>"];
pub(super) const AGAIN: &str = "fetch the file again from the model's repository";

/// Turns text into token ids and back, exactly as the model was trained with.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
    size: usize,
    /// Texts are cut as Kimi's tokenizer cuts them.
    is_kimi: bool,
}

impl Tokenizer {
    /// Whether `dir` holds a `tokenizer.json` or a `tiktoken.model`.
    pub fn is_in(dir: &Path) -> bool {
        [FILE, tiktoken::FILE].iter().any(|name| dir.join(name).exists())
    }

    /// Reads `tokenizer.json` in `dir`, or `tiktoken.model` and `tokenizer_config.json` where it is absent. Any
    /// truncation or padding the file asks for is switched off.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return if Self::is_in(dir) { tiktoken::open(dir).map(Self::kimi) } else { Err(absent(&path)) };
            }
            Err(error) => return Err(Error::io(&path, error).hint(AGAIN)),
        };
        Self::from_bytes(&bytes).with_context(|| format!("`{}`", path.display())).map_err(|error| error.hint(AGAIN))
    }

    /// Reads the text of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut inner = parse(bytes)?;
        inner.with_padding(None).with_truncation(None).map_err(foreign)?;
        Ok(Self::new(inner, false))
    }

    /// Reads the texts of a `tiktoken.model` and the `tokenizer_config.json` that goes with it.
    pub fn from_tiktoken(model: &[u8], config: &[u8]) -> Result<Self> {
        tiktoken::build(model, config).map(Self::kimi)
    }

    fn kimi(inner: tokenizers::Tokenizer) -> Self {
        Self::new(inner, true)
    }

    fn new(inner: tokenizers::Tokenizer, is_kimi: bool) -> Self {
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let last_added = added.keys().max().map_or(0, |id| *id as usize + 1);
        let size = ids(inner.get_model()).max(last_added);
        Self { inner, special, size, is_kimi }
    }

    /// Returns the ids of `text`. Special tokens written out in the text become their ids;
    /// `add_special` also adds what the file's post-processor puts around a text (a BOS, say).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = if self.is_kimi {
            tiktoken::encode(&self.inner, text)
        } else {
            self.inner.encode_fast(text, add_special).map(|encoding| encoding.get_ids().to_vec())
        };
        ids.map_err(foreign).context("cannot tokenise the text")
    }

    /// Returns the text of `ids`, leaving special tokens out if `skip_special`. Ids outside the vocabulary
    /// give nothing; bytes that are not UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(foreign).context("cannot decode the tokens")
    }

    /// Returns the id of a whole token, written as the vocabulary writes it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns a token as the vocabulary writes it (byte-level alphabet, not text).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the bytes that a token adds to a text, whatever its neighbours are.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        Some(if self.is_byte_level() { alphabet::bytes(&token) } else { alphabet::fallback(&token) })
    }

    /// Returns the highest id plus one; the embedding's rows from there on are padding.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// Returns whether `id` is an added token marked `special`.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Returns the tokens that end an answer whatever the checkpoint's configuration says. Only Kimi's have any: answers
    /// end at either of two, and their files name the one or the other.
    pub fn end_tokens(&self) -> Vec<u32> {
        let special = |token: &&str| self.token_id(token).filter(|id| self.is_special(*id));
        if special(&KIMI_TURN).is_none() {
            return Vec::new();
        }
        KIMI_ENDS.iter().filter_map(special).collect()
    }

    /// Returns a detokeniser that takes one id at a time.
    pub fn stream(&self, skip_special: bool) -> Stream<&Self> {
        Stream::new(self, skip_special)
    }

    /// Returns the token that `decode` would decode for `id`, if any.
    pub(super) fn visible(&self, id: u32, skip_special: bool) -> Option<String> {
        // The library skips by the token's text, not by its id.
        self.token(id).filter(|token| !skip_special || !self.inner.get_added_vocabulary().is_special_token(token))
    }

    /// Returns whether each token stands for its own bytes, whatever its neighbours are.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.size).finish_non_exhaustive()
    }
}

/// The part of the file whose ids the library does not take as written.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// A tokenizer whose model is known to be byte-pair encoding, as most are: one of any kind is first read into a tree of values,
/// which takes longer than all else.
type BytePairs = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let tokenizer = match serde_json::from_slice::<BytePairs>(bytes) {
        Ok(tokenizer) => tokenizer.into(),
        Err(_) => tokenizers::Tokenizer::from_bytes(bytes).map_err(foreign)?,
    };
    let file: File = serde_json::from_slice(bytes).map_err(Error::from_std)?;
    // The library numbers added tokens in the order of the file and only logs a difference.
    for Added { id, content } in file.added_tokens {
        if tokenizer.token_to_id(&content) != Some(id) {
            let error = Error::msg(format_args!("added token `{content}` cannot have the id {id}, which leaves a gap"));
            return Err(error.hint("add a filler token for every id that is left out"));
        }
    }
    Ok(tokenizer)
}

/// The highest id plus one. To ask for each costs less than a copy of the vocabulary, and most often they have no gaps.
fn ids(model: &impl Model) -> usize {
    let count = model.get_vocab_size();
    let whole = u32::try_from(count).is_ok_and(|count| (0..count).all(|id| model.id_to_token(id).is_some()));
    if whole { count } else { model.get_vocab().into_values().max().map_or(0, |id| id as usize + 1) }
}

pub(super) fn foreign(error: impl Display) -> Error {
    Error::msg(error)
}

fn absent(path: &Path) -> Error {
    Error::msg(format_args!("`{}` does not exist, nor does `{}` beside it", path.display(), tiktoken::FILE))
        .hint(format_args!("fetch `{FILE}` from the model's repository, or check the path"))
}
