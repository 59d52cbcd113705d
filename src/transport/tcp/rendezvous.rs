//! How ranks find each other: everybody comes to rank 0, learns where the others are, and connects to them.
//!
//! Rank r connects to every lower rank and accepts from every higher one, so nobody waits in a circle. When `host` and
//! `join` return, all connections of all ranks stand, and no rank listens any more.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::acceptor::{Acceptor, Guest};
use super::handshake;
use super::hello::{Hello, Purpose, Verdict};
use super::link::Link;
use super::mesh::{connect, mesh, send_hello};
use super::record;
use super::secure::Secure;
use super::{Cipher, Tcp};
use crate::error::{Context, Error, Result};
use crate::transport::backoff::default_spin;

/// The message with which each rank tells rank 0 that its connections stand, and rank 0 tells all that everybody's do.
const STANDS: &[u8] = b"connected";

/// More ranks than this in a full mesh are a mistake.
const MOST_RANKS: usize = 1024;

/// What all ranks of a run are told alike.
#[derive(Clone)]
pub struct Join {
    /// How many ranks there are.
    pub world_size: usize,
    /// A number of this run alone, which every frame carries.
    pub run: u64,
    /// The key of this run alone, which proves that a rank belongs to it.
    pub key: [u8; 32],
    /// When to give up.
    pub deadline: Instant,
    /// Whether messages go over TCP. If not, only the control connections are made.
    pub data: bool,
    /// What protects the data connections.
    pub cipher: Cipher,
    /// Where to accept data connections, if not where rank 0 is reached from. Rank 0 accepts at the rendezvous.
    pub bind: Option<IpAddr>,
}

impl Join {
    /// A run of `world_size` ranks with encrypted data connections.
    pub fn new(world_size: usize, run: u64, key: [u8; 32], deadline: Instant) -> Self {
        Self { world_size, run, key, deadline, data: true, cipher: Cipher::Noise, bind: None }
    }

    /// What `rank` says first on a connection.
    pub(super) fn hello(&self, purpose: Purpose, rank: usize, listens: Option<SocketAddr>) -> Hello {
        let (world_size, rank) = (self.world_size as u32, rank as u32);
        Hello { purpose, cipher: self.cipher, data: self.data, run: self.run, world_size, rank, listens }
    }

    /// Refuses a run that cannot be.
    fn check(&self) -> Result<()> {
        if self.world_size == 0 || self.world_size > MOST_RANKS {
            return Err(Error::msg(format!("a run of {} ranks: 1 to {MOST_RANKS} are possible", self.world_size)));
        }
        Ok(())
    }

    /// Says why a guest cannot be a rank of this run, if so.
    pub(super) fn objection(&self, hello: &Hello) -> Option<String> {
        let Hello { world_size, rank, run, cipher, data, .. } = *hello;
        if run != self.run {
            return Some(format!("this is run {:016x}, not {run:016x}", self.run));
        }
        if world_size as usize != self.world_size {
            return Some(format!("this run has {} ranks, not {world_size}", self.world_size));
        }
        if rank == 0 || rank as usize >= self.world_size {
            return Some(format!("the ranks to join are 1 to {}, not {rank}", self.world_size.saturating_sub(1)));
        }
        if (cipher, data) != (self.cipher, self.data) {
            return Some("this run protects or carries its data otherwise".to_owned());
        }
        None
    }
}

/// What rank 0 listens with.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Takes a listening socket that this process has inherited.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(socket: OwnedFd) -> Result<Self> {
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().map_err(|error| Error::from_std(error).context("the inherited socket"))?;
        Ok(Self { listener, address })
    }

    /// The socket, for a process that is to inherit it.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Where it listens: the address that was asked for, and the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The connections of a rank.
pub struct Connected {
    /// The data connections, unless [`Join::data`] was false.
    pub data: Option<Tcp>,
    /// The control connections by rank: rank 0 has one with each other rank, which has only the one with rank 0.
    pub control: Vec<Option<Secure>>,
    /// Where each rank is, for people, `[world_size]`.
    pub addresses: Vec<String>,
}

/// Listens at `bind` on a port that the system chooses.
///
/// # Errors
/// If the address is none of this machine's.
pub fn listen(bind: IpAddr) -> Result<Listener> {
    let wrong = |error| {
        let error = Error::from_std(error).context(format!("listening at {bind}"));
        error.hint("give an address that this machine has")
    };
    let listener = TcpListener::bind((bind, 0)).map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    Ok(Listener { listener, address })
}

/// Waits, as rank 0, for all other ranks, and connects them.
///
/// # Errors
/// If there are 0 or more than 1024 ranks, ranks have not come by the deadline (it names them), or one that had come
/// is lost.
pub fn host(listener: Listener, join: &Join) -> Result<Connected> {
    join.check()?;
    let address = listener.address.to_string();
    let mut acceptor = Acceptor::new(listener.listener, join.key)?;
    let mut control: Vec<Option<Secure>> = (0..join.world_size).map(|_| None).collect();
    let mut table = vec![None; join.world_size];
    let mut addresses = vec![address; join.world_size];
    loop {
        // who has died since is waited for anew
        control
            .iter_mut()
            .filter(|slot| slot.as_ref().is_some_and(|secure| !secure.is_open()))
            .for_each(|slot| *slot = None);
        let absent: Vec<String> =
            (1..join.world_size).filter(|r| control[*r].is_none()).map(|r| r.to_string()).collect();
        if absent.is_empty() {
            break;
        }
        let Some(guest) = acceptor.next(join.deadline)? else {
            return Err(absence(&absent, &acceptor, &mut control));
        };
        let Guest { stream, from, hello, sealer, opener } = guest;
        let rank = hello.rank as usize;
        // a guest that is gone already is waited for anew
        let Ok(mut secure) = Secure::new(stream, sealer, opener, &format!("rank {rank} ({from})")) else { continue };
        let taken = |slot: &Option<Secure>| slot.as_ref().is_some_and(Secure::is_open);
        let objection = match join.objection(&hello) {
            Some(objection) => Some(objection),
            None if hello.purpose == Purpose::Data => Some("not all ranks have come yet".to_owned()),
            None if taken(&control[rank]) => Some(format!("rank {rank} has come already, from {}", addresses[rank])),
            None => None,
        };
        if let Some(objection) = objection {
            // whoever is refused may be gone
            let _ = secure.send(&Verdict::Refused(objection).encode());
            continue;
        }
        (control[rank], table[rank], addresses[rank]) = (Some(secure), hello.listens, from.to_string());
    }
    let welcome = Verdict::Welcome(table).encode();
    for secure in control.iter_mut().flatten() {
        secure.send(&welcome)?;
    }
    let alive = || {
        let lost = control.iter().position(|slot| slot.as_ref().is_some_and(|secure| !secure.is_open()));
        lost.map_or(Ok(()), |rank| {
            let whom = format!("rank {rank} ({})", addresses[rank]);
            Err(Error::msg(format!("{whom} was lost while the ranks connected to each other")))
        })
    };
    let links = mesh(0, join, &addresses, None, Some(&mut acceptor), alive)?;
    for secure in control.iter_mut().flatten() {
        stands(secure, join)?;
    }
    for secure in control.iter_mut().flatten() {
        secure.send(STANDS)?;
    }
    Ok(connected(0, join, links, control, addresses))
}

/// The error about ranks that did not come; those that did are told.
fn absence(absent: &[String], acceptor: &Acceptor, control: &mut [Option<Secure>]) -> Error {
    let who = format!("rank{} {}", if absent.len() == 1 { "" } else { "s" }, absent.join(", "));
    let strangers = match acceptor.strangers {
        0 => String::new(),
        1 => "; a connection was dropped that had another key or none".to_owned(),
        count => format!("; {count} connections were dropped that had another key or none"),
    };
    let told = Verdict::Refused(format!("{who} did not come before the deadline")).encode();
    for secure in control.iter_mut().flatten() {
        // they find out anyway
        let _ = secure.send(&told);
    }
    let hint = "see what they printed; every rank needs the same key and an address at which it reaches rank 0";
    Error::msg(format!("rank 0: {who} did not come before the deadline{strangers}")).hint(hint)
}

/// Joins a run as `rank`, which is not 0, at rank 0's address; tries again while nobody listens there.
///
/// # Errors
/// If rank 0 cannot be reached, has another key or refuses this rank, or not all connections stand by the deadline.
pub fn join(rank: usize, rendezvous: SocketAddr, join: &Join) -> Result<Connected> {
    join.check()?;
    if rank == 0 || rank >= join.world_size {
        return Err(Error::msg(format!(
            "rank {rank} cannot join a run of {} ranks: 1 to the last can",
            join.world_size
        )));
    }
    let whom = format!("rank 0 ({rendezvous})");
    let stream = connect(rendezvous, &whom, join.deadline, true)?;
    let local = stream.local_addr().map_err(Error::from_std)?;
    let listener = if join.data { Some(listen(join.bind.unwrap_or(local.ip()))?) } else { None };
    let listens = listener.as_ref().map(Listener::address);
    let mut secure = greet(stream, &whom, join, &join.hello(Purpose::Control, rank, listens))?;
    let table = verdict(&mut secure, join, &whom)?;
    if table.len() != join.world_size {
        return Err(Error::msg(format!("{whom} named {} ranks, not {}", table.len(), join.world_size)));
    }
    let name = |address: &Option<SocketAddr>| address.map_or_else(|| "elsewhere".to_owned(), |known| known.to_string());
    let mut addresses: Vec<String> = table.iter().map(name).collect();
    addresses[0] = rendezvous.to_string();
    // as rank 0 sees it
    addresses[rank] = local.to_string();
    let mut table = table;
    table[0] = Some(rendezvous);
    let mut acceptor = listener.map(|listener| Acceptor::new(listener.listener, join.key)).transpose()?;
    let alive = || if secure.is_open() { Ok(()) } else { Err(Error::msg(format!("{whom} gave up"))) };
    let links = mesh(rank, join, &addresses, Some(&table), acceptor.as_mut(), alive)
        .with_context(|| format!("connecting rank {rank} to the others"))?;
    secure.send(STANDS)?;
    stands(&mut secure, join)?;
    let control = std::iter::once(Some(secure)).chain((1..join.world_size).map(|_| None)).collect();
    Ok(connected(rank, join, links, control, addresses))
}

fn connected(
    rank: usize,
    join: &Join,
    links: Vec<Option<Link>>,
    control: Vec<Option<Secure>>,
    addresses: Vec<String>,
) -> Connected {
    // ranks that are seen at one address share a machine's cores
    let ip = |rank: usize| addresses[rank].parse::<SocketAddr>().map(|address| address.ip()).ok();
    let local = (0..addresses.len()).filter(|peer| ip(*peer) == ip(rank)).count();
    let data = join.data.then(|| Tcp::new(rank, links, default_spin(local)));
    Connected { data, control, addresses }
}

/// Waits for the message that somebody's connections stand.
fn stands(secure: &mut Secure, join: &Join) -> Result<()> {
    let message = secure.recv(STANDS.len(), join.deadline).map_err(Error::from);
    match message.context("waiting until all ranks are connected")? {
        Some(message) if message == STANDS => Ok(()),
        Some(_) => Err(Error::msg("a rank sent something else than that it is connected")),
        None => Err(Error::msg("not all ranks were connected to each other before the deadline")),
    }
}

/// Performs the handshake on a new connection and says hello.
fn greet(mut stream: TcpStream, whom: &str, join: &Join, hello: &Hello) -> Result<Secure> {
    let keys = record::directions(handshake::initiate(&mut stream, &join.key, join.deadline, whom)?);
    let (mut sealer, opener) = keys;
    send_hello(&mut stream, &mut sealer, hello, whom)?;
    Secure::new(stream, sealer, opener, whom)
}

/// Waits for rank 0's answer: where each rank is.
fn verdict(secure: &mut Secure, join: &Join, whom: &str) -> Result<Vec<Option<SocketAddr>>> {
    let answer = secure.recv(Verdict::most(join.world_size), join.deadline)?;
    let Some(answer) = answer else {
        let hint = "rank 0 waits for all ranks: see which are missing";
        return Err(Error::msg(format!("{whom} did not let the run begin before the deadline")).hint(hint));
    };
    match Verdict::decode(&answer) {
        Some(Verdict::Welcome(table)) => Ok(table),
        Some(Verdict::Refused(why)) => Err(Error::msg(format!("{whom} refused this rank: {why}"))),
        None => Err(Error::msg(format!("{whom} sent something else than an answer"))),
    }
}
