//! What a relay between two ranks can see and do: nothing, and nothing unnoticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tbshard::transport::tcp::{self, Cipher, Join, Tcp};
use tbshard::transport::{Buffer, Endpoint, Kind};

use super::fabric::{KEY, LOCALHOST, Meddle, join_of, message, next, pattern, relay, soon};

/// The data connection, after the control connection.
const DATA: usize = 1;

/// Two ranks whose connections go through a relay; and what it saw.
fn relayed(join: &Join, meddle: Arc<Meddle>) -> (Tcp, Tcp, Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let (through, tap) = relay(listener.address(), meddle);
    let other = join.clone();
    let one = std::thread::spawn(move || tcp::join(1, through, &other));
    let zero = tcp::host(listener, join).unwrap();
    let one = one.join().unwrap().unwrap();
    (zero.data.unwrap(), one.data.unwrap(), tap)
}

/// Sends a message from rank 1 to rank 0 through a relay that does `fault` to it once `armed`.
fn faulty(cipher: Cipher, fault: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> String {
    let armed = Arc::new(AtomicBool::new(false));
    let arm = Arc::clone(&armed);
    let meddle = move |number: usize, bytes: &mut Vec<u8>| {
        if number == DATA && arm.load(Ordering::SeqCst) {
            fault(bytes);
        }
    };
    let (mut zero, mut one, _) = relayed(&Join { cipher, ..join_of(2) }, Arc::new(meddle));
    // a whole message first, so that the sequence is not at its start
    one.post_send(0, message(b"good")).unwrap();
    zero.post_recv(1, Buffer::with_capacity(4)).unwrap();
    assert_eq!(next(&mut zero).buffer.bytes(), b"good");
    armed.store(true, Ordering::SeqCst);
    one.post_send(0, message(&[9; 3000])).unwrap();
    next(&mut one);
    zero.post_recv(1, Buffer::with_capacity(3000)).unwrap();
    zero.post_recv(1, Buffer::with_capacity(3000)).unwrap();
    // the message itself may come whole, but then what follows it is the error
    let error = match zero.poll(soon()) {
        Ok(Some(_)) => zero.poll(Instant::now() + Duration::from_secs(3)).unwrap_err(),
        other => other.unwrap_err(),
    };
    error.to_string()
}

#[test]
fn a_flipped_byte_is_an_error() {
    for at in [0, 2, 3, 22, 1000, 3037] {
        let error = faulty(Cipher::Noise, move |bytes| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= if at == 0 { 8 } else { 1 };
            }
        });
        assert!(error.contains("rank 1 (127.0.0.1:") && error.contains("tampered"), "byte {at}: {error}");
    }
}

#[test]
fn a_truncated_message_is_an_error() {
    let cut = Arc::new(AtomicUsize::new(0));
    for cipher in [Cipher::Noise, Cipher::Plain] {
        cut.store(1000, Ordering::SeqCst);
        let rest = Arc::clone(&cut);
        let (mut zero, mut one) = {
            let meddle = move |number: usize, bytes: &mut Vec<u8>| {
                if number == DATA && bytes.len() > 2000 {
                    bytes.truncate(rest.load(Ordering::SeqCst));
                }
            };
            let (zero, one, _) = relayed(&Join { cipher, ..join_of(2) }, Arc::new(meddle));
            (zero, one)
        };
        one.post_send(0, message(&[9; 3000])).unwrap();
        next(&mut one);
        drop(one);
        zero.post_recv(1, Buffer::with_capacity(3000)).unwrap();
        let error = zero.poll(soon()).unwrap_err().to_string();
        assert!(error.contains("rank 1") && error.contains("in the middle of a message"), "{error}");
    }
}

#[test]
fn a_replayed_record_is_an_error() {
    let error = faulty(Cipher::Noise, |bytes| bytes.extend_from_within(..));
    assert!(error.contains("tampered with, repeated or lost"), "{error}");
    // without encryption the frame's sequence number finds it
    let error = faulty(Cipher::Plain, |bytes| bytes.extend_from_within(..));
    assert!(error.contains("sent message 1 where message 2 was due"), "{error}");
}

/// Damages `bytes` in one of five ways at a place, both chosen by `seed`.
fn damage(bytes: &mut Vec<u8>, seed: usize) {
    let at = seed.wrapping_mul(2_654_435_761) % bytes.len();
    match seed % 5 {
        0 => bytes[at] ^= 1 << (seed / 5 % 8),
        1 => bytes.truncate(at),
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, 0x55),
        _ => bytes.extend_from_within(at..),
    }
}

#[test]
fn whatever_happens_on_the_way_no_wrong_message_arrives() {
    for seed in 0..60 {
        for cipher in [Cipher::Noise, Cipher::Plain] {
            let meddle = move |number: usize, bytes: &mut Vec<u8>| {
                // the handshake and the hello are shorter
                if number == DATA && bytes.len() > 1000 {
                    damage(bytes, seed);
                }
            };
            let (mut zero, mut one, _) = relayed(&Join { cipher, ..join_of(2) }, Arc::new(meddle));
            let sent = pattern(1, 0, seed, 3000);
            for _ in 0..2 {
                zero.post_recv(1, Buffer::with_capacity(3000)).unwrap();
                one.post_send(0, message(&sent)).unwrap();
                next(&mut one);
            }
            drop(one);
            let mut whole = 0;
            let error = loop {
                match zero.poll(soon()) {
                    Ok(done) if cipher == Cipher::Noise => assert!(done.unwrap().buffer.bytes() == sent, "seed {seed}"),
                    // without encryption only the framing is checked
                    Ok(done) => assert_eq!(done.unwrap().kind, Kind::Received),
                    Err(error) => break error.to_string(),
                }
                whole += 1;
                if whole == 2 {
                    // nothing else is wanted, so nothing else can be wrong
                    zero.post_recv(1, Buffer::with_capacity(3000)).unwrap();
                }
            };
            assert!(error.contains("rank 1 (127.0.0.1:"), "{error}");
            // damage behind both messages is found when more is wanted
            let seen = whole < 2 || error.contains("tampered") || error.contains("in the middle");
            assert!(cipher == Cipher::Plain || seen, "seed {seed}: damage went unseen: {error}");
        }
    }
}

#[test]
fn damage_to_a_plain_header_is_named() {
    // a record is its length (2), then the frame: run (8), sequence (8), length (4)
    let run = faulty(Cipher::Plain, |bytes| bytes[2] ^= 1);
    assert!(run.contains("of run"), "{run}");
    let sequence = faulty(Cipher::Plain, |bytes| bytes[10] = 7);
    assert!(sequence.contains("sent message 7 where message 1 was due"), "{sequence}");
    let length = faulty(Cipher::Plain, |bytes| bytes[21] = 0xff);
    assert!(length.contains("over the limit"), "{length}");
}

#[test]
fn a_tap_sees_no_byte_of_a_payload() {
    let secret = b"the sampled token is forty-two and nobody else may know";
    for cipher in [Cipher::Noise, Cipher::Plain] {
        let (mut zero, mut one, tap) = relayed(&Join { cipher, ..join_of(2) }, Arc::new(|_, _| {}));
        one.post_recv(0, Buffer::with_capacity(200_000)).unwrap();
        zero.post_recv(1, Buffer::with_capacity(200_000)).unwrap();
        let long: Vec<u8> = secret.iter().copied().cycle().take(200_000).collect();
        one.post_send(0, message(&long)).unwrap();
        zero.post_send(1, message(secret)).unwrap();
        (0..2).for_each(|_| drop(next(&mut one)));
        (0..2).for_each(|_| drop(next(&mut zero)));
        let seen = tap.lock().unwrap();
        let finds = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
        // the plain connection shows that the tap works; its handshake and hello are encrypted all the same
        assert_eq!(finds(&secret[..16]), cipher == Cipher::Plain);
        assert!(!finds(&KEY));
    }
}

#[test]
fn a_connection_that_goes_silent_leaves_the_deadline() {
    let silent = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&silent);
    let meddle = move |_: usize, bytes: &mut Vec<u8>| {
        if gate.load(Ordering::SeqCst) {
            bytes.clear();
        }
    };
    let (mut zero, mut one, _) = relayed(&join_of(2), Arc::new(meddle));
    silent.store(true, Ordering::SeqCst);
    one.post_send(0, message(&[1; 100])).unwrap();
    next(&mut one);
    zero.post_recv(1, Buffer::with_capacity(100)).unwrap();
    let start = Instant::now();
    assert!(zero.poll(start + Duration::from_millis(300)).unwrap().is_none());
    assert!(start.elapsed() < Duration::from_millis(500));
    assert_eq!(zero.peer(1).split(':').next(), Some("rank 1 (127.0.0.1"));
}
