//! Files that contradict each other are refused, and nothing in them is lost.

use std::fs::OpenOptions;

use rustix::fs::{FlockOperation, flock};

use super::{Desk, id, lines};

/// A run that was done with the first lines of what the input has now.
fn half(count: usize) -> Desk {
    let desk = Desk::of_lines(count / 2);
    desk.done(&[]);
    std::fs::write(desk.path("in"), lines(count)).unwrap();
    desk
}

#[test]
fn lines_that_are_new_are_added() {
    let whole = Desk::of_lines(30);
    whole.done(&[]);
    let desk = half(30);
    let before = desk.text("out");
    let told = desk.done(&["--json"]);
    assert!(told.contains("\"rows\":15,") && told.contains("\"rows_before\":15,"), "{told}");
    assert!(desk.text("out").starts_with(&before), "rows that are there stay as they are");
    assert_eq!(desk.sorted("out"), whole.sorted("out"));
    // and nothing is done twice
    let all = desk.text("out");
    desk.done(&[]);
    assert_eq!(desk.text("out"), all);
}

#[test]
fn a_row_that_was_torn_is_made_again() {
    let desk = Desk::of_lines(10);
    desk.done(&["--ordered"]);
    let whole = desk.text("out");
    let last = whole.trim_end().rfind('\n').unwrap() + 1;
    // wherever the write was cut, or the disk has zeros instead
    for cut in [1, 5, 17, 18, 40, whole.len() - last - 1] {
        for torn in [whole[..last + cut].to_owned(), whole[..last + cut.min(40)].to_owned() + &"\0".repeat(90)] {
            std::fs::write(desk.path("out"), torn).unwrap();
            desk.done(&["--ordered"]);
            assert_eq!(desk.text("out"), whole, "cut after {cut} bytes");
        }
    }
    std::fs::write(desk.path("out"), "\0".repeat(400)).unwrap();
    desk.refuses(&[], 1, &["line 1 of `out`", "no row"]);
}

#[test]
fn what_contradicts_the_rows_is_refused() {
    let desk = half(20);
    let input = lines(20);
    // another line of the same name
    std::fs::write(desk.path("in"), input.replace("\"alone-2\",\"prompt\":\"", "\"alone-2\",\"prompt\":\"Now: "))
        .unwrap();
    desk.refuses(&[], 1, &["line 3", "`alone-2`", "another custom_id"]);
    // two lines of the same name: those that have rows, or that have none
    std::fs::write(desk.path("in"), format!("{input}{}", input.lines().nth(2).unwrap())).unwrap();
    desk.refuses(&[], 1, &["lines 3 and 21", "`alone-2`"]);
    std::fs::write(desk.path("in"), input.replace("alone-17", "alone-12")).unwrap();
    desk.refuses(&[], 1, &["lines 13 and 18", "`alone-12`"]);
    // another model, other flags
    std::fs::write(desk.path("in"), &input).unwrap();
    desk.refuses(&["--temp", "0.5"], 1, &["`out`", "other sampling"]);
    desk.refuses(&["--max-tokens", "5"], 1, &["other sampling"]);
    desk.refuses(&["--model", &crate::cli::tiny("llama")], 1, &["another model"]);
    desk.refuses(&["--temp", "-1"], 2, &["--temp"]);
    desk.refuses(&["--max-tokens", "0"], 2, &["--max-tokens 0"]);
    for anew in ["--overwrite", "--retry-errors"] {
        desk.refuses(&[anew, "--model", "./missing"], 2, &["missing"]);
        desk.refuses(&[anew, "--errors", "missing/errors"], 1, &["missing/errors"]);
    }
    desk.refuses(&["--retry-errors", "--temp", "0.5"], 1, &["other sampling"]);
    std::fs::write(desk.path("in"), input.replace("alone-17", "alone-12")).unwrap();
    desk.refuses(&["--overwrite"], 1, &["lines 13 and 18"]);
    desk.refuses(&["--retry-errors"], 1, &["lines 13 and 18"]);
    std::fs::write(desk.path("in"), &input).unwrap();
    // and with what it was begun, it goes on
    desk.done(&[]);
    assert_eq!(desk.rows("out").len(), 20);
}

#[test]
fn a_failed_line_that_was_mended_is_run_when_asked_for() {
    let desk = Desk::new(
        "{\"custom_id\":\"a\",\"prompt\":\"Hello\",\"n\":\"two\"}\n{\"custom_id\":\"b\",\"prompt\":\"Hello\"}\n",
    );
    desk.done(&["-n", "3"]);
    std::fs::write(desk.path("in"), desk.text("in").replace("\"two\"", "1")).unwrap();
    desk.refuses(&["-n", "3"], 1, &["line 1", "`a`", "--retry-errors"]);
    desk.done(&["-n", "3", "--retry-errors"]);
    assert!(desk.rows("out").iter().all(|row| row["response"]["status_code"] == 200));
    assert_eq!(desk.sorted("out").len(), 2);
    assert!(!desk.path("out.tbshard-partial").exists());
}

#[test]
fn files_that_are_something_else_stay_as_they_are() {
    let desk = Desk::of_lines(4);
    for foreign in ["dear diary\n", "{\"id\":\"batch_req_1\"}\n", "no end", "\n", "{\"custom_id\":\"a\"}\n"] {
        std::fs::write(desk.path("out"), foreign).unwrap();
        desk.refuses(&[], 1, &["line 1 of `out`", "--overwrite"]);
        desk.refuses(&["--retry-errors"], 1, &["line 1 of `out`"]);
    }
    desk.done(&["--overwrite"]);
    assert_eq!(desk.rows("out").len(), 4);
    // rows of ours, and then something else
    let rows = desk.text("out");
    std::fs::write(desk.path("out"), format!("{rows}more\n{rows}")).unwrap();
    desk.refuses(&[], 1, &["line 5 of `out`"]);
    std::fs::write(desk.path("out"), format!("{rows}{rows}")).unwrap();
    desk.refuses(&[], 1, &["`out`", "second row"]);
    std::fs::write(desk.path("out"), &rows).unwrap();

    desk.refuses(&["--errors", "out"], 2, &["the same file"]);
    desk.refuses(&["--errors", "in"], 2, &["the same file"]);
    std::fs::copy(desk.path("out"), desk.path("errors")).unwrap();
    desk.refuses(&["--errors", "errors"], 1, &["`errors`", "second row"]);
    std::fs::remove_file(desk.path("in")).unwrap();
    desk.refuses(&["--overwrite"], 1, &["`in`", "No such file"]);
}

#[test]
fn rows_of_lines_that_are_gone_stay() {
    let desk = Desk::of_lines(10);
    desk.done(&[]);
    let all = desk.text("out");
    std::fs::write(desk.path("in"), lines(7)).unwrap();
    let told = desk.done(&[]);
    assert!(told.contains("3 rows answer no line of `in`: they stay"), "{told}");
    assert_eq!(desk.text("out"), all);
}

#[test]
fn two_processes_do_not_write_to_one_file() {
    let desk = Desk::of_lines(4);
    desk.done(&[]);
    let file = OpenOptions::new().append(true).open(desk.path("out")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    desk.refuses(&[], 1, &["another process is writing to `out`"]);
    desk.refuses(&["--overwrite"], 1, &["another process is writing to `out`"]);
    drop(file);
    desk.done(&[]);
    assert_eq!(desk.rows("out").iter().map(id).count(), 4);
}
