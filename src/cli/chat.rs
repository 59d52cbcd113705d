//! `tbshard chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal};

use rustyline::error::ReadlineError;

use super::answer::{Answer, Ask, answer, statistics};
use super::caught::caught;
use super::generate::{DEFAULT_MAX_TOKENS, room};
use super::load::{Loaded, ModelArgs};
use super::prompt::render;
use super::ranks::RankArgs;
use super::sampling::SamplingArgs;
use super::terminal::Asking;
use super::{Outcome, interrupt, ui};
use crate::engine::{Finish, Request, Sequence};
use crate::error::{Error, Kind, Result};
use crate::text::Message;

const HELP: &str = "/reset forgets, /stats shows the speed, /quit leaves; Ctrl-C stops an answer";

const GREETING: &str = "\
Hello! I am tbshard's embedded demo model: tiny, but made like the big ones.
Ask me for a story about a fox, a sum up to ten, a colour or an opposite.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A system message before the conversation
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    system: Option<String>,
    /// Let the model reason before it answers, where its template can say so
    #[arg(long, help_heading = "Prompt", conflicts_with = "no_thinking")]
    thinking: bool,
    /// Let the model answer at once
    #[arg(long, help_heading = "Prompt")]
    no_thinking: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) ranks: RankArgs,
    /// Tokens of an answer at most [default: 1024, or what the context has room for]
    #[arg(long, short = 'n', value_name = "N", help_heading = "Output")]
    max_tokens: Option<usize>,
}

/// A line from the user, or what they did instead.
enum Input {
    Line(String),
    Interrupt,
    /// A line that is not UTF-8.
    Foreign,
    End,
}

/// Lines from an editor with history on a terminal, from standard input elsewhere.
enum Reader {
    Editor(Box<rustyline::DefaultEditor>),
    Plain,
}

impl Reader {
    fn open() -> Result<Self> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            return Ok(Self::Editor(Box::new(rustyline::DefaultEditor::new().map_err(Error::from_std)?)));
        }
        Ok(Self::Plain)
    }

    fn line(&mut self) -> Result<Input> {
        let _asking = Asking::begin();
        match self {
            Self::Editor(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // a line that cannot be remembered is still a line
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Input::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupt),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(error) => Err(Error::from_std(error)),
            },
            Self::Plain => {
                let mut line = Vec::new();
                let read = std::io::stdin().lock().read_until(b'\n', &mut line);
                match read.map_err(|error| Error::io("standard input".as_ref(), error))? {
                    0 => Ok(Input::End),
                    _ => {
                        Ok(String::from_utf8(line)
                            .map_or(Input::Foreign, |line| Input::Line(line.trim_end().to_owned())))
                    }
                }
            }
        }
    }
}

/// The conversation and the sequence that holds a prefix of it.
struct Chat<'a> {
    args: &'a Args,
    loaded: Loaded,
    messages: Vec<Message>,
    held: Option<(Sequence, Vec<u32>)>,
    statistics: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    interrupt::listen()?;
    let loaded = args.ranks.load(&args.model)?;
    let mut chat = Chat { args, loaded, messages: Vec::new(), held: None, statistics: None };
    let result = caught(|| chat.talk());
    chat.loaded.end(&args.ranks, result)
}

impl Chat<'_> {
    fn talk(&mut self) -> Result<Outcome> {
        let args = self.args;
        let chat = self;
        chat.reset();
        render(&chat.loaded, &[Message::user("hello")], chat.thinking())?;
        let mut reader = Reader::open()?;
        if matches!(reader, Reader::Editor(_)) {
            interrupt::stay();
        }
        if !args.model.quiet {
            if args.model.is_demo() {
                ui::say(GREETING);
            }
            ui::whisper(HELP);
        }
        loop {
            match reader.line()? {
                Input::End => break,
                Input::Interrupt => ui::whisper("/quit leaves"),
                Input::Foreign => ui::say("that line is not UTF-8, say it again"),
                Input::Line(line) => match line.trim() {
                    "" => {}
                    "/quit" | "/exit" => break,
                    "/help" => ui::say(HELP),
                    "/reset" => {
                        chat.reset();
                        ui::whisper("the conversation starts anew");
                    }
                    "/stats" => ui::say(chat.statistics.as_deref().unwrap_or("nothing was answered yet")),
                    command if command.starts_with('/') => {
                        ui::say(format_args!("there is no command `{command}`: {HELP}"))
                    }
                    text => {
                        if !chat.turn(text)? {
                            break;
                        }
                    }
                },
            }
        }
        Ok(Outcome::Done)
    }

    fn thinking(&self) -> Option<bool> {
        if self.args.thinking || self.args.no_thinking { Some(self.args.thinking) } else { None }
    }

    fn reset(&mut self) {
        self.messages = self.args.system.iter().map(|system| Message::system(system.as_str())).collect();
        self.release();
    }

    fn release(&mut self) {
        if let Some((sequence, _)) = self.held.take() {
            self.loaded.engine.end(sequence);
        }
    }

    /// One question and its answer; `false` if nobody reads answers any more. A question that cannot be answered is
    /// taken back and the chat goes on.
    fn turn(&mut self, text: &str) -> Result<bool> {
        self.messages.push(Message::user(text));
        let answer = match self.answer() {
            Ok(answer) => answer,
            Err(error) if error.kind() == Kind::Cluster => return Err(error),
            Err(error) => {
                self.messages.pop();
                self.release();
                super::report(&error);
                // an answer that cannot be shown will not be shown the next time either
                return ui::print("\n");
            }
        };
        let mut message = Message::assistant(answer.answer.clone());
        if !answer.reasoning.is_empty() {
            message.reasoning_content = Some(answer.reasoning.clone());
        }
        self.messages.push(message);
        self.statistics = Some(statistics(&answer.generated));
        if answer.generated.finish == Finish::Interrupted {
            ui::whisper("\n(stopped)");
        }
        Ok(!answer.closed && ui::print("\n")?)
    }

    fn answer(&mut self) -> Result<Answer> {
        let prompt = render(&self.loaded, &self.messages, self.thinking())?;
        let hint = "/reset forgets what was said, --ctx makes room for more";
        let left = room(&self.loaded, prompt.tokens.len()).map_err(|error| error.hint(hint))?;
        let max_tokens = self.args.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).min(left);
        // templates drop old reasoning, so what the cache holds is often not a prefix; then it starts anew
        if self
            .held
            .as_ref()
            .is_some_and(|(_, held)| !prompt.tokens.starts_with(held) || held.len() == prompt.tokens.len())
        {
            self.release();
        }
        let (mut sequence, mut held) = match self.held.take() {
            Some(held) => held,
            None => (self.loaded.engine.start()?, Vec::new()),
        };
        let request = Request {
            prompt: prompt.tokens[held.len()..].to_vec(),
            max_tokens,
            eos: self.loaded.defaults.eos.clone(),
            sampling: self.args.sampling.over(&self.loaded.defaults.sampling)?,
        };
        let quiet = self.args.model.quiet;
        let ask = Ask { request, stop: Vec::new(), show: true, style_reasoning: true, quiet };
        let answer = answer(&mut self.loaded, &mut sequence, &prompt, &ask);
        if let Ok(answer) = &answer {
            held = prompt.tokens.iter().chain(&answer.generated.tokens).copied().collect();
            held.truncate(sequence.len());
        }
        self.held = Some((sequence, held));
        answer
    }
}
