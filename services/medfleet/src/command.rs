//! One file for each command: its flags, and what it does with the parts below it.

pub(crate) mod bench;
pub(crate) mod cancel;
pub(crate) mod dead;
pub(crate) mod deidentify;
pub(crate) mod doctor;
mod draw;
pub(crate) mod embed;
pub(crate) mod erase;
pub(crate) mod eval;
mod follow;
pub(crate) mod frames;
pub(crate) mod get;
pub(crate) mod infer;
mod lettering;
pub(crate) mod list;
pub(crate) mod metrics;
mod pages;
pub(crate) mod pause;
pub(crate) mod phantom;
mod picture;
pub(crate) mod plan;
pub(crate) mod requeue;
pub(crate) mod submit;
pub(crate) mod up;
pub(crate) mod watch;
pub(crate) mod weights;
mod whose;

use std::future::Future;

use anyhow::Context;
use futures::future::LocalBoxFuture;
use medfleet_model::{ComputeDevice, Dtype};

use crate::client::{Client, Retry, ServerArgs};
use crate::exit::{CommandResult, Fault};

/// The flags that name a job of a fleet.
#[derive(clap::Args, Debug)]
struct JobArgs {
    /// The job, as submit and list print it
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    server: ServerArgs,
}

impl JobArgs {
    /// Does this with the fleet, and with the name of its job.
    fn with(&self, act: impl AsyncFnOnce(&Client, &str) -> CommandResult) -> CommandResult {
        let name = job_name(&self.job)?;
        with_client(&self.server, async |client| {
            let acted = act(client, &name).await;
            acted.map_err(|fault| fault.about(&name))
        })
    }
}

/// The flags that say how a model computes.
#[derive(clap::Args, Clone, Copy, Debug)]
struct ComputeArgs {
    /// What to compute in: f32 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    dtype: Dtype,
    /// Where to compute: cpu (or cpu:LEVEL: generic, portable, avx2, avx512-bfp, avx512, amx, neon), or cuda, cuda:N,
    /// metal in a build that has them
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: ComputeDevice,
}

/// Does this with the fleet that the flags name, on this thread.
fn with_client(
    server: &ServerArgs,
    act: impl AsyncFnOnce(&Client) -> CommandResult,
) -> CommandResult {
    let fleet = server.resolve()?;
    on_one_thread(async {
        let client = Client::new(&fleet, Retry::PATIENT)?;
        act(&client).await
    })
}

/// Runs a command that waits for others on this thread.
fn on_one_thread(command: impl Future<Output = CommandResult>) -> CommandResult {
    boxed_on_one_thread(Box::pin(command))
}

/// By pointer: otherwise the runtime is compiled for each command, and the command into it several times over.
fn boxed_on_one_thread(command: LocalBoxFuture<'_, CommandResult>) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(command)
}

/// `jobs/{id}` from what a person types: the name, or the id alone.
fn job_name(job: &str) -> Result<String, Fault> {
    let id = job.strip_prefix("jobs/").unwrap_or(job);
    if id.is_empty() || id.contains('/') {
        return Err(Fault::usage(anyhow::anyhow!(
            "{job:?} is not a job; expected jobs/ID or ID, as submit and list print it"
        )));
    }
    Ok(format!("jobs/{id}"))
}

/// The flags of a command that these words are.
#[cfg(test)]
fn parsed<A: clap::Args>(words: &[&str]) -> Result<A, clap::Error> {
    let command = A::augment_args(clap::Command::new("medfleet"));
    let line = std::iter::once(&"medfleet").chain(words);
    A::from_arg_matches(&command.try_get_matches_from(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_named_with_and_without_prefix() {
        let check =
            |job: &str, expected: Option<&str>| assert_eq!(job_name(job).ok().as_deref(), expected);
        check("jobs/abc", Some("jobs/abc"));
        check("abc", Some("jobs/abc"));
        check("", None);
        check("uploads/abc", None);
    }
}
