//! `tbshard chat` over a pipe, and Ctrl-C.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tbshard::text::{Message, RenderOptions, Template, Tokenizer};

use super::tiny;
use crate::support::program::command;

fn spawn(args: &[&str]) -> Child {
    let mut command = command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn talk(args: &[&str], lines: &str) -> (Option<i32>, String, String) {
    let mut child = spawn(args);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_conversation_remembers_and_reset_forgets() {
    for name in ["qwen3", "qwen3_5"] {
        let model = tiny(name);
        let args = ["chat", "--model", &model, "-n", "8", "--temp", "0", "--no-thinking"];
        let (code, out, err) = talk(&args, "abc\n/stats\nabc\n/reset\nabc\n/nonsense\n/quit\nnever read\n");
        assert_eq!(code, Some(0), "{err}");
        let answers: Vec<&str> = out.lines().collect();
        let (once, fresh) = (talk(&args, "abc\n").1, talk(&args, "abc\nabc\n").1);
        assert!(out.starts_with(&fresh), "{answers:?}");
        assert_eq!(out.strip_prefix(fresh.as_str()).unwrap(), once, "/reset forgets");
        assert!(err.contains("tok/s") && err.contains("/nonsense"), "{err}");
    }
}

#[test]
fn a_question_that_does_not_fit_leaves_the_chat_alive() {
    let model = tiny("qwen3");
    let long = "x ".repeat(300);
    let (code, out, err) = talk(&["chat", "--model", &model, "-n", "4", "--ctx", "64"], &format!("{long}\nabc\n"));
    assert_eq!(code, Some(0));
    assert!(err.contains("error: ") && err.contains("/reset") && !out.trim().is_empty(), "{err}");
}

#[test]
fn a_second_turn_is_answered_as_if_all_of_it_were_new() {
    let dir = tiny("qwen3");
    let path = std::path::Path::new(&dir);
    let args = ["chat", "--model", &dir, "-n", "8", "--temp", "0", "-q"];
    let out = talk(&args, "abc\ndef\n").1;
    let first = talk(&args, "abc\n").1;
    let answer = first.trim_end_matches('\n').to_owned();
    let messages = [Message::user("abc"), Message::assistant(answer), Message::user("def")];
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = Template::open(path).unwrap().unwrap().render(&messages, &options).unwrap();
    let ids = Tokenizer::open(path).unwrap().encode(&prompt, false).unwrap();
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let fresh = command(&["generate", "--model", &dir, "--prompt-tokens", &ids, "-n", "8", "--temp", "0", "-q"]);
    let fresh = { fresh }.output().unwrap();
    assert_eq!(out, format!("{first}{}\n", String::from_utf8(fresh.stdout).unwrap()));
}

#[test]
fn an_answer_is_as_long_as_the_context_allows() {
    let model = tiny("qwen3");
    let lines = "abc\n".repeat(12);
    let (code, out, err) = talk(&["chat", "--model", &model, "-n", "60", "--ctx", "128", "--temp", "0"], &lines);
    assert_eq!(code, Some(0));
    assert!(!out.is_empty() && err.contains("/reset") && !err.contains("--max-tokens"), "{err}");
}

#[test]
fn a_chat_nobody_reads_ends_and_a_full_disk_is_an_error() {
    let model = tiny("qwen3");
    let mut child = spawn(&["chat", "--model", &model, "-n", "8"]);
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"abc\nabc\n").unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{err}");
    assert!(!err.contains("panicked"), "{err}");

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = command(&["chat", "--model", &model, "-n", "8"]);
    let mut child = command.stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"abc\nabc\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("No space left"), "{err}");
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_chat() {
    let model = tiny("llama");
    let args = ["chat", "--model", &model, "-n", "100000", "--ctx", "200000", "--temp", "1.5", "--top-k", "50"];
    let mut child = spawn(&args);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"abc\n").unwrap();
    let mut out = child.stdout.take().unwrap();
    // the answer has begun
    out.read_exact(&mut [0; 8]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    interrupt(&child);
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let drain = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    let mut line = String::new();
    while !line.contains("stopped") {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0, "the chat ended");
    }
    stdin.write_all(b"/stats\n").unwrap();
    line.clear();
    err.read_line(&mut line).unwrap();
    assert!(line.contains("tok/s"), "{line}");
    // while there is no answer Ctrl-C ends the program
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drain.join().unwrap().unwrap();
}

#[test]
fn ctrl_c_ends_generate_with_130_and_what_it_has_said() {
    let model = tiny("llama");
    let args = ["generate", "--model", &model, "--prompt", "abc", "-n", "100000", "--ctx", "200000", "--ignore-eos"];
    let mut child = spawn(&args);
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    let drain = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    interrupt(&child);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(err.contains("first token"), "{err}");
    drain.join().unwrap().unwrap();
}

#[test]
fn a_closed_pipe_ends_generate_quietly() {
    let model = tiny("llama");
    let args = ["generate", "--model", &model, "--prompt", "abc", "-n", "100000", "--ctx", "200000", "--ignore-eos"];
    let mut child = spawn(&args);
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    drop(out);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{err}");
    assert!(!err.contains("error") && !err.contains("panicked"), "{err}");
}
