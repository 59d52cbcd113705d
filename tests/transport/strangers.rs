//! Who knocks at the rendezvous and is no rank.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tbshard::transport::tcp::{self, Join};

use super::fabric::{LOCALHOST, join_of, soon};

/// Lets `knock` do its worst at the rendezvous of a run of three, which must come together all the same.
fn while_meeting<T>(knock: impl FnOnce(SocketAddr) -> T) -> T {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let host = std::thread::spawn(move || tcp::host(listener, &join_of(3)));
    let kept = knock(address);
    let one = std::thread::spawn(move || tcp::join(1, address, &join_of(3)));
    let start = Instant::now();
    tcp::join(2, address, &join_of(3)).unwrap();
    one.join().unwrap().unwrap();
    host.join().unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "the strangers cost {:?}", start.elapsed());
    assert!(TcpStream::connect(address).is_err(), "nobody listens during a run");
    kept
}

#[test]
fn a_stranger_that_says_nothing_is_dropped_after_three_seconds() {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let brief = Join { deadline: Instant::now() + Duration::from_secs(4), ..join_of(2) };
    let host = std::thread::spawn(move || tcp::host(listener, &brief));
    let mut silent = TcpStream::connect(address).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let start = Instant::now();
    assert_eq!(silent.read(&mut [0; 8]).unwrap_or(0), 0, "it is told nothing");
    let took = start.elapsed();
    assert!(took > Duration::from_millis(2900) && took < Duration::from_millis(3950), "{took:?}");
    let error = host.join().unwrap().err().unwrap().to_string();
    assert!(error.contains("rank 1 did not come") && error.contains("a connection was dropped"), "{error}");
}

#[test]
fn a_thousand_strangers_of_all_kinds_disturb_nobody() {
    // the silent ones are kept open, as many as descriptors allow
    let _held: Vec<TcpStream> = while_meeting(|address| {
        let texts: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n\r\n", &[0; 50], &[0xff; 4096], b"\x00\x30", b""];
        let knock = |index: usize| {
            let mut stream = TcpStream::connect(address).ok()?;
            let _ = stream.write_all(texts[index % texts.len()]);
            (index % 5 >= 3).then_some(stream)
        };
        (0..1000).filter_map(knock).collect()
    });
}

#[test]
fn a_plaintext_stranger_is_dropped_at_once_and_told_nothing() {
    while_meeting(|address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: rank0\r\nUser-Agent: somebody who does not know the key\r\n\r\n")
            .unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let start = Instant::now();
        assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0);
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn what_a_rank_said_before_opens_nothing_when_said_again() {
    // the first message of a true rank is recorded and replayed by a stranger, who cannot go on from it
    use super::fabric::relay;
    use std::sync::{Arc, Mutex};
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let heard = Arc::clone(&said);
    let meddle = move |number: usize, bytes: &mut Vec<u8>| {
        if number == 0 {
            heard.lock().unwrap().extend_from_slice(bytes);
        }
    };
    let (through, _) = relay(address, Arc::new(meddle));
    let host = std::thread::spawn(move || tcp::host(listener, &join_of(3)));
    let one = std::thread::spawn(move || tcp::join(1, through, &join_of(3)));
    std::thread::sleep(Duration::from_millis(300));
    let replay = said.lock().unwrap().clone();
    assert!(replay.len() > 50);
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(&replay).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.len() <= 50, "no more than the answer of the handshake: {}", answer.len());
    tcp::join(2, address, &join_of(3)).unwrap();
    one.join().unwrap().unwrap();
    host.join().unwrap().unwrap();
    assert!(Instant::now() < soon());
}
