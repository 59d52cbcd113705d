//! RDMA over the fake verbs library, ranks as threads: what the library saw of broken rules fails the test.

use std::sync::Arc;
use std::time::Duration;

use fake_verbs::Fabric as Fake;
use tbshard::error::Result;
use tbshard::transport::rdma::{Cabling, Place, Rdma, Service};
use tbshard::transport::relay::Relay;
use tbshard::transport::{Buffer, Endpoint, Polled};

use super::fabric::{RUN, connect, join_of, ring, soon};

/// Which machines there are, and how they are cabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// Macs, a cable between every two.
    Macs,
    /// Macs in a ring.
    MacRing,
    /// Linux machines behind a switch, reliable connections.
    Reliable,
    /// The same, unreliable connections.
    Unreliable,
}

/// An end that keeps the fabric, and looks what rules were broken once the last one ends.
pub struct Held {
    end: Option<Box<dyn Endpoint>>,
    fake: Arc<Fake>,
    judged: bool,
}

impl Machines {
    pub fn fake(self, count: usize) -> Fake {
        match self {
            Self::Macs => Fake::apple(count),
            Self::MacRing => Fake::ring(count),
            Self::Reliable | Self::Unreliable => Fake::rxe(count),
        }
    }

    pub fn host(self, rank: usize) -> String {
        match self {
            Self::Macs | Self::MacRing => format!("mac{rank}"),
            Self::Reliable | Self::Unreliable => format!("linux{rank}"),
        }
    }

    /// What rank `rank` is told of its devices.
    pub fn cabling(self, fake: &Fake, rank: usize, count: usize) -> Cabling {
        let near = ring(count);
        let cabled = |peer: &usize| *peer != rank && (self != Self::MacRing || near[rank].contains(peer));
        let device = |peer: usize| match self {
            Self::Macs | Self::MacRing => Place::of(fake.device(&self.host(rank), &self.host(peer))),
            Self::Reliable | Self::Unreliable => Place::of("rxe0"),
        };
        let devices = (0..count).map(|peer| if cabled(&peer) { vec![device(peer)] } else { Vec::new() });
        Cabling {
            devices: devices.collect(),
            service: (self == Self::Unreliable).then_some(Service::Uc),
            frames: matches!(self, Self::Macs | Self::MacRing).then_some(2),
            neighbours: (self == Self::MacRing && count > 3).then_some(near),
            library: Some(fake.library()),
        }
    }
}

/// The ends of all ranks, or the first error of each.
pub fn connect_all(
    fake: &Arc<Fake>,
    machines: Machines,
    count: usize,
    cabling: impl Fn(usize) -> Cabling + Sync,
) -> Vec<Result<Held>> {
    let connected = connect(&join_of(count));
    std::thread::scope(|scope| {
        let rank = |(rank, connected): (usize, Result<tbshard::transport::tcp::Connected>)| {
            let cabling = &cabling;
            scope.spawn(move || -> Result<Held> {
                fake.act_as(Some(&machines.host(rank)));
                let (tcp, cabling) = (connected?.data.unwrap(), cabling(rank));
                let rdma = Box::new(Rdma::connect(tcp, &cabling, RUN, soon())?.with_spin(Duration::ZERO));
                let end: Box<dyn Endpoint> = match &cabling.neighbours {
                    Some(neighbours) => Box::new(Relay::new(rdma, neighbours)?),
                    None => rdma,
                };
                Ok(Held { end: Some(end), fake: Arc::clone(fake), judged: false })
            })
        };
        let threads: Vec<_> = connected.into_iter().enumerate().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A mesh of ranks on machines of their own.
pub fn mesh(machines: Machines, count: usize) -> Vec<Box<dyn Endpoint>> {
    let fake = Arc::new(machines.fake(count));
    let all = connect_all(&fake, machines, count, |rank| machines.cabling(&fake, rank, count));
    all.into_iter().map(|held| Box::new(held.unwrap()) as _).collect()
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.end.take());
        if Arc::strong_count(&self.fake) == 1 && !self.judged && !std::thread::panicking() {
            let broken = self.fake.violations();
            assert!(broken.is_empty(), "{broken:#?}");
            let left = self.fake.objects();
            assert!(left.is_empty(), "{left:#?}");
        }
    }
}

impl Held {
    /// Ends without a look at the rules.
    pub fn let_go(mut self) {
        drop(self.end.take());
        self.judged = true;
    }

    fn end(&self) -> &dyn Endpoint {
        &**self.end.as_ref().unwrap()
    }
    fn end_mut(&mut self) -> &mut dyn Endpoint {
        &mut **self.end.as_mut().unwrap()
    }
}

impl Endpoint for Held {
    fn rank(&self) -> usize {
        self.end().rank()
    }
    fn world_size(&self) -> usize {
        self.end().world_size()
    }
    fn peer(&self, rank: usize) -> String {
        self.end().peer(rank)
    }
    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        self.end_mut().post_send(peer, message)
    }
    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        self.end_mut().post_recv(peer, into)
    }
    fn send_now(&mut self, peer: usize, message: &[u8]) -> Result<bool> {
        self.end_mut().send_now(peer, message)
    }
    fn poll(&mut self, deadline: std::time::Instant) -> Polled {
        self.end_mut().poll(deadline)
    }
}
