//! What a rank learns when another ends.

use std::time::{Duration, Instant};

use tbshard::transport::{Buffer, Kind};

use super::fabric::{FABRICS, message, next, on_all, soon};

#[test]
fn a_dropped_endpoint_is_an_error_for_who_waits_for_it() {
    for fabric in FABRICS {
        on_all(fabric.mesh(3), move |mut end| {
            match end.rank() {
                0 => {
                    end.post_recv(2, Buffer::with_capacity(8)).unwrap();
                    let start = Instant::now();
                    let error = end.poll(soon()).unwrap_err().to_string();
                    assert!(error.contains("rank 2 (") && error.contains("closed"), "{fabric:?}: {error}");
                    assert!(start.elapsed() < Duration::from_secs(1));
                    // the other is still there
                    end.post_recv(1, Buffer::with_capacity(8)).unwrap();
                    assert!(end.poll(Instant::now()).is_err(), "the lost one is still wanted");
                }
                1 => {
                    // wants nothing of the lost one, and does not notice
                    end.post_recv(0, Buffer::with_capacity(8)).unwrap();
                    let _ = end.poll(Instant::now() + Duration::from_millis(100));
                }
                _ => std::thread::sleep(Duration::from_millis(30)),
            }
        });
    }
}

#[test]
fn what_was_sent_before_the_end_still_arrives() {
    for fabric in FABRICS {
        on_all(fabric.mesh(2), move |mut end| {
            if end.rank() == 1 {
                (0..20_u8).for_each(|index| end.post_send(0, message(&[index; 500])).unwrap());
                if fabric != super::fabric::Fabric::Loopback {
                    (0..20).for_each(|_| assert_eq!(next(&mut *end).kind, Kind::Sent));
                }
                // dropped with everything sent
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
            (0..21).for_each(|_| end.post_recv(1, Buffer::with_capacity(500)).unwrap());
            for index in 0..20_u8 {
                let done = next(&mut *end);
                assert_eq!(done.buffer.bytes(), [index; 500], "{fabric:?}");
            }
            let error = end.poll(soon()).unwrap_err().to_string();
            assert!(error.contains("rank 1"), "{error}");
        });
    }
}

#[test]
fn a_long_message_to_who_has_closed_is_an_error() {
    for fabric in FABRICS {
        on_all(fabric.mesh(2), move |mut end| {
            if end.rank() == 1 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
            end.post_send(1, message(&vec![1; 32 << 20])).unwrap();
            let error = end.poll(soon()).unwrap_err().to_string();
            assert!(error.contains("rank 1"), "{fabric:?}: {error}");
        });
    }
}

#[test]
fn half_a_long_message_is_an_error() {
    for fabric in FABRICS {
        on_all(fabric.mesh(2), move |mut end| {
            if end.rank() == 1 {
                end.post_send(0, message(&vec![1; 64 << 20])).unwrap();
                return;
            }
            end.post_recv(1, Buffer::with_capacity(64 << 20)).unwrap();
            match end.poll(soon()) {
                // loopback hands over the sender's own memory; tcp goes on sending for a second
                Ok(Some(done)) => assert!(done.buffer.bytes().iter().all(|byte| *byte == 1)),
                Ok(None) => panic!("{fabric:?} says nothing"),
                Err(error) => assert!(error.to_string().contains("rank 1"), "{error}"),
            }
        });
    }
}
