//! `tbshard launch`: any program on every host, as the ranks of one run.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use signal_hook::consts::SIGINT;

use super::console::{Console, Stream};
use super::hosts::{HostsArgs, Lines, Machines, muster, soon};
use super::leave::{leave, on};
use super::rdma::ServiceArg;
use super::{Outcome, ui};
use crate::cluster::agent::{End, Start};
use crate::cluster::fleet::{Event, Fleet};
use crate::cluster::run::Status;
use crate::cluster::ticket::{Fabric, Meeting, Ticket};
use crate::error::{Error, Result};

/// How long the other ranks may take to end by themselves once one has failed.
const GRACE: Duration = Duration::from_secs(3);

/// How often it is looked whether the user wants to end it.
const LOOK: Duration = Duration::from_millis(50);

/// What stands for the exit code of a rank whose host is lost.
const HOST_LOST: u8 = 255;

/// Bytes of a piece of standard input.
const PIECE: usize = 32 << 10;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    hosts: HostsArgs,
    /// What RDMA queue pairs promise [default: uc on Thunderbolt, which has nothing else, and rc elsewhere]
    #[arg(long, value_enum, value_name = "KIND")]
    rdma_qp: Option<ServiceArg>,
    /// Print lines as they come, without `[rank host]`
    #[arg(long, help_heading = "Output")]
    no_prefix: bool,
    /// Show no progress
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
    /// Run it in this directory of every host [default: where ssh arrives]
    #[arg(long, value_name = "DIR")]
    directory: Option<String>,
    /// Set an environment variable on every host; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The program, and what it is given
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// Which lines are marked with the rank and host that printed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    All,
    /// All but those of rank 0, which talks with the user.
    Others,
    None,
}

/// Takes what a rank prints; `false` if nobody reads it any more.
pub(super) type Output = Box<dyn FnMut(&[u8]) -> Result<bool>>;

/// What runs on every host.
pub(super) struct Work {
    /// The program and its arguments; `None` is this program.
    pub(super) program: Option<String>,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) directory: Option<String>,
    /// After so much silence a rank is dead, if it is not as the file says.
    pub(super) silent: Option<Duration>,
    /// How lines are marked.
    pub(super) marks: Marks,
    /// Standard input of rank 0; `None` is that of this process.
    pub(super) input: Option<Box<dyn Read + Send>>,
    /// Who takes what rank 0 prints; `None` is standard output.
    pub(super) output: Option<Output>,
    pub(super) quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let Some(hosts) = &args.hosts.hosts else {
        return Err(Error::usage("launch needs --hosts").hint("--hosts cluster.yaml, or --hosts a,b"));
    };
    let machines = Machines::open(hosts)?.with_service(args.rdma_qp.map(ServiceArg::service));
    let mut env = BTreeMap::new();
    for setting in &args.env {
        let Some((name, value)) = setting.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::usage(format!("--env {setting} sets nothing")).hint("--env NAME=VALUE does"));
        };
        env.insert(name.to_owned(), value.to_owned());
    }
    let (program, rest) = args.program.split_first().ok_or_else(|| Error::usage("there is no program"))?;
    // the name of this program means this very build of it, wherever a host has it
    let program = (program != "tbshard").then(|| program.clone());
    let marks = if args.no_prefix { Marks::None } else { Marks::All };
    let (rest, directory) = (rest.to_vec(), args.directory.clone());
    let (silent, quiet) = (None, args.quiet);
    let work = Work { program, args: rest, env, directory, silent, marks, input: None, output: None, quiet };
    on_all(&machines, args.hosts.deploy, work)
}

/// Runs `work` on all hosts, as the ranks of one run, until it has ended everywhere.
pub(super) fn on_all(machines: &Machines, deploy: bool, work: Work) -> Result<Outcome> {
    machines.check(work.quiet)?;
    let names = machines.names();
    let lines = Lines::new(&names, work.quiet);
    let signals = Arc::new(Signals::default());
    listen(Arc::clone(&signals))?;
    let mut fleet = muster(machines, 0, deploy, &lines)?;
    start(machines, &mut fleet, &work)?;
    signals.running.store(true, Ordering::SeqCst);
    let hosts: Vec<&str> = names.iter().map(String::as_str).collect();
    let console = match work.marks {
        Marks::All => Console::prefixed(&hosts),
        Marks::Others => Console::led(&hosts),
        Marks::None => Console::plain(hosts.len()),
    };
    // what a foreign program prints would run into lines that move
    let lines = Some(lines).filter(|_| work.marks == Marks::Others);
    let (ends, ours) = (vec![None; names.len()], work.program.is_none());
    let output = work.output;
    let mut show = Show { console, output, lines, ends, ours, failure: None, explained: false, until: None };
    let input = Input::open(work.input)?;
    let outcome = show.run(&mut fleet, &names, input, &signals.asked);
    fleet.end();
    show.console.finish();
    outcome
}

/// What Ctrl-C does, and did.
#[derive(Default)]
struct Signals {
    running: AtomicBool,
    asked: AtomicBool,
}

/// Lets Ctrl-C end a run in good order, and this process where there is none yet: agents end when it does.
fn listen(signals: Arc<Signals>) -> Result<()> {
    on(&[SIGINT], move |_| {
        signals.asked.store(true, Ordering::SeqCst);
        if !signals.running.load(Ordering::SeqCst) {
            leave(super::INTERRUPTED);
        }
    })
}

fn start(machines: &Machines, fleet: &mut Fleet, work: &Work) -> Result<()> {
    let address = machines.rendezvous(fleet, 0)?;
    let at = fleet.listen(0, address)?;
    let cluster = &machines.cluster;
    let first = Ticket::new(cluster.hosts.len(), Fabric::Tcp, Meeting::At(at))?;
    let tickets = machines.tickets(first, work.silent, |rank| fleet.machine(rank).map(|machine| machine.id.clone()));
    for ticket in tickets {
        let rank = ticket.rank;
        let mut env = cluster.hosts[rank].env.clone();
        if let Some((columns, rows)) = ui::terminal_size() {
            env.extend([("COLUMNS".to_owned(), columns.to_string()), ("LINES".to_owned(), rows.to_string())]);
        }
        env.extend(work.env.clone());
        let (program, args, directory) = (work.program.clone(), work.args.clone(), work.directory.clone());
        fleet.start(rank, Start { program, args, env, directory, stdin: rank == 0, ticket: Some(ticket) });
    }
    Ok(())
}

/// Standard input in pieces, as fast as rank 0 takes them.
struct Input(Receiver<Vec<u8>>);

impl Input {
    fn open(from: Option<Box<dyn Read + Send>>) -> Result<Self> {
        let (pieces, receiver) = sync_channel(1);
        let read = move || {
            let mut from: Box<dyn Read> = match from {
                Some(from) => from,
                // a shell stops a job in the background that reads from its terminal
                None if ui::in_background() => Box::new(std::io::empty()),
                None => Box::new(std::io::stdin()),
            };
            let mut piece = vec![0; PIECE];
            while let Ok(count) = from.read(&mut piece)
                && count > 0
                && pieces.send(piece[..count].to_vec()).is_ok()
            {}
        };
        let thread = std::thread::Builder::new().name("tbshard-stdin".to_owned()).spawn(read);
        thread.map_err(|error| Error::from_std(error).context("cannot start a thread"))?;
        Ok(Self(receiver))
    }
}

/// What is known of the ranks.
struct Show {
    console: Console,
    output: Option<Output>,
    /// How far the ranks are, until one of them prints something.
    lines: Option<Lines>,
    ends: Vec<Option<End>>,
    /// Whether the ranks are this very program, which knows of the others.
    ours: bool,
    /// The failure that came first, and its exit code.
    failure: Option<(Error, u8)>,
    /// Rank 0 has told the user why.
    explained: bool,
    /// When those that still run are ended.
    until: Option<Instant>,
}

impl Show {
    fn run(&mut self, fleet: &mut Fleet, names: &[String], input: Input, interrupted: &AtomicBool) -> Result<Outcome> {
        let (mut hungry, mut input) = (true, Some(input));
        while self.ends.iter().any(Option::is_none) && self.until.is_none_or(|until| Instant::now() < until) {
            if interrupted.load(Ordering::SeqCst) {
                return Ok(Outcome::Interrupted);
            }
            if hungry && let Some(pieces) = &input {
                match pieces.0.try_recv() {
                    Ok(piece) => {
                        fleet.input(0, Some(piece));
                        hungry = false;
                    }
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => {
                        fleet.input(0, None);
                        input = None;
                    }
                }
            }
            let wait = if input.is_some() && hungry { LOOK / 5 } else { LOOK };
            let Some((rank, event)) = fleet.next(soon(wait)) else { continue };
            if matches!(event, Event::Stdout(_) | Event::Stderr(_) | Event::Exited(_) | Event::Lost(_)) {
                self.lines = None;
            }
            match event {
                Event::Stdout(bytes) if rank == 0 && self.output.is_some() => {
                    if !self.output.as_mut().map_or(Ok(true), |output| output(&bytes))? {
                        return Ok(Outcome::Done);
                    }
                }
                Event::Stdout(bytes) if !self.console.print(rank, Stream::Out, &bytes) => return Ok(Outcome::Done),
                Event::Stdout(_) => {}
                Event::Stderr(bytes) => drop(self.console.print(rank, Stream::Err, &bytes)),
                Event::Hungry => hungry = true,
                Event::Status(Status::Explained) => self.explained |= rank == 0,
                Event::Status(Status::Loading(loading)) => self.say(rank, loading.to_string()),
                Event::Status(Status::Ready) => self.say(rank, "ready".to_owned()),
                Event::Exited(end) => {
                    self.ends[rank] = Some(end);
                    if end != End::Code(0) {
                        fleet.exited(rank, rank, &end.to_string());
                        let error = Error::cluster(format!("rank {rank} ({}) ended: {end}", names[rank]));
                        self.fail(error.hint("what it printed is above"), end.code());
                    }
                }
                Event::Lost(error) => {
                    self.ends[rank] = Some(End::Code(super::LOST));
                    fleet.exited(rank, rank, &error.to_string());
                    let hint = error.hint_text().unwrap_or("see that host").to_owned();
                    let error = Error::cluster(format!("rank {rank} ({}): {error}", names[rank])).hint(hint);
                    self.fail(error, HOST_LOST);
                }
            }
        }
        self.console.finish();
        let Some((error, code)) = self.failure.take() else { return Ok(Outcome::Done) };
        let code = match self.ends[0] {
            Some(End::Code(code)) if self.ours && code != 0 => code,
            _ if self.ours || code == HOST_LOST => super::LOST,
            _ => code,
        };
        // where the ranks have found out among themselves, rank 0 has said so
        if !self.explained {
            super::report(&error);
        }
        Ok(Outcome::Code(code))
    }

    fn say(&self, rank: usize, text: String) {
        self.lines.iter().for_each(|lines| lines.say(rank, text.clone()));
    }

    /// Takes a failure. A rank of ours that ends with this code was ended by another's, which may come to light later.
    fn fail(&mut self, error: Error, code: u8) {
        self.until.get_or_insert_with(|| soon(GRACE));
        if self.failure.as_ref().is_none_or(|(_, first)| *first == super::LOST && code != super::LOST) {
            self.failure = Some((error, code));
        }
    }
}
