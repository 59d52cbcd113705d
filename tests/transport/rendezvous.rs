//! How ranks meet: who is refused, by whom, and what each side is told.

use std::time::{Duration, Instant};

use tbshard::error::Result;
use tbshard::transport::tcp::{self, Cipher, Connected, Join};

use super::fabric::{KEY, LOCALHOST, RUN, connect, join_of, soon};

fn refusal(result: Result<Connected>) -> String {
    format!("{:?}", result.err().expect("it was not refused"))
}

/// Starts rank 0 of a run of two, lets `wrong` try, and then the right rank 1, which must succeed; returns what `wrong`
/// was told.
fn beside_a_good_run(wrong: impl FnOnce(std::net::SocketAddr) -> Result<Connected>) -> String {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let host = std::thread::spawn(move || tcp::host(listener, &join_of(2)));
    let told = refusal(wrong(address));
    tcp::join(1, address, &join_of(2)).unwrap();
    host.join().unwrap().unwrap();
    told
}

#[test]
fn control_connections_join_rank_0_to_all() {
    for data in [true, false] {
        let connected = connect(&Join { data, ..join_of(4) });
        let mut all: Vec<Connected> = connected.into_iter().map(Result::unwrap).collect();
        for (rank, end) in all.iter().enumerate() {
            assert_eq!(end.data.is_some(), data);
            assert_eq!(end.addresses.len(), 4);
            let has: Vec<bool> = end.control.iter().map(Option::is_some).collect();
            assert_eq!(has, if rank == 0 { [false, true, true, true] } else { [true, false, false, false] });
        }
        for rank in 1..4 {
            all[0].control[rank].as_mut().unwrap().send(&[rank as u8; 3]).unwrap();
            let got = all[rank].control[0].as_mut().unwrap().recv(3, soon()).unwrap();
            assert_eq!(got, Some(vec![rank as u8; 3]));
        }
    }
}

#[test]
fn another_key_is_refused_and_neither_key_is_told() {
    let told = beside_a_good_run(|address| tcp::join(1, address, &Join { key: [8; 32], ..join_of(2) }));
    assert!(told.contains("rank 0 (127.0.0.1:") && told.contains("another key"), "{told}");
    assert!(!told.contains("0808") && !told.contains("8, 8"), "{told}");
}

#[test]
fn another_world_size_run_rank_or_cipher_is_refused() {
    let told = beside_a_good_run(|address| tcp::join(1, address, &join_of(3)));
    assert!(told.contains("this run has 2 ranks, not 3"), "{told}");
    let told = beside_a_good_run(|address| tcp::join(1, address, &Join { run: 5, ..join_of(2) }));
    assert!(told.contains("not 0000000000000005"), "{told}");
    let told = beside_a_good_run(|address| tcp::join(1, address, &Join { cipher: Cipher::Plain, ..join_of(2) }));
    assert!(told.contains("otherwise"), "{told}");
    let told = beside_a_good_run(|address| tcp::join(1, address, &Join { data: false, ..join_of(2) }));
    assert!(told.contains("otherwise"), "{told}");
    for rank in [0, 2, usize::MAX] {
        let told = beside_a_good_run(|address| tcp::join(rank, address, &join_of(2)));
        assert!(told.contains("cannot join"), "{told}");
    }
}

#[test]
fn a_second_rank_of_the_same_number_is_refused() {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let host = std::thread::spawn(move || tcp::host(listener, &join_of(3)));
    let first = std::thread::spawn(move || tcp::join(1, address, &join_of(3)));
    // whichever of the two comes second is refused while the other waits for rank 2
    std::thread::sleep(Duration::from_millis(500));
    let told = refusal(tcp::join(1, address, &join_of(3)));
    assert!(told.contains("rank 1 has come already, from 127.0.0.1:"), "{told}");
    tcp::join(2, address, &join_of(3)).unwrap();
    first.join().unwrap().unwrap();
    host.join().unwrap().unwrap();
}

#[test]
fn a_rank_that_died_while_waiting_may_come_again() {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let host = std::thread::spawn(move || tcp::host(listener, &join_of(3)));
    let brief = Join { deadline: Instant::now() + Duration::from_millis(200), ..join_of(3) };
    let told = refusal(tcp::join(1, address, &brief));
    assert!(told.contains("before the deadline"), "{told}");
    let again = std::thread::spawn(move || tcp::join(1, address, &join_of(3)));
    tcp::join(2, address, &join_of(3)).unwrap();
    again.join().unwrap().unwrap();
    host.join().unwrap().unwrap();
}

#[test]
fn ranks_that_do_not_come_are_named_on_every_side() {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    let brief = Join::new(4, RUN, KEY, Instant::now() + Duration::from_millis(500));
    let host = std::thread::spawn(move || tcp::host(listener, &brief));
    let told = refusal(tcp::join(2, address, &join_of(4)));
    assert!(told.contains("ranks 1, 3 did not come"), "{told}");
    let told = refusal(host.join().unwrap());
    assert!(told.contains("ranks 1, 3 did not come"), "{told}");
}

#[test]
fn a_run_of_one_is_no_exception_and_a_run_of_none_is_an_error() {
    let solo = connect(&join_of(1)).remove(0).unwrap();
    assert_eq!((solo.addresses.len(), solo.control.len(), solo.data.is_some()), (1, 1, true));
    for world_size in [0, 1025] {
        let told = refusal(tcp::host(tcp::listen(LOCALHOST).unwrap(), &join_of(world_size)));
        assert!(told.contains("ranks: 1 to 1024"), "{told}");
        assert!(refusal(tcp::join(1, (LOCALHOST, 1).into(), &join_of(world_size))).contains("ranks: 1 to 1024"));
    }
}

#[test]
fn an_address_of_another_machine_cannot_be_listened_at() {
    // reserved for documentation
    let told = format!("{:?}", tcp::listen("192.0.2.1".parse().unwrap()).err().unwrap());
    assert!(told.contains("listening at 192.0.2.1") && told.contains("hint"), "{told}");
}

#[test]
fn ranks_meet_over_version_six_too() {
    let Ok(listener) = tcp::listen("::1".parse().unwrap()) else { return };
    let address = listener.address();
    let one = std::thread::spawn(move || tcp::join(1, address, &join_of(3)));
    let two = std::thread::spawn(move || tcp::join(2, address, &join_of(3)));
    let zero = tcp::host(listener, &join_of(3)).unwrap();
    let one = one.join().unwrap().unwrap();
    two.join().unwrap().unwrap();
    assert!(zero.addresses[1].starts_with("[::1]:"), "{:?}", zero.addresses);
    assert!(one.addresses[2].starts_with("[::1]:"), "{:?}", one.addresses);
}

#[test]
fn a_rank_0_that_does_not_start_is_named() {
    // a port that was free a moment ago
    let address = tcp::listen(LOCALHOST).unwrap().address();
    let start = Instant::now();
    let brief = Join { deadline: start + Duration::from_millis(300), ..join_of(2) };
    let told = refusal(tcp::join(1, address, &brief));
    assert!(told.contains("cannot be reached") && told.contains("rank 0"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(1));
}
