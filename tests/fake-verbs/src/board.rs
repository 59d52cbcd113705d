//! What a test changes while programs run: ports, devices that stand still, faults that will happen.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde_json::Value;

use crate::config::Config;
use crate::map::{Map, Shared};

const DEVICES: usize = 256;
const FAULTS: usize = 64;

/// A thing that goes wrong once or a few times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A message is lost: its sender sees it leave, its receiver never gets it.
    Drop,
    /// The byte `value` (modulo the length) of a message is another.
    Corrupt,
    /// A message arrives twice.
    Duplicate,
    /// A message arrives after the next one.
    Reorder,
    /// A send completes with the status `value`, and its queue pair is in error.
    SendStatus,
    /// A receive completes with the status `value`, and its queue pair is in error.
    RecvStatus,
    /// `ibv_poll_cq` returns -1.
    Poll,
    /// `ibv_poll_cq` takes `value` milliseconds, as in a driver that hangs.
    Hang,
    /// A call that makes or changes something (`ibv_open_device`, `alloc_pd`, `reg_mr`, `create_cq`, `create_qp`, `modify_qp`)
    /// fails with the errno `value`.
    Call,
    /// `ibv_post_recv` raises SIGSEGV, as the driver does after a cable was pulled (MLX #4192).
    Crash,
}

const NAMES: [(Kind, &str); 10] = [
    (Kind::Drop, "drop"),
    (Kind::Corrupt, "corrupt"),
    (Kind::Duplicate, "duplicate"),
    (Kind::Reorder, "reorder"),
    (Kind::SendStatus, "send-status"),
    (Kind::RecvStatus, "recv-status"),
    (Kind::Poll, "poll"),
    (Kind::Hang, "hang"),
    (Kind::Call, "call"),
    (Kind::Crash, "crash"),
];

/// When and where it goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// The device where it happens (the sender's, for messages), by its place in `fabric.json`; all when `None`.
    pub device: Option<usize>,
    /// The queue pair where it happens; all when `None`.
    pub qp: Option<u32>,
    /// How many messages (completions, calls) go well first.
    pub after: u64,
    /// Then each how-many-eth does not.
    pub every: u64,
    /// How many do not, in all.
    pub times: u64,
    /// What `kind` makes of it.
    pub value: u64,
}

impl Fault {
    /// Once, the `after`-th from now (from zero), wherever.
    pub fn new(kind: Kind, after: u64) -> Self {
        Self { kind, device: None, qp: None, after, every: 1, times: 1, value: 0 }
    }

    /// As `fabric.json` has it.
    pub fn from_json(value: &Value, config: &Config) -> Result<Self, String> {
        let name = value["kind"].as_str().unwrap_or_default();
        let kind = NAMES.iter().find(|(_, known)| *known == name).ok_or(format!("there is no fault {name}"))?.0;
        let device = match value["device"].as_str() {
            Some(key) => Some(config.find(key).ok_or(format!("there is no device {key}"))?),
            None => None,
        };
        let number = |key: &str, otherwise| value[key].as_u64().unwrap_or(otherwise);
        let qp = value["qp"].as_u64().map(|qp| qp as u32);
        Ok(Self {
            kind,
            device,
            qp,
            after: number("after", 0),
            every: number("every", 1),
            times: number("times", 1),
            value: number("value", 0),
        })
    }
}

#[repr(C)]
struct Slot {
    kind: AtomicU32,
    device: AtomicU32,
    qp: AtomicU32,
    after: AtomicU64,
    every: AtomicU64,
    times: AtomicU64,
    value: AtomicU64,
    seen: AtomicU64,
}

#[repr(C)]
struct PortSlot {
    /// As configured, down, up.
    port: AtomicU32,
    still: AtomicU32,
}

/// The file `board`.
#[repr(C)]
pub(crate) struct Layout {
    next_number: AtomicU32,
    faults: AtomicU32,
    ports: [PortSlot; DEVICES],
    slots: [Slot; FAULTS],
}

// SAFETY: atomics all over, and zero is a value of each.
unsafe impl Shared for Layout {}

/// The board of a fabric.
pub(crate) struct Board(Map<Layout>);

impl Board {
    /// Opens it; makes it first, with the faults that the configuration has, if nobody did.
    pub(crate) fn open(dir: &Path, config: &Config) -> Result<Self, String> {
        assert!(config.devices.len() <= DEVICES);
        let path = dir.join("board");
        if !path.exists() {
            // others must not find it half made
            let new = dir.join(format!("board.{}", crate::home::token()));
            let board = Self(Map::create(&new, size_of::<Layout>()).map_err(|error| error.to_string())?);
            board.0.next_number.store(0x11, Ordering::Relaxed);
            for fault in &config.faults {
                board.add(Fault::from_json(fault, config)?);
            }
            let _ = std::fs::hard_link(&new, &path);
            let _ = std::fs::remove_file(&new);
        }
        Map::open(&path).map(Self).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// A number that no other object of the fabric has or had: 24 bits, as queue pairs have.
    pub(crate) fn number(&self) -> u32 {
        self.0.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a port down, or up.
    pub(crate) fn set_port(&self, device: usize, up: bool) {
        self.0.ports[device].port.store(1 + u32::from(up), Ordering::Release);
    }

    /// Makes a device stand still: nothing leaves it, nothing arrives, nothing completes.
    pub(crate) fn set_still(&self, device: usize, still: bool) {
        self.0.ports[device].still.store(u32::from(still), Ordering::Release);
    }

    pub(crate) fn up(&self, config: &Config, device: usize) -> bool {
        match self.0.ports[device].port.load(Ordering::Acquire) {
            0 => config.devices[device].active,
            word => word == 2,
        }
    }

    pub(crate) fn still(&self, device: usize) -> bool {
        self.0.ports[device].still.load(Ordering::Acquire) != 0
    }

    /// Lets it go wrong from now on.
    pub(crate) fn add(&self, fault: Fault) {
        let at = self.0.faults.load(Ordering::Relaxed) as usize;
        assert!(at < FAULTS, "there are {FAULTS} faults at most; clear them first");
        let slot = &self.0.slots[at];
        slot.kind.store(NAMES.iter().position(|(kind, _)| *kind == fault.kind).unwrap_or(0) as u32, Ordering::Relaxed);
        slot.device.store(fault.device.map_or(u32::MAX, |device| device as u32), Ordering::Relaxed);
        slot.qp.store(fault.qp.unwrap_or(0), Ordering::Relaxed);
        slot.after.store(fault.after, Ordering::Relaxed);
        slot.every.store(fault.every.max(1), Ordering::Relaxed);
        slot.times.store(fault.times, Ordering::Relaxed);
        slot.value.store(fault.value, Ordering::Relaxed);
        slot.seen.store(0, Ordering::Relaxed);
        self.0.faults.store(at as u32 + 1, Ordering::Release);
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn clear(&self) {
        self.0.faults.store(0, Ordering::Release);
    }

    /// Counts an event that faults of these kinds may spoil, and says which does.
    pub(crate) fn fault(&self, kinds: &[Kind], device: usize, qp: u32) -> Option<(Kind, u64)> {
        let count = self.0.faults.load(Ordering::Acquire) as usize;
        let mut found = None;
        for slot in &self.0.slots[..count] {
            let kind = NAMES[slot.kind.load(Ordering::Relaxed) as usize].0;
            let at = slot.device.load(Ordering::Relaxed);
            let number = slot.qp.load(Ordering::Relaxed);
            if !kinds.contains(&kind) || (at != u32::MAX && at != device as u32) || (number != 0 && number != qp) {
                continue;
            }
            let seen = slot.seen.fetch_add(1, Ordering::Relaxed);
            let Some(since) = seen.checked_sub(slot.after.load(Ordering::Relaxed)) else { continue };
            let every = slot.every.load(Ordering::Relaxed).max(1);
            if since.is_multiple_of(every) && since / every < slot.times.load(Ordering::Relaxed) {
                found = found.or(Some((kind, slot.value.load(Ordering::Relaxed))));
            }
        }
        found
    }
}
