//! A seed's schedule: which fault hits what, when and for how long. Pure, so that a seed is a whole run.

use std::fmt;
use std::time::Duration;

use medfleet_core::{closed_set, splitmix};

use crate::fleet::Role;

/// Faults that go on beside each other.
const LANES: u64 = 3;
/// Pauses are longer than the fleet's acknowledgement wait of 2 s: the unit goes to another worker meanwhile.
const PAUSE_MILLIS: (u64, u64) = (2_500, 4_500);
const AWAY_MILLIS: (u64, u64) = (100, 1_500);
const LINK_MILLIS: (u64, u64) = (300, 4_000);
const STORE_MILLIS: (u64, u64) = (500, 3_000);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Service(Role, u16),
    Node(usize),
    Cluster,
    Store,
    Machine,
}

impl Target {
    /// Its column in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service(role, _) => role.name(),
            Self::Node(_) => "nats",
            Self::Cluster => "all nats",
            Self::Store => "store",
            Self::Machine => "all",
        }
    }

    fn excludes(self, other: Self) -> bool {
        let is_nats = |target| matches!(target, Self::Node(_) | Self::Cluster);
        self == other || is_nats(self) && is_nats(other)
    }
}

closed_set!(
    /// What happens to it; the text is its row in the table.
    pub enum Fault, "fault", {
        /// kill -9, and a start later.
        Kill = "kill -9",
        /// SIGSTOP, and SIGCONT after the acknowledgement wait.
        Pause = "pause beyond the acknowledgement wait",
        /// SIGTERM, and a start when it has ended.
        Drain = "SIGTERM and restart",
        /// Its connections to NATS break, new ones too.
        Cut = "link cut",
        /// Its connections to NATS pass nothing.
        Stall = "link stalled",
        /// What NATS answers is lost: acknowledgements first of all.
        LoseAnswers = "acknowledgements lost",
        /// Everything between it and NATS comes 100 ms late.
        Slow = "link slow",
        /// Nothing can be written.
        Unwritable = "store unwritable",
        /// Not a byte is free.
        Full = "store full",
        /// What was not synced is lost.
        PowerCut = "power cut",
    }
);

impl Fault {
    const fn millis(self) -> (u64, u64) {
        match self {
            Self::Kill | Self::Drain => AWAY_MILLIS,
            Self::Pause => PAUSE_MILLIS,
            Self::Cut | Self::Stall | Self::LoseAnswers | Self::Slow => LINK_MILLIS,
            Self::Unwritable | Self::Full => STORE_MILLIS,
            Self::PowerCut => (0, 0),
        }
    }
}

/// A fault of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, from the start of the load.
    pub at: Duration,
    pub target: Target,
    pub fault: Fault,
    /// Until it ends; a restart takes the time of a start on top.
    pub lasts: Duration,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        let (fault, target) = (self.fault, self.target);
        write!(f, "{at:6.2} s  {fault}, {target:?}, for {lasts:.2} s")
    }
}

/// What a schedule is made for.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Time over which faults begin.
    pub horizon: Duration,
    /// nats-servers: 1, or 3 as a cluster.
    pub nodes: usize,
    pub instances: u16,
    pub can_fill: bool,
}

/// The schedule of a seed, by time.
pub fn plan(seed: u64, shape: &Shape) -> Vec<Planned> {
    let mut random = Random::new(seed);
    let mut planned: Vec<Planned> = Vec::new();
    let mut deck: Vec<(Target, Fault)> = Vec::new();
    let horizon = as_millis(shape.horizon);
    for _ in 0..LANES {
        let mut at = random.between((0, 800));
        while at < horizon {
            if deck.is_empty() {
                deck = shuffled(every(shape), &mut random);
            }
            let late = at > horizon * 2 / 3;
            let free = deck.iter().rposition(|(target, fault)| {
                // A cluster loses a node at a time first, all of it later.
                let due = *target != Target::Cluster || shape.nodes == 1 || late;
                let end = at + fault.millis().1 + RECOVERY_MILLIS;
                let clash = planned.iter().any(|other| {
                    let begin = as_millis(other.at);
                    let over = begin + as_millis(other.lasts) + RECOVERY_MILLIS;
                    other.target.excludes(*target) && begin < end && at < over
                });
                due && !clash
            });
            let Some(index) = free else {
                at += 250;
                continue;
            };
            let (target, fault) = deck.remove(index);
            let lasts = random.between(fault.millis());
            planned.push(Planned {
                at: Duration::from_millis(at),
                target,
                fault,
                lasts: Duration::from_millis(lasts),
            });
            at += lasts + random.between((200, 1_500));
        }
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}

/// The schedule of a seed whose only faults are power cuts, one after the other.
pub fn power_cuts(seed: u64, horizon: Duration) -> Vec<Planned> {
    let mut random = Random::new(seed);
    let mut at = random.between((500, 3_000));
    let mut planned = Vec::new();
    while at < as_millis(horizon) {
        planned.push(Planned {
            at: Duration::from_millis(at),
            target: Target::Machine,
            fault: Fault::PowerCut,
            lasts: Duration::ZERO,
        });
        at += random.between((8_000, 15_000));
    }
    planned
}

/// Time that a target is left alone after a fault, so that it is up again before the next.
const RECOVERY_MILLIS: u64 = 1_500;

/// Every fault that a target can have, in order.
fn every(shape: &Shape) -> Vec<(Target, Fault)> {
    let mut all = Vec::new();
    for instance in 0..shape.instances {
        for role in Role::ALL {
            let faults = Fault::ALL.iter().take(7);
            all.extend(faults.map(|fault| (Target::Service(role, instance), *fault)));
        }
    }
    for node in 0..shape.nodes {
        all.extend([Fault::Kill, Fault::Pause].map(|fault| (Target::Node(node), fault)));
    }
    all.push((Target::Cluster, Fault::Kill));
    all.push((Target::Store, Fault::Unwritable));
    if shape.can_fill {
        all.push((Target::Store, Fault::Full));
    }
    all.sort_unstable();
    all
}

fn shuffled<T>(mut items: Vec<T>, random: &mut Random) -> Vec<T> {
    for last in (1..items.len()).rev() {
        let other = random.below(last as u64 + 1) as usize;
        items.swap(last, other);
    }
    items
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Numbers that a seed determines.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        let number = splitmix::mixed(self.0);
        self.0 = self.0.wrapping_add(splitmix::STEP);
        number
    }

    /// The next number below `end`, which must not be 0. Small ends only: the tiny bias does not matter here.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// The next number from `first` to `last`.
    pub const fn between(&mut self, (first, last): (u64, u64)) -> u64 {
        first + self.below(last - first + 1)
    }
}
