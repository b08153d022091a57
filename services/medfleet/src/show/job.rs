//! A job for people: a few lines, or one row of a table.

use medfleet_core::JobState;
use medfleet_proto::v1::{Class, EraseJobResponse, Job};
use medfleet_queue::wire::state_from_wire;

use super::words::{class_word, failure_text, state_word, task_word, time_text};

/// One fact a line.
pub(crate) fn job_lines(job: &Job) -> String {
    let mut lines = vec![
        format!("job          {}", job.name),
        format!("state        {}", state_word(job.state)),
        format!(
            "task         {} of {} images",
            task_word(job.task),
            job.image_count
        ),
        format!("class        {}", class_words(job)),
        format!("model        {}", job.model),
        format!("accepted     {}", time_text(job.create_time.as_ref())),
        format!("changed      {}", time_text(job.update_time.as_ref())),
        format!("trace        {}", job.trace_id),
    ];
    let is_over = state_from_wire(job.state).is_some_and(JobState::is_final);
    if let Some(time) = job.expire_time.as_ref().filter(|_| !is_over) {
        lines.push(format!("expires      {time}, if it has not ended by then"));
    }
    if job.chunks_total > 0 {
        lines.push(format!(
            "chunks       {} of {} encoded",
            job.chunks_done, job.chunks_total
        ));
    }
    if job.attempt > 1 {
        lines.push(format!("attempt      {}", job.attempt));
    }
    if let Some(failure) = &job.failure {
        lines.push(format!("failure      {}", failure_text(failure)));
    }
    if job.cancel_wanted {
        lines.push("cancel       wanted; the hub has not said yet that it ended".to_owned());
    }
    if let Some(time) = &job.erase_time {
        lines.push(format!("erased       {time}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// `jobs/ID erased: 7 objects removed, 2 shared with other jobs stay`
pub(crate) fn erased_line(name: &str, erased: &EraseJobResponse) -> String {
    let (removed, shared) = (erased.objects_removed, erased.objects_shared);
    let shared = match shared {
        0 => String::new(),
        shared => format!(", {shared} shared with other jobs stay"),
    };
    format!("{name} erased: {removed} objects removed{shared}")
}

/// The class it is served in, and the one that was asked for where that is another.
fn class_words(job: &Job) -> String {
    let class = class_word(job.class);
    if job.class == job.class_asked || job.class_asked() == Class::Unspecified {
        return class.to_owned();
    }
    let asked = class_word(job.class_asked);
    format!("{class}, asked for {asked}: the tenant's budget was used up")
}

pub(crate) fn job_table_head() -> String {
    format!(
        "{:<38} {:<13} {:<10} {:<8} {}",
        "JOB", "STATE", "TASK", "CLASS", "ACCEPTED"
    )
}

pub(crate) fn job_table_row(job: &Job) -> String {
    let accepted = time_text(job.create_time.as_ref());
    format!(
        "{:<38} {:<13} {:<10} {:<8} {accepted}",
        job.name,
        state_word(job.state),
        task_word(job.task),
        class_word(job.class)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_proto::v1::{self, Class, TaskKind};

    #[test]
    fn rows_stand_below_their_heads() {
        let job = Job {
            name: "jobs/0123456789abcdef0123456789abcdef".into(),
            state: v1::JobState::Completed.into(),
            task: TaskKind::Report.into(),
            class: Class::Stat.into(),
            ..Job::default()
        };
        let (head, row) = (job_table_head(), job_table_row(&job));
        for (title, cell) in [
            ("STATE", "COMPLETED"),
            ("TASK", "REPORT"),
            ("CLASS", "STAT"),
        ] {
            assert_eq!(head.find(title), row.find(cell), "{title}\n{head}\n{row}");
        }
    }

    #[test]
    fn lines_leave_out_what_is_not_known() {
        let lines = job_lines(&Job {
            name: "jobs/a".into(),
            attempt: 1,
            ..Job::default()
        });
        assert!(
            lines.contains("jobs/a") && !lines.contains("chunks") && !lines.contains("attempt"),
            "{lines}"
        );
        // At a hospital's edge the state alone does not show that it was cancelled.
        let cancelled = Job {
            cancel_wanted: true,
            ..Job::default()
        };
        assert!(!lines.contains("cancel ") && job_lines(&cancelled).contains("cancel "));
    }

    #[test]
    fn when_a_job_expires_is_said_until_it_has_ended() {
        let check = |state: v1::JobState, expected| {
            let lines = job_lines(&Job {
                state: state.into(),
                expire_time: Some(prost_types::Timestamp::default()),
                ..Job::default()
            });
            assert_eq!(lines.contains("expires "), expected, "{lines}");
        };
        check(v1::JobState::Accepted, true);
        check(v1::JobState::Forwarded, true);
        check(v1::JobState::Completed, false);
    }
}
