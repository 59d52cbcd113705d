//! Every fabric by name, ranks as threads, and a relay that misbehaves on purpose.

use super::fake::{self, Machines};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tbshard::error::Result;
use tbshard::transport::relay::Relay;
use tbshard::transport::shm::Segment;
use tbshard::transport::tcp::{self, Cipher, Connected, Join};
use tbshard::transport::{Buffer, Completion, Endpoint, loopback};

use crate::support::ranks;

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const KEY: [u8; 32] = [7; 32];
pub const RUN: u64 = 0x1234_5678_9abc_def0;

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fabric {
    Loopback,
    Shm,
    Noise,
    Plain,
    /// Loopback with the links of a ring alone.
    Ring,
    /// RDMA over the fake library.
    Rdma(Machines),
}

pub const FABRICS: [Fabric; 9] = [
    Fabric::Loopback,
    Fabric::Shm,
    Fabric::Noise,
    Fabric::Plain,
    Fabric::Ring,
    Fabric::Rdma(Machines::Macs),
    Fabric::Rdma(Machines::MacRing),
    Fabric::Rdma(Machines::Reliable),
    Fabric::Rdma(Machines::Unreliable),
];

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub fn join_of(world_size: usize) -> Join {
    Join::new(world_size, RUN, KEY, soon())
}

impl Fabric {
    /// A mesh of `world_size` ranks, by rank.
    pub fn mesh(self, world_size: usize) -> Vec<Box<dyn Endpoint>> {
        match self {
            Self::Loopback => ranks::mesh(world_size),
            Self::Rdma(machines) => fake::mesh(machines, world_size),
            Self::Ring => {
                let cables = ring(world_size);
                let ends = loopback::mesh(world_size).into_iter();
                ends.map(|end| Box::new(Relay::new(Box::new(end), &cables).unwrap()) as _).collect()
            }
            Self::Shm => {
                let segment = Segment::create(world_size, 64 << 10, RUN).unwrap();
                (0..world_size).map(|rank| Box::new(segment.endpoint(rank).unwrap()) as _).collect()
            }
            Self::Noise | Self::Plain => {
                let cipher = if self == Self::Plain { Cipher::Plain } else { Cipher::Noise };
                let connected = connect(&Join { cipher, ..join_of(world_size) });
                connected.into_iter().map(|connected| Box::new(connected.unwrap().data.unwrap()) as _).collect()
            }
        }
    }
}

/// Whom every rank of a ring has a cable to.
pub fn ring(size: usize) -> Vec<Vec<usize>> {
    let both = |rank: usize| [(rank + size - 1) % size, (rank + 1) % size];
    let cables = (0..size).map(|rank| both(rank).into_iter().filter(|peer| *peer != rank).collect::<BTreeSet<_>>());
    cables.map(|cables| cables.into_iter().collect()).collect()
}

/// Brings all ranks of a run together on this machine, a thread a rank.
pub fn connect(join: &Join) -> Vec<Result<Connected>> {
    let listener = tcp::listen(LOCALHOST).unwrap();
    let address = listener.address();
    std::thread::scope(|scope| {
        let host = scope.spawn(move || tcp::host(listener, join));
        let others: Vec<_> =
            (1..join.world_size).map(|rank| scope.spawn(move || tcp::join(rank, address, join))).collect();
        std::iter::once(host).chain(others).map(|thread| thread.join().unwrap()).collect()
    })
}

/// Runs `body` on a thread for each end, and fails if they do not all return within the patience.
pub fn on_all<T: Send + 'static>(
    ends: Vec<Box<dyn Endpoint>>,
    body: impl Fn(Box<dyn Endpoint>) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let body = Arc::new(body);
    let (done, results) = mpsc::channel();
    let count = ends.len();
    for end in ends {
        let (body, done) = (Arc::clone(&body), done.clone());
        std::thread::spawn(move || {
            let rank = end.rank();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(end)));
            let _ = done.send((rank, result));
        });
    }
    let mut all: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for _ in 0..count {
        let (rank, result) = results.recv_timeout(PATIENCE + Duration::from_secs(5)).expect("a rank hangs");
        all[rank] = Some(result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
    all.into_iter().map(Option::unwrap).collect()
}

pub fn message(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::with_capacity(bytes.len());
    buffer.fill(bytes).unwrap();
    buffer
}

/// The bytes of a message that says who sent it to whom as which, `[len]`.
pub fn pattern(from: usize, to: usize, index: usize, len: usize) -> Vec<u8> {
    let mut state = ((from * 31 + to) * 1009 + index) as u64 + 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn next(end: &mut dyn Endpoint) -> Completion {
    end.poll(soon()).unwrap().expect("nothing completed in time")
}

/// What a relay does to the bytes that go towards the rendezvous on its n-th connection.
pub type Meddle = dyn Fn(usize, &mut Vec<u8>) + Send + Sync;

/// Listens on a port of its own and forwards each connection to `to`; what goes there is shown to `meddle` first, with
/// the connection's number. Returns the address and everything that went either way.
pub fn relay(to: SocketAddr, meddle: Arc<Meddle>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let tap = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&tap);
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else { return };
            let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let (there, back) = (Arc::clone(&shared), Arc::clone(&shared));
            let meddle = Arc::clone(&meddle);
            std::thread::spawn(move || pump(client, server, &there, |bytes| meddle(number, bytes)));
            std::thread::spawn(move || pump(back_from, back_to, &back, |_| {}));
        }
    });
    (address, tap)
}

fn pump(mut from: TcpStream, mut to: TcpStream, tap: &Mutex<Vec<u8>>, meddle: impl Fn(&mut Vec<u8>)) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut piece = bytes[..count].to_vec();
        tap.lock().unwrap().extend_from_slice(&piece);
        meddle(&mut piece);
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}
