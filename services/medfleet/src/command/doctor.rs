//! `medfleet doctor`: what is installed, reachable, too old or misconfigured, and what to do about it.

mod certificates;
mod checks;
mod kubernetes;
mod server;
mod store;
mod text_reader;

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};

use medfleet_runtime::Clock;

use super::on_one_thread;
use super::weights::sums::Sum;
use crate::client::ServerArgs;
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `doctor`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// Also load the model in this folder, or the language model in this GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    model: Option<PathBuf>,
    /// Also compare the model's files with the list SHA256SUMS beside them, which must have this SHA-256
    #[arg(long, value_name = "HEX", requires = "model")]
    sha256: Option<Sum>,
    /// Also connect to the nats-server that this configuration file of a service names, with its token and certificates, look at
    /// these and at the place for blobs, and try the program that it names to read text in pixels
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also connect to this nats-server, which must need neither token nor TLS
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// The Kubernetes API to ask about KEDA, such as that of `kubectl proxy` [default: that of the cluster that this runs in]
    #[arg(long, value_name = "URL")]
    kubernetes: Option<String>,
    /// Also look at the certificates in this PEM file: may be given several times
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    /// One JSON object per check and line on stdout
    #[arg(long)]
    json: bool,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One check: what was looked at, what was found, and what to do unless all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Warn,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Fail,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn json(&self) -> Value {
        json!({"check": self.check, "verdict": self.verdict.word(), "found": self.found, "advice": self.advice})
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<4}  {:<12}  {}",
            self.verdict.word(),
            self.check,
            self.found
        )?;
        if !self.advice.is_empty() {
            write!(f, "\n{:20}→ {}", "", self.advice)?;
        }
        Ok(())
    }
}

/// Runs the command; exit code 1 when a check fails.
pub(crate) fn run(args: Args) -> CommandResult {
    on_one_thread(async {
        let mut failed = false;
        let mut tell = |finding: Finding| {
            failed |= finding.verdict == Verdict::Fail;
            if args.json {
                show::print_json(&finding.json())
            } else {
                show::print(&finding.to_string())
            }
        };
        let elsewhere = args.server.is_given() || args.config.is_some() || args.nats.is_some();
        tell(checks::nats_binary(args.cache.as_deref(), elsewhere))?;
        tell(checks::data_folder(args.server.data()))?;
        tell(checks::disk(args.server.data()))?;
        tell(checks::sync_interval(args.server.data()))?;
        tell(checks::fleet(&args.server).await)?;
        let (mut servers, mut named) = (Vec::new(), Vec::new());
        if let Some(file) = &args.config {
            let reader = text_reader::look(file.clone())?;
            let store = store::look(file.clone()).await?;
            for finding in reader.into_iter().chain(store) {
                tell(finding)?;
            }
            servers.push(server::configured(file.clone())?);
            named = certificates::configured(file);
        }
        servers.extend(args.nats.as_deref().map(server::at));
        for asked in &servers {
            for finding in server::look(asked).await {
                tell(finding)?;
            }
        }
        tell(kubernetes::look(args.kubernetes.as_deref()).await)?;
        let now = medfleet_runtime::SystemClock.now();
        for file in &args.certificate {
            tell(certificates::look(file, now))?;
        }
        for named in &named {
            tell(certificates::look_configured(named, now))?;
        }
        if let Some(model) = &args.model {
            if let Some(sha256) = args.sha256 {
                tell(checks::model_files(model, sha256))?;
            }
            tell(checks::model(model))?;
        }
        tell(checks::cpu())?;
        tell(checks::gpu())?;
        tell(checks::clock(&medfleet_runtime::SystemClock))?;
        Ok(if failed { Exit::Failed } else { Exit::Done })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_one_line_with_advice_below() {
        assert_eq!(
            Finding::ok("clock", "fine").to_string(),
            "ok    clock         fine"
        );
        let finding = Finding::fail("disk", "full", "free some");
        assert_eq!(
            finding.to_string(),
            "fail  disk          full\n                    → free some"
        );
        assert_eq!(finding.json()["verdict"], "fail");
    }
}
