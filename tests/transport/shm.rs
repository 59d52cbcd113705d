//! Shared memory between real processes, and what a segment refuses.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tbshard::transport::shm::Segment;
use tbshard::transport::{Buffer, Endpoint, Kind, inherit, inherited};

use super::fabric::{RUN, message, next, pattern, soon};

/// Which descriptor a child of the test below has inherited: its own test binary runs it as this very test.
const CHILD: &str = "TBSHARD_TEST_SHM_CHILD";

#[test]
#[allow(clippy::disallowed_methods, reason = "how the test tells its child process what it is")]
fn two_processes_exchange_messages_longer_than_the_ring() {
    if let Ok(fd) = std::env::var(CHILD) {
        return child(Segment::from_fd(inherited(fd.parse().unwrap()).unwrap(), 2, RUN).unwrap());
    }
    let segment = Segment::create(2, 64 << 10, RUN).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let fd = inherit(segment.fd(), &mut command);
    let name = "transport::shm::two_processes_exchange_messages_longer_than_the_ring";
    command.args([name, "--exact", "--nocapture"]).env(CHILD, fd.to_string()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut end = segment.endpoint(0).unwrap();
    drop(segment);
    for (index, len) in [0, 1, 4096, 1 << 20, 5, 3 << 20].into_iter().enumerate() {
        end.post_recv(1, Buffer::with_capacity(len)).unwrap();
        end.post_send(1, message(&pattern(0, 1, index, len))).unwrap();
        let done = [next(&mut end), next(&mut end)];
        let echo = done.iter().find(|done| done.kind == Kind::Received).unwrap();
        assert!(echo.buffer.bytes() == pattern(0, 1, index, len), "message {index}");
    }
    end.post_recv(1, Buffer::with_capacity(1)).unwrap();
    let error = end.poll(soon()).unwrap_err().to_string();
    assert!(error.contains("rank 1 (shared memory) has closed"), "{error}");
    assert!(child.wait().unwrap().success());
}

/// Sends back six messages.
fn child(segment: Segment) {
    let mut end = segment.endpoint(1).unwrap();
    for _ in 0..6 {
        end.post_recv(0, Buffer::with_capacity(4 << 20)).unwrap();
        let got = next(&mut end);
        // both sides sleep at times
        std::thread::sleep(Duration::from_millis(5));
        end.post_send(0, got.buffer).unwrap();
        next(&mut end);
    }
}

#[test]
fn a_segment_refuses_what_does_not_fit() {
    let segment = Segment::create(3, 1 << 16, RUN).unwrap();
    let fd = || segment.fd().try_clone_to_owned().unwrap();
    let error = |world_size, run| Segment::from_fd(fd(), world_size, run).err().unwrap().to_string();
    assert!(error(2, RUN).contains("is for 3 ranks"), "{}", error(2, RUN));
    assert!(error(3, 5).contains("is of run"), "{}", error(3, 5));
    assert!(error(64, RUN).contains("too few"), "{}", error(64, RUN));
    assert!(Segment::from_fd(fd(), 0, RUN).is_err());
    assert!(Segment::from_fd(fd(), 3, RUN).is_ok());
    let file = tempfile();
    let refused = Segment::from_fd(file.try_clone().unwrap().into(), 2, RUN).err().unwrap().to_string();
    assert!(refused.contains("0 bytes"), "{refused}");
    file.set_len(64 << 20).unwrap();
    let refused = Segment::from_fd(file.into(), 2, RUN).err().unwrap().to_string();
    assert!(refused.contains("not a segment"), "{refused}");
    assert!(Segment::create(0, 1, RUN).is_err());
    assert!(Segment::create(65, 1, RUN).is_err());
    assert!(Segment::create(2, usize::MAX, RUN).is_err());
    assert!(segment.endpoint(3).is_err());
    let _end = segment.endpoint(0).unwrap();
    assert!(segment.endpoint(0).err().unwrap().to_string().contains("taken"));
}

/// An empty file without a name.
fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("tbshard-test-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn a_sleeping_rank_is_woken_at_once() {
    let segment = Segment::create(2, 1 << 16, RUN).unwrap();
    let (mut a, mut b) = (segment.endpoint(0).unwrap(), segment.endpoint(1).unwrap());
    let start = Instant::now();
    let mut delays: Vec<u128> = std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..11 {
                // the other is asleep by then
                std::thread::sleep(Duration::from_millis(10));
                b.post_send(0, message(&start.elapsed().as_micros().to_le_bytes())).unwrap();
                next(&mut b);
                b.post_recv(0, Buffer::with_capacity(0)).unwrap();
                next(&mut b);
            }
        });
        let mut receive = || {
            a.post_recv(1, Buffer::with_capacity(16)).unwrap();
            let sent = u128::from_le_bytes(next(&mut a).buffer.bytes().try_into().unwrap());
            let delay = start.elapsed().as_micros() - sent;
            a.post_send(1, message(&[])).unwrap();
            next(&mut a);
            delay
        };
        (0..11).map(|_| receive()).collect()
    });
    delays.sort_unstable();
    // unwoken, it would sleep on for tens of milliseconds
    assert!(delays[5] < 10_000, "{delays:?} µs");
}

/// Where the words and rings of two ranks lie.
const CONTROL: std::ops::Range<u64> = 128..1664;

#[test]
fn a_position_that_cannot_be_is_an_error() {
    for at in [1152_u64, 1280] {
        let segment = Segment::create(2, 1 << 16, RUN).unwrap();
        let mut end = segment.endpoint(0).unwrap();
        let file = std::fs::File::from(segment.fd().try_clone_to_owned().unwrap());
        // a position of the ring from rank 1 to 0, and both positions of the ring back
        file.write_all_at(&0x4000_0000_u32.to_le_bytes(), at).unwrap();
        file.write_all_at(&0x4000_0000_u32.to_le_bytes(), at - 256).unwrap();
        end.post_recv(1, Buffer::with_capacity(8)).unwrap();
        end.post_send(1, message(&[0; 1 << 17])).unwrap();
        let error = end.poll(soon()).unwrap_err().to_string();
        assert!(error.contains("rank 1 (shared memory) wrote a position"), "{at}: {error}");
    }
}

#[test]
fn scribbling_over_the_segment_ends_in_an_error_and_not_worse() {
    for seed in 0..200_u64 {
        let segment = Segment::create(2, 1 << 14, RUN).unwrap();
        let (mut a, mut b) = (segment.endpoint(0).unwrap(), segment.endpoint(1).unwrap());
        let file = std::fs::File::from(segment.fd().try_clone_to_owned().unwrap());
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for turn in 0..50 {
            for (end, peer) in [(&mut a, 1), (&mut b, 0)] {
                let _ = end.post_recv(peer, Buffer::with_capacity(5000));
                let _ = end.post_send(peer, message(&pattern(0, 0, turn, 5000)));
                let _ = end.poll(Instant::now());
                let bytes: Vec<u8> = (0..4).map(|_| random(256) as u8).collect();
                let place = if turn % 2 == 0 { CONTROL.start + random(CONTROL.end - 128) } else { random(90_000) };
                file.write_all_at(&bytes, place.min(80_000)).unwrap();
            }
        }
    }
}
