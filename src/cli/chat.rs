//! `tbshard chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};

use rustyline::error::ReadlineError;

use super::answer::{Answer, Ask, answer, statistics};
use super::generate::room;
use super::load::{Loaded, ModelArgs};
use super::prompt::render;
use super::sampling::SamplingArgs;
use super::{Outcome, interrupt, ui};
use crate::engine::{Finish, Request, Sequence};
use crate::error::{Error, Result};
use crate::text::Message;

const HELP: &str = "/reset forgets, /stats shows the speed, /quit leaves; Ctrl-C stops an answer";

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
    /// Tokens of an answer at most [default: 1024, or what the context has room for]
    #[arg(long, short = 'n', value_name = "N", help_heading = "Output")]
    max_tokens: Option<usize>,
}

/// A line from the user, or what they did instead.
enum Input {
    Line(String),
    Interrupt,
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
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line);
                match read.map_err(|error| Error::io("standard input".as_ref(), error))? {
                    0 => Ok(Input::End),
                    _ => Ok(Input::Line(line.trim_end_matches(['\n', '\r']).to_owned())),
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
    let loaded = args.model.load()?;
    let mut chat = Chat { args, loaded, messages: Vec::new(), held: None, statistics: None };
    chat.reset();
    render(&chat.loaded, &[Message::user("hello")], chat.thinking())?;
    let mut reader = Reader::open()?;
    if !args.model.quiet {
        eprintln!("{}", ui::paint_err(HELP, "2"));
    }
    loop {
        match reader.line()? {
            Input::End => break,
            Input::Interrupt => eprintln!("{}", ui::paint_err("/quit leaves", "2")),
            Input::Line(line) => match line.trim() {
                "" => {}
                "/quit" | "/exit" => break,
                "/help" => eprintln!("{HELP}"),
                "/reset" => {
                    chat.reset();
                    eprintln!("{}", ui::paint_err("the conversation starts anew", "2"));
                }
                "/stats" => eprintln!("{}", chat.statistics.as_deref().unwrap_or("nothing was answered yet")),
                command if command.starts_with('/') => eprintln!("there is no command `{command}`: {HELP}"),
                text => chat.turn(text)?,
            },
        }
    }
    Ok(Outcome::Done)
}

impl Chat<'_> {
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

    /// One question and its answer. A question that cannot be answered is taken back and the chat goes on.
    fn turn(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        match self.answer() {
            Ok(answer) => {
                let mut message = Message::assistant(answer.answer.clone());
                if !answer.reasoning.is_empty() {
                    message.reasoning_content = Some(answer.reasoning.clone());
                }
                self.messages.push(message);
                self.statistics = Some(statistics(&answer.generated));
                println!();
                if answer.generated.finish == Finish::Interrupted {
                    eprintln!("{}", ui::paint_err("(stopped)", "2"));
                }
                std::io::stdout().flush().map_err(|error| Error::io("standard output".as_ref(), error))
            }
            Err(error) => {
                self.messages.pop();
                self.release();
                super::report(&error);
                Ok(())
            }
        }
    }

    fn answer(&mut self) -> Result<Answer> {
        let prompt = render(&self.loaded, &self.messages, self.thinking())?;
        let max_tokens = room(&self.loaded, prompt.tokens.len(), self.args.max_tokens)?;
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
