//! A relay between one rank and rank 0 that counts records and does harm to one of them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::transport::fabric::LOCALHOST;

/// What happens to a record on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// From here on nothing arrives, in this direction.
    HalfOpen,
    /// From here on nothing arrives, either way, on no connection: the machine is gone without a word.
    Vanish,
    Cut,
    Truncate,
    Flip,
    /// The length in front is another.
    Length,
    Replay,
    Drop,
    Insert,
    /// Every record is late, but none is lost.
    Late,
}

pub const DAMAGES: [Damage; 10] = [
    Damage::HalfOpen,
    Damage::Vanish,
    Damage::Cut,
    Damage::Truncate,
    Damage::Flip,
    Damage::Length,
    Damage::Replay,
    Damage::Drop,
    Damage::Insert,
    Damage::Late,
];

/// The connection of a rank that carries control.
pub const CONTROL: usize = 0;
/// The connection that carries data.
pub const DATA: usize = 1;

/// Harm to the record `at` (from 1) that goes towards rank 0 (`up`) or from it.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    pub connection: usize,
    pub up: bool,
    pub at: usize,
    pub damage: Damage,
}

#[derive(Default)]
struct State {
    gone: AtomicBool,
    struck: Mutex<Option<Instant>>,
}

/// What a relay has done so far.
#[derive(Clone, Default)]
pub struct Relay(Arc<State>);

impl Relay {
    /// Listens on a port of its own and forwards every connection to `to`.
    pub fn start(to: SocketAddr, strike: Option<Strike>) -> (SocketAddr, Self) {
        let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self::default();
        let relay = this.clone();
        std::thread::spawn(move || {
            // a rank has two connections to rank 0; then the port is closed
            for number in [CONTROL, DATA] {
                let Ok((client, _)) = listener.accept() else { return };
                let Ok(server) = TcpStream::connect(to) else { return };
                [&client, &server].into_iter().for_each(|stream| stream.set_nodelay(true).unwrap());
                for up in [true, false] {
                    let (from, into) = if up { (&client, &server) } else { (&server, &client) };
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let strike = strike.filter(|strike| (strike.connection, strike.up) == (number, up));
                    let relay = relay.clone();
                    std::thread::spawn(move || relay.pump(from, into, strike));
                }
            }
        });
        (address, this)
    }

    /// When the harm was done, if it was.
    pub fn struck(&self) -> Option<Instant> {
        *self.0.struck.lock().unwrap()
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, strike: Option<Strike>) {
        let mut count = 0;
        let (mut mute, mut late) = (false, false);
        while let Some(mut record) = read(&mut from) {
            count += 1;
            if let Some(Strike { at, damage, .. }) = strike.filter(|strike| strike.at == count) {
                self.0.struck.lock().unwrap().get_or_insert_with(Instant::now);
                match damage {
                    Damage::HalfOpen => mute = true,
                    Damage::Vanish => self.0.gone.store(true, Ordering::SeqCst),
                    Damage::Cut => break,
                    Damage::Truncate => {
                        let _ = to.write_all(&record[..record.len() / 2]);
                        break;
                    }
                    Damage::Flip => {
                        let place = 2 + at % (record.len() - 2);
                        record[place] ^= 1 << (at % 8);
                    }
                    Damage::Length => record[at % 2] ^= 1 << (at % 6),
                    Damage::Replay => record.extend_from_within(..),
                    Damage::Drop => continue,
                    Damage::Insert => record.extend([0, 20].into_iter().chain([at as u8; 20])),
                    Damage::Late => late = true,
                }
            }
            if late {
                std::thread::sleep(Duration::from_millis(30));
            }
            // what is not forwarded is still taken, as by a network that loses it
            if !mute && !self.0.gone.load(Ordering::SeqCst) && to.write_all(&record).is_err() {
                break;
            }
        }
        if !mute && !self.0.gone.load(Ordering::SeqCst) {
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
        }
    }
}

/// The next record, with its length in front.
fn read(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut prefix = [0; 2];
    from.read_exact(&mut prefix).ok()?;
    let mut record = vec![0; 2 + usize::from(u16::from_be_bytes(prefix))];
    record[..2].copy_from_slice(&prefix);
    from.read_exact(&mut record[2..]).ok()?;
    Some(record)
}
