//! What happens in one schedule of the simulator: who is there, what goes wrong, and when.

use std::time::Duration;

use tbshard::comm::control::Deadlines;

/// A time or a span in the simulator, in microseconds.
pub type Micros = u64;

pub const MILLI: Micros = 1000;
pub const SECOND: Micros = 1000 * MILLI;

/// splitmix64: small, and the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The process ends; perhaps who started it tells rank 0.
    Kill { rank: usize, told: bool },
    /// Neither ticks nor sends, perhaps only for a while.
    Freeze { rank: usize, wake: Option<Micros> },
    /// The stream between this rank and rank 0 loses what is sent up (to rank 0) or down; both ends see it if it is loud.
    Cut { rank: usize, up: bool, down: bool, loud: bool },
    /// The next frame of that stream comes as garbage.
    Garble { rank: usize, up: bool },
    /// The main thread fails by itself.
    Fail { rank: usize },
    /// The data link between two ranks breaks.
    Link { ends: [usize; 2] },
    /// The local clock leaps.
    Jump { rank: usize, by: Micros },
    /// The main thread stands still, and all others wait for it.
    Wedge { rank: usize },
}

#[derive(Debug)]
pub struct Plan {
    pub world_size: usize,
    pub deadlines: Deadlines,
    pub faults: Vec<(Micros, Fault)>,
    /// When rank 0's main thread ends in good order; the others about then.
    pub finish: Option<Micros>,
    /// This rank never comes to its own end, though rank 0 does.
    pub unfinished: Option<usize>,
    /// Some frames take up to two seconds.
    pub spiky: bool,
    /// This rank's main thread tells nothing for as long as it takes.
    pub slow: Option<usize>,
    /// When to look at what has become of it.
    pub horizon: Micros,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let world_size = if rng.one_in(4) { 2 + rng.below(7) } else { 2 + rng.below(3) } as usize;
        let faults = [0, 1, 1, 1, 1, 1, 2, 2, 3][rng.below(9) as usize];
        let faults: Vec<_> = (0..faults).map(|_| (rng.below(3 * SECOND), fault(rng, world_size))).collect();
        let wedged = faults.iter().any(|(_, fault)| matches!(fault, Fault::Wedge { .. }));
        let heartbeat_interval = Duration::from_millis([200, 500, 1000, 1000][rng.below(4) as usize]);
        let progress = (wedged || rng.one_in(4)).then_some(Duration::from_secs(8));
        let slow = (progress.is_none() && rng.one_in(2)).then(|| rng.below(world_size as u64) as usize);
        let finish = (faults.is_empty() || rng.one_in(3)).then(|| rng.below(4 * SECOND));
        let patient = faults.is_empty() && rng.one_in(8);
        Self {
            world_size,
            deadlines: Deadlines { heartbeat_interval, progress, ..Deadlines::default() },
            // an untroubled group that takes its time: a minute without a word from a main thread
            finish: if patient { Some(62 * SECOND) } else { finish },
            faults,
            unfinished: rng.one_in(8).then_some(world_size - 1),
            spiky: rng.one_in(2),
            slow,
            horizon: if patient { 70 * SECOND } else { 40 * SECOND },
        }
    }

    /// The longest that a frame is under way, or a tick late.
    pub fn delay(&self) -> Micros {
        if self.spiky { 2 * SECOND } else { 50 * MILLI }
    }

    /// The ranks that a cause may name.
    pub fn guilty(&self) -> Vec<usize> {
        let mut guilty = Vec::new();
        for (_, fault) in &self.faults {
            match *fault {
                Fault::Kill { rank, .. }
                | Fault::Freeze { rank, .. }
                | Fault::Fail { rank }
                | Fault::Wedge { rank } => {
                    guilty.push(rank);
                }
                Fault::Cut { rank, .. } => guilty.extend([0, rank]),
                Fault::Garble { rank, up } => guilty.push(if up { rank } else { 0 }),
                Fault::Link { ends } => guilty.extend(ends),
                Fault::Jump { .. } => {}
            }
        }
        guilty
    }

    /// Whether this rank may have to go by its own view.
    pub fn deaf(&self, rank: usize) -> bool {
        self.faults.iter().any(|(_, fault)| match *fault {
            Fault::Kill { rank: 0, .. } | Fault::Freeze { rank: 0, .. } => true,
            Fault::Cut { rank: cut, .. } => cut == rank,
            Fault::Garble { rank: garbled, up } => garbled == rank && !up,
            _ => false,
        })
    }
}

fn fault(rng: &mut Rng, world_size: usize) -> Fault {
    let rank = rng.below(world_size as u64) as usize;
    // a rank that has a stream to rank 0
    let other = 1 + rng.below(world_size as u64 - 1) as usize;
    match rng.below(10) {
        0 | 1 => Fault::Kill { rank, told: rng.one_in(2) },
        2 => Fault::Freeze { rank, wake: None },
        3 => Fault::Freeze { rank, wake: Some(rng.below(12 * SECOND)) },
        4 => {
            let (up, down) = [(true, true), (true, false), (false, true)][rng.below(3) as usize];
            Fault::Cut { rank: other, up, down, loud: rng.one_in(2) }
        }
        5 => Fault::Garble { rank: other, up: rng.one_in(2) },
        6 => Fault::Fail { rank },
        7 => Fault::Link { ends: [(rank + other) % world_size, rank] },
        8 => Fault::Jump { rank, by: [2 * SECOND, 4 * SECOND, 100 * SECOND][rng.below(3) as usize] },
        _ => Fault::Wedge { rank },
    }
}
