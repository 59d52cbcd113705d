//! Control frames as bytes: what goes in comes out, and nothing else is believed.

use tbshard::comm::control::{Activity, Cause, CauseKind, Failure, Frame, MAX_FRAME, MAX_TEXT, Operation};

use super::plan::Rng;

fn names() -> Vec<String> {
    (0..4).map(|rank| format!("rank {rank} (10.0.0.{rank}:1)")).collect()
}

fn activity(operation: Operation, place: &str) -> Activity {
    Activity { operation, number: u64::MAX - 1, place: place.to_owned(), waiting_for: Some(3) }
}

pub fn every_frame() -> Vec<Frame> {
    let mut all = vec![Frame::Done, Frame::Ack, Frame::End, Frame::Heartbeat { progress: 7, activity: None }];
    for operation in Operation::ALL {
        let place = "layer 17 mlp";
        all.push(Frame::Heartbeat { progress: u64::MAX, activity: Some(activity(operation, place)) });
        let failure = Failure { peer: Some(2), activity: Some(activity(operation, "")), why: "Größe".to_owned() };
        all.push(Frame::Report(failure.clone()));
        all.push(Frame::Leave(Failure { peer: None, ..failure }));
    }
    for kind in CauseKind::ALL {
        let mut cause = Cause::new(1, kind, 3, &names());
        all.push(Frame::Decision(cause.clone()));
        (cause.detail, cause.activity) = ("x".repeat(MAX_TEXT), Some(activity(Operation::Send, &"y".repeat(MAX_TEXT))));
        all.push(Frame::Decision(cause));
    }
    all
}

#[test]
fn frames_survive_the_wire() {
    for frame in every_frame() {
        let bytes = frame.encode();
        assert!(bytes.len() <= MAX_FRAME);
        assert_eq!(Frame::decode(&bytes, &names()).unwrap(), frame);
    }
}

#[test]
fn a_frame_that_is_cut_or_longer_is_none() {
    for frame in every_frame() {
        let mut bytes = frame.encode();
        for end in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..end], &names()).is_err(), "{frame:?} cut to {end} bytes");
        }
        bytes.push(0);
        assert!(Frame::decode(&bytes, &names()).is_err());
    }
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let mut rng = Rng(1);
    let frames = every_frame();
    let mut valid = 0;
    for round in 0..200_000 {
        let mut bytes: Vec<u8> = match round % 2 {
            0 => (0..rng.below(60)).map(|_| rng.below(256) as u8).collect(),
            _ => frames[rng.below(frames.len() as u64) as usize].encode(),
        };
        for _ in 0..rng.below(4) {
            let length = bytes.len() as u64;
            if let Some(byte) = bytes.get_mut(rng.below(length.max(1)) as usize) {
                *byte = rng.below(256) as u8;
            }
        }
        if let Ok(frame) = Frame::decode(&bytes, &names()) {
            valid += 1;
            assert_eq!(frame.encode(), bytes, "two encodings of {frame:?}");
        }
    }
    assert!(valid > 10_000);
    assert!(Frame::decode(&vec![1; MAX_FRAME + 1], &names()).is_err());
}

#[test]
fn an_error_names_the_field() {
    let text = |length: u16, bytes: &[u8]| [&[2, 255, 255, 0][..], &length.to_le_bytes(), bytes].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "a control frame ends in its kind"),
        (vec![9], "no control frame is of kind 9"),
        (vec![4, 0], "a control frame is followed by 1 bytes"),
        (vec![1, 0, 0], "a control frame ends in its progress"),
        (vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 7], "a control frame has 7 where an activity is or is not"),
        (vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 77], "a control frame has the unknown operation 77"),
        (vec![2, 4, 0], "a control frame has rank 4 of 4 as its peer"),
        (vec![6, 255, 255], "a control frame has no rank as its rank at fault"),
        (vec![6, 0, 0, 7], "a control frame has the unknown kind of cause 7"),
        (text(513, &[65; 513]), "the error of a control frame has 513 bytes of at most 512"),
        (text(2, &[0xc3, 0x28]), "the error of a control frame is not UTF-8"),
        (text(4, b"\x1b[2J"), "the error of a control frame has a control character"),
    ];
    for (bytes, expected) in cases {
        let error = Frame::decode(&bytes, &names()).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.hint_text().is_some());
    }
}

#[test]
fn texts_are_cut_to_whole_characters_and_one_line() {
    let long = Failure { peer: None, activity: None, why: format!("a\n\u{1b}{}", "é".repeat(MAX_TEXT)) };
    let Frame::Report(read) = Frame::decode(&Frame::Report(long).encode(), &names()).unwrap() else { unreachable!() };
    assert!(read.why.starts_with("a  é") && read.why.len() <= MAX_TEXT && read.why.len() > MAX_TEXT - 2);
}
