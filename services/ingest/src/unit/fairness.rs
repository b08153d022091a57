//! A fleet in virtual time around the real index: what one tenant's flood does to another, how soon a patient who waits is
//! served, and how evenly tenants share. Releases, queues and workers as in the fleet, with messages that take no time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

use medfleet_core::{Cost, JobId, TenantId};
use medfleet_queue::Backlog as Counted;

use super::*;

/// Workers by stage: eight.
const WORKERS: [usize; 3] = [2, 2, 4];
const FRAMES_PER_CHUNK: u32 = 3;

/// A film: a third of a second, then six seconds of text.
const FILM: Cost = Cost {
    preprocess_millis: 100,
    frames: 1,
    encode_millis_per_frame: 200,
    decode_millis_per_frame: 20,
    decode_millis: 6_000,
};
/// A CT series.
const CT: Cost = Cost {
    preprocess_millis: 1_700,
    frames: 85,
    ..FILM
};

#[derive(Debug, Clone)]
struct Job {
    tenant: &'static str,
    class: Class,
    cost: Cost,
    arrives: i64,
}

impl Job {
    fn of(tenant: &'static str, cost: Cost, arrives: i64) -> Self {
        Self {
            tenant,
            class: Class::Routine,
            cost,
            arrives,
        }
    }

    fn chunks(&self) -> u32 {
        self.cost.frames.div_ceil(FRAMES_PER_CHUNK)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    /// A unit is done: stage, class, job.
    Done(Stage, Class, usize),
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    /// When each job ended.
    ended: HashMap<usize, i64>,
    /// Longest wait of a unit before its start, by class.
    waited: BTreeMap<Class, i64>,
    /// Time of slots that each tenant's units took of each stage.
    served: BTreeMap<(Stage, &'static str), u64>,
}

struct Fleet<'a> {
    jobs: &'a [Job],
    index: Index,
    events: BinaryHeap<Reverse<(i64, u64, Event)>>,
    serial: u64,
    waiting: BTreeMap<(Stage, Class), VecDeque<Held>>,
    busy: BTreeMap<(Stage, Class), u64>,
    left: HashMap<usize, u32>,
    /// Slots of decode for STAT alone, and the jobs in them.
    stat_slots: u64,
    apart: HashSet<usize>,
    outcome: Outcome,
}

fn pool() -> PoolName {
    PoolName::new("p").expect("a pool")
}

fn index_of(held: &Held) -> usize {
    let digits = held.unit.key.job.as_str();
    usize::try_from(u128::from_str_radix(digits, 16).expect("hexadecimal")).expect("small")
}

impl<'a> Fleet<'a> {
    fn new(jobs: &'a [Job]) -> Self {
        let mut index = Index::new(Rules {
            weights: Weights::new(),
            ahead_millis: 2_000,
            released_units_max: 1_024,
            age_millis: 600_000,
            aged_every: 8,
            decode_reserved: Default::default(),
            in_flight_max: Default::default(),
        });
        for stage in Stage::ALL {
            index.set_slots(&(*stage, pool()), WORKERS[*stage as usize] as u64);
        }
        Self {
            jobs,
            index,
            events: BinaryHeap::new(),
            serial: 0,
            waiting: BTreeMap::new(),
            busy: BTreeMap::new(),
            left: HashMap::new(),
            stat_slots: 0,
            apart: HashSet::new(),
            outcome: Outcome::default(),
        }
    }

    /// With so many slots of decode for STAT alone, beside the others.
    fn with_stat_slots(mut self, slots: u64) -> Self {
        self.index.set_stat_slots(&(Stage::Decode, pool()), slots);
        self.stat_slots = slots;
        self
    }

    fn at(&mut self, time: i64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((time, self.serial, event)));
    }

    /// Runs until `end`, or until everything is done.
    fn run(mut self, end: i64) -> Outcome {
        for job in 0..self.jobs.len() {
            self.at(self.jobs[job].arrives, Event::Arrives(job));
        }
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > end {
                break;
            }
            match event {
                Event::Arrives(job) => self.wait(job, Stage::Preprocess, 0, now),
                Event::Done(stage, class, job) => self.done(stage, class, job, now),
            }
            self.release(now);
        }
        self.outcome
    }

    fn wait(&mut self, job: usize, stage: Stage, unit: u32, now: i64) {
        let of = &self.jobs[job];
        let cost = match stage {
            Stage::Encode => of.cost.of_chunk(unit, of.chunks()),
            Stage::Preprocess | Stage::Decode => of.cost,
        };
        let unit = WorkUnit {
            key: JobKey::new(
                TenantId::new(of.tenant).expect("a name"),
                JobId::from_bytes((job as u128).to_be_bytes()),
            ),
            stage,
            pool: pool(),
            class: of.class,
            unit,
            epoch: 0,
            expires: UnixMillis(of.arrives + 86_400_000),
            cost,
        };
        self.serial += 1;
        self.index.insert(Held {
            unit,
            sequence: self.serial,
            headers: Vec::new(),
            stored_at: UnixMillis(now),
        });
    }

    fn done(&mut self, stage: Stage, class: Class, job: usize, now: i64) {
        *self.busy.entry((stage, class)).or_default() -= 1;
        if stage == Stage::Decode {
            self.apart.remove(&job);
        }
        match stage {
            Stage::Preprocess => {
                let chunks = self.jobs[job].chunks();
                self.left.insert(job, chunks);
                (0..chunks).for_each(|chunk| self.wait(job, Stage::Encode, chunk, now));
            }
            Stage::Encode => {
                let left = self.left.get_mut(&job).expect("it was preprocessed");
                *left -= 1;
                if *left == 0 {
                    self.wait(job, Stage::Decode, 0, now);
                }
            }
            Stage::Decode => {
                self.outcome.ended.insert(job, now);
            }
        }
    }

    fn release(&mut self, now: i64) {
        for stage in Stage::ALL {
            let count = |class| Counted {
                waiting: self
                    .waiting
                    .get(&(*stage, class))
                    .map_or(0, |queue| queue.len() as u64),
                in_flight: self.busy.get(&(*stage, class)).copied().unwrap_or(0),
            };
            let outstanding = Outstanding {
                stat: count(Class::Stat),
                urgent: count(Class::Urgent),
                routine: count(Class::Routine),
                bulk: count(Class::Bulk),
            };
            self.index.recount(&(*stage, pool()), &outstanding);
        }
        for held in self.index.take(usize::MAX, UnixMillis(now)) {
            let queue = self
                .waiting
                .entry((held.unit.stage, held.unit.class))
                .or_default();
            queue.push_back(held);
        }
        for stage in Stage::ALL {
            for class in Class::ALL {
                while self.is_taken(*stage, *class)
                    && let Some(held) = self
                        .waiting
                        .get_mut(&(*stage, *class))
                        .and_then(VecDeque::pop_front)
                {
                    self.start(held, now);
                }
            }
        }
    }

    /// Whether a worker takes a unit of a class now.
    fn is_taken(&self, stage: Stage, class: Class) -> bool {
        let has_stat_slot = (stage, class) == (Stage::Decode, Class::Stat)
            && (self.apart.len() as u64) < self.stat_slots;
        self.has_slot(stage) || has_stat_slot
    }

    /// Whether a slot for all classes is free.
    fn has_slot(&self, stage: Stage) -> bool {
        let of_stage = self.busy.iter().filter(|((at, _), _)| *at == stage);
        let busy: u64 = of_stage.map(|(_, busy)| *busy).sum();
        let apart = match stage {
            Stage::Decode => self.apart.len() as u64,
            Stage::Preprocess | Stage::Encode => 0,
        };
        busy - apart < WORKERS[stage as usize] as u64
    }

    fn start(&mut self, held: Held, now: i64) {
        let (stage, class, job) = (held.unit.stage, held.unit.class, index_of(&held));
        if !self.has_slot(stage) {
            self.apart.insert(job);
        }
        let millis = held.unit.cost.at(stage);
        let waited = self.outcome.waited.entry(class).or_default();
        *waited = (*waited).max(now - held.stored_at.0);
        *self
            .outcome
            .served
            .entry((stage, self.jobs[job].tenant))
            .or_default() += millis;
        *self.busy.entry((stage, class)).or_default() += 1;
        let end = now + i64::try_from(millis).expect("small");
        self.at(end, Event::Done(stage, class, job));
    }
}

/// Films now and then, at uneven times.
fn films(tenant: &'static str, count: i64) -> Vec<Job> {
    (0..count)
        .map(|film| Job::of(tenant, FILM, film * 20_000 + film * film * 977 % 15_000))
        .collect()
}

fn median_turnaround(jobs: &[Job], tenant: &str, outcome: &Outcome) -> i64 {
    let of = jobs
        .iter()
        .enumerate()
        .filter(|(_, job)| job.tenant == tenant);
    let mut all: Vec<i64> = of
        .map(|(index, job)| outcome.ended[&index] - job.arrives)
        .collect();
    all.sort_unstable();
    all[all.len() / 2]
}

/// Median turnaround of 200 films alone and beside a flood that lasts as long as they come.
fn beside_flood(what: &str, flood: Cost, count: usize) -> (i64, i64) {
    let alone = films("film", 200);
    let without = median_turnaround(&alone, "film", &Fleet::new(&alone).run(i64::MAX));
    let mut jobs = alone;
    jobs.extend((0..count).map(|_| Job::of("flood", flood, 0)));
    let outcome = Fleet::new(&jobs).run(i64::MAX);
    let latest = outcome
        .ended
        .iter()
        .filter(|(job, _)| jobs[**job].tenant == "flood")
        .map(|(_, at)| *at)
        .max();
    assert!(
        latest > Some(200 * 20_000),
        "{what}: the flood lasts as long as the films come"
    );
    let with = median_turnaround(&jobs, "film", &outcome);
    println!("{what}: median turnaround of 200 films {without} ms alone, {with} ms beside it");
    (without, with)
}

fn check_flood(what: &str, flood: Cost, count: usize) {
    let (without, with) = beside_flood(what, flood, count);
    assert!(
        with * 2 <= without * 3,
        "{what}: {with} ms, {without} alone"
    );
}

#[test]
fn a_flood_of_ct_series_hardly_slows_a_neighbours_films() {
    check_flood("CT series, encoders the bottleneck", CT, 600);
}

#[test]
fn nor_does_a_flood_of_films() {
    check_flood("films, decoders the bottleneck", FILM, 2_800);
}

/// Nobody interrupts a text that is being written: beside texts twice as long a film waits up to one of them for a slot, and
/// no order of release can change that.
#[test]
fn beside_longer_texts_a_film_waits_for_one_of_them_at_most() {
    let long = Cost {
        decode_millis: 12_000,
        ..FILM
    };
    let (without, with) = beside_flood("texts of 12 s, decoders the bottleneck", long, 1_800);
    let one = i64::try_from(long.at(Stage::Decode)).expect("small");
    assert!(with <= without + one, "{with} ms, {without} alone");
}

#[test]
fn a_patient_who_waits_starts_within_one_unit() {
    let mut jobs: Vec<Job> = (0..600).map(|_| Job::of("flood", CT, 0)).collect();
    jobs.extend(films("film", 100).into_iter().map(|job| Job {
        class: Class::Stat,
        ..job
    }));
    jobs.extend((0..300).map(|job| Job {
        class: Class::Bulk,
        ..Job::of("research", FILM, job * 1_000)
    }));
    let outcome = Fleet::new(&jobs).run(i64::MAX);
    let longest = Stage::ALL.iter().map(|stage| match stage {
        Stage::Encode => CT
            .of_chunk(0, jobs[0].chunks())
            .at(*stage)
            .max(u64::from(FRAMES_PER_CHUNK) * 200),
        stage => CT.at(*stage),
    });
    let longest = longest.max().expect("there are stages");
    let waited = outcome.waited[&Class::Stat];
    println!("STAT units waited {waited} ms at most; the longest unit takes {longest} ms");
    assert!(waited <= i64::try_from(longest).expect("small"));
    assert_eq!(outcome.ended.len(), jobs.len(), "nothing starves");
}

/// Two come while every slot has a text of minutes, and such a slot becomes free while they are written.
#[test]
fn patients_who_wait_have_the_slots_that_are_theirs_and_take_no_others() {
    let long = Cost {
        decode_millis: 600_000,
        ..FILM
    };
    let flood: Vec<Job> = (0..40).map(|_| Job::of("flood", long, 0)).collect();
    let mut jobs = flood.clone();
    let stat = Job {
        class: Class::Stat,
        ..Job::of("film", FILM, 598_000)
    };
    jobs.extend([stat.clone(), stat]);
    let end = |outcome: &Outcome| (0..flood.len()).map(|job| outcome.ended[&job]).max();
    let without = Fleet::new(&flood).run(i64::MAX);
    let with = Fleet::new(&jobs).with_stat_slots(2).run(i64::MAX);
    let waited = with.waited[&Class::Stat];
    assert!(waited < 1_000, "{waited} ms");
    assert_eq!(end(&with), end(&without));
}

/// Jain's index over the slot time that each tenant got of a stage in ten minutes in which all of them had enough to do there.
fn check_jain(stage: Stage, costs: [Cost; 4]) {
    let tenants = ["a", "b", "c", "d"];
    let mut jobs = Vec::new();
    for (tenant, cost) in tenants.into_iter().zip(costs) {
        let enough = 4 * 600_000 / cost.at(stage);
        jobs.extend((0..enough).map(|_| Job::of(tenant, cost, 0)));
    }
    let outcome = Fleet::new(&jobs).run(600_000);
    let shares = tenants.map(|tenant| outcome.served[&(stage, tenant)] as f64);
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    let jain = sum * sum / (shares.len() as f64 * squares);
    println!("{stage}: Jain's index {jain:.4} over {shares:?} ms of slots");
    assert!(jain >= 0.95, "{stage}: {jain} over {shares:?}");
}

#[test]
fn tenants_of_equal_weight_share_evenly_whatever_their_jobs_cost() {
    let text = |frames, decode_millis| Cost {
        frames,
        decode_millis,
        ..FILM
    };
    check_jain(
        Stage::Decode,
        [
            text(1, 12_000),
            text(1, 6_000),
            text(1, 1_000),
            text(5, 3_000),
        ],
    );
    check_jain(
        Stage::Encode,
        [text(85, 300), text(30, 300), text(10, 300), text(5, 300)],
    );
}
