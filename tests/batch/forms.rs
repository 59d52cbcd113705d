//! What lines may be: OpenAI's, a body, a text; from a file or a pipe.

use std::io::Write;
use std::process::Stdio;

use super::{Desk, id, rows, sorted, text};
use crate::support::program::command;

#[test]
fn rows_are_openais() {
    let desk = Desk::new(
        r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"What does a cow say?"}],"temperature":0}}
{"custom_id":"b","method":"POST","url":"/v1/completions","body":{"prompt":"Once upon a time","max_tokens":5,"temperature":0}}
{"custom_id":"c","method":"POST","url":"/v1/chat/completions","body":{"messages":"nobody"}}
"#,
    );
    desk.done(&["--ordered"]);
    let rows = desk.rows("out");
    assert_eq!(rows.iter().map(id).collect::<Vec<_>>(), ["a", "b", "c"]);
    for row in &rows {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "custom_id", "response", "error", "tbshard"]);
        assert!(id(row).len() == 1 && row["id"].as_str().unwrap().starts_with("batch_req_"));
        assert!(row["error"].is_null() && !row["response"]["request_id"].as_str().unwrap().is_empty());
    }
    assert!(text(&rows[0]).contains("moo"), "{}", rows[0]);
    assert_eq!(rows[0]["response"]["body"]["object"], "chat.completion");
    assert_eq!(rows[0]["response"]["body"]["created"], 0);
    assert_eq!(rows[1]["response"]["body"]["usage"]["completion_tokens"], 5);
    assert_eq!(rows[1]["response"]["body"]["choices"][0]["finish_reason"], "length");
    assert_eq!((&rows[0]["response"]["status_code"], &rows[2]["response"]["status_code"]), (&200.into(), &400.into()));
    assert_eq!(rows[2]["response"]["body"]["error"]["type"], "invalid_request_error");
}

#[test]
fn a_prompt_alone_is_a_conversation_where_there_is_a_template() {
    let desk =
        Desk::new("{\"prompt\":\"What does a cow say?\",\"temperature\":0}\n{\"prompt\":[1,2,3],\"max_tokens\":2}\n");
    let told = desk.done(&["--ordered"]);
    assert!(told.contains("`in`: JSON lines"), "{told}");
    let rows = desk.rows("out");
    assert_eq!(rows.iter().map(id).collect::<Vec<_>>(), ["line-1", "line-2"]);
    assert!(text(&rows[0]).contains("moo"));
    assert_eq!(rows[1]["response"]["body"]["usage"]["prompt_tokens"], 3);
    desk.done(&["--ordered", "--raw", "--overwrite", "-n", "3"]);
    assert!(!text(&desk.rows("out")[0]).contains("moo"), "--raw leaves the chat template out");
}

#[test]
fn texts_of_any_system_have_a_prompt_a_line() {
    let plain = Desk::new("What is 2 plus 3?\n\nWhat does a cow say?\nHello\n");
    let told = plain.done(&["-n", "8", "--temp", "0"]);
    assert!(told.contains("`in`: text, a prompt a line"), "{told}");
    assert_eq!(plain.rows("out").len(), 3);
    assert!(plain.rows("out").iter().any(|row| id(row) == "line-3" && text(row).contains("moo")));
    for same in [
        &b"What is 2 plus 3?\r\n\r\nWhat does a cow say?\r\nHello\r\n"[..],
        b"\xef\xbb\xbfWhat is 2 plus 3?\n \t \nWhat does a cow say?\nHello",
    ] {
        let desk = Desk::new(same);
        desk.done(&["-n", "8", "--temp", "0"]);
        assert_eq!(desk.sorted("out"), plain.sorted("out"));
    }
}

#[test]
fn what_is_no_utf8_and_what_is_no_json_are_rows() {
    let desk = Desk::new(b"Hello\ncaf\xe9\nHello again\n");
    desk.done(&["-n", "2"]);
    let rows = desk.rows("out");
    let bad = rows.iter().find(|row| id(row) == "line-2").unwrap();
    assert!(bad["response"].is_null() && bad["error"]["code"] == "invalid_line", "{bad}");
    assert!(bad["error"]["message"].as_str().unwrap().contains("line 2: it is not UTF-8 at byte 3"), "{bad}");
    assert_eq!(rows.len(), 3);
    // and a file of such lines needs --format to be read as JSON
    let desk = Desk::new("{oops\n");
    desk.done(&["-n", "2"]);
    assert!(desk.rows("out")[0]["error"]["message"].as_str().unwrap().contains("no JSON"));
    desk.done(&["-n", "2", "--overwrite", "--format", "text"]);
    assert_eq!(desk.rows("out")[0]["response"]["status_code"], 200);
}

#[test]
fn errors_have_a_file_of_their_own() {
    let desk = Desk::of_lines(20);
    let told = desk.done(&["--errors", "wrong", "--json"]);
    let (good, bad) = (desk.sorted("out"), desk.sorted("wrong"));
    assert_eq!((good.len(), bad.len()), (16, 4));
    assert!(desk.rows("out").iter().all(|row| row["response"]["status_code"] == 200));
    let summary: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["rows"], &summary["errors"]), (&20.into(), &4.into()), "{told}");
    assert!(summary["generated_tokens"].as_u64().unwrap() > 50, "{told}");
    // it takes part in going on
    let told = desk.done(&["--errors", "wrong", "--json=summary"]);
    assert!(!told.contains('{'), "{told}");
    assert_eq!(desk.rows("summary")[0]["rows_before"], 20);
    assert_eq!((desk.sorted("out"), desk.sorted("wrong")), (good.clone(), bad.clone()));
    // and what was wrong is tried again if asked for
    let told = desk.done(&["--errors", "wrong", "--retry-errors", "--json"]);
    assert!(told.contains("\"rows\":4,\"errors\":4"), "{told}");
    assert_eq!((desk.sorted("out"), desk.sorted("wrong")), (good, bad));
}

#[test]
fn from_a_pipe_to_a_pipe() {
    let desk = Desk::of_lines(15);
    desk.done(&[]);
    let mut pipe = command(&["batch", "-", "--deterministic", "--threads", "1", "--max-concurrency", "3"]);
    let mut child = pipe.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = lines_slowly(&desk.text("in"));
    let writer = std::thread::spawn(move || {
        for piece in input {
            stdin.write_all(piece.as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", super::said(&output));
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(sorted(&found), desk.sorted("out"));
    assert_eq!(rows(&found).len(), 15);
}

/// In pieces that are no lines.
fn lines_slowly(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    letters.chunks(37).map(|piece| piece.iter().collect()).collect()
}
