//! What a rank is told when it is started, and how it joins the others with it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::facts;
use crate::comm::Communicator;
use crate::comm::control::{Deadlines, Monitor};
use crate::error::{Error, Result};
use crate::partition::Layout;
use crate::transport::rdma::{Cabling, Rdma};
use crate::transport::relay::Relay;
use crate::transport::{self, Endpoint, shm, tcp};

/// How often it is looked whether the ranks that are waited for still live.
const LOOK: Duration = Duration::from_millis(20);

/// What carries activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// Shared memory.
    Shm,
    /// Encrypted TCP.
    Tcp,
    /// TCP whose payload is in clear, to measure what encryption costs.
    Plain,
    /// RDMA, whose payload is in clear.
    Rdma,
}

/// Where the ranks of a run meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Meeting {
    /// At rank 0's address.
    At(SocketAddr),
    /// At the listening socket with this descriptor, which rank 0 has inherited.
    Listener(RawFd),
}

/// What a rank needs to join a run. It holds the key: it goes over an inherited socket, never into arguments, the
/// environment or a file.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ticket {
    /// The rank.
    pub rank: usize,
    /// Ranks of the run.
    pub world_size: usize,
    /// A number of this run alone.
    pub run: u64,
    /// The key of this run alone.
    pub key: [u8; 32],
    /// Where the ranks meet.
    pub meeting: Meeting,
    /// How long they may take to meet.
    pub patience: Duration,
    /// What carries activations.
    pub fabric: Fabric,
    /// The descriptor of the shared memory, if that is the fabric.
    pub segment: Option<RawFd>,
    /// After so much silence a rank is dead.
    pub silent: Duration,
    /// After so long without progress a rank is stuck.
    pub progress: Duration,
    /// The names of the ranks' hosts, by rank; empty if all are this machine.
    pub hosts: Vec<String>,
    /// The local address that other ranks connect to; by default the one from which rank 0 was reached.
    pub bind: Option<IpAddr>,
    /// The how manieth this rank is of how many that share the machine's processors.
    pub share: (usize, usize),
    /// Threads; by default one a processor of its share.
    pub threads: Option<usize>,
    /// Where models are on this rank's machine, by the name that the user gives.
    pub models: BTreeMap<String, String>,
    /// What is to go wrong on purpose, for tests.
    pub fault: Option<String>,
    /// How the cluster file wants a model to be cut.
    pub layout: Option<Layout>,
    /// This rank's RDMA devices, if that is the fabric.
    pub rdma: Option<Cabling>,
}

/// A rank that is connected to the others.
pub struct Joined {
    /// All ranks.
    pub world: Communicator,
    /// Who watches over them.
    pub monitor: Arc<Monitor>,
}

impl Ticket {
    /// A ticket for rank 0 of a new run of `world_size` ranks, with a key of its own.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(world_size: usize, fabric: Fabric, meeting: Meeting) -> Result<Self> {
        let (mut key, mut run) = ([0; 32], [0; 8]);
        for bytes in [&mut key[..], &mut run] {
            let filled = getrandom::fill(bytes);
            filled.map_err(|error| Error::msg(format!("the system has no random numbers: {error}")))?;
        }
        Ok(Self {
            rank: 0,
            world_size,
            run: u64::from_le_bytes(run),
            key,
            meeting,
            patience: Duration::from_secs(30),
            fabric,
            segment: None,
            silent: Deadlines::default().silent,
            progress: Duration::from_secs(600),
            hosts: Vec::new(),
            bind: None,
            share: (0, world_size),
            threads: None,
            models: BTreeMap::new(),
            fault: None,
            layout: None,
            rdma: None,
        })
    }

    fn options(&self) -> tcp::Join {
        let cipher = if self.fabric == Fabric::Plain { tcp::Cipher::Plain } else { tcp::Cipher::Noise };
        let join = tcp::Join::new(self.world_size, self.run, self.key, Instant::now() + self.patience);
        tcp::Join { data: self.fabric != Fabric::Shm, cipher, bind: self.bind, ..join }
    }

    /// Joins as rank 0, which the others meet at `listener`.
    ///
    /// # Errors
    /// If not all come in time.
    pub fn host(&self, listener: tcp::Listener) -> Result<tcp::Connected> {
        tcp::host(listener, &self.options())
    }

    /// As [`Ticket::host`], while `alive` is asked again and again whether there is still somebody to wait for.
    ///
    /// # Errors
    /// Of the cluster: if not all come in time, or what `alive` says.
    pub fn host_while(&self, listener: tcp::Listener, alive: &dyn Fn() -> Result<()>) -> Result<tcp::Connected> {
        let ticket = self.clone();
        let (done, connected) = channel();
        std::thread::spawn(move || {
            // fails only if the launch was given up
            let _ = done.send(ticket.host(listener));
        });
        loop {
            match connected.recv_timeout(LOOK) {
                Ok(connected) => return connected.map_err(Error::into_cluster),
                Err(RecvTimeoutError::Timeout) => alive()?,
                Err(RecvTimeoutError::Disconnected) => return Err(Error::cluster("the rendezvous ended")),
            }
        }
    }

    /// Joins as the rank that this ticket is for.
    ///
    /// # Errors
    /// If what was to be inherited was not, rank 0 cannot be reached or refuses, or not all come in time.
    pub fn join(&self) -> Result<Joined> {
        let connected = self.meet()?;
        let segment = match self.segment {
            Some(fd) => Some(shm::Segment::from_fd(transport::inherited(fd)?, self.world_size, self.run)?),
            None => None,
        };
        self.connect(connected, segment.as_ref())
    }

    /// Meets the others as the rank that this ticket is for.
    ///
    /// # Errors
    /// If rank 0 cannot be reached or refuses, or not all come in time.
    pub fn meet(&self) -> Result<tcp::Connected> {
        Ok(match self.meeting {
            Meeting::At(address) => tcp::join(self.rank, address, &self.options())?,
            Meeting::Listener(fd) => self.host(tcp::Listener::of(transport::inherited(fd)?)?)?,
        })
    }

    /// Makes the fabric of connections that stand.
    ///
    /// # Errors
    /// If what the fabric needs is not there, or RDMA cannot be set up on every rank.
    pub fn endpoint(&self, data: Option<tcp::Tcp>, segment: Option<&shm::Segment>) -> Result<Box<dyn Endpoint>> {
        let spin = transport::default_spin(self.share.1);
        let endpoint: Box<dyn Endpoint> = match (data, segment) {
            (Some(tcp), _) if self.fabric == Fabric::Rdma => {
                let cabling = self.rdma.as_ref();
                let cabling = cabling.ok_or_else(|| Error::msg("this rank was given no RDMA devices"))?;
                let cabling = Cabling { frames: cabling.frames.or_else(facts::rdma_frames), ..cabling.clone() };
                let rdma = Rdma::connect(tcp, &cabling, self.run, Instant::now() + self.patience);
                let rdma = Box::new(rdma.map_err(Error::into_cluster)?.with_spin(spin));
                match &cabling.neighbours {
                    Some(neighbours) => Box::new(Relay::new(rdma, neighbours)?),
                    None => rdma,
                }
            }
            (Some(tcp), _) => Box::new(tcp.with_spin(spin)),
            (None, Some(segment)) => Box::new(segment.endpoint(self.rank)?),
            (None, None) => return Err(Error::msg("this rank was given neither TCP nor shared memory")),
        };
        Ok(endpoint)
    }

    /// Makes a communicator of connections that stand.
    ///
    /// # Errors
    /// As [`Ticket::endpoint`], or if the system refuses a thread.
    pub fn connect(&self, connected: tcp::Connected, segment: Option<&shm::Segment>) -> Result<Joined> {
        let endpoint = self.endpoint(connected.data, segment)?;
        let name = |(rank, address): (usize, &String)| match self.hosts.get(rank) {
            Some(host) => format!("rank {rank} ({host}, {address})"),
            None => format!("rank {rank} ({address})"),
        };
        let names = connected.addresses.iter().enumerate().map(name).collect();
        let heartbeat_interval = Deadlines::default().heartbeat_interval.min(self.silent / 4);
        let (silent, progress) = (self.silent, Some(self.progress));
        let linger = Deadlines::default().linger.min(self.silent / 5);
        let deadlines = Deadlines { silent, progress, heartbeat_interval, linger, ..Deadlines::default() };
        let monitor = Monitor::start(self.rank, connected.control, names, deadlines)?;
        Ok(Joined { world: Communicator::new(endpoint, Some(monitor.clone())), monitor })
    }
}
