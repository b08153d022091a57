//! What goes wrong, when and for how long: drawn from the seed while the run goes on, until the horizon.

use std::rc::Rc;

use super::clocks::{WallClock, leap, leap_back_of_queue};
use super::timeline::Timeline;
use super::wire::Process;
use super::{HORIZON, OUTDATED_MAX, World};

/// One jump of a clock in so many is the queue's.
const OF_QUEUE_ONE_IN: u64 = 9;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
    Drain,
    Cut,
    LoseAnswers,
    Slow,
    ServerDown,
    Outdated,
    StoreAway,
    ClockForth,
    ClockBack,
    QueueClockForth,
    QueueClockBack,
}

impl Fault {
    /// A kill and a pause twice as often as the others.
    const ALL: [Self; 13] = [
        Self::Kill,
        Self::Kill,
        Self::Pause,
        Self::Pause,
        Self::Drain,
        Self::Cut,
        Self::LoseAnswers,
        Self::Slow,
        Self::ServerDown,
        Self::Outdated,
        Self::StoreAway,
        Self::ClockForth,
        Self::ClockBack,
    ];

    /// The same at the queue, where it is seldom.
    const fn at_queue(self) -> Option<Self> {
        match self {
            Self::ClockForth => Some(Self::QueueClockForth),
            Self::ClockBack => Some(Self::QueueClockBack),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill at any wait",
            Self::Pause => "pause beyond the acknowledgement wait",
            Self::Drain => "drain and restart",
            Self::Cut => "link cut",
            Self::LoseAnswers => "answers lost",
            Self::Slow => "link slow",
            Self::ServerDown => "queue away",
            Self::Outdated => "reads behind",
            Self::StoreAway => "store away",
            Self::ClockForth => "clock set forward",
            Self::ClockBack => "clock set back",
            Self::QueueClockForth => "queue's clock set forward",
            Self::QueueClockBack => "queue's clock set back",
        }
    }
}

/// One fault after the other, some beside each other.
pub(super) async fn storm(world: Rc<World>) {
    let timeline = &world.timeline;
    loop {
        timeline.sleep(timeline.between(100, 1_500)).await;
        if timeline.now() >= HORIZON {
            return;
        }
        let drawn = Fault::ALL[timeline.between(0, Fault::ALL.len() as u64 - 1) as usize];
        let at_queue = drawn.at_queue();
        let fault = at_queue
            .filter(|_| timeline.once_in(OF_QUEUE_ONE_IN))
            .unwrap_or(drawn);
        let hit = timeline.between(0, world.processes.len() as u64 - 1) as usize;
        let process = &world.processes[hit];
        *world.faults.borrow_mut().entry(fault.name()).or_default() += 1;
        inflict(&world, process, fault);
    }
}

fn inflict(world: &Rc<World>, process: &Rc<Process>, fault: Fault) {
    let timeline = &world.timeline;
    let now = timeline.now();
    timeline.note(&format!("{}: {}", process.name(), fault.name()));
    match fault {
        Fault::Kill => world.kill(process, timeline.between(100, 2_000)),
        Fault::Pause => {
            let millis = timeline.between(2_500, 6_000);
            process.count_mishaps();
            for task in process.tasks.borrow().iter() {
                timeline.freeze(*task, millis);
            }
        }
        Fault::Drain => {
            let millis = timeline.between(0, 1_500);
            process.drain_until.set(Some(now + millis));
            // What has not been handed back by then is killed.
            let (world, process) = (Rc::clone(world), Rc::clone(process));
            let end = world.timeline.sleep(millis + 1_000);
            world.timeline.clone().start(async move {
                end.await;
                world.kill(&process, 200);
            });
        }
        // Heartbeats that come late, though they come, are too late for what is in its hands.
        Fault::Cut => {
            process.count_mishaps();
            process.cut_until.set(now + timeline.between(300, 4_000));
        }
        Fault::LoseAnswers => {
            let until = now + timeline.between(300, 3_000);
            process.answers_lost_until.set(until);
        }
        Fault::Slow => process.slow_until.set(now + timeline.between(500, 4_000)),
        Fault::ServerDown => {
            count_mishaps_of_all(world);
            world.server.borrow_mut().down_until = now + timeline.between(200, 3_000);
        }
        Fault::Outdated => {
            let until = now + timeline.between(1_000, OUTDATED_MAX);
            let age = timeline.between(500, OUTDATED_MAX);
            world.server.borrow_mut().outdated = (until, age);
        }
        Fault::StoreAway => {
            world
                .blobs
                .away_until
                .set(now + timeline.between(300, 3_000));
        }
        Fault::ClockForth => jump(timeline, &process.clock, leap(timeline)),
        Fault::ClockBack => jump(timeline, &process.clock, -leap(timeline)),
        Fault::QueueClockForth => {
            // Everything in anybody's hands is delivered again.
            count_mishaps_of_all(world);
            jump(timeline, &world.server.borrow().clock, leap(timeline));
        }
        Fault::QueueClockBack => {
            let back = leap_back_of_queue(timeline);
            jump(timeline, &world.server.borrow().clock, back);
        }
    }
}

fn count_mishaps_of_all(world: &World) {
    for process in &world.processes {
        process.count_mishaps();
    }
}

fn jump(timeline: &Timeline, clock: &WallClock, by: i64) {
    timeline.note(&format!("a clock jumps by {by} ms"));
    clock.jump(by);
}
