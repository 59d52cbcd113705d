//! The control stream by itself: halves on two threads, bounds, tampering.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tbshard::transport::tcp::Secure;

use super::fabric::{KEY, LOCALHOST, pattern, soon};

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Both ends of a stream, and a second handle on the socket of the first.
fn pair() -> (Secure, Secure, TcpStream) {
    let (near, far) = sockets();
    let raw = near.try_clone().unwrap();
    let far = std::thread::spawn(move || Secure::accept(far, &KEY, soon(), "the near end").unwrap());
    let near = Secure::connect(near, &KEY, soon(), "the far end").unwrap();
    (near, far.join().unwrap(), raw)
}

#[test]
fn messages_of_every_size_cross_both_ways_from_two_threads() {
    const SIZES: [usize; 8] = [0, 1, 65514, 65515, 65516, 65519, 131_072, 1_000_000];
    let (near, far, _) = pair();
    let ends = [near, far].into_iter().enumerate().map(|(me, end)| {
        let (mut reader, mut writer) = end.split();
        let send = std::thread::spawn(move || {
            SIZES.iter().enumerate().for_each(|(i, len)| writer.send(&pattern(me, 1 - me, i, *len)).unwrap());
            writer
        });
        let receive = std::thread::spawn(move || {
            for (index, len) in SIZES.into_iter().enumerate() {
                let got = reader.recv(1 << 20, soon()).unwrap().unwrap();
                assert!(got == pattern(1 - me, me, index, len), "message {index}");
            }
            reader
        });
        (send, receive)
    });
    for (send, receive) in ends.collect::<Vec<_>>() {
        // both halves are kept until both directions are done
        drop((send.join().unwrap(), receive.join().unwrap()));
    }
}

#[test]
fn a_deadline_passes_and_the_stream_goes_on() {
    let (mut near, mut far, _) = pair();
    let start = Instant::now();
    assert_eq!(near.recv(10, start + Duration::from_millis(100)).unwrap(), None);
    assert!(start.elapsed() >= Duration::from_millis(99) && start.elapsed() < Duration::from_millis(300));
    assert_eq!(near.recv(10, start).unwrap(), None, "a deadline in the past");
    far.send(b"later").unwrap();
    assert_eq!(near.recv(10, soon()).unwrap().as_deref(), Some(&b"later"[..]));
}

#[test]
fn a_message_over_the_bound_is_an_error_for_good() {
    let (mut near, mut far, _) = pair();
    near.send(&[0; 11]).unwrap();
    near.send(&[0; 1]).unwrap();
    let error = far.recv(10, soon()).unwrap_err().to_string();
    assert!(error.contains("the near end") && error.contains("11 bytes"), "{error}");
    assert!(far.recv(10, soon()).unwrap_err().to_string().contains("broken"));
}

#[test]
fn an_end_is_an_error_and_half_a_message_is_another() {
    let (near, mut far, _raw) = pair();
    let (_reader, mut writer) = near.split();
    writer.send(b"last").unwrap();
    writer.shutdown();
    assert!(writer.send(b"more").is_err());
    assert_eq!(far.recv(10, soon()).unwrap().as_deref(), Some(&b"last"[..]));
    let error = far.recv(10, soon()).unwrap_err().to_string();
    assert!(error.contains("the near end closed the connection"), "{error}");

    let (_near, mut far, mut raw) = pair();
    raw.write_all(&[0, 40, 1, 2, 3]).unwrap();
    assert_eq!(far.recv(10, Instant::now() + Duration::from_millis(50)).unwrap(), None, "the rest may come");
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(far.recv(10, soon()).unwrap_err().to_string().contains("in the middle of a message"));
}

#[test]
fn garbage_on_the_wire_is_an_error() {
    for garbage in
        [&[0, 0][..], &[0, 5, 1, 2, 3, 4, 5], &[0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        let (_near, mut far, mut raw) = pair();
        raw.write_all(garbage).unwrap();
        let error = far.recv(10, soon()).unwrap_err().to_string();
        assert!(error.contains("does not open"), "{error}");
    }
}

#[test]
fn the_handshake_refuses_and_ends() {
    let (near, far) = sockets();
    let far = std::thread::spawn(move || Secure::accept(far, &[1; 32], soon(), "the near end").err().unwrap());
    let told = Secure::connect(near, &KEY, soon(), "the far end").err().unwrap();
    assert!(format!("{told:?}").contains("another key"), "{told:?}");
    assert!(format!("{:?}", far.join().unwrap()).contains("another key"));

    let (near, _far) = sockets();
    let start = Instant::now();
    let late = Secure::connect(near, &KEY, start + Duration::from_millis(200), "the far end").err().unwrap();
    assert!(late.to_string().contains("did not answer"), "{late}");
    assert!(start.elapsed() < Duration::from_secs(1));
}
