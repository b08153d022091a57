//! A dead letter for people: a few lines, or one row of a table.

use medfleet_proto::v1::DeadLetter;

use super::words::{failure_text, failure_word, time_text};

/// One fact a line.
pub(crate) fn dead_letter_lines(letter: &DeadLetter) -> String {
    let time = time_text(letter.create_time.as_ref());
    let failure = letter.failure.as_ref();
    let lines = [
        format!("letter       {}", letter.name),
        format!("job          {}", letter.job),
        format!("where        {}, unit {}", letter.stage, letter.unit),
        format!("pool         {}", letter.pool),
        format!("started over {} times before", letter.epoch),
        format!("given up     {time}"),
        format!(
            "failure      {}",
            failure.map_or_else(|| "-".to_owned(), failure_text)
        ),
        String::new(),
    ];
    lines.join("\n")
}

pub(crate) fn dead_letter_table_head() -> String {
    format!(
        "{:<36} {:<38} {:<11} {:<20} {}",
        "ID", "JOB", "STAGE", "REASON", "GIVEN UP"
    )
}

pub(crate) fn dead_letter_table_row(letter: &DeadLetter) -> String {
    let time = time_text(letter.create_time.as_ref());
    let reason = letter.failure.as_ref().map_or(0, |failure| failure.reason);
    let id = letter.name.rsplit('/').next().unwrap_or_default();
    format!(
        "{id:<36} {:<38} {:<11} {:<20} {time}",
        letter.job,
        letter.stage,
        failure_word(reason)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_proto::v1::{Failure, FailureReason};

    #[test]
    fn rows_stand_below_their_heads() {
        let letter = DeadLetter {
            name: "deadLetters/0123456789abcdef0123456789abcdef-12".into(),
            job: "jobs/0123456789abcdef0123456789abcdef".into(),
            stage: "preprocess".into(),
            failure: Some(Failure {
                reason: FailureReason::InputRefused.into(),
                message: String::new(),
            }),
            ..DeadLetter::default()
        };
        let (head, row) = (dead_letter_table_head(), dead_letter_table_row(&letter));
        for (title, cell) in [
            ("ID", "0123"),
            ("JOB", "jobs/"),
            ("STAGE", "preprocess"),
            ("REASON", "INPUT_REFUSED"),
        ] {
            assert_eq!(head.find(title), row.find(cell), "{title}\n{head}\n{row}");
        }
    }
}
