//! Pure decisions: how frames are divided into chunks, and what follows a preprocessed job.

use medfleet_core::{CHUNKS_MAX, JobRecord, Stage, WorkUnit};

/// First frame of each chunk: chunks of `per_chunk` frames, or of more where there would be too many chunks.
pub(crate) fn chunk_starts(frames: u32, per_chunk: u32) -> Vec<u32> {
    let per_chunk = per_chunk.max(frames.div_ceil(CHUNKS_MAX)).max(1);
    (0..frames).step_by(per_chunk as usize).collect()
}

/// The frames of a study: inputs in their order, a volume where its first slice came in the request.
pub(crate) fn in_order<T>(ready: Vec<(usize, Vec<T>)>, volume: Vec<(usize, T)>) -> Vec<T> {
    let start = volume.iter().map(|(index, _)| *index).min();
    let (mut out, mut volume) = (Vec::new(), Some(volume));
    let mut put = |out: &mut Vec<T>| {
        out.extend(volume.take().into_iter().flatten().map(|(_, frame)| frame));
    };
    for (index, frames) in ready {
        if start.is_some_and(|start| start < index) {
            put(&mut out);
        }
        out.extend(frames);
    }
    put(&mut out);
    out
}

/// The units that follow, each to wait for its turn with what it is expected to take: every chunk that is not encoded yet,
/// or the decode when nothing is to be encoded any more.
pub(crate) fn next(unit: &WorkUnit, record: &JobRecord) -> Vec<WorkUnit> {
    if record.frames.is_none() {
        return Vec::new();
    }
    if record.chunks.all_done() {
        return vec![unit.at(Stage::Decode, 0, record.cost)];
    }
    let open = (0..record.chunks.total).filter(|chunk| !record.chunks.is_done(*chunk));
    open.map(|chunk| {
        let cost = record.cost.of_chunk(chunk, record.chunks.total);
        unit.at(Stage::Encode, chunk, cost)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use medfleet_core::{
        Chunks, Class, Cost, Digest, JobId, JobKey, JobState, PoolName, Starts, TaskKind, TenantId,
        Times, UnixMillis,
    };

    use super::*;

    #[test]
    fn chunks_are_as_small_as_asked_and_never_too_many() {
        let check = |frames, per_chunk, expected: &[u32]| {
            assert_eq!(
                chunk_starts(frames, per_chunk),
                expected,
                "{frames} {per_chunk}"
            );
        };
        check(0, 1, &[]);
        check(1, 1, &[0]);
        check(3, 1, &[0, 1, 2]);
        check(5, 2, &[0, 2, 4]);
        check(5, 0, &[0, 1, 2, 3, 4]);
        assert_eq!(chunk_starts(32, 1).len(), 32);
        assert_eq!(chunk_starts(33, 1).len(), 17);
        assert_eq!(chunk_starts(1_000, 1).len(), 32);
    }

    #[test]
    fn a_volume_stands_where_its_first_slice_came() {
        let ready = || vec![(0, vec!["a"]), (3, vec!["b", "c"])];
        assert_eq!(in_order(ready(), vec![]), ["a", "b", "c"]);
        let volume = vec![(4, "2"), (2, "1"), (1, "0")];
        assert_eq!(in_order(ready(), volume), ["a", "2", "1", "0", "b", "c"]);
        assert_eq!(in_order(ready(), vec![(5, "z")]), ["a", "b", "c", "z"]);
        assert_eq!(in_order(vec![], vec![(1, "y"), (0, "x")]), ["y", "x"]);
    }

    fn check_next(chunks: Chunks, expected: &[(Stage, u32)]) {
        let pool = PoolName::new("tiny").expect("a good name");
        let tenant = TenantId::new("st-mary").expect("a good name");
        let unit = WorkUnit {
            key: JobKey {
                tenant,
                job: JobId::from_bytes([1; 16]),
            },
            stage: Stage::Preprocess,
            pool: pool.clone(),
            class: Class::Stat,
            unit: 0,
            epoch: 0,
            expires: UnixMillis(9),
            cost: Cost::default(),
        };
        let record = JobRecord {
            state: JobState::Preprocessed,
            epoch: 0,
            attempt: 0,
            starts: Starts::default(),
            chunks,
            pool,
            class: Class::Stat,
            class_asked: Class::Stat,
            task: TaskKind::Answer,
            image_count: chunks.total,
            body: Digest::new([1; 32]),
            study: Digest::new([2; 32]),
            frames: Some(Digest::new([3; 32])),
            result: None,
            failure: None,
            times: Times::default(),
            expires: UnixMillis(9),
            traceparent: String::new(),
            model: String::new(),
            cost: Cost::default(),
        };
        let found: Vec<(Stage, u32)> = next(&unit, &record)
            .into_iter()
            .map(|unit| (unit.stage, unit.unit))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn open_chunks_are_queued_again_and_a_job_without_images_goes_on() {
        check_next(
            Chunks {
                total: 0,
                done_bitmap: 0,
            },
            &[(Stage::Decode, 0)],
        );
        let both = [(Stage::Encode, 0), (Stage::Encode, 1)];
        check_next(
            Chunks {
                total: 2,
                done_bitmap: 0,
            },
            &both,
        );
        check_next(
            Chunks {
                total: 2,
                done_bitmap: 0b01,
            },
            &[(Stage::Encode, 1)],
        );
        check_next(
            Chunks {
                total: 2,
                done_bitmap: 0b11,
            },
            &[(Stage::Decode, 0)],
        );
    }
}
