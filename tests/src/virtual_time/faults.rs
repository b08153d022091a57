//! What goes wrong, when and for how long: drawn from the seed while the run goes on, until the horizon.

use std::rc::Rc;

use super::wire::Process;
use super::{HORIZON, OUTDATED_MAX, World};

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
}

impl Fault {
    /// A kill and a pause twice as often as the others.
    const ALL: [Self; 11] = [
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
    ];

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
        let fault = Fault::ALL[timeline.between(0, Fault::ALL.len() as u64 - 1) as usize];
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
        Fault::Cut => process.cut_until.set(now + timeline.between(300, 4_000)),
        Fault::LoseAnswers => {
            let until = now + timeline.between(300, 3_000);
            process.answers_lost_until.set(until);
        }
        Fault::Slow => process.slow_until.set(now + timeline.between(500, 4_000)),
        Fault::ServerDown => {
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
    }
}
