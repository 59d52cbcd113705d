//! From device names to connected lanes: what each end has is told to the other over TCP, and both do the same with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chunk::HEADER;
use super::lane::{self, Lane, RESERVE, Terms};
use super::link::Link;
use super::place::Place;
use crate::error::{Context, Error, Result};
use crate::transport::tcp::Tcp;
use crate::transport::verbs::{
    Completions, Depth, Device, Domain, Gid, Library, Port, QueuePair, Remote, Service, Slab,
};
use crate::transport::{Buffer, Endpoint, Kind};

/// Apple counts queues in frames, and both ends of a message in equal numbers of them (TN3205).
const FRAME: usize = 4096;

/// Bytes of a receive on RoCE and InfiniBand, where a send may be shorter.
const ROOM: usize = 64 << 10;

/// Pieces under way on a lane: on Thunderbolt half a megabyte, which is 60 µs of its bandwidth; elsewhere two.
const WINDOWS: (usize, usize) = (128, 32);

/// Less makes no sense.
const LEAST_WINDOW: usize = 8;

/// How long a port may take to become active.
const ACTIVE: Duration = Duration::from_secs(5);

/// Bytes that one rank tells another of its lanes.
const MAX_WORDS: usize = 64 << 10;

/// Which devices lead where, and how they are used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cabling {
    /// Devices by peer: one for each cable to it. None for this rank itself.
    pub devices: Vec<Vec<Place>>,
    /// What queue pairs promise; by default UC on Thunderbolt, which has nothing else, and RC elsewhere.
    pub service: Option<Service>,
    /// Frames of a message on Thunderbolt; by default 1, as more work only since macOS 26.3 (mlx #3094).
    pub frames: Option<usize>,
    /// The ranks that every rank has cables to, if these are not all: the others are reached over them.
    pub neighbours: Option<Vec<Vec<usize>>>,
    /// The verbs library, if not the system's.
    pub library: Option<PathBuf>,
}

/// One end of a lane.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct End {
    device: Place,
    service: Service,
    thunderbolt: bool,
    infiniband: bool,
    number: u32,
    first_packet: u32,
    gid: [u8; 16],
    lid: u16,
    mtu: u32,
    size: usize,
    window: usize,
}

/// What a rank tells another, or why it cannot go on.
type Told<T> = std::result::Result<T, String>;

/// A device in use.
pub(super) struct Opened {
    pub(super) completions: Arc<Completions>,
    port: Port,
    place: Place,
    thunderbolt: bool,
    /// Bytes and frames of a receive.
    size: usize,
    frames: usize,
    /// Pieces under way on each of its lanes at most.
    window: usize,
    /// Slots that no lane has yet.
    next_slot: usize,
}

/// A lane that is not connected.
struct Begun {
    pair: QueuePair,
    device: usize,
    end: End,
}

/// What a rank has before it knows of the others.
struct Ready {
    /// By peer.
    lanes: Vec<Vec<Begun>>,
    slabs: Vec<Slab>,
    devices: Vec<Opened>,
}

/// Everything that a rank has of RDMA.
pub(super) struct Lines {
    pub(super) links: Vec<Option<Link>>,
    pub(super) slabs: Vec<Slab>,
    pub(super) devices: Vec<Opened>,
}

/// Connects `cabling`'s devices with the other ranks, over which `tcp` leads already.
///
/// Whoever fails on the way says so to all, and all end with its reason.
pub(super) fn connect(tcp: &mut Tcp, cabling: &Cabling, run: u64, deadline: Instant) -> Result<Lines> {
    let (rank, world_size) = (tcp.rank(), tcp.world_size());
    if cabling.devices.len() != world_size {
        let count = cabling.devices.len();
        return Err(Error::msg(format!("rank {rank} was told RDMA devices to {count} ranks of {world_size}")));
    }
    let begun = begin(rank, cabling, run, deadline);
    let told = |peer: usize| -> Told<Vec<End>> {
        let lanes = begun.as_ref().map_err(ToString::to_string)?;
        Ok(lanes.lanes[peer].iter().map(|lane| lane.end.clone()).collect())
    };
    let theirs = swap(tcp, (0..world_size).map(told).collect(), deadline);
    let lines = join(begun?, tcp, &theirs?, run);
    // nobody sends before everybody's receives are posted
    let told = lines.as_ref().map(|_| ()).map_err(ToString::to_string);
    let all = swap(tcp, vec![told; world_size], deadline);
    let lines = lines?;
    all.map(|_| lines)
}

/// Everything of one rank that needs nothing of the others.
fn begin(rank: usize, cabling: &Cabling, run: u64, deadline: Instant) -> Result<Ready> {
    let library = match &cabling.library {
        Some(path) => Library::at(path)?,
        None => Library::system()?,
    };
    let to_others = || cabling.devices.iter().enumerate().filter(|(peer, _)| *peer != rank);
    let mut counts: BTreeMap<&Place, usize> = BTreeMap::new();
    for place in to_others().flat_map(|(_, places)| places) {
        *counts.entry(place).or_default() += 1;
    }
    let mut ready = Ready { lanes: vec![], slabs: vec![], devices: vec![] };
    let mut domains = Vec::new();
    for (place, count) in counts {
        let device = Device::open(library, &place.device)?;
        let (opened, slab, domain) = open(&device, place, count, cabling, deadline)?;
        ready.devices.push(opened);
        ready.slabs.push(slab);
        domains.push(domain);
    }
    for (peer, places) in cabling.devices.iter().enumerate() {
        let mut lanes = Vec::new();
        for place in places.iter().filter(|_| peer != rank) {
            let device = ready.devices.iter().position(|device| device.place == *place).unwrap_or_default();
            lanes.push(lane(&ready.devices[device], device, &domains[device], cabling, run)?);
        }
        ready.lanes.push(lanes);
    }
    Ok(ready)
}

/// A device with memory for `count` lanes.
fn open(
    device: &Arc<Device>,
    place: &Place,
    count: usize,
    cabling: &Cabling,
    deadline: Instant,
) -> Result<(Opened, Slab, Arc<Domain>)> {
    let name = device.name();
    let limits = device.limits()?;
    if limits.queue_pairs > 0 && count > limits.queue_pairs {
        let error = format!("RDMA device `{name}` has {} queue pairs, for {count} peers", limits.queue_pairs);
        return Err(Error::msg(error).hint("use fewer ranks, or more devices"));
    }
    let port = active(device, place, deadline)?;
    let thunderbolt = device.is_thunderbolt();
    let (frames, size) = sizes(cabling, thunderbolt);
    let mut window = if thunderbolt { WINDOWS.0 } else { WINDOWS.1 };
    if limits.requests > 0 {
        window = window.min((limits.requests / frames).saturating_sub(2 * RESERVE));
    }
    if limits.completions > 0 {
        window = window.min((limits.completions / count).saturating_sub(3 * RESERVE) / 2);
    }
    let domain = Domain::new(device)?;
    let completions = Completions::new(device, count * lane::slots(window))?;
    let slab = Slab::new(&domain, size, count * lane::slots(window))?;
    let place = place.clone();
    let opened = Opened { completions, port, place, thunderbolt, size, frames, window, next_slot: 0 };
    Ok((opened, slab, domain))
}

/// A queue pair, and what the other end must know of it.
fn lane(opened: &Opened, device: usize, domain: &Arc<Domain>, cabling: &Cabling, run: u64) -> Result<Begun> {
    let Opened { place, port, thunderbolt, size, frames, window, .. } = opened;
    let service = cabling.service.unwrap_or(if *thunderbolt { Service::Uc } else { Service::Rc });
    let asked = Depth { sends: lane::sends(*window) * frames, receives: (window + RESERVE) * frames };
    let pair = QueuePair::new(domain, &opened.completions, service, asked)?;
    let granted = pair.depth()?;
    let window = (*window)
        .min((granted.receives / frames).saturating_sub(RESERVE))
        .min((granted.sends / frames).saturating_sub(2 * RESERVE));
    if window < LEAST_WINDOW {
        let (sends, receives) = (granted.sends, granted.receives);
        let error = format!("RDMA device `{place}` grants queues of {sends} sends and {receives} receives");
        return Err(Error::msg(error).hint("that is too little: does another program use it?"));
    }
    let end = End {
        device: place.clone(),
        service,
        thunderbolt: *thunderbolt,
        infiniband: port.infiniband,
        number: pair.number(),
        // packets of an earlier run must not fit
        first_packet: (pair.number() ^ run as u32) & 0xff_ffff,
        gid: port.gid.0,
        lid: port.lid,
        mtu: port.mtu,
        size: *size,
        window,
    };
    Ok(Begun { pair, device, end })
}

/// Connects all lanes.
fn join(ready: Ready, tcp: &Tcp, theirs: &[Vec<End>], run: u64) -> Result<Lines> {
    let Ready { lanes, mut slabs, mut devices } = ready;
    let mut links = Vec::new();
    for (peer, lanes) in lanes.into_iter().enumerate() {
        if lanes.is_empty() && theirs[peer].is_empty() {
            links.push(None);
            continue;
        }
        links.push(Some(link((peer, &tcp.peer(peer)), lanes, &theirs[peer], run, &mut devices, &mut slabs)?));
    }
    Ok(Lines { links, slabs, devices })
}

/// Frames and bytes of a message.
fn sizes(cabling: &Cabling, thunderbolt: bool) -> (usize, usize) {
    let frames = cabling.frames.unwrap_or(1).max(1);
    if thunderbolt { (frames, frames * FRAME) } else { (1, ROOM) }
}

/// The device's port, once it is active.
fn active(device: &Device, place: &Place, deadline: Instant) -> Result<Port> {
    let deadline = deadline.min(Instant::now() + ACTIVE);
    loop {
        if let Some(port) = device.port(place.port, place.gid)? {
            return Ok(port);
        }
        if Instant::now() >= deadline {
            let name = device.name();
            let error = Error::msg(match place.port {
                None => format!("RDMA device `{name}` has no active port"),
                Some(port) => format!("port {port} of RDMA device `{name}` is not active"),
            });
            return Err(error.hint("is its cable plugged in at both ends, and the other machine awake?"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Connects all lanes to a peer.
fn link(
    (peer, who): (usize, &str),
    lanes: Vec<Begun>,
    theirs: &[End],
    run: u64,
    devices: &mut [Opened],
    slabs: &mut [Slab],
) -> Result<Link> {
    if theirs.len() != lanes.len() {
        let (own, other) = (lanes.len(), theirs.len());
        let error = Error::msg(format!("this rank has {own} RDMA devices to {who}, which has {other} back"));
        return Err(error.hint("a cable has two ends: name a device on both hosts"));
    }
    let mut connected = Vec::new();
    for (number, (Begun { mut pair, device, end }, other)) in lanes.into_iter().zip(theirs).enumerate() {
        let (own, its) = (&end.device, &other.device);
        fit(&end, other, who)?;
        if other.window < LEAST_WINDOW || other.size <= HEADER || !(1..=5).contains(&other.mtu) {
            let said = format!("{} pieces of {} bytes", other.window, other.size);
            return Err(Error::msg(format!("{its} of {who} says that it takes {said}, which cannot be")));
        }
        let opened = &mut devices[device];
        let remote = Remote {
            number: other.number,
            first_packet: other.first_packet,
            gid: Gid(other.gid),
            lid: other.lid,
            mtu: end.mtu.min(other.mtu),
            // a cable has no routers
            hops: if end.thunderbolt { 1 } else { 64 },
        };
        pair.connect(&opened.port, end.first_packet, &remote).with_context(|| format!("to {its} of {who}"))?;
        let window = u32::try_from(end.window.min(other.window)).unwrap_or(u32::MAX);
        let terms = Terms { run, size: end.size.min(other.size), fixed: end.thunderbolt, window };
        let name = format!("{own} to {its}");
        let first_slot = opened.next_slot;
        opened.next_slot += lane::slots(end.window);
        connected.push(Lane::new(pair, &mut slabs[device], device, name, (peer, number), terms, first_slot)?);
    }
    let names: Vec<&str> = connected.iter().map(|lane| lane.name.as_str()).collect();
    let name = format!("{who} over {}", names.join(", "));
    Ok(Link::new(peer, name, connected))
}

/// Refuses two ends that cannot be connected.
fn fit(end: &End, other: &End, who: &str) -> Result<()> {
    let (own, its) = (&end.device, &other.device);
    if end.service != other.service || end.thunderbolt != other.thunderbolt {
        let (ours, theirs) = (end.service.name(), other.service.name());
        let error = format!("{own} ({ours}) and {its} ({theirs}) of {who} are of two kinds");
        return Err(Error::msg(error).hint("give both the same --rdma-qp"));
    }
    let fabric = |end: &End| if end.infiniband { "InfiniBand" } else { "RoCE" };
    if end.infiniband != other.infiniband {
        let (ours, theirs) = (fabric(end), fabric(other));
        let error = format!("{own} ({ours}) and {its} ({theirs}) of {who} are of two kinds");
        return Err(
            Error::msg(error).hint("name ports of one kind on both hosts: mlx5_0:2 is the second port of mlx5_0")
        );
    }
    // a GID begins with its subnet
    if end.infiniband && end.gid[..8] != other.gid[..8] {
        let error = format!("{own} and {its} of {who} are in two InfiniBand subnets");
        return Err(Error::msg(error).hint(
            "only the subnet manager knows the router between them: put both into one subnet, or use `transport: tcp` \
             over IPoIB",
        ));
    }
    Ok(())
}

/// Tells every other rank how something went here; returns how it went on all.
pub(super) fn agree(tcp: &mut Tcp, own: Result<()>, deadline: Instant) -> Result<()> {
    let told = own.as_ref().copied().map_err(ToString::to_string);
    let all = swap(tcp, vec![told; tcp.world_size()], deadline);
    own.and_then(|()| all.map(drop))
}

/// Tells every other rank something, or why this one cannot go on; returns what they tell, by rank.
fn swap<T>(tcp: &mut Tcp, words: Vec<Told<T>>, deadline: Instant) -> Result<Vec<T>>
where
    T: Serialize + DeserializeOwned + Default,
{
    let rank = tcp.rank();
    let mut theirs: Vec<T> = words.iter().map(|_| T::default()).collect();
    let mut missing = Vec::new();
    let mut failed = None;
    for (peer, words) in words.into_iter().enumerate().filter(|(peer, _)| *peer != rank) {
        let words = serde_json::to_vec(&words).map_err(Error::from_std)?;
        let mut message = Buffer::with_capacity(words.len());
        message.fill(&words)?;
        tcp.post_recv(peer, Buffer::with_capacity(MAX_WORDS))?;
        tcp.post_send(peer, message)?;
        missing.push(peer);
    }
    let mut unsent = missing.len();
    while !missing.is_empty() || unsent > 0 {
        let done = tcp.poll(deadline).map_err(|lost| Error::from(lost).context("setting up RDMA"))?;
        let Some(done) = done else {
            let who: Vec<String> = missing.iter().map(|peer| tcp.peer(*peer)).collect();
            let who = if who.is_empty() { "another rank".to_owned() } else { who.join(", ") };
            return Err(Error::msg(format!("{who} did not set up RDMA in time")));
        };
        if done.kind == Kind::Sent {
            unsent -= 1;
            continue;
        }
        missing.retain(|peer| *peer != done.peer);
        let who = tcp.peer(done.peer);
        match serde_json::from_slice::<Told<T>>(done.buffer.bytes()) {
            Ok(Ok(told)) => theirs[done.peer] = told,
            Ok(Err(why)) => failed = Some(Error::msg(format!("{who} has no RDMA: {why}")).hint("see what it printed")),
            Err(error) => return Err(Error::from_std(error).context(format!("what {who} says of its RDMA devices"))),
        }
    }
    failed.map_or(Ok(theirs), Err)
}
