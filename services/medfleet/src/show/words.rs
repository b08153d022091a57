//! Wire enums as the words of the command line.

use medfleet_proto::v1::{Class, Failure, FailureReason, FinishReason, JobState, TaskKind};

/// `COMPLETED`, from a wire value.
pub(crate) fn state_word(state: i32) -> &'static str {
    word(
        JobState::try_from(state).map(|state| state.as_str_name()),
        "JOB_STATE_",
    )
}

/// `ROUTINE`, from a wire value.
pub(crate) fn class_word(class: i32) -> &'static str {
    word(
        Class::try_from(class).map(|class| class.as_str_name()),
        "CLASS_",
    )
}

/// `REPORT`, from a wire value.
pub(crate) fn task_word(task: i32) -> &'static str {
    word(
        TaskKind::try_from(task).map(|task| task.as_str_name()),
        "TASK_KIND_",
    )
}

/// `INPUT_REFUSED`, from a wire value.
pub(crate) fn failure_word(reason: i32) -> &'static str {
    word(
        FailureReason::try_from(reason).map(|reason| reason.as_str_name()),
        "FAILURE_REASON_",
    )
}

/// `STOP`, from a wire value.
pub(crate) fn finish_word(reason: i32) -> &'static str {
    word(
        FinishReason::try_from(reason).map(|reason| reason.as_str_name()),
        "FINISH_REASON_",
    )
}

/// A failure in one line.
pub(crate) fn failure_text(failure: &Failure) -> String {
    let reason = failure_word(failure.reason);
    if failure.message.is_empty() {
        reason.to_owned()
    } else {
        format!("{reason}: {}", failure.message)
    }
}

/// A time of the server; `-` where it gave none.
pub(super) fn time_text(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// The word without its prefix; a value of a newer server is `UNKNOWN`.
fn word<E>(name: Result<&'static str, E>, prefix: &str) -> &'static str {
    name.map_or("UNKNOWN", |name| name.strip_prefix(prefix).unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_words() {
        assert_eq!(state_word(JobState::Completed.into()), "COMPLETED");
        assert_eq!(class_word(Class::Stat.into()), "STAT");
        assert_eq!(task_word(TaskKind::ZeroShot.into()), "ZERO_SHOT");
        assert_eq!(finish_word(FinishReason::Length.into()), "LENGTH");
        assert_eq!(state_word(9999), "UNKNOWN");
    }

    #[test]
    fn failures_say_reason_and_message() {
        let reason = FailureReason::InputRefused.into();
        let failure = |message: &str| Failure {
            reason,
            message: message.to_owned(),
        };
        assert_eq!(
            failure_text(&failure("not a picture")),
            "INPUT_REFUSED: not a picture"
        );
        assert_eq!(failure_text(&failure("")), "INPUT_REFUSED");
    }
}
