//! Records and units for the unit tests of this crate.

use medfleet_core::{
    Class, Cost, Digest, JobId, JobKey, JobRecord, NewJob, PoolName, Pseudonyms, Stage, TaskKind,
    TenantId, UnixMillis, WorkUnit,
};

pub(crate) fn key() -> JobKey {
    JobKey::new(
        TenantId::new("st-mary").expect("a name"),
        JobId::from_bytes([0xab; 16]),
    )
}

pub(crate) fn unit(stage: Stage, unit: u32) -> WorkUnit {
    WorkUnit {
        key: key(),
        stage,
        pool: PoolName::new("tiny-here").expect("a name"),
        class: Class::Routine,
        unit,
        epoch: 0,
        expires: UnixMillis(90_000),
        cost: cost(),
    }
}

pub(crate) fn cost() -> Cost {
    Cost {
        preprocess_millis: 100,
        frames: 7,
        encode_millis_per_frame: 200,
        decode_millis_per_frame: 50,
        decode_millis: 3_000,
    }
}

pub(crate) fn record() -> JobRecord {
    JobRecord::accepted(NewJob {
        pool: PoolName::new("tiny-here").expect("a name"),
        class: Class::Routine,
        task: TaskKind::Report,
        image_count: 1,
        body: Digest::new([1; 32]),
        study: Digest::new([2; 32]),
        pseudonyms: Pseudonyms::default(),
        accepted: UnixMillis(1_000),
        expires: UnixMillis(90_000),
        traceparent: format!("00-{}-{}-01", "4b".repeat(16), "ca".repeat(8)),
        model: "tiny".to_owned(),
        cost: cost(),
    })
}
