//! An answer as it streams: tokens to text, stop strings, reasoning dimmed, Ctrl-C.

use std::io::IsTerminal;
use std::ops::ControlFlow;

use super::interrupt::Answering;
use super::load::Loaded;
use super::prompt::Prompt;
use super::ui;
use super::wrap::Wrap;
use crate::engine::{Event, Finish, Generated, Request, Sampler, Sequence, generate};
use crate::error::{Error, Result};
use crate::text::{Part, Reasoning, StopStrings, Stream, Tokenizer};

/// What is asked for, apart from the prompt.
pub(super) struct Ask {
    pub(super) request: Request,
    pub(super) stop: Vec<String>,
    /// Write the text to stdout as it comes.
    pub(super) show: bool,
    /// Reasoning is dimmed, and its tags are not shown.
    pub(super) style_reasoning: bool,
    pub(super) quiet: bool,
}

/// An answer and its text.
pub(super) struct Answer {
    pub(super) generated: Generated,
    /// All of it, as generated.
    pub(super) text: String,
    /// What stands before `</think>`, if the model reasons.
    pub(super) reasoning: String,
    /// What follows.
    pub(super) answer: String,
    /// Nobody reads stdout any more.
    pub(super) closed: bool,
}

struct Writer<'a> {
    // `None` prints token ids
    stream: Option<Stream<&'a Tokenizer>>,
    stops: StopStrings,
    reasoning: Reasoning,
    show: bool,
    styled: bool,
    // on a terminal
    wrap: Option<Wrap>,
    dim: bool,
    text: String,
    parts: [String; 2],
    // nobody reads stdout any more, or it cannot be written
    closed: bool,
    failed: Option<Error>,
}

impl Writer<'_> {
    /// Shows what a token completes; tells whether a stop string did.
    fn token(&mut self, id: u32) -> Result<bool> {
        let piece = match &mut self.stream {
            Some(stream) => stream.push(id)?,
            None if self.text.is_empty() => id.to_string(),
            None => format!(" {id}"),
        };
        let (shown, stopped) = self.stops.push(&piece);
        self.show(&shown);
        Ok(stopped)
    }

    /// Shows what was held back; tells whether that completed a stop string.
    fn finish(&mut self, mut stopped: bool) -> Result<bool> {
        if !stopped {
            let last = self.stream.as_mut().map(Stream::finish).transpose()?.unwrap_or_default();
            let (shown, now) = self.stops.push(&last);
            stopped = now;
            self.show(&shown);
            if !stopped {
                let held = self.stops.finish();
                self.show(&held);
            }
        }
        let parts = self.reasoning.finish();
        self.show_parts(parts);
        self.unwrap();
        if self.dim {
            self.write("\x1b[0m");
        }
        Ok(stopped)
    }

    fn show(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(text);
        if !self.styled {
            self.lay(text);
        }
        let parts = self.reasoning.push(text);
        self.show_parts(parts);
    }

    fn show_parts(&mut self, parts: Vec<(Part, String)>) {
        for (part, text) in parts {
            let dim = part == Part::Reasoning;
            self.parts[usize::from(!dim)].push_str(&text);
            if !self.styled {
                continue;
            }
            if dim != self.dim {
                self.dim = dim;
                self.unwrap();
                self.write(if dim { "\x1b[2m" } else { "\x1b[0m" });
                if !dim {
                    self.lay("\n\n");
                }
            }
            self.lay(&text);
        }
    }

    /// Writes text with line breaks that fit the terminal.
    fn lay(&mut self, text: &str) {
        match &mut self.wrap {
            Some(wrap) => {
                let ready = wrap.push(text);
                self.write(&ready);
            }
            None => self.write(text),
        }
    }

    /// Writes what waits for the end of its word.
    fn unwrap(&mut self) {
        if let Some(held) = self.wrap.as_mut().map(Wrap::finish) {
            self.write(&held);
        }
    }

    fn write(&mut self, text: &str) {
        if !self.show || self.closed || text.is_empty() {
            return;
        }
        match ui::print(text) {
            Ok(read) => self.closed = !read,
            Err(error) => (self.closed, self.failed) = (true, Some(error)),
        }
    }
}

/// Runs a request and streams its answer.
///
/// # Errors
/// If the model fails, or stdout cannot be written (a closed pipe just ends the answer).
pub(super) fn answer(loaded: &mut Loaded, sequence: &mut Sequence, prompt: &Prompt, ask: &Ask) -> Result<Answer> {
    let mut writer = Writer {
        stream: loaded.tokenizer.as_ref().map(|tokenizer| tokenizer.stream(true)),
        stops: StopStrings::new(&ask.stop),
        reasoning: Reasoning::for_prompt(&prompt.rendered),
        show: ask.show,
        styled: ask.style_reasoning && ui::colour_on_stdout(),
        wrap: ui::stdout_width().map(Wrap::new),
        dim: false,
        text: String::new(),
        parts: [String::new(), String::new()],
        closed: false,
        failed: None,
    };
    let total = ask.request.prompt.len() as u64;
    let bar = ui::bar(total, "prompt {bar:20} {pos}/{len} tokens eta {eta}", ask.quiet);
    let answering = Answering::begin();
    let mut problem = None;
    let mut stopped = false;
    let mut sampler = Sampler::new(ask.request.sampling.clone(), 0);
    let held_before = prompt.tokens.len() - ask.request.prompt.len();
    sampler.accept_prompt(&prompt.tokens[..held_before]);
    let on = &mut |event: Event| {
        match event {
            Event::Prompt(done) if (done as u64) < total => bar.set_position(done as u64),
            Event::Prompt(_) => bar.finish_and_clear(),
            Event::Token(id) => match writer.token(id) {
                Ok(done) => stopped = done,
                Err(error) => problem = Some(error),
            },
        }
        if answering.interrupted() {
            return ControlFlow::Break(Finish::Interrupted);
        }
        let end = stopped || problem.is_some() || writer.closed;
        if end { ControlFlow::Break(Finish::Stop) } else { ControlFlow::Continue(()) }
    };
    let generated = generate(&mut loaded.engine, sequence, &ask.request, &mut sampler, on);
    drop(answering);
    bar.finish_and_clear();
    // before an error is passed on, so that the terminal does not stay dim
    stopped = writer.finish(stopped)?;
    if generated.is_err() && ask.show && !writer.text.is_empty() && std::io::stdout().is_terminal() {
        // the error is to have its own line
        ui::print("\n")?;
    }
    let mut generated = generated?;
    if let Some(problem) = problem.or(writer.failed) {
        return Err(problem);
    }
    if stopped {
        generated.finish = Finish::Stop;
    }
    let [reasoning, answer] = writer.parts;
    Ok(Answer { generated, text: writer.text, reasoning, answer, closed: writer.closed })
}

/// `prompt 12 tok 310 tok/s · 64 tok 88 tok/s · first token 0.04 s`.
pub(super) fn statistics(generated: &Generated) -> String {
    let t = &generated.timings;
    let rate = |rate: f64| if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") };
    let mut line = format!("prompt {} tok {} tok/s", t.prompt_tokens, rate(t.prompt_rate()));
    if t.generated_tokens > 0 {
        line += &format!(" · {} tok", t.generated_tokens);
        if t.generated_tokens > 1 {
            line += &format!(" {} tok/s", rate(t.decode_rate()));
        }
        line += &format!(" · first token {:.2} s", t.first_token_seconds);
    }
    line
}
