//! A report about one picture, as a job: what every bench of a fleet asks for.

use anyhow::{Context, Result, bail};
use medfleet_proto::v1::{
    Class, DecodingParameters, Input, JobState, ReportTask, SubmitJobRequest, Task, input::Source,
    task::Kind,
};

use crate::client::{Client, Cursor, Event};
use crate::show;

/// What every picture is said to be, so that its prompt is the same on every way.
pub(super) const SHOWN: &str = "DX";

pub(super) struct Asked {
    /// Its request id: another for each job of a fleet.
    pub(super) request_id: String,
    /// A file.
    pub(super) picture: Vec<u8>,
    pub(super) class: Class,
    /// Tokens to write at most.
    pub(super) tokens_max: u32,
}

impl Asked {
    /// Submits it, follows it to its end, and gives its name. `seen` gets every event on the way.
    pub(super) async fn complete(
        self,
        client: &Client,
        seen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<String> {
        let request = SubmitJobRequest {
            request_id: self.request_id,
            task: Some(Task {
                kind: Some(Kind::Report(ReportTask::default())),
            }),
            inputs: vec![Input {
                source: Some(Source::Content(self.picture.into())),
                modality: SHOWN.to_owned(),
                ..Input::default()
            }],
            class: self.class.into(),
            decoding: Some(DecodingParameters {
                max_tokens: self.tokens_max,
                ..DecodingParameters::default()
            }),
            ..SubmitJobRequest::default()
        };
        let accepted = client.submit(&request).await?;
        let job = accepted.job.context("the fleet's answer lacks the job")?;
        let job = client
            .watch(&job.name, Cursor::default(), &mut |event| {
                seen(event);
                Ok(())
            })
            .await?;
        if job.state != i32::from(JobState::Completed) {
            bail!(
                "{} ended {}",
                request.request_id,
                show::state_word(job.state)
            );
        }
        Ok(job.name)
    }
}
