//! Answers that must look like something: JSON of a schema, or calls of tools.

mod calls;
mod constraint;
mod vocabulary;

pub(super) use constraint::{Start, Thinking};

use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use self::constraint::Grammar;
use super::request::{Choice, Format, Offer};
use super::{Refusal, Texts};
use crate::text::CallForm;

/// A model's vocabulary as grammars see it, made when the first of them is wanted.
#[derive(Clone, Default)]
pub struct Grammars(Arc<OnceLock<Result<ParserFactory, String>>>);

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("made", &self.0.get().is_some()).finish()
    }
}

/// What an answer must look like: a grammar in llguidance's dialect of Lark.
#[derive(Debug)]
pub(super) struct Shape {
    lark: String,
    /// The key that asked for it.
    param: &'static str,
}

impl Shape {
    /// What a request asks for; `None` if anything will do.
    pub(super) fn of(format: &Format, offer: Option<(CallForm, &Offer)>) -> Option<Self> {
        let json = match format {
            Format::Text => None,
            Format::Json(schema) => Some(format!("%json {schema}")),
        };
        let must = offer.filter(|(_, offer)| offer.choice != Choice::Auto);
        let (start, param) = match (&json, offer) {
            (_, Some(_)) if must.is_some() => ("start: calls\n", "tools"),
            (None, _) => return None,
            // who offers tools and asks for JSON gets one or the other
            (Some(_), Some(_)) => ("start: answer | calls\n", "response_format"),
            (Some(_), None) => ("start: answer\n", "response_format"),
        };
        let mut lark = start.to_owned();
        if let Some(json) = json.filter(|_| must.is_none()) {
            lark += &format!("answer: {json}\n");
        }
        if let Some((form, offer)) = offer {
            lark += &calls::rules(form, offer);
        }
        Some(Self { lark, param })
    }
}

impl Grammars {
    /// What keeps one answer to a shape.
    pub(super) fn constraint(
        &self,
        shape: &Shape,
        texts: &Texts,
        ends: &[u32],
        thinking: &Thinking,
    ) -> Result<Grammar, Refusal> {
        if !thinking.is_followed() {
            let message = format!("`{}`: this model has no token that ends its reasoning", shape.param);
            return Err(Refusal::of(shape.param, message));
        }
        let made = self.0.get_or_init(|| vocabulary::factory(&texts.tokenizer, texts.vocab, &texts.defaults.eos));
        let factory = made.as_ref().map_err(|message| Refusal::of(shape.param, message))?;
        let grammar = TopLevelGrammar::from_lark(shape.lark.clone());
        let mut matcher = Matcher::new(llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
            factory.create_parser(grammar)
        })));
        if let Some(error) = matcher.get_error() {
            let first = error.lines().next().unwrap_or_default();
            return Err(Refusal::of(shape.param, format_args!("`{}`: {first}", shape.param)));
        }
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(Refusal::of(shape.param, format_args!("`{}`: {warning}", shape.param)));
        }
        Ok(Grammar::new(matcher, ends, thinking))
    }
}

/// A text as Lark writes it.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
