//! Each rule of Apple's devices with a transport that breaks it: the calls of ours, changed on their way to the library.
//! Without a change none is broken, as every other test here sees at its end; with it the rule must be named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_verbs::Fabric as Fake;
use tbshard::transport::{Buffer, Endpoint, Kind};

use crate::transport::fabric::{message, pattern};
use crate::transport::fake::{Held, Machines, connect_all};

/// Connects two Macs and sends messages both ways until that ends or has gone well; returns the rules that were broken and
/// the first error.
fn broken(fake: Fake, frames: usize, bytes: usize) -> (Vec<String>, Option<String>) {
    let fake = Arc::new(fake);
    let ends = connect_all(&fake, Machines::Macs, 2, |rank| {
        let mut cabling = Machines::Macs.cabling(&fake, rank, 2);
        cabling.frames = Some(frames);
        cabling
    });
    let mut error = ends.iter().find_map(|end| end.as_ref().err().map(ToString::to_string));
    if let Ok(mut ends) = ends.into_iter().collect::<Result<Vec<Held>, _>>() {
        error = exchange(&mut ends, bytes);
        ends.drain(..).for_each(|end| {
            fake.clear_faults();
            end.let_go();
        });
    }
    let rules = fake.broken();
    (rules, error)
}

/// Messages both ways; everything that comes is right, or nothing comes.
fn exchange(ends: &mut [Held], bytes: usize) -> Option<String> {
    for index in 0..(2 << 20) / bytes {
        for end in &mut *ends {
            let (me, peer) = (end.rank(), 1 - end.rank());
            end.post_send(peer, message(&pattern(me, peer, index, bytes))).unwrap();
            end.post_recv(peer, Buffer::with_capacity(bytes)).unwrap();
        }
        let (mut missing, start) = (4, Instant::now());
        while missing > 0 {
            for end in &mut *ends {
                let (me, peer) = (end.rank(), 1 - end.rank());
                match end.poll(Instant::now() + Duration::from_micros(100)) {
                    Ok(Some(done)) => {
                        missing -= 1;
                        let right = pattern(peer, me, index, bytes);
                        assert!(done.kind == Kind::Sent || done.buffer.bytes() == right, "message {index} is wrong");
                    }
                    Ok(None) => {}
                    Err(lost) => return Some(lost.to_string()),
                }
            }
            if start.elapsed() > Duration::from_secs(2) {
                return Some("nothing comes".to_owned());
            }
        }
    }
    None
}

#[test]
fn every_rule_notices_a_transport_that_breaks_it() {
    for rule in [
        "qp-type",
        "inline",
        "too-many-sges",
        "gid-index",
        "no-grh",
        "psn",
        "modify",
        "mr-alignment",
        "access",
        "opcode",
        "wr-tail",
        "lkey",
        "frames",
        "overpost-recv",
        "overpost-send",
        "qp-to-err",
        "order",
    ] {
        // queues so deep as asked, so that more is too much
        let granted = if rule.starts_with("overpost") { 128 } else { 4095 };
        let fake = Fake::apple(2).with("granted", granted).with("slips", serde_json::json!([rule]));
        let bytes = if rule.starts_with("overpost") { 1 << 20 } else { 20_480 };
        let (rules, error) = broken(fake, 2, bytes);
        println!("{rule}: {rules:?}, {error:?}");
        assert!(rules.iter().any(|found| found == rule), "{rule}: {rules:?}, {error:?}");
    }
}

#[test]
fn messages_of_two_frames_are_too_much_for_an_older_system() {
    let fake = || Fake::apple(2).with("os", "26.2");
    let (rules, error) = broken(fake(), 2, 20_480);
    assert!(rules.contains(&"large-message".to_owned()) && error.is_some(), "{rules:?}, {error:?}");
    assert_eq!(broken(fake(), 1, 20_480), (Vec::new(), None));
}

#[test]
fn an_idle_queue_pair_is_kept_alive_or_noticed() {
    // real ones go bad after 20 minutes of silence, this one after less than the transport's half minute
    let (rules, _) = {
        let fake = Arc::new(Fake::apple(2).with("idle_ms", 300));
        let ends = connect_all(&fake, Machines::Macs, 2, |rank| Machines::Macs.cabling(&fake, rank, 2));
        let mut ends: Vec<Held> = ends.into_iter().map(|end| end.unwrap()).collect();
        std::thread::sleep(Duration::from_millis(600));
        let error = exchange(&mut ends, 20_480);
        ends.drain(..).for_each(Held::let_go);
        (fake.broken(), error)
    };
    assert_eq!(rules, ["idle"]);
}
