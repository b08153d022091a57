//! The loop on the model's thread: continuous batching. Every turn is one forward pass: the next token of every text that
//! is written, and up to a limit of tokens of the prompts that are read, so that a newcomer delays the running texts by
//! one stretch at most. An image is never cut. Where it pays, tokens that are proposed are verified in the same pass.
//!
//! A request begins when its prompt finds room beside the others, in order of class and within one of arrival; in this
//! order prompts are read as well. When memory runs out on the way, the last gives its own to those before it, keeps what it
//! wrote, and waits: it is read again later and goes on where it was. The first never gives way, so something always ends.
//! For one of STAT that finds no room, those of lower classes give way at once, unless it would find none all the same. Who
//! was passed by a number of later ones counts as one of STAT from then on ([`turns`](crate::turns)), so that nobody waits
//! without end.
//!
//! Beside an encoder on the same device texts may wait for company ([`company`](super::company)).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use medfleet_core::Class;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::beside::Beside;
use super::company::Text;
use super::fit::{fit, has_room};
use super::load::Gauges;
use super::stretch::Stretches;
use super::taken::Taken;
use super::{DecodeEvent, DecodeLimits, DecodeRequest, Done};
use crate::backend::{DecodeBackend, EngineError, Finish, Outcome, Sequence, Step, Work};
use crate::health::{Call, Reporter, Suspect};
use crate::speculation::pace::{Pace, Pass, Took};
use crate::speculation::{PROPOSED_TOKENS_MAX, Proposed};

mod lost;

use lost::refuse_all;

/// Where the events of a decode go.
pub(super) type Events = mpsc::Sender<Result<DecodeEvent, EngineError>>;

/// A request on its way to the thread.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) request: DecodeRequest,
    pub(super) events: Events,
    pub(super) suspect: Suspect,
    pub(super) admitted: oneshot::Sender<Result<(), EngineError>>,
}

pub(super) struct Scheduler {
    backend: Box<dyn DecodeBackend>,
    limits: DecodeLimits,
    reporter: Reporter,
    /// Without memory, by their places.
    waiting: VecDeque<Taken>,
    /// With memory, by their places.
    active: Vec<Taken>,
    next_sequence: u64,
    load: Arc<Gauges>,
    /// Where tokens are proposed.
    pace: Option<Pace>,
    stretches: Stretches,
    /// Where an encoder computes on the same device.
    beside: Option<Beside>,
}

/// What a turn does.
enum Turn {
    /// A pass, and what was proposed for it, where that was done.
    Pass(Vec<Work>, Option<Tried>),
    /// Nothing until then, or until something changes.
    Wait(Instant),
}

/// What was proposed for a pass: for each of its sequences, and how long that took.
struct Tried {
    proposed: Vec<Vec<Proposed>>,
    time: Duration,
}

/// The model panicked, its device computes no more, or it makes no numbers: the thread must end.
struct Panicked;

impl Scheduler {
    pub(super) fn new(
        backend: Box<dyn DecodeBackend>,
        limits: DecodeLimits,
        reporter: Reporter,
        load: Arc<Gauges>,
        beside: Option<Beside>,
    ) -> Self {
        let scheduler = Self {
            backend,
            limits,
            reporter,
            waiting: VecDeque::new(),
            active: Vec::new(),
            next_sequence: 0,
            load,
            pace: limits.speculation.map(|of| Pace::new(of.always)),
            stretches: Stretches::new(limits.prefill_tokens_max, limits.prefill_measured),
            beside,
        };
        scheduler.show_load();
        scheduler
    }

    fn show_load(&self) {
        self.load.set_queue(self.waiting.len(), self.active.len());
        let kv = self.backend.kv();
        let used = kv.blocks.saturating_sub(kv.available);
        self.load.set_kv(used, kv.blocks, kv.block_bytes);
    }

    /// Serves until every handle is gone and every sequence has ended, or until the model breaks.
    pub(super) fn serve(mut self, mut requests: mpsc::Receiver<Request>) {
        if self.serve_all(&mut requests).is_err() {
            refuse_all(requests);
        }
    }

    fn serve_all(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Panicked> {
        let mut open = true;
        loop {
            if open && self.active.is_empty() && self.waiting.is_empty() {
                match requests.blocking_recv() {
                    Some(request) => self.look_at(request)?,
                    None => open = false,
                }
            }
            if let Some(beside) = &mut self.beside {
                beside.look();
            }
            while open && self.waiting.len() < self.limits.queue_max.max(1) {
                match requests.try_recv() {
                    Ok(request) => self.look_at(request)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            if !open && self.active.is_empty() && self.waiting.is_empty() {
                return Ok(());
            }
            self.turn()?;
        }
    }

    /// Refuses what can never fit; queues the rest. One whose caller is gone is not begun: preparing its prompt and its form would
    /// hold up the others.
    fn look_at(&mut self, request: Request) -> Result<(), Panicked> {
        let Request {
            request,
            events,
            suspect,
            admitted,
        } = request;
        if let Some(beside) = &self.beside {
            beside.arrived();
        }
        if events.is_closed() {
            return Ok(());
        }
        self.suspect(|_| false);
        suspect.set(true);
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        let backend = self.backend.as_mut();
        let opened = self.reporter.guard(Call::PREPARE, || {
            request.decoding.check()?;
            backend.open(sequence, &request)
        });
        let panicked = matches!(opened, Err(EngineError::Panicked));
        let answer = opened.and_then(|size| {
            if let Err(error) = fit(self.backend.as_ref(), size, request.decoding.max_tokens) {
                self.backend.release(sequence);
                return Err(error);
            }
            let (haste, decoding) = (request.haste, request.decoding);
            self.queue(Taken {
                suspect,
                ..Taken::new(sequence, events, size, haste, decoding)
            });
            Ok(())
        });
        // A caller that is gone meanwhile has also dropped its stream: the next look at cancellations finds it.
        let _ = admitted.send(answer);
        if panicked {
            Err(self.fail_all(|_| false))
        } else {
            Ok(())
        }
    }

    /// One forward pass, and what leads up to it; or a wait for company.
    fn turn(&mut self) -> Result<(), Panicked> {
        self.drop_cancelled();
        // What it is at will not be known.
        self.suspect(|_| true);
        let begun = {
            let _under_way = self.reporter.begin(Call::PREPARE);
            let mut this = std::panic::AssertUnwindSafe(&mut *self);
            std::panic::catch_unwind(move || {
                this.begin();
                if let Some(until) = this.waits() {
                    return Turn::Wait(until);
                }
                let mut works = this.plan();
                let tried = this.propose(&mut works);
                Turn::Pass(works, tried)
            })
        };
        let Ok(begun) = begun else {
            self.reporter.failed();
            return Err(self.fail_all(|_| true));
        };
        self.show_load();
        let (works, tried) = match begun {
            Turn::Wait(until) => {
                self.wait(until);
                return Ok(());
            }
            Turn::Pass(works, tried) => (works, tried),
        };
        if works.is_empty() {
            return Ok(());
        }
        let (outcome, pass) = self.pass(&works);
        match outcome {
            Ok(outcomes) => {
                let proposing = tried.as_ref().map(|tried| tried.time);
                self.measure(&works, &outcomes, proposing, pass);
                self.measure_reading(&works, &outcomes, pass);
                let proposed = tried.into_iter().flat_map(|tried| tried.proposed);
                self.take_pass(&works, proposed, outcomes)
            }
            Err(error) => self.lose(&works, error),
        }
    }

    /// Takes in what a pass made, for which this was proposed.
    fn take_pass(
        &mut self,
        works: &[Work],
        mut proposed: impl Iterator<Item = Vec<Proposed>>,
        mut outcomes: Vec<Outcome>,
    ) -> Result<(), Panicked> {
        let ends = self.judge_numbers(&mut outcomes);
        for (work, outcome) in works.iter().zip(outcomes) {
            self.take_all(*work, &proposed.next().unwrap_or_default(), outcome);
        }
        if ends {
            Err(self.fail_all(|_| false))
        } else {
            Ok(())
        }
    }

    /// Until when all texts wait for one whose images are being encoded, if they do.
    fn waits(&self) -> Option<Instant> {
        let beside = self.beside.as_ref()?;
        // Who waits for memory is company already, and whoever came would have to wait as well.
        if !self.waiting.is_empty() {
            return None;
        }
        let texts: Vec<Text> = self.active.iter().map(Taken::text).collect();
        beside.waits(&texts, self.limits.sequences_max)
    }

    fn wait(&mut self, until: Instant) {
        let Some(beside) = &self.beside else {
            return;
        };
        let begun = Instant::now();
        self.load.set_held(self.active.len());
        beside.wait(until);
        self.load.set_held(0);
        let waited = begun.elapsed();
        for taken in &mut self.active {
            taken.waited += waited;
        }
    }

    /// Has the model do a pass; says how long it took.
    fn pass(&mut self, works: &[Work]) -> (Result<Vec<Outcome>, EngineError>, Duration) {
        self.suspect(|sequence| works.iter().any(|work| work.sequence == sequence));
        let mark = self.beside.as_ref().map(Beside::begin_pass);
        let begun = Instant::now();
        let backend = self.backend.as_mut();
        let rows = works
            .iter()
            .map(|work| work.tokens as usize + work.proposed as usize);
        let rows: usize = rows.sum();
        let call = Call::compute(rows);
        let outcome = self.reporter.guard(call, || {
            let steps = backend.run(works)?;
            // Whose steps these are, nobody knows, and they cannot be computed again.
            assert_eq!(steps.len(), works.len(), "a step for each sequence");
            Ok(steps)
        });
        let pass = begun.elapsed();
        self.load.passed(works.len(), rows, pass);
        if let (Some(beside), Some(mark)) = (&mut self.beside, mark) {
            let writes = |work: &Work| work.tokens == 1 && work.proposed == 0;
            let only_writes = outcome.is_ok() && works.iter().all(writes);
            beside.end_pass(mark, only_writes.then_some(works.len()));
        }
        (outcome, pass)
    }

    fn drop_cancelled(&mut self) {
        let backend = &mut self.backend;
        let mut keep = |taken: &Taken| {
            let wanted = !taken.events.is_closed();
            if !wanted {
                backend.release(taken.sequence);
            }
            wanted
        };
        self.waiting.retain(&mut keep);
        self.active.retain(&mut keep);
    }

    fn queue(&mut self, taken: Taken) {
        let place = taken.place();
        let at = self.waiting.partition_point(|other| other.place() < place);
        self.waiting.insert(at, taken);
    }

    /// Lets the first of the waiting begin, as long as their prompts find room beside what the active ones still need. For
    /// one of STAT, those of lower classes give way until there is room; where all of them would not be enough, none does.
    fn begin(&mut self) {
        let is_stat = |taken: &Taken| taken.place().0 == Class::Stat;
        while let Some(next) = self.waiting.front() {
            let room = |stay| {
                let most = self.limits.sequences_max;
                has_room(self.backend.as_ref(), next, &self.active, stay, most)
            };
            if room(self.active.len()) {
                if let Some(next) = self.waiting.pop_front() {
                    self.activate(next);
                }
            } else if is_stat(next) && room(self.active.partition_point(is_stat)) {
                self.last_gives_way();
            } else {
                return;
            }
        }
    }

    fn activate(&mut self, mut next: Taken) {
        let known = self.backend.begin(next.sequence);
        if next.preemptions == 0 {
            next.prefix_tokens = known;
        }
        for other in &mut self.waiting {
            other.passed_by(next.sequence);
        }
        self.waiting.make_contiguous().sort_by_key(Taken::place);
        let place = next.place();
        let at = self.active.partition_point(|other| other.place() < place);
        self.active.insert(at, next);
    }

    /// The last of the active ones waits again, without memory.
    fn last_gives_way(&mut self) {
        if let Some(mut last) = self.active.pop() {
            self.backend.suspend(last.sequence);
            last.preemptions += 1;
            self.queue(last);
        }
    }

    /// What each active sequence does in the next pass, with the memory for it.
    fn plan(&mut self) -> Vec<Work> {
        let mut works = Vec::with_capacity(self.active.len());
        let mut prefill = self.stretches.tokens_max();
        let mut index = 0;
        while let Some(taken) = self.active.get(index) {
            let sequence = taken.sequence;
            let reads = self.backend.left(sequence) > 1;
            if reads && prefill == 0 {
                index += 1;
                continue;
            }
            let tokens = self
                .backend
                .stretch(sequence, if reads { prefill } else { 1 });
            if self.backend.reserve(sequence, tokens) {
                if reads {
                    prefill = prefill.saturating_sub(tokens);
                }
                works.push(Work {
                    sequence,
                    tokens,
                    proposed: 0,
                });
                index += 1;
            } else if self.active.len() == 1 {
                // What was taken on fits alone: this is a defect, and it must not become a loop.
                let lost = "a request that fits finds no memory though it is alone";
                self.fail(sequence, EngineError::Model(lost.into()));
            } else {
                self.last_gives_way();
            }
        }
        works
    }

    /// Adds what is proposed for the texts that are written, as many tokens as pay and as find memory that nobody needs in
    /// this pass. Says what it was, where it was done.
    fn propose(&mut self, works: &mut [Work]) -> Option<Tried> {
        let (pace, speculation) = (self.pace.as_mut()?, self.limits.speculation?);
        let backend = self.backend.as_mut();
        let whole = |work: &&Work| backend.left(work.sequence) == work.tokens;
        let pass = Pass {
            rows: works.iter().map(|work| work.tokens as usize).sum(),
            texts: works.iter().filter(whole).count(),
        };
        if !pace.proposes(pass) {
            return None;
        }
        let begun = Instant::now();
        let most = speculation.tokens_max.min(PROPOSED_TOKENS_MAX);
        let writes = |work: &&Work| work.tokens == 1 && backend.left(work.sequence) == 1;
        let texts = works.iter().filter(writes).map(|work| work.sequence);
        let texts: Vec<Sequence> = texts.collect();
        let chance = backend.draft_chance(&texts);
        let drafts = chance.map_or(0, |chance| {
            pace.drafts(pass, texts.len(), chance, most as usize)
        });
        let proposing = backend.propose(&texts, most, u32::try_from(drafts).unwrap_or(most));
        pace.drafted(&proposing.steps);
        let mut of_texts = texts.into_iter().zip(proposing.texts).peekable();
        let of_works = works.iter().map(|work| {
            let of_work = of_texts.next_if(|(sequence, _)| *sequence == work.sequence);
            of_work.map_or_else(Vec::new, |(_, proposed)| proposed)
        });
        let proposed: Vec<Vec<Proposed>> = of_works.collect();
        let chances = proposed
            .iter()
            .map(|of_work| of_work.iter().map(|proposed| proposed.chance).collect());
        let chances: Vec<Vec<f32>> = chances.collect();
        let counts = pace.choose(pass, &chances, begun.elapsed());
        for (work, count) in works.iter_mut().zip(counts) {
            let count = u32::try_from(count).unwrap_or(0);
            if count > 0 && backend.reserve(work.sequence, work.tokens + count) {
                work.proposed = count;
            }
        }
        Some(Tried {
            proposed,
            time: begun.elapsed(),
        })
    }

    /// Notes what a pass took in which no prompt was read.
    fn measure(
        &mut self,
        works: &[Work],
        outcomes: &[Outcome],
        proposing: Option<Duration>,
        pass: Duration,
    ) {
        if let Some(pace) = &mut self.pace
            && works.iter().all(|work| work.tokens == 1)
        {
            pace.took(&Took {
                texts: works.len(),
                verified: works.iter().map(|work| work.proposed as usize).sum(),
                tokens: outcomes.iter().map(Vec::len).sum(),
                proposing,
                pass,
            });
        }
    }

    /// Notes what a pass took in which a prompt was read.
    fn measure_reading(&mut self, works: &[Work], outcomes: &[Outcome], pass: Duration) {
        match (works, outcomes) {
            ([work], [outcome]) if work.tokens > 1 => {
                let ended = !outcome.is_empty();
                if let Some(tokens_max) = self.stretches.read(work.tokens, ended, pass) {
                    tracing::info!(tokens_max, "the length of prompts' stretches was measured");
                }
            }
            _ if works.iter().any(|work| work.tokens > 1) => self.stretches.shared(),
            _ => {}
        }
    }

    fn index(&self, sequence: Sequence) -> Option<usize> {
        self.active
            .iter()
            .position(|taken| taken.sequence == sequence)
    }

    /// Takes in what a pass made of one sequence, for which this was proposed.
    fn take_all(&mut self, work: Work, proposed: &[Proposed], outcome: Outcome) {
        let verified = proposed.get(..work.proposed as usize).unwrap_or_default();
        let accepted = outcome.len().saturating_sub(1);
        self.load.verified(verified, accepted);
        for step in outcome {
            match step {
                Ok(step) => self.take(work.sequence, step),
                Err(error) => self.fail(work.sequence, error),
            }
        }
    }

    /// Takes in one step of one sequence, unless it has ended already, by a stop string before it; ends the sequence on its last.
    fn take(&mut self, sequence: Sequence, step: Step) {
        let Some(index) = self.index(sequence) else {
            return;
        };
        let active = &mut self.active[index];
        let first_token = *active.first_token.get_or_insert_with(Instant::now);
        active.count(&step);
        let passed = active.filter.push(&step.text);
        active.show(passed.text);
        let finish = match step.finish {
            _ if passed.stopped => {
                active.cut();
                Finish::Stop
            }
            None => return,
            Some(Ok(finish)) => {
                let rest = active.filter.finish();
                active.show(rest);
                finish
            }
            Some(Err(error)) => {
                self.fail(sequence, error.into());
                return;
            }
        };
        if let Some(beside) = &mut self.beside {
            beside.ended(active.steps);
        }
        let done = Done {
            finish,
            tokens: std::mem::take(&mut active.tokens),
            alternatives: std::mem::take(&mut active.alternatives),
            prompt: active.size,
            time_to_first_token: first_token - active.arrived,
            decode: first_token.elapsed(),
            steps: u32::try_from(active.steps).unwrap_or(u32::MAX),
            prefix_tokens: active.prefix_tokens,
            preemptions: active.preemptions,
        };
        // A reader that is gone wants no result.
        let _ = active.events.try_send(Ok(DecodeEvent::Done(done)));
        self.end(index);
    }

    fn fail(&mut self, sequence: Sequence, error: EngineError) {
        if let Some(index) = self.index(sequence) {
            // A reader that is gone wants no error.
            let _ = self.active[index].events.try_send(Err(error));
            self.end(index);
        }
    }

    fn end(&mut self, index: usize) {
        let ended = self.active.remove(index);
        self.backend.release(ended.sequence);
        self.show_load();
    }
}
