//! What the queue has to write for a load: messages and record changes a second, by stream, counted from the protocol.
//! Order of a job with c chunks that nothing disturbs: accept; release, start and outcome of preprocess; release, start and
//! outcome of each chunk; start and outcome of decode. Acknowledgements and removals are writes as well.

use crate::load::Load;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamLoad {
    /// Its name on the server; of the records, which may have several, that of all of them.
    pub stream: &'static str,
    pub writes_per_job: f64,
    pub writes_per_second: f64,
    /// How many of it are needed when one takes so many writes a second as was said: of the records that is
    /// `queue.record_shards`, of the others there is one.
    pub shards: u32,
}

/// The load of each stream, the busiest first, when one stream takes `stream_writes_per_second`.
pub fn streams(load: &Load, stream_writes_per_second: f64) -> Vec<StreamLoad> {
    let chunks = load.chunks_moment(1);
    let per_job = [
        // Created; start and outcome of preprocess, of each chunk, of decode.
        ("KV_JOBS_*", 5.0 + 2.0 * chunks),
        // One with each of those.
        ("EVENTS", 5.0 + 2.0 * chunks),
        // Stored and removed.
        ("INTAKE_PREPROCESS", 2.0),
        ("INTAKE_ENCODE", 2.0 * chunks),
        ("INTAKE_DECODE", 2.0),
        // Stored and acknowledged.
        ("WORK_PREPROCESS", 2.0),
        ("WORK_ENCODE", 2.0 * chunks),
        ("WORK_DECODE", 2.0),
        // Noted, over another's note.
        ("KV_PENDING", 1.0),
        ("AUDIT", 1.0),
    ];
    let mut loads = per_job.map(|(stream, writes_per_job)| {
        let writes_per_second = writes_per_job * load.jobs_per_second;
        StreamLoad {
            stream,
            writes_per_job,
            writes_per_second,
            shards: (writes_per_second / stream_writes_per_second)
                .ceil()
                .max(1.0) as u32,
        }
    });
    loads.sort_by(|a, b| b.writes_per_second.total_cmp(&a.writes_per_second));
    loads.to_vec()
}
