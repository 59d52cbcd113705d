//! Hundreds of ends with real connections and real control threads, several ranks in one process: what goes wrong, where,
//! and on which rank is drawn from seeds, and whatever it is, all end in time with one cause that names it.

mod rank;
mod relay;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tbshard::comm::Communicator;
use tbshard::comm::control::{Cause, CauseKind, Deadlines, Monitor};
use tbshard::transport::Endpoint;
use tbshard::transport::shm::Segment;
use tbshard::transport::tcp::{self, Cipher, Connected, Join};

use crate::control::plan::Rng;
use crate::transport::fabric::{KEY, LOCALHOST, RUN};
use rank::{Ended, ILLS, Ill, Rank, Step, faulty, neighbour};
use relay::{CONTROL, DAMAGES, DATA, Damage, Relay, Strike};

/// Cases of each kind of harm.
const ROUNDS: u64 = 24;
/// Cases at a time: they mostly wait.
const TOGETHER: usize = 16;
const SILENT: Duration = Duration::from_millis(1000);
const PROGRESS: Duration = Duration::from_millis(1500);
const MEETING: Duration = Duration::from_millis(2500);
/// No rank goes on for longer after the harm was done.
const BOUND: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Rank(Ill),
    Control(Damage),
    Data(Damage),
}

#[derive(Debug)]
struct Case {
    world: usize,
    tcp: bool,
    victim: usize,
    harm: Harm,
    step: Step,
    strike: Option<Strike>,
}

impl Case {
    fn new(harm: Harm, seed: u64) -> Self {
        let mut rng = Rng(seed * 8191 + 1);
        let world = 2 + rng.below(3) as usize;
        let tcp = matches!(harm, Harm::Data(_)) || rng.one_in(2);
        let steps = [Step::Hello, Step::SelfTest, Step::Loading, Step::Reports, Step::Finish];
        let pass = rng.below(40) as usize;
        let step = match rng.below(10) {
            few @ 0..=4 => steps[few as usize],
            5 => Step::Command(pass),
            _ => Step::Pass(pass),
        };
        // a link is that of a rank with rank 0
        let victim = rng.below(world as u64) as usize;
        // and rank 0 may do nothing for as long as a person thinks
        let victim = if matches!(harm, Harm::Rank(ill) if ill != Ill::Hang) { victim } else { victim.max(1) };
        let connection = if matches!(harm, Harm::Data(_)) { DATA } else { CONTROL };
        let strike = match harm {
            Harm::Rank(_) => None,
            Harm::Control(damage) | Harm::Data(damage) => {
                // the first three are the handshake, the hello and the word that all are connected
                // (later stages send rank 0 little but in the start-up)
                let last = match (connection, world) {
                    (CONTROL, _) => 12,
                    (_, 4) => 24,
                    _ => 60,
                };
                let at = if rng.one_in(6) { 1 + rng.below(3) } else { 4 + rng.below(last) };
                Some(Strike { connection, up: rng.one_in(2), at: at as usize, damage })
            }
        };
        Self { world, tcp, victim, harm, step, strike }
    }

    /// Whether nothing dies, so that all must end well.
    fn is_harmless(&self) -> bool {
        matches!(self.harm, Harm::Rank(Ill::Slow) | Harm::Control(Damage::Late) | Harm::Data(Damage::Late))
    }

    /// Whether the harm comes after the last word, when rank 0 may have ended well.
    fn is_late(&self) -> bool {
        matches!(self.step, Step::Reports | Step::Finish) && matches!(self.harm, Harm::Rank(_))
    }

    /// Runs the case; how the ranks ended, by rank, and when the harm was done. `None` are ranks that never met.
    fn run(&self) -> (Vec<Option<Ended>>, Option<Instant>) {
        let begun = Instant::now();
        let join = Join { data: self.tcp, cipher: Cipher::Noise, ..Join::new(self.world, RUN, KEY, begun + MEETING) };
        let listener = tcp::listen(LOCALHOST).unwrap();
        let rendezvous = listener.address();
        let segment = Segment::create(self.world, 64 << 10, RUN).unwrap();
        let mut relay = None;
        let ends = std::thread::scope(|scope| {
            let (segment, join) = (&segment, &join);
            let mut threads = vec![scope.spawn(move || self.rank(0, tcp::host(listener, join).ok()?, segment))];
            for rank in 1..self.world {
                let mut address = rendezvous;
                if rank == self.victim
                    && let Some(strike) = self.strike
                {
                    let (through, started) = Relay::start(rendezvous, Some(strike));
                    (address, relay) = (through, Some(started));
                }
                threads.push(scope.spawn(move || self.rank(rank, tcp::join(rank, address, join).ok()?, segment)));
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let struck = relay.and_then(|relay| relay.struck());
        let ends: Vec<Option<Ended>> = ends;
        let struck = struck.or_else(|| ends.iter().flatten().find_map(|ended| ended.struck));
        (ends, struck)
    }

    /// One rank, once it is connected.
    fn rank(&self, rank: usize, connected: Connected, segment: &Segment) -> Option<Ended> {
        let armed = Arc::default();
        let inner: Box<dyn Endpoint> = match connected.data {
            Some(tcp) => Box::new(tcp.with_spin(Duration::ZERO)),
            None => Box::new(segment.endpoint(rank).unwrap().with_spin(Duration::ZERO)),
        };
        let names = (0..self.world).map(|rank| format!("rank {rank} (here)")).collect();
        let heartbeat_interval = Duration::from_millis(50);
        let progress = (!self.is_harmless()).then_some(PROGRESS);
        let deadlines = Deadlines { silent: SILENT, heartbeat_interval, progress, ..Deadlines::default() };
        let monitor = Monitor::start(rank, connected.control, names, deadlines).unwrap();
        let endpoint = faulty(inner, Arc::clone(&armed));
        let world = Communicator::new(endpoint, Some(monitor.clone()));
        let ill = match self.harm {
            Harm::Rank(ill) if rank == self.victim => Some((ill, self.step)),
            _ => None,
        };
        // what is to go wrong does so soon, and ends it; only a few cases last
        let lasts = if self.is_harmless() || self.is_late() { 600 } else { 6000 };
        let until = Instant::now() + Duration::from_millis(lasts);
        Some(Rank { world, monitor, ill, armed, slow: SILENT * 2, until, struck: None }.run())
    }

    /// What is wrong with how it ended.
    fn objection(&self, ends: &[Option<Ended>], struck: Option<Instant>) -> Option<String> {
        let Some(struck) = struck else { return Some("the harm was never done".to_owned()) };
        let late = ends.iter().flatten().map(|ended| ended.at.saturating_duration_since(struck)).max();
        if let Some(late) = late.filter(|late| *late > BOUND && !self.is_harmless()) {
            return Some(format!("an end came {late:?} after the harm"));
        }
        let failed: Vec<&Ended> = ends.iter().flatten().filter(|ended| ended.error.is_some()).collect();
        if self.is_harmless() {
            let well = ends.iter().flatten().count() == self.world && failed.is_empty();
            return (!well).then(|| "nothing was wrong, and yet it failed".to_owned());
        }
        if ends.iter().any(Option::is_none) {
            // they never met, and who did finds that out
            let all = ends.iter().flatten().all(|ended| ended.error.is_some());
            return (!all).then(|| "some never met, and others think that all is well".to_owned());
        }
        if self.is_late() && ends[0].as_ref().is_some_and(|ended| ended.error.is_none()) {
            return None;
        }
        if failed.len() < ends.len() {
            return Some("some think that all is well".to_owned());
        }
        self.disagreement(&failed)
    }

    /// What is wrong with the causes of those that ended.
    fn disagreement(&self, ended: &[&Ended]) -> Option<String> {
        let agreed: Vec<&Cause> =
            ended.iter().filter_map(|ended| ended.cause.as_ref()).filter(|it| it.agreed).collect();
        if let Some(other) = agreed.iter().find(|other| other.to_string() != agreed[0].to_string()) {
            return Some(format!("two causes: {} and {other}", agreed[0]));
        }
        let named = |cause: &Cause| match self.harm {
            // a link has two ends
            Harm::Rank(Ill::Mute | Ill::Short) => {
                let next = neighbour(self.victim, self.world);
                [self.victim, next].contains(&cause.rank) || [self.victim, next].contains(&cause.observer)
            }
            Harm::Rank(_) => cause.rank == self.victim,
            Harm::Control(_) | Harm::Data(_) => {
                [cause.rank, cause.observer].contains(&self.victim) || (cause.rank, cause.observer) == (0, 0)
            }
        };
        // nobody has said where it is before its first heartbeats
        let early = self.strike.is_some_and(|strike| strike.at <= 6);
        let placed = |cause: &Cause| early || cause.activity.is_some();
        let wrong = |cause: &&Cause| !named(cause) || !self.may_be(cause.kind) || !placed(cause);
        if let Some(cause) = ended.iter().filter_map(|ended| ended.cause.as_ref()).find(wrong) {
            return Some(format!("{:?} is no cause of this: {cause}", cause.kind));
        }
        // whoever can be reached agrees
        let reached = match self.harm {
            Harm::Rank(Ill::Leave) if self.victim == 0 => 0,
            Harm::Rank(Ill::Leave) | Harm::Control(_) | Harm::Data(Damage::Vanish) => self.world - 1,
            _ => self.world,
        };
        (agreed.len() < reached).then(|| format!("only {} of {reached} agree", agreed.len()))
    }

    /// Whether a cause of this kind fits the harm.
    fn may_be(&self, kind: CauseKind) -> bool {
        use CauseKind::{Closed, Failed, Garbled, Link, Silent, Stuck};
        let kinds: &[CauseKind] = match self.harm {
            Harm::Rank(Ill::Error | Ill::Panic | Ill::Worker) => &[Failed],
            Harm::Rank(Ill::Leave) => &[Closed, Link],
            Harm::Rank(Ill::Hang | Ill::Mute) => &[Stuck],
            // half a greeting is that of another version
            Harm::Rank(Ill::Short) if self.step == Step::Hello => &[Link, Failed],
            Harm::Rank(Ill::Short) => &[Link],
            // who hears nothing from rank 0 tells it so, as the loss of a link
            Harm::Control(Damage::HalfOpen | Damage::Vanish) => &[Silent, Link],
            Harm::Control(Damage::Cut | Damage::Truncate) => &[Closed, Link],
            Harm::Control(Damage::Length) => &[Garbled, Silent, Link, Closed],
            Harm::Control(_) => &[Garbled, Link],
            Harm::Data(Damage::HalfOpen | Damage::Length | Damage::Drop) => &[Stuck, Link],
            Harm::Data(Damage::Vanish) => &[Silent, Link],
            Harm::Data(_) => &[Link],
            Harm::Rank(Ill::Slow) => &[],
        };
        kinds.contains(&kind)
    }
}

#[test]
fn whatever_goes_wrong_all_end_in_time_with_one_cause() {
    let harms = ILLS.map(Harm::Rank).into_iter();
    let harms = harms.chain(DAMAGES.map(Harm::Control)).chain(DAMAGES.map(Harm::Data));
    let cases =
        harms.enumerate().flat_map(|(kind, harm)| (0..ROUNDS).map(move |seed| (harm, kind as u64 * 1000 + seed)));
    let cases: Vec<(Harm, u64)> = cases.collect();
    let (next, table, wrong) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                while let Some((harm, seed)) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let case = Case::new(*harm, *seed);
                    let (ends, struck) = case.run();
                    if let Some(objection) = case.objection(&ends, struck) {
                        wrong.lock().unwrap().push(format!("{objection}\n  seed {seed} of {case:?}\n  {ends:?}"));
                    }
                    let met = if ends.iter().any(Option::is_none) { "before they met" } else { "in the run" };
                    *table.lock().unwrap().entry((*harm, met)).or_insert(0) += 1;
                }
            });
        }
    });
    for ((harm, met), count) in table.into_inner().unwrap() {
        println!("{count:4} × {harm:?} {met}");
    }
    println!("{:4} cases", cases.len());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
