//! From lines to jobs, in a thread of its own: the model does not wait for a tokenizer.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::input::Intake;
use super::line::{Ask, Line};
use super::row::{Head, Maker, Row, refusal};
use super::say_form;
use crate::api::{Endpoint, Order, Refusal, Stamp, Texts, prepare};
use crate::cli::caught::caught;
use crate::cli::generate::DEFAULT_MAX_TOKENS;
use crate::error::{Error, Result};

/// What becomes of a line.
pub(super) enum Item {
    /// It is to be answered.
    Order { seq: u64, head: Head, order: Box<Order> },
    /// It has its row already.
    Row { seq: u64, row: Row },
    /// There is no next line, because the input is over, or because of this.
    End(Result<()>),
}

/// What becomes of lines, as they come.
pub(super) struct Items(Receiver<Item>);

impl Items {
    /// Lets `work` make them in a thread; at most `depth` wait to be taken.
    ///
    /// # Errors
    /// If the thread cannot be started.
    fn of(depth: usize, work: impl FnOnce(&SyncSender<Item>) -> Result<()> + Send + 'static) -> Result<Self> {
        let (sender, items) = sync_channel(depth);
        let thread = std::thread::Builder::new().name("tbshard-lines".to_owned());
        let thread = thread.spawn(move || {
            let end = caught(|| work(&sender));
            // nobody is there any more if that fails
            let _ = sender.send(Item::End(end));
        });
        thread.map_err(|error| Error::from_std(error).context("cannot start a thread"))?;
        Ok(Self(items))
    }

    /// The next; `None` if it does not come in this time.
    pub(super) fn next(&self, wait: Duration) -> Option<Item> {
        match self.0.recv_timeout(wait) {
            Ok(item) => Some(item),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Item::End(Err(Error::panicked("the thread that reads lines ended before them"))))
            }
        }
    }
}

/// Makes requests of lines.
pub(super) struct Clerk {
    pub(super) texts: Texts,
    pub(super) maker: Maker,
    /// A system message before prompts that come alone.
    pub(super) system: Option<String>,
    /// Prompts that come alone are continued as they are.
    pub(super) raw: bool,
    pub(super) max_tokens: Option<usize>,
    /// What the input is called, if its form is to be said.
    pub(super) name: Option<String>,
}

impl Clerk {
    /// Prepares all lines of `intake`; at most `depth` wait to be taken.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(self, intake: Intake, depth: usize) -> Result<Items> {
        Items::of(depth, move |to| self.work(intake, to))
    }

    fn work(mut self, mut intake: Intake, to: &SyncSender<Item>) -> Result<()> {
        while let Some((seq, line)) = intake.next_line()? {
            if let (Some(name), Some(form)) = (self.name.take(), intake.form()) {
                say_form(&name, form);
            }
            if to.send(self.item(seq, &line)?).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn item(&self, seq: u64, line: &Line) -> Result<Item> {
        let head = Head::from(line);
        let ask = match &line.ask {
            Ok(ask) => ask,
            Err(problem) => return Ok(Item::Row { seq, row: Maker::broken(self.maker.deterministic, line, problem)? }),
        };
        Ok(match self.order(ask, &head)? {
            Ok(order) => Item::Order { seq, head, order: Box::new(order) },
            Err(refusal) => Item::Row { seq, row: self.maker.failed(&head, refusal.status, refusal.body())? },
        })
    }

    fn order(&self, ask: &Ask, head: &Head) -> Result<std::result::Result<Order, Refusal>> {
        let (endpoint, mut body) = self.request(ask);
        if body.get("stream").is_some_and(|stream| *stream != false && !stream.is_null()) {
            let message = "`stream`: a row of a batch is one piece, leave it out".to_owned();
            return Ok(Err(Refusal { status: 400, message, param: Some("stream".to_owned()), code: None }));
        }
        let says = |key: &str| body.get(key).is_some_and(|value| !value.is_null());
        let (seeded, bounded) = (says("seed"), says("max_tokens") || says("max_completion_tokens"));
        // OpenAI's completions have 16 tokens where nothing is said, which a prompt that comes alone does not mean
        let default = if matches!(ask, Ask::Completions(_)) { None } else { Some(DEFAULT_MAX_TOKENS) };
        let most = if bounded { None } else { self.max_tokens.or(default) };
        if most.is_some() {
            // room for one is enough: what there is beyond that is known once the prompt is tokens
            body.insert("max_tokens".to_owned(), 1.into());
        }
        let stamp = self.stamp(endpoint, head)?;
        let mut order = match caught(|| Ok(prepare(endpoint, &Value::Object(body), &self.texts, &stamp))) {
            Ok(Ok(order)) => order,
            Ok(Err(refusal)) => return Ok(Err(refusal)),
            // a mistake of ours that this line alone has found
            Err(error) => return Ok(Err(refusal(500, &error))),
        };
        for job in &mut order.jobs {
            if !seeded {
                job.sampling.seed = self.texts.defaults.sampling.seed;
            }
            if let Some(most) = most {
                job.max_tokens = most.min((self.texts.context + 1).saturating_sub(job.prompt.len()));
            }
        }
        Ok(Ok(order))
    }

    fn request(&self, ask: &Ask) -> (Endpoint, Map<String, Value>) {
        match ask {
            Ask::Chat(body) => (Endpoint::Chat, body.clone()),
            Ask::Completions(body) => (Endpoint::Completions, body.clone()),
            Ask::Simple(body) => {
                let mut body = body.clone();
                let text = body.get("prompt").and_then(Value::as_str).map(str::to_owned);
                let chat = self.texts.template.is_some() || self.system.is_some();
                // token ids are no text that a template could take
                let (Some(text), true) = (text, chat && !self.raw) else { return (Endpoint::Completions, body) };
                body.shift_remove("prompt");
                let mut messages = Vec::new();
                messages.extend(self.system.iter().map(|system| json!({"role": "system", "content": system})));
                messages.push(json!({"role": "user", "content": text}));
                body.insert("messages".to_owned(), messages.into());
                (Endpoint::Chat, body)
            }
        }
    }

    fn stamp(&self, endpoint: Endpoint, head: &Head) -> Result<Stamp> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let created = if self.maker.deterministic { 0 } else { now };
        Ok(Stamp::new(endpoint, &self.maker.name(head, "answer")?, created))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_not_the_end_of_the_input() {
        let end = |items: &Items| match items.next(Duration::from_secs(20)) {
            Some(Item::End(end)) => end.map_err(|error| error.to_string()),
            _ => panic!("it has not ended"),
        };
        let items = Items::of(1, |_| panic!("odd")).unwrap();
        assert!(end(&items).unwrap_err().contains("panicked: odd"));
        // and after its last word there is none
        assert!(end(&items).unwrap_err().contains("panicked"));
        assert_eq!(end(&Items::of(1, |_| Ok(())).unwrap()), Ok(()));
        let items = Items::of(1, |to| {
            std::thread::sleep(Duration::from_millis(200));
            drop(to.send(Item::End(Ok(()))));
            Ok(())
        });
        assert!(items.unwrap().next(Duration::ZERO).is_none(), "it is not there yet");
    }
}
