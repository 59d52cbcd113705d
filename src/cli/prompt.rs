//! Where a prompt comes from, and how it becomes tokens.

use std::io::Read;
use std::path::Path;

use super::load::Loaded;
use crate::error::{Error, Result};
use crate::text::{Message, RenderOptions};

/// The text of a file, or of standard input for `-`.
///
/// # Errors
/// Naming the file if it cannot be read, and where it stops being UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        (
            "standard input".to_owned(),
            read.map(|_| bytes).map_err(|error| Error::io(Path::new("standard input"), error))?,
        )
    } else {
        (format!("`{}`", path.display()), std::fs::read(path).map_err(|error| Error::io(path, error))?)
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::msg(format!("{name} is not UTF-8 at byte {at}")).hint("convert it with `iconv -t UTF-8`")
    })
}

/// Token ids as `--prompt-tokens` gives them: numbers between commas or spaces.
///
/// # Errors
/// If one is not a number or outside the vocabulary.
pub(super) fn parse_tokens(text: &str, loaded: &Loaded) -> Result<Vec<u32>> {
    let vocab = loaded.engine.model().geometry.vocab;
    let words = text.split([',', ' ', '\n', '\t']).filter(|word| !word.is_empty());
    let tokens: Result<Vec<u32>> = words
        .map(|word| match word.parse::<u32>() {
            Ok(id) if (id as usize) < vocab => Ok(id),
            _ => Err(Error::usage(format!("--prompt-tokens: `{word}` is not a token id below {vocab}"))
                .hint("ids are numbers between commas: 51,441,7")),
        })
        .collect();
    let tokens = tokens?;
    if tokens.is_empty() {
        Err(Error::usage("--prompt-tokens names no token").hint("ids are numbers between commas: 51,441,7"))
    } else {
        Ok(tokens)
    }
}

/// A prompt as the model is given it.
pub(super) struct Prompt {
    pub(super) tokens: Vec<u32>,
    /// The text behind the tokens, if there is one.
    pub(super) rendered: String,
}

/// Renders a conversation with the checkpoint's chat template.
///
/// # Errors
/// If there is no tokenizer, or the template refuses the conversation.
pub(super) fn render(loaded: &Loaded, messages: &[Message], thinking: Option<bool>) -> Result<Prompt> {
    let tokenizer = loaded.tokenizer()?;
    let Some(template) = &loaded.template else {
        return Err(Error::usage("this checkpoint has no chat template").hint("continue plain text with --raw"));
    };
    let options = RenderOptions { add_generation_prompt: true, thinking, ..RenderOptions::default() };
    let rendered = template.render(messages, &options)?;
    Ok(Prompt { tokens: tokenizer.encode(&rendered, false)?, rendered })
}

/// Plain text, without a template.
///
/// # Errors
/// If there is no tokenizer.
pub(super) fn plain(loaded: &Loaded, text: &str) -> Result<Prompt> {
    Ok(Prompt { tokens: loaded.tokenizer()?.encode(text, true)?, rendered: text.to_owned() })
}
