//! `tbshard generate`: answer one prompt.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Ask, answer, statistics};
use super::caught::caught;
use super::load::{Loaded, ModelArgs, threads};
use super::prompt::{Prompt, parse_tokens, plain, read_text, render};
use super::ranks::RankArgs;
use super::sampling::SamplingArgs;
use super::{Outcome, interrupt, ui};
use crate::engine::{Engine, Finish, Request};
use crate::error::{Error, Result};
use crate::text::Message;
use crate::weights::hex;

/// Tokens of an answer when `--max-tokens` does not say.
pub(super) const DEFAULT_MAX_TOKENS: usize = 1024;

/// What a newcomer reads who gives no prompt: four lines of at most 80 columns.
const WELCOME: &str = "\
This is tbshard's embedded demo model (4 million parameters), telling a story.
  ask it yourself:   tbshard generate --prompt \"Tell me a story about a fox\"
  talk with it:      tbshard chat
  use a real model:  tbshard generate --model qwen3-0.6b --prompt \"Hello\"
";

const DEMO_PROMPT: &str = "Tell me a story.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt; `-` reads standard input
    #[arg(long, short, value_name = "TEXT", group = "source", help_heading = "Prompt", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the prompt; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "source", help_heading = "Prompt")]
    prompt_file: Option<PathBuf>,
    /// The prompt as token ids: 51,441,…
    #[arg(long, value_name = "IDS", group = "source", help_heading = "Prompt")]
    prompt_tokens: Option<String>,
    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", conflicts_with_all = ["raw", "prompt_tokens"])]
    system: Option<String>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long, help_heading = "Prompt")]
    raw: bool,
    /// Let the model reason before it answers, where its template can say so
    #[arg(long, help_heading = "Prompt", conflicts_with_all = ["no_thinking", "raw", "prompt_tokens"])]
    thinking: bool,
    /// Let the model answer at once
    #[arg(long, help_heading = "Prompt", conflicts_with_all = ["raw", "prompt_tokens"])]
    no_thinking: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) ranks: RankArgs,
    /// Run it again on one rank and compare every bit of the logits
    #[arg(long, help_heading = "Ranks")]
    verify: bool,
    /// Tokens to generate at most [default: 1024, or what the context has room for]
    #[arg(long, short = 'n', value_name = "N", help_heading = "Output")]
    max_tokens: Option<usize>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Output", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on past the model's end token
    #[arg(long, help_heading = "Output")]
    ignore_eos: bool,
    /// Print one JSON object: text, tokens, prompt_tokens, finish_reason, timings
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let text = match (&args.prompt, &args.prompt_file, &args.prompt_tokens) {
        (Some(text), ..) if text == "-" => Some(read_text("-".as_ref())?),
        (Some(text), ..) => Some(text.clone()),
        (_, Some(path), _) => Some(read_text(path)?),
        (.., Some(_)) => None,
        _ if args.model.is_demo() => {
            if !args.model.quiet {
                ui::say(WELCOME);
            }
            Some(DEMO_PROMPT.to_owned())
        }
        _ => return Err(no_prompt()),
    };
    if text.as_ref().is_some_and(String::is_empty) {
        return Err(Error::usage("the prompt is empty").hint("give it some text"));
    }
    interrupt::listen()?;
    let mut loaded = args.ranks.load(&args.model)?;
    let result = caught(|| args.answer(&mut loaded, text));
    loaded.end(&args.ranks, result)
}

impl Args {
    /// The file with the prompt.
    pub(super) fn prompt_file(&self) -> Option<&Path> {
        self.prompt_file.as_deref()
    }

    fn answer(&self, loaded: &mut Loaded, text: Option<String>) -> Result<Outcome> {
        let prompt = self.prompt(loaded, text)?;
        let max_tokens = length(loaded, prompt.tokens.len(), self.max_tokens)?;
        let eos = if self.ignore_eos { Vec::new() } else { loaded.defaults.eos.clone() };
        let sampling = self.sampling.over(&loaded.defaults.sampling)?;
        if self.sampling.is_pointless(&sampling) && !self.model.quiet {
            ui::whisper("the temperature is 0, so other sampling flags change nothing; --temp 1 lets them");
        }
        let request = Request { prompt: prompt.tokens.clone(), max_tokens, eos, sampling };
        let (show, quiet) = (!self.json, self.model.quiet);
        let ask = Ask { request, stop: self.stop.clone(), show, style_reasoning: true, quiet };
        let mut sequence = loaded.engine.start()?;
        let answer = answer(loaded, &mut sequence, &prompt, &ask)?;
        loaded.engine.end(sequence);
        if self.json {
            ui::print(&json(loaded, &ask, &answer))?;
        } else if std::io::stdout().is_terminal() && !answer.text.ends_with('\n') {
            ui::print("\n")?;
        }
        if !quiet {
            ui::whisper(statistics(&answer.generated));
            if answer.generated.finish == Finish::Length && self.max_tokens.is_none() {
                ui::whisper("the answer was cut here, --max-tokens allows a longer one");
            }
        }
        if self.verify {
            self.verify(loaded, [&prompt.tokens[..], &answer.generated.tokens].concat())?;
        }
        Ok(if answer.generated.finish == Finish::Interrupted { Outcome::Interrupted } else { Outcome::Done })
    }

    /// Compares the logits of all of `tokens` with those of one rank, bit for bit.
    fn verify(&self, loaded: &mut Loaded, tokens: Vec<u32>) -> Result<()> {
        let tokens = &tokens[..tokens.len().min(loaded.engine.context())];
        let here = digest(&mut loaded.engine, tokens)?;
        let alone = digest(&mut self.model.load(threads(self.ranks.threads)?)?.engine, tokens)?;
        if here != alone {
            let error = format!("the logits of {} tokens differ from those of one rank: {here}, {alone}", tokens.len());
            return Err(Error::msg(error).hint("this is a bug, please report it with this command"));
        }
        if !self.model.quiet {
            ui::whisper(format_args!(
                "verified: the logits of all {} tokens are those of one rank ({here})",
                tokens.len()
            ));
        }
        Ok(())
    }

    fn prompt(&self, loaded: &Loaded, text: Option<String>) -> Result<Prompt> {
        let Some(text) = text else {
            let ids = self.prompt_tokens.as_deref().unwrap_or_default();
            return Ok(Prompt { tokens: parse_tokens(ids, loaded)?, rendered: String::new() });
        };
        let thinking = if self.thinking || self.no_thinking { Some(self.thinking) } else { None };
        let chat = loaded.template.is_some() || self.system.is_some() || thinking.is_some();
        if self.raw || !chat {
            return plain(loaded, &text);
        }
        let mut messages: Vec<Message> = self.system.iter().map(|system| Message::system(system.as_str())).collect();
        messages.push(Message::user(text));
        render(loaded, &messages, thinking)
    }
}

/// SHA-256 over the bits of the logits of all tokens.
fn digest(engine: &mut Engine, tokens: &[u32]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut sequence = engine.start()?;
    engine.logits(&mut sequence, tokens, &mut |logits| {
        logits.data().iter().for_each(|logit| hash.update(logit.to_bits().to_le_bytes()));
        Ok(())
    })?;
    engine.end(sequence);
    Ok(hex(hash)[..16].to_owned())
}

fn no_prompt() -> Error {
    Error::usage("there is no prompt").hint("give --prompt TEXT, --prompt-file FILE, or --prompt - for standard input")
}

/// How many tokens the context has room for after the prompt.
///
/// # Errors
/// If it has no room for the prompt itself.
pub(super) fn room(loaded: &Loaded, prompt: usize) -> Result<usize> {
    let context = loaded.engine.context();
    // the last token of an answer needs no position: nothing follows it
    let left = (context + 1).checked_sub(prompt).filter(|left| *left > 0);
    left.ok_or_else(|| Error::msg(format!("the prompt has {prompt} tokens, the context {context}")))
}

/// How many tokens the answer may have.
///
/// # Errors
/// If the context has no room for the prompt, or for what was asked for.
fn length(loaded: &Loaded, prompt: usize, asked: Option<usize>) -> Result<usize> {
    let hint = "raise --ctx, shorten the prompt, or ask for fewer tokens";
    let left = room(loaded, prompt).map_err(|error| error.hint(hint))?;
    let Some(asked) = asked else { return Ok(left.min(DEFAULT_MAX_TOKENS)) };
    if asked > left {
        let context = loaded.engine.context();
        let error = format!("a prompt of {prompt} tokens and --max-tokens {asked} do not fit a context of {context}");
        return Err(Error::msg(error).hint(hint));
    }
    Ok(asked)
}

fn json(loaded: &Loaded, ask: &Ask, answer: &Answer) -> String {
    let generated = &answer.generated;
    let t = &generated.timings;
    let mut object = json!({
        "text": answer.text,
        "tokens": generated.tokens,
        "prompt_tokens": ask.request.prompt.len(),
        "finish_reason": generated.finish,
        "timings": {
            "prompt_seconds": t.prompt_seconds,
            "prompt_tokens_per_second": t.prompt_rate(),
            "first_token_seconds": t.first_token_seconds,
            "decode_seconds": t.decode_seconds,
            "decode_tokens_per_second": t.decode_rate(),
            "generated_tokens": t.generated_tokens,
        },
        "sampling": ask.request.sampling,
        "model_digest": loaded.engine.model().digest,
    });
    if !answer.reasoning.is_empty() {
        object["reasoning"] = answer.reasoning.clone().into();
        object["answer"] = answer.answer.clone().into();
    }
    format!("{object}\n")
}
