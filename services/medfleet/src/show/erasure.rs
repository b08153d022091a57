//! What became of all jobs of a patient or a study; whose they are is not repeated.

use medfleet_proto::v1::EraseJobsResponse;
use serde_json::{Value, json};

/// For people: `3 jobs erased, 1 of them cancelled for it; 1 was erased before; 21 objects removed`
pub(crate) fn erasure_line(done: &EraseJobsResponse, only_counted: bool) -> String {
    let (erased, cancelled) = (done.jobs_erased, done.jobs_cancelled);
    let mut parts = if only_counted {
        vec![format!(
            "{erased} jobs would be erased, {cancelled} of them not ended"
        )]
    } else {
        vec![format!(
            "{erased} jobs erased, {cancelled} of them cancelled for it"
        )]
    };
    parts.push(format!("{} were erased before", done.jobs_erased_before));
    if !only_counted {
        parts.push(format!("{} objects removed", done.objects_removed));
    }
    if done.objects_shared > 0 {
        let shared = done.objects_shared;
        parts.push(format!(
            "up to {shared} stay because other jobs rely on them"
        ));
    }
    if done.jobs_failed > 0 {
        let failed = done.jobs_failed;
        parts.push(format!(
            "{failed} COULD NOT BE ERASED: ingest's log says why"
        ));
    }
    if done.jobs_unreadable > 0 {
        let unreadable = done.jobs_unreadable;
        parts.push(format!(
            "{unreadable} of a newer release could not be read: whose they are is not known"
        ));
    }
    parts.join("; ")
}

/// Field names as in the `.proto`.
pub(crate) fn erasure_json(done: &EraseJobsResponse, only_counted: bool) -> Value {
    json!({
        "count_only": only_counted,
        "jobs_erased": done.jobs_erased,
        "jobs_cancelled": done.jobs_cancelled,
        "jobs_erased_before": done.jobs_erased_before,
        "jobs_failed": done.jobs_failed,
        "jobs_unreadable": done.jobs_unreadable,
        "objects_removed": done.objects_removed,
        "objects_shared": done.objects_shared,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_said_and_what_is_nothing_is_not() {
        let mut done = EraseJobsResponse {
            jobs_erased: 3,
            jobs_cancelled: 1,
            objects_removed: 21,
            ..EraseJobsResponse::default()
        };
        let line = erasure_line(&done, false);
        assert!(line.starts_with("3 jobs erased, 1 of them"), "{line}");
        assert!(
            line.contains("21 objects") && !line.contains("COULD NOT"),
            "{line}"
        );
        let line = erasure_line(&done, true);
        assert!(
            line.contains("would be") && !line.contains("objects"),
            "{line}"
        );
        (done.jobs_failed, done.jobs_unreadable) = (2, 5);
        let line = erasure_line(&done, false);
        assert!(
            line.contains("2 COULD NOT") && line.contains("5 of a newer"),
            "{line}"
        );
    }
}
