//! `tbshard batch`: every line has one row, whatever the lines are and however runs end.

mod answers;
mod ends;
mod files;
mod forms;
pub mod kills;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::program::command;

/// Questions of different lengths, some of which the demo model can answer.
const PROMPTS: [&str; 12] = [
    "Tell me a story about a fox.",
    "What is 2 plus 3?",
    "What does a cow say?",
    "Tell me a story about a brave little robot who lost a shoe.",
    "What colour is the sky?",
    "Hello",
    "What is the opposite of hot?",
    "Tell me a story.",
    "Tell me a story about an owl.",
    "What is 1 plus 1?",
    "Who are you?",
    "Tell me a story about a queen.",
];

/// A directory with an input.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new(input: impl AsRef<[u8]>) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("in"), input).unwrap();
        Self { dir }
    }

    /// A line in each form, so often.
    fn of_lines(count: usize) -> Self {
        Self::new(lines(count))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// What runs `batch` on the input, with `out` as output.
    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = command(&["batch", "in", "-o", "out", "--deterministic", "--threads", "1"]);
        command.args(args).current_dir(self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, and returns what it said.
    fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(output.stdout.is_empty());
        said(&output)
    }

    /// It must refuse, naming all of `words`, and change no file.
    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = contents(self.dir.path());
        let output = self.run(args);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        for word in words.iter().chain(&["hint: "]) {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
        assert!(contents(self.dir.path()) == before, "it changed a file: {text}");
    }

    /// The rows of a file.
    fn rows(&self, name: &str) -> Vec<Value> {
        rows(&self.text(name))
    }

    /// The rows of a file as they are, sorted by name.
    fn sorted(&self, name: &str) -> Vec<String> {
        sorted(&self.text(name))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn rows(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last row has no end: {text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn id(row: &Value) -> &str {
    row["custom_id"].as_str().unwrap()
}

/// Lines sorted by `custom_id`, each of which is there once.
pub fn sorted(text: &str) -> Vec<String> {
    let named =
        rows(text).iter().map(|row| id(row).to_owned()).zip(text.lines().map(str::to_owned)).collect::<Vec<_>>();
    let mut all = named.clone();
    all.sort();
    all.windows(2).for_each(|pair| assert_ne!(pair[0].0, pair[1].0, "two rows of one line"));
    all.into_iter().map(|(_, line)| line).collect()
}

/// What an answer says, whichever endpoint it is of.
fn text(row: &Value) -> &str {
    let choice = &row["response"]["body"]["choices"][0];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_else(|| panic!("{row}"))
}

/// OpenAI's lines, prompts that come alone, with and without a name, and now and then one that fails.
pub fn lines(count: usize) -> String {
    let line = |at: usize| {
        let (prompt, most) = (PROMPTS[at % PROMPTS.len()], 4 + at * 7 % 13);
        match at % 5 {
            0 => format!(
                r#"{{"custom_id":"chat-{at}","method":"POST","url":"/v1/chat/completions","body":{{"messages":[{{"role":"user","content":"{prompt}"}}],"max_tokens":{most}}}}}"#
            ),
            1 => format!(
                r#"{{"custom_id":"text-{at}","method":"POST","url":"/v1/completions","body":{{"prompt":"{prompt}","max_tokens":{most},"temperature":1.0,"seed":{at}}}}}"#
            ),
            2 => format!(r#"{{"custom_id":"alone-{at}","prompt":"{prompt}","max_tokens":{most}}}"#),
            3 => format!(r#"{{"prompt":"{prompt} {at}","max_tokens":{most}}}"#),
            _ if at % 10 == 4 => format!(r#"{{"custom_id":"bad-{at}","prompt":"{prompt}","temperature":"warm"}}"#),
            _ => format!(r#"{{"custom_id":"worse-{at}","prompt":"{prompt}""#),
        }
    };
    (0..count).map(|at| line(at) + "\n").collect()
}
