//! Ranks as processes of this machine: rank 0 is the caller, the others are started, told how to join, and ended.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::comm::Communicator;
use crate::comm::control::{Deadlines, Monitor};
use crate::error::{Context, Error, Result};
use crate::transport::{Endpoint, shm, tcp};

/// How many times the silence that makes a rank dead ranks may take to find each other: half a minute, if nothing is asked.
const MEETING: u32 = 6;
/// How often it is looked whether a rank's process still runs.
const LOOK: Duration = Duration::from_millis(20);
/// How long a rank's process may take to end after the run.
const FAREWELL: Duration = Duration::from_secs(3);
/// Bytes of a ring between two ranks.
const RING: usize = 1 << 20;

/// What carries activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// Shared memory.
    Shm,
    /// Encrypted TCP over the loopback interface.
    Tcp,
    /// TCP whose payload is in clear, to measure what encryption costs.
    Plain,
}

/// What a rank needs to join a run. It holds the key: it goes over a pipe, never into arguments or the environment.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ticket {
    /// The rank.
    pub rank: usize,
    /// Ranks of the run.
    pub world_size: usize,
    rendezvous: SocketAddr,
    run: u64,
    key: [u8; 32],
    fabric: Fabric,
    segment: Option<i32>,
    silent: Duration,
}

/// A rank that is connected to the others.
pub struct Joined {
    /// All ranks.
    pub world: Communicator,
    /// Who watches over them.
    pub monitor: Arc<Monitor>,
}

impl Ticket {
    fn join_options(&self) -> tcp::Join {
        let deadline = Instant::now() + self.silent.saturating_mul(MEETING);
        let cipher = if self.fabric == Fabric::Plain { tcp::Cipher::Plain } else { tcp::Cipher::Noise };
        let data = self.fabric != Fabric::Shm;
        tcp::Join { data, cipher, ..tcp::Join::new(self.world_size, self.run, self.key, deadline) }
    }

    /// Joins the run as the rank that this ticket is for; `segment` is the shared memory that the process inherited.
    ///
    /// # Errors
    /// If rank 0 cannot be reached or refuses.
    pub fn join(&self, segment: Option<shm::Segment>) -> Result<Joined> {
        let connected = tcp::join(self.rank, self.rendezvous, &self.join_options())?;
        self.connect(connected, segment.as_ref())
    }

    /// The number of the shared memory's descriptor in the process that inherited it.
    pub fn segment(&self) -> Option<i32> {
        self.segment
    }

    /// Which run this is.
    pub fn run(&self) -> u64 {
        self.run
    }

    fn connect(&self, connected: tcp::Connected, segment: Option<&shm::Segment>) -> Result<Joined> {
        let endpoint: Box<dyn Endpoint> = match (connected.data, segment) {
            (Some(tcp), _) => Box::new(tcp.with_spin(crate::transport::default_spin(self.world_size))),
            (None, Some(segment)) => Box::new(segment.endpoint(self.rank)?),
            (None, None) => return Err(Error::msg("this rank was given neither TCP nor shared memory")),
        };
        let names = connected.addresses.iter().enumerate().map(|(rank, at)| format!("rank {rank} ({at})")).collect();
        let heartbeat_interval = Deadlines::default().heartbeat_interval.min(self.silent / 4);
        let deadlines = Deadlines { silent: self.silent, heartbeat_interval, ..Deadlines::default() };
        let monitor = Monitor::start(self.rank, connected.control, names, deadlines)?;
        Ok(Joined { world: Communicator::new(endpoint, Some(monitor.clone())), monitor })
    }
}

/// The processes of the other ranks. Dropping it ends them.
pub struct Processes {
    children: Arc<Mutex<Vec<Process>>>,
}

struct Process {
    rank: usize,
    child: Child,
    // kept open: its end tells the rank that the launcher is gone
    _stdin: Option<ChildStdin>,
    ended: Option<ExitStatus>,
}

/// Starts the ranks 1 to `world_size` − 1 with `command`, hands each what `job` makes of its ticket on its standard input,
/// and joins them as rank 0.
///
/// # Errors
/// If a process cannot be started, ends before it has joined, or does not join in time.
pub fn launch(
    (world_size, fabric, silent): (usize, Fabric, Duration),
    command: &dyn Fn(usize) -> Result<Command>,
    job: &dyn Fn(&Ticket) -> Result<String>,
) -> Result<(Joined, Processes)> {
    let mut seed = [0; 40];
    getrandom::fill(&mut seed).map_err(|error| Error::msg(format!("the system has no random numbers: {error}")))?;
    let (key, run) = seed.split_at(32);
    let run = run.iter().fold(0, |run, byte| run << 8 | u64::from(*byte));
    let mut secret = [0; 32];
    secret.copy_from_slice(key);
    let listener = tcp::listen(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    let segment = (fabric == Fabric::Shm).then(|| shm::Segment::create(world_size, RING, run)).transpose()?;
    let rendezvous = listener.address();
    let ticket = Ticket { rank: 0, world_size, rendezvous, run, key: secret, fabric, segment: None, silent };
    let processes = Processes { children: Arc::default() };
    for rank in 1..world_size {
        let mut command = command(rank)?;
        let inherited = segment.as_ref().map(|segment| segment.inherit(&mut command));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().map_err(|error| Error::from_std(error).context("cannot start a rank"))?;
        let mut stdin = child.stdin.take();
        let text = job(&Ticket { rank, segment: inherited, ..ticket.clone() })?;
        // a rank that is gone already is noticed below
        let _ = stdin.as_mut().map(|stdin| writeln!(stdin, "{text}").and_then(|()| stdin.flush()));
        processes.lock().push(Process { rank, child, _stdin: stdin, ended: None });
    }
    let (options, (done, connected)) = (ticket.join_options(), channel());
    std::thread::spawn(move || {
        // fails only if the launch was given up
        let _ = done.send(tcp::host(listener, &options));
    });
    let connected = loop {
        match connected.recv_timeout(LOOK) {
            Ok(connected) => break connected.map_err(Error::into_cluster)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::cluster("the rendezvous ended")),
        }
        if let Some((rank, status)) = processes.newly_ended().first() {
            let error = Error::cluster(format!("rank {rank} ended before it joined: {}", describe(*status)));
            return Err(error.hint("its own message is above"));
        }
    };
    let joined = ticket.connect(connected, segment.as_ref()).context("rank 0")?;
    processes.watch(Arc::clone(&joined.monitor));
    Ok((joined, processes))
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, Vec<Process>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newly_ended(&self) -> Vec<(usize, ExitStatus)> {
        newly_ended(&mut self.lock())
    }

    /// Tells `monitor` of processes that end, until all have.
    fn watch(&self, monitor: Arc<Monitor>) {
        let children = Arc::clone(&self.children);
        std::thread::spawn(move || {
            loop {
                let (ended, left) = {
                    let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
                    (newly_ended(&mut children), children.iter().any(|process| process.ended.is_none()))
                };
                // one that ended well said so itself
                for (rank, status) in ended.into_iter().filter(|(_, status)| !status.success()) {
                    monitor.exited(rank, describe(status));
                }
                if !left {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        });
    }

    /// Waits a while for all processes to end, then ends them; `dead` is one that need not be waited for. Returns the
    /// ranks, apart from that one, that did not end by themselves.
    pub fn end(&self, dead: Option<usize>) -> Vec<usize> {
        self.kill(|rank| Some(rank) == dead);
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            self.newly_ended();
            if self.lock().iter().all(|process| process.ended.is_some()) {
                return Vec::new();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill(|_| true)
    }

    fn kill(&self, which: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut killed = Vec::new();
        for process in self.lock().iter_mut().filter(|process| process.ended.is_none() && which(process.rank)) {
            // it may have ended just now
            let _ = process.child.kill();
            process.ended = process.child.wait().ok();
            killed.push(process.rank);
        }
        killed
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill(|_| true);
    }
}

fn newly_ended(children: &mut [Process]) -> Vec<(usize, ExitStatus)> {
    let mut ended = Vec::new();
    for process in children.iter_mut().filter(|process| process.ended.is_none()) {
        if let Ok(Some(status)) = process.child.try_wait() {
            process.ended = Some(status);
            ended.push((process.rank, status));
        }
    }
    ended
}

/// `killed by signal 9`, `exit code 3`.
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
