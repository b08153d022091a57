//! Follows a job to its end: reconnects with what it has, so that every event comes once and the text without a gap.

use std::time::Instant;

use medfleet_proto::v1::{
    Job, JobProgress, TextPosition, WatchJobRequest, WatchJobResponse, watch_job_response,
};
use prost_types::Timestamp;
use tokio::time::timeout;
use tonic::Status;

use super::{Client, ClientError};

/// What happened, in the order it happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A state was reached, or progress made within it.
    Progress {
        sequence: u64,
        time: Option<Timestamp>,
        progress: JobProgress,
    },
    /// The next piece of text.
    Text {
        attempt: u32,
        offset_bytes: u64,
        text: String,
    },
    /// The text starts over.
    Reset { attempt: u32 },
    Final {
        sequence: u64,
        time: Option<Timestamp>,
        job: Box<Job>,
    },
}

/// How far a watcher has come; all that a resume needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    sequence: u64,
    attempt: u32,
    offset_bytes: u64,
}

/// Text is missing between what we have and what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap;

impl Cursor {
    /// What a response adds to what was seen; `None` if it was seen before.
    fn take(&mut self, response: WatchJobResponse) -> Result<Option<Event>, Gap> {
        let WatchJobResponse {
            sequence,
            time,
            event,
        } = response;
        match event {
            Some(watch_job_response::Event::Progress(progress)) => {
                Ok(self.is_new(sequence).then_some(Event::Progress {
                    sequence,
                    time,
                    progress,
                }))
            }
            Some(watch_job_response::Event::Final(job)) => {
                // The final state may repeat the sequence of the last progress; it ends the stream either way.
                self.sequence = self.sequence.max(sequence);
                Ok(Some(Event::Final {
                    sequence,
                    time,
                    job: Box::new(job),
                }))
            }
            Some(watch_job_response::Event::Reset(reset)) => {
                if reset.attempt <= self.attempt {
                    return Ok(None);
                }
                (self.attempt, self.offset_bytes) = (reset.attempt, 0);
                Ok(Some(Event::Reset {
                    attempt: reset.attempt,
                }))
            }
            Some(watch_job_response::Event::Text(delta)) => {
                self.take_text(delta.attempt, delta.offset_bytes, delta.text)
            }
            // An event of a newer server: nothing we could show.
            None => Ok(None),
        }
    }

    fn is_new(&mut self, sequence: u64) -> bool {
        let new = sequence > self.sequence;
        self.sequence = self.sequence.max(sequence);
        new
    }

    fn take_text(
        &mut self,
        attempt: u32,
        offset_bytes: u64,
        text: String,
    ) -> Result<Option<Event>, Gap> {
        if attempt < self.attempt {
            return Ok(None);
        }
        let have = if attempt == self.attempt {
            self.offset_bytes
        } else {
            0
        };
        let Some(skipped) = have.checked_sub(offset_bytes) else {
            return Err(Gap);
        };
        // A piece that was seen in part is cut where we stand; its bytes end on the same character as ours did.
        let Some(rest) = usize::try_from(skipped)
            .ok()
            .and_then(|skipped| text.get(skipped..))
        else {
            return Ok(None);
        };
        if rest.is_empty() {
            return Ok(None);
        }
        (self.attempt, self.offset_bytes) = (attempt, have + rest.len() as u64);
        Ok(Some(Event::Text {
            attempt,
            offset_bytes: have,
            text: rest.to_owned(),
        }))
    }

    fn request(&self, name: &str) -> WatchJobRequest {
        let position = TextPosition {
            attempt: self.attempt,
            offset_bytes: self.offset_bytes,
        };
        WatchJobRequest {
            name: name.to_owned(),
            after_sequence: self.sequence,
            text_position: (self.attempt > 0).then_some(position),
        }
    }
}

impl Client {
    /// Follows a job from `cursor` until its final state, and returns it. Every event goes to `show` once.
    ///
    /// # Errors
    /// The fleet refuses, stays unreachable for as long as the retry rule allows without any event, or `show` fails.
    pub(crate) async fn watch(
        &self,
        name: &str,
        mut cursor: Cursor,
        show: &mut (dyn FnMut(&Event) -> std::io::Result<()> + Send),
    ) -> Result<Job, ClientError> {
        let (mut attempts, mut begun) = (0, Instant::now());
        loop {
            let before = cursor.clone();
            let status = match self.watch_once(name, &mut cursor, show).await? {
                Ok(job) => return Ok(job),
                Err(status) => status,
            };
            if cursor != before {
                (attempts, begun) = (0, Instant::now());
            }
            attempts += 1;
            self.pause(attempts, begun, status).await?;
        }
    }

    /// One stream, until it ends or breaks.
    async fn watch_once(
        &self,
        name: &str,
        cursor: &mut Cursor,
        show: &mut (dyn FnMut(&Event) -> std::io::Result<()> + Send),
    ) -> Result<Result<Job, Status>, ClientError> {
        let mut stub = self.stub.clone();
        let begun = timeout(self.answer_max, stub.watch_job(cursor.request(name))).await;
        let mut stream = match begun.unwrap_or_else(|_| Err(self.silence())) {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => {
                    return Ok(Err(Status::unavailable(
                        "the stream ended before the job did",
                    )));
                }
                Err(status) => return Ok(Err(status)),
            };
            match cursor.take(response) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    show(&event)?;
                    if let Event::Final { job, .. } = event {
                        return Ok(Ok(*job));
                    }
                }
                Err(Gap) => return Ok(Err(Status::unavailable("the stream left out text"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_proto::v1::{JobState, TextDelta, TextReset};
    use watch_job_response::Event as Wire;

    fn text(attempt: u32, offset_bytes: u64, text: &str) -> Wire {
        Wire::Text(TextDelta {
            attempt,
            offset_bytes,
            text: text.to_owned(),
        })
    }

    fn progress(state: JobState) -> Wire {
        Wire::Progress(JobProgress {
            state: state.into(),
            chunks_total: 0,
            chunks_done: 0,
        })
    }

    /// Feeds (sequence, event) pairs and compares what a person sees.
    fn check(fed: Vec<(u64, Wire)>, expected: &[&str]) {
        let mut cursor = Cursor::default();
        let mut seen = Vec::new();
        for (sequence, event) in fed {
            let response = WatchJobResponse {
                sequence,
                time: None,
                event: Some(event),
            };
            match cursor.take(response) {
                Ok(Some(Event::Text {
                    offset_bytes, text, ..
                })) => seen.push(format!("{offset_bytes}:{text}")),
                Ok(Some(Event::Reset { attempt })) => seen.push(format!("reset {attempt}")),
                Ok(Some(Event::Progress { sequence, .. })) => seen.push(format!("#{sequence}")),
                Ok(Some(Event::Final { .. })) => seen.push("final".to_owned()),
                Ok(None) => {}
                Err(Gap) => seen.push("gap".to_owned()),
            }
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn events_come_once() {
        let states = [
            JobState::Accepted,
            JobState::Released,
            JobState::Released,
            JobState::Encoding,
        ];
        let fed = states
            .into_iter()
            .zip([1, 2, 2, 3])
            .map(|(state, sequence)| (sequence, progress(state)))
            .collect();
        check(fed, &["#1", "#2", "#3"]);
    }

    #[test]
    fn text_has_no_repeat_and_no_gap() {
        check(
            vec![
                (4, text(1, 0, "The ")),
                (4, text(1, 0, "The heart")),
                (4, text(1, 2, "e h")),
                (4, text(1, 9, " is")),
            ],
            &["0:The ", "4:heart", "9: is"],
        );
        check(
            vec![(4, text(1, 0, "The")), (4, text(1, 5, "heart"))],
            &["0:The", "gap"],
        );
    }

    #[test]
    fn a_new_attempt_starts_over() {
        let reset = |attempt| Wire::Reset(TextReset { attempt });
        check(
            vec![
                (4, reset(1)),
                (4, text(1, 0, "a")),
                (5, reset(2)),
                (4, text(1, 1, "b")),
                (5, text(2, 0, "c")),
                (5, reset(2)),
            ],
            &["reset 1", "0:a", "reset 2", "0:c"],
        );
    }

    #[test]
    fn the_cursor_asks_for_what_is_missing() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.request("jobs/x").text_position, None);
        let response = WatchJobResponse {
            sequence: 7,
            time: None,
            event: Some(text(2, 0, "né")),
        };
        assert!(cursor.take(response).expect("no gap").is_some());
        let request = cursor.request("jobs/x");
        assert_eq!(
            request.text_position,
            Some(TextPosition {
                attempt: 2,
                offset_bytes: 3
            })
        );
        // Text carries the sequence of the durable event before it; that event itself has not been seen.
        assert_eq!(request.after_sequence, 0);
    }
}
