//! The jobs of a seed: five tenants, every class, up to eight images, and what is to become of each.

use medfleet_core::{
    Class, Cost, JobId, JobKey, JobRecord, NewJob, PoolName, Stage, TaskKind, TenantId, UnixMillis,
};
use medfleet_proto::v1;

use super::blobs::digest;
use super::stages::study_of;
use super::timeline::{Timeline, after};
use super::{HORIZON, JOBS, POOL};

const TENANTS: [&str; 5] = ["st-mary", "north", "lakeside", "mercy", "valley"];
/// How long a job may take that is in no hurry.
const TIME_TO_LIVE: u64 = 1_200_000;

/// What is to become of a job, faults aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its answer.
    Answered,
    Refused,
    /// Whoever does this stage of it dies, until it is replayed.
    Kills(Stage),
    /// Its answer, or its tenant cancels it before.
    Cancelled,
    /// Its answer, or its time is over before.
    Hurried,
}

/// A job as its client means it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) key: JobKey,
    pub(super) fate: Fate,
    pub(super) class: Class,
    pub(super) images: Vec<Vec<u8>>,
    pub(super) arrives: u64,
    /// How long it may take from its arrival.
    pub(super) time_to_live: u64,
    /// Whether the client sends it twice at once.
    pub(super) is_doubled: bool,
    question: String,
}

impl Asked {
    pub(super) fn task(&self) -> v1::Task {
        v1::Task {
            kind: Some(v1::task::Kind::Answer(v1::AnswerTask {
                question: self.question.clone(),
            })),
        }
    }

    /// The record of the job as it is accepted, at this time by the clock of whoever accepts it.
    pub(super) fn record(&self, pool: &PoolName, now: UnixMillis) -> JobRecord {
        let images = u32::try_from(self.images.len()).unwrap_or(u32::MAX);
        let study = digest(&self.key.tenant, &study_of(self));
        JobRecord::accepted(NewJob {
            pool: pool.clone(),
            class: self.class,
            task: TaskKind::Answer,
            image_count: images,
            body: study,
            study,
            accepted: now,
            expires: after(now, self.time_to_live),
            traceparent: String::new(),
            model: POOL.to_owned(),
            pseudonyms: medfleet_core::Pseudonyms::default(),
            cost: Cost {
                preprocess_millis: 100,
                frames: images,
                encode_millis_per_frame: 150,
                decode_millis_per_frame: 20,
                decode_millis: 800,
            },
        })
    }
}

/// The jobs of a seed, by arrival.
pub(super) fn jobs(timeline: &Timeline) -> Vec<Asked> {
    let mut jobs: Vec<Asked> = (0..JOBS)
        .filter_map(|number| job(timeline, number))
        .collect();
    jobs.sort_by_key(|asked| asked.arrives);
    jobs
}

/// None where a name is no name.
fn job(timeline: &Timeline, number: u64) -> Option<Asked> {
    let pick = |all: u64| timeline.between(0, all - 1);
    let tenant = TENANTS[pick(TENANTS.len() as u64) as usize];
    let fate = match pick(20) {
        0 => Fate::Refused,
        1 => Fate::Kills(Stage::ALL[pick(3) as usize]),
        2..=3 => Fate::Cancelled,
        4 => Fate::Hurried,
        _ => Fate::Answered,
    };
    let images = (0..pick(9)).map(|image| {
        let mut bytes = number.to_le_bytes().to_vec();
        // Some images come again, also at other tenants.
        bytes[0] = if timeline.once_in(8) { 0 } else { bytes[0] };
        bytes.extend(image.to_le_bytes());
        bytes
    });
    let images: Vec<_> = images.collect();
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    Some(Asked {
        key: JobKey::new(TenantId::new(tenant).ok()?, JobId::from_bytes(id)),
        fate,
        class: Class::ALL[pick(4) as usize],
        images,
        arrives: timeline.between(0, HORIZON * 2 / 3),
        time_to_live: match fate {
            Fate::Hurried => timeline.between(500, 6_000),
            _ => TIME_TO_LIVE,
        },
        is_doubled: timeline.once_in(5),
        question: format!("What is seen in study {number}?"),
    })
}
