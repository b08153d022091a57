//! Virtual time: tasks that wait for nothing but the clock run one at a time, in an order that the seed alone decides. At any of
//! its waits a task can be dropped, which models a crash, or be left standing, which models a pause.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use medfleet_core::UnixMillis;

use crate::chaos::plan::Random;

/// Steps that are kept to be shown.
const TRACE_MAX: usize = 80;
/// When virtual time begins.
const BEGIN: i64 = 1_800_000_000_000;

pub(super) type TaskId = u64;

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// The clock, the seed's numbers, and what was seen. A cheap clone; all clones are one.
#[derive(Clone)]
pub(super) struct Timeline {
    state: Rc<RefCell<State>>,
}

struct State {
    now: u64,
    serial: u64,
    random: Random,
    alarms: BTreeMap<(u64, u64), TaskId>,
    current: TaskId,
    begun: Vec<(TaskId, Work)>,
    condemned: Vec<TaskId>,
    frozen: BTreeMap<TaskId, u64>,
    trace: VecDeque<String>,
    /// Of every step so far.
    fingerprint: u64,
    broken: Option<String>,
}

impl State {
    fn set_alarm(&mut self, at: u64, task: TaskId) {
        self.serial += 1;
        self.alarms.insert((at, self.serial), task);
    }
}

impl Timeline {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            now: 0,
            serial: 0,
            random: Random::new(seed),
            alarms: BTreeMap::new(),
            current: 0,
            begun: Vec::new(),
            condemned: Vec::new(),
            frozen: BTreeMap::new(),
            trace: VecDeque::new(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            broken: None,
        };
        Self {
            state: Rc::new(RefCell::new(state)),
        }
    }

    /// Milliseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        self.state.borrow().now
    }

    pub(super) fn current(&self) -> TaskId {
        self.state.borrow().current
    }

    /// The next number from `first` to `last`.
    pub(super) fn between(&self, first: u64, last: u64) -> u64 {
        self.state.borrow_mut().random.between((first, last))
    }

    /// The next number from `-most` to `most`.
    pub(super) fn about(&self, most: u64) -> i64 {
        let drawn = self.between(0, 2 * most);
        0_i64
            .saturating_add_unsigned(drawn)
            .saturating_sub_unsigned(most)
    }

    /// True once in so many.
    pub(super) fn once_in(&self, many: u64) -> bool {
        self.state.borrow_mut().random.below(many) == 0
    }

    pub(super) fn sleep(&self, millis: u64) -> Sleep {
        Sleep {
            timeline: self.clone(),
            until: self.now() + millis,
            is_set: false,
        }
    }

    /// Starts a task, which begins when this one waits.
    pub(super) fn start(&self, work: impl Future<Output = ()> + 'static) -> TaskId {
        let mut state = self.state.borrow_mut();
        state.serial += 1;
        let task = state.serial;
        state.begun.push((task, Box::pin(work)));
        task
    }

    /// Drops a task where it stands; itself when it waits next.
    pub(super) fn kill(&self, task: TaskId) {
        self.state.borrow_mut().condemned.push(task);
    }

    /// Leaves a task standing.
    pub(super) fn freeze(&self, task: TaskId, millis: u64) {
        let mut state = self.state.borrow_mut();
        let until = state.now + millis;
        state.frozen.insert(task, until);
    }

    pub(super) fn note(&self, step: &str) {
        let mut state = self.state.borrow_mut();
        let line = format!("{:>8} ms  {step}", state.now);
        for byte in line.bytes() {
            state.fingerprint =
                (state.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if state.trace.len() == TRACE_MAX {
            state.trace.pop_front();
        }
        state.trace.push_back(line);
    }

    /// Something does not hold: the run ends here. The first word counts.
    pub(super) fn broken(&self, what: String) {
        self.note(&format!("BROKEN: {what}"));
        self.state.borrow_mut().broken.get_or_insert(what);
    }

    /// What does not hold.
    pub(super) fn what_broke(&self) -> Option<String> {
        self.state.borrow().broken.clone()
    }

    /// The last steps.
    pub(super) fn trace(&self) -> Vec<String> {
        self.state.borrow().trace.iter().cloned().collect()
    }

    /// A number made of every step: two runs with the same number took the same steps.
    pub(super) fn fingerprint(&self) -> u64 {
        self.state.borrow().fingerprint
    }
}

/// A moment as the true time of day.
pub(super) fn date(millis: u64) -> UnixMillis {
    after(UnixMillis(BEGIN), millis)
}

/// So many milliseconds after a time of day.
pub(super) fn after(time: UnixMillis, millis: u64) -> UnixMillis {
    UnixMillis(time.0.saturating_add_unsigned(millis))
}

/// Waits for the clock.
pub(super) struct Sleep {
    timeline: Timeline,
    until: u64,
    is_set: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut state = this.timeline.state.borrow_mut();
        if state.now >= this.until {
            return Poll::Ready(());
        }
        if !this.is_set {
            this.is_set = true;
            let task = state.current;
            state.set_alarm(this.until, task);
        }
        Poll::Pending
    }
}

pub(super) struct Scheduler {
    timeline: Timeline,
    tasks: BTreeMap<TaskId, Work>,
}

impl Scheduler {
    pub(super) fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            tasks: BTreeMap::new(),
        }
    }

    /// Runs until `is_done`, until something does not hold, or until the clock stands at `end`. Whether it was done.
    pub(super) fn run(&mut self, end: u64, is_done: impl Fn() -> bool) -> bool {
        loop {
            self.take_orders();
            if is_done() {
                return true;
            }
            if self.timeline.what_broke().is_some() {
                return false;
            }
            let Some(task) = self.next(end) else {
                return false;
            };
            if let Some(work) = self.tasks.get_mut(&task) {
                let mut context = Context::from_waker(Waker::noop());
                if work.as_mut().poll(&mut context).is_ready() {
                    self.tasks.remove(&task);
                }
            }
        }
    }

    /// The task whose time has come; it is the current one then.
    fn next(&self, end: u64) -> Option<TaskId> {
        let mut state = self.timeline.state.borrow_mut();
        loop {
            let ((at, _), task) = state.alarms.pop_first()?;
            if at > end {
                return None;
            }
            state.now = state.now.max(at);
            match state.frozen.get(&task).copied() {
                Some(until) if until > state.now => state.set_alarm(until, task),
                Some(_) => {
                    state.frozen.remove(&task);
                    state.current = task;
                    return Some(task);
                }
                None => {
                    state.current = task;
                    return Some(task);
                }
            }
        }
    }

    fn take_orders(&mut self) {
        let (begun, condemned) = {
            let mut state = self.timeline.state.borrow_mut();
            let begun = std::mem::take(&mut state.begun);
            let now = state.now;
            for (task, _) in &begun {
                state.set_alarm(now, *task);
            }
            (begun, std::mem::take(&mut state.condemned))
        };
        self.tasks.extend(begun);
        for task in condemned {
            self.tasks.remove(&task);
        }
    }
}
