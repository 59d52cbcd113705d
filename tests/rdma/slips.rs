//! Each rule of Apple's devices with a transport that breaks it: the calls of ours, changed on their way to the library.
//! Without a change none is broken, as every other test here sees at its end; with it the rule must be named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_verbs::Fabric as Fake;
use fake_verbs::rules::ALL;
use serde_json::{Value, json};
use tbshard::transport::{Buffer, Endpoint, Kind};

use crate::transport::fabric::{message, pattern};
use crate::transport::fake::{Held, Machines, connect_all};

/// Rules that no changed call breaks, and the tests in which a program does.
const OTHERWISE: &[(&str, &str)] = &[
    ("large-message", "messages_of_two_frames_are_too_much_for_an_older_system"),
    ("idle", "an_idle_queue_pair_is_kept_alive_or_noticed"),
    ("leak-at-exit", "an_exit_that_gives_nothing_back_is_noticed"),
];

/// Rules that are tried at once: each waits more than it works.
const AT_ONCE: usize = 6;

/// Connects two machines and sends messages both ways until that ends or has gone well; returns the rules that were broken
/// and the first error.
fn broken(fake: Fake, machines: Machines, frames: usize, bytes: usize) -> (Vec<String>, Option<String>) {
    let fake = Arc::new(fake);
    let ends = connect_all(&fake, machines, 2, |rank| {
        let mut cabling = machines.cabling(&fake, rank, 2);
        cabling.frames = Some(frames);
        cabling
    });
    let mut error = ends.iter().find_map(|end| end.as_ref().err().map(ToString::to_string));
    if let Ok(mut ends) = ends.into_iter().collect::<Result<Vec<Held>, _>>() {
        error = exchange(&fake, &mut ends, bytes);
        ends.drain(..).for_each(|end| {
            fake.clear_faults();
            end.let_go();
        });
    }
    let rules = fake.broken();
    (rules, error)
}

/// Messages both ways; everything that comes is right, or nothing comes.
fn exchange(fake: &Fake, ends: &mut [Held], bytes: usize) -> Option<String> {
    let first = fake.index_of("mac0.rdma_en2").map(|_| "mac0.rdma_en2");
    for index in 0..(2 << 20) / bytes {
        // now and then a machine takes nothing for a moment, so that what is sent to it waits
        first.filter(|_| index == 3).inspect(|first| fake.set_still(first, true));
        for end in &mut *ends {
            let (me, peer) = (end.rank(), 1 - end.rank());
            end.post_send(peer, message(&pattern(me, peer, index, bytes))).unwrap();
            end.post_recv(peer, Buffer::with_capacity(bytes)).unwrap();
        }
        first.filter(|_| index == 3).inspect(|first| fake.set_still(first, false));
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

/// Breaks a rule by a slip, and returns what was noticed if that was not noticed.
fn unnoticed(rule: &str) -> Option<String> {
    let (machines, fake) = match rule {
        // queues are so deep as asked, so that more is too much
        "overpost-recv" | "overpost-send" => (Machines::Macs, Fake::apple(2).with("granted", 128)),
        "queue-full" => (Machines::Reliable, Fake::rxe(2).with("granted", 16)),
        "no-ipv4" => (Machines::Macs, Fake::apple(2).with_device("mac0.rdma_en2", "ipv4", Value::Null)),
        _ => (Machines::Macs, Fake::apple(2).with("granted", 4095)),
    };
    let bytes = if rule.starts_with("overpost") { 1 << 20 } else { 20_480 };
    let (rules, error) = broken(fake.with("slips", json!([rule])), machines, 2, bytes);
    println!("{rule}: {rules:?}, {error:?}");
    (!rules.iter().any(|found| found == rule)).then(|| format!("{rule}: {rules:?}, {error:?}"))
}

#[test]
fn every_rule_notices_a_transport_that_breaks_it() {
    let tests = [include_str!("slips.rs"), include_str!("exits.rs")].concat();
    for (rule, test) in OTHERWISE {
        assert!(ALL.iter().any(|known| known.name == *rule), "there is no rule {rule}");
        assert!(tests.contains(&format!("#[test]\nfn {test}()")), "there is no test {test}");
    }
    let by_slip = ALL.iter().map(|rule| rule.name).filter(|rule| OTHERWISE.iter().all(|(other, _)| other != rule));
    let mut silent = Vec::new();
    for rules in by_slip.collect::<Vec<_>>().chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = rules.iter().map(|rule| scope.spawn(|| unnoticed(rule))).collect();
            silent.extend(threads.into_iter().filter_map(|thread| thread.join().unwrap()));
        });
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn messages_of_two_frames_are_too_much_for_an_older_system() {
    let fake = || Fake::apple(2).with("os", "26.2");
    let (rules, error) = broken(fake(), Machines::Macs, 2, 20_480);
    assert!(rules.contains(&"large-message".to_owned()) && error.is_some(), "{rules:?}, {error:?}");
    assert_eq!(broken(fake(), Machines::Macs, 1, 20_480), (Vec::new(), None));
}

#[test]
fn an_idle_queue_pair_is_kept_alive_or_noticed() {
    // real ones go bad after 20 minutes of silence, this one after less than the transport's half minute
    let (rules, _) = {
        let fake = Arc::new(Fake::apple(2).with("idle_ms", 300));
        let ends = connect_all(&fake, Machines::Macs, 2, |rank| Machines::Macs.cabling(&fake, rank, 2));
        let mut ends: Vec<Held> = ends.into_iter().map(|end| end.unwrap()).collect();
        std::thread::sleep(Duration::from_millis(600));
        let error = exchange(&fake, &mut ends, 20_480);
        ends.drain(..).for_each(Held::let_go);
        (fake.broken(), error)
    };
    assert_eq!(rules, ["idle"]);
}
