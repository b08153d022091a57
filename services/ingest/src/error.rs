//! Why a call was not answered, and the one function that turns it into a `google.rpc.Status` with details.

use std::time::Duration;

use medfleet_core::setting::ByteSize;
use medfleet_core::{JobId, JobState, TaskKind, chain};
use medfleet_queue::{ConnectError, QueueError};
use medfleet_runtime::Stop;
use medfleet_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::convert::job_name;

/// Domain of every `ErrorInfo`.
pub(crate) const DOMAIN: &str = "medfleet";
/// What a caller is told to wait when the queue or store does not answer.
const RETRY_AWAY: Duration = Duration::from_secs(1);

/// Why the service ended other than by its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration of ingest cannot be used")]
    Config(#[from] medfleet_runtime::ConfigError),
    #[error("the queue cannot be prepared")]
    Queue(#[from] QueueError),
    #[error("the queue cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("the tokens file cannot be used")]
    Tokens(#[from] crate::tokens::TokensError),
    #[error(transparent)]
    Pem(#[from] medfleet_worker::PemError),
    #[error("the public API cannot take the certificate and key of ingest.tls")]
    Tls(#[source] tonic::transport::Error),
    #[error("the gRPC server failed")]
    Server(#[from] tonic::transport::Error),
    #[error("ingest.edge names a hub that cannot be called")]
    Hub(#[source] tonic::transport::Error),
    #[error("the listener cannot be used")]
    Listener(#[source] std::io::Error),
    #[error("server reflection cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Error {
    /// How the process ends by it. What is in a file that a setting names is part of the configuration.
    pub fn into_stop(self) -> Stop {
        match self {
            Self::Config(_) | Self::Tokens(_) | Self::Pem(_) | Self::Tls(_) | Self::Hub(_) => {
                Stop::usage(self)
            }
            Self::Queue(_)
            | Self::Connect(_)
            | Self::Server(_)
            | Self::Listener(_)
            | Self::Reflection(_) => self.into(),
        }
    }
}

/// A field and what is allowed in it; never the value found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: String,
    pub(crate) allowed: String,
}

impl Violation {
    pub(crate) fn new(field: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            allowed: allowed.into(),
        }
    }
}

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the metadata must carry `authorization: Bearer <token>`")]
    NoToken,
    #[error("the token is not known")]
    WrongToken,
    #[error("the token is not an operator's: its entry in the tokens file needs `operator = true`")]
    NotOperator,
    #[error("{}", spelled(.0))]
    Invalid(Vec<Violation>),
    #[error("no such {what}")]
    NotFound { what: &'static str },
    /// Of a job that has many, the one that has to be sent again.
    #[error("{field}: no such upload, or it has expired; send the file again")]
    UploadGone { field: String },
    #[error("request_id was used before with another body; a new request needs a new one")]
    OtherBody,
    #[error(
        "task: {task} needs a MedSigLIP model, which this fleet does not have; available: {}",
        available_tasks()
    )]
    TaskUnavailable { task: TaskKind },
    /// `wanted` is what the call is for.
    #[error("the job is {state}; {wanted}")]
    WrongState {
        state: JobState,
        wanted: &'static str,
    },
    #[error("{what} must be at most {allowed}")]
    TooLarge { what: &'static str, allowed: String },
    #[error(
        "this tenant's quota of {what} is used up; come back in {} s",
        retry_after.as_secs() + 1
    )]
    Quota {
        what: &'static str,
        retry_after: Duration,
    },
    #[error(
        "this tenant has {} stored or on its way and brings {}, and may have {} (its quota stored_bytes_max): erase jobs that are \
         not needed any more, or ask who runs the fleet for a shorter retention or a larger quota; come back in {} s",
        size(*used),
        size(*brings),
        size(*allowed),
        retry_after.as_secs() + 1
    )]
    Stored {
        used: u64,
        brings: u64,
        allowed: u64,
        retry_after: Duration,
    },
    #[error("{what}; try again later")]
    Busy {
        what: &'static str,
        retry_after: Duration,
    },
    #[error("the client was silent for too long in the middle of an upload")]
    Idle,
    #[error(
        "another stream of this upload has stored more since its offset was asked for; ask GetUpload, and go on from there"
    )]
    Moved,
    #[error(
        "the request did not come whole within {limit:?} (ingest.limits.request_time_max); send large files by UploadInput"
    )]
    Late { limit: Duration },
    #[error("the job was started over meanwhile; call again")]
    Replayed,
    #[error("this server is stopping; connect again")]
    Stopping,
    #[error("the queue did not take the request")]
    Queue(#[from] QueueError),
    /// The job's record is there: what is missing comes when the same is asked again, or by the sweep.
    #[error("the queue did not take all of the request")]
    Unfinished { job: JobId, source: QueueError },
    #[error("the blob store did not take the request")]
    Store(#[from] StoreError),
    #[error("{what} cannot be read back")]
    Broken { what: &'static str },
}

impl Refusal {
    /// Whether the same may succeed later without anybody doing anything.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Queue(error) | Self::Unfinished { source: error, .. } => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }

    /// One violation.
    pub(crate) fn invalid(field: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, allowed)])
    }
}

/// The tasks of a fleet without a model that compares.
pub(crate) fn available_tasks() -> String {
    let available = TaskKind::ALL.iter().filter(|task| !task.compares());
    available
        .map(|task| task.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

fn size(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).rounded()
}

fn spelled(violations: &[Violation]) -> String {
    let spelled = violations
        .iter()
        .map(|v| format!("{}: {}", v.field, v.allowed));
    spelled.collect::<Vec<_>>().join("; ")
}

/// The answer to a refused call: code, text, stable reason, and what to do about it. Logs what is not the caller's fault.
pub(crate) fn status(refusal: &Refusal) -> Status {
    let (code, reason) = code_and_reason(refusal);
    let mut details = ErrorDetails::new();
    let metadata = match refusal {
        Refusal::WrongState { state, .. } => vec![("state".to_owned(), state.as_str().to_owned())],
        Refusal::TaskUnavailable { .. } => vec![("available".to_owned(), available_tasks())],
        Refusal::Unfinished { job, .. } => vec![("job".to_owned(), job_name(job))],
        Refusal::Stored { used, allowed, .. } => vec![
            ("stored_bytes".to_owned(), used.to_string()),
            ("stored_bytes_max".to_owned(), allowed.to_string()),
        ],
        _ => Vec::new(),
    };
    details.set_error_info(
        reason,
        DOMAIN,
        metadata
            .into_iter()
            .collect::<std::collections::HashMap<_, _>>(),
    );
    if let Refusal::Invalid(violations) = refusal {
        let violations = violations
            .iter()
            .map(|v| FieldViolation::new(&v.field, &v.allowed));
        details.set_bad_request(violations.collect::<Vec<_>>());
    }
    if let Some(delay) = retry_after(refusal, code) {
        details.set_retry_info(Some(delay));
    }
    match code {
        Code::Internal => tracing::error!(reason, error = chain(refusal), "a call failed"),
        // A stop, and a job that is started over, are no trouble.
        Code::Unavailable if !matches!(refusal, Refusal::Stopping | Refusal::Replayed) => {
            tracing::warn!(reason, error = chain(refusal), "a call could not be served")
        }
        // The operator has to make room, and needs to know where.
        Code::ResourceExhausted if is_of_room(refusal) => {
            tracing::warn!(reason, error = chain(refusal), "a call found no room")
        }
        _ => tracing::debug!(reason, "a call was refused"),
    }
    Status::with_error_details(code, text(refusal, code), details)
}

/// What a refused caller reads.
fn text(refusal: &Refusal, code: Code) -> String {
    match (code, refusal) {
        (Code::Internal, _) => "a defect of medfleet; the server's log says more".to_owned(),
        (Code::FailedPrecondition, Refusal::Store(_)) => {
            "the job was erased; a new one needs another request_id".to_owned()
        }
        (Code::ResourceExhausted, Refusal::Store(_)) => {
            "this fleet's blob store is full; come back after the given delay".to_owned()
        }
        (Code::ResourceExhausted, Refusal::Queue(_)) => {
            "a stream of this fleet's queue is full; come back after the given delay".to_owned()
        }
        (Code::ResourceExhausted, Refusal::Unfinished { job, .. }) => format!(
            "a stream of this fleet's queue is full; {} is noted and done once there is room, unless it is cancelled; with its \
             request_id the same request finds it, after the given delay",
            job_name(job)
        ),
        (_, Refusal::Unfinished { job, .. }) => format!(
            "{refusal}; {} may be done all the same, unless it is cancelled; with its request_id the same request finds it",
            job_name(job)
        ),
        _ => refusal.to_string(),
    }
}

/// Whether the queue or the store is what had no room.
const fn is_of_room(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Queue(_) | Refusal::Unfinished { .. } | Refusal::Store(_)
    )
}

fn code_and_reason(refusal: &Refusal) -> (Code, &'static str) {
    match refusal {
        Refusal::NoToken => (Code::Unauthenticated, "TOKEN_MISSING"),
        Refusal::WrongToken => (Code::Unauthenticated, "TOKEN_UNKNOWN"),
        Refusal::NotOperator => (Code::PermissionDenied, "NOT_OPERATOR"),
        Refusal::Invalid(_) => (Code::InvalidArgument, "INVALID_REQUEST"),
        Refusal::NotFound { .. } | Refusal::UploadGone { .. } => (Code::NotFound, "NOT_FOUND"),
        Refusal::OtherBody => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
        Refusal::TaskUnavailable { .. } => (Code::Unimplemented, "TASK_UNAVAILABLE"),
        Refusal::WrongState { .. } => (Code::FailedPrecondition, "WRONG_STATE"),
        Refusal::TooLarge { .. } => (Code::ResourceExhausted, "TOO_LARGE"),
        Refusal::Busy { .. } => (Code::ResourceExhausted, "BUSY"),
        Refusal::Quota { .. } | Refusal::Stored { .. } => (Code::ResourceExhausted, "QUOTA"),
        Refusal::Idle => (Code::DeadlineExceeded, "UPLOAD_IDLE"),
        Refusal::Moved => (Code::Aborted, "UPLOAD_MOVED"),
        Refusal::Late { .. } => (Code::DeadlineExceeded, "REQUEST_LATE"),
        Refusal::Replayed => (Code::Unavailable, "JOB_REPLAYED"),
        Refusal::Stopping => (Code::Unavailable, "STOPPING"),
        Refusal::Queue(error) | Refusal::Unfinished { source: error, .. } => match error {
            QueueError::Full { .. } => (Code::ResourceExhausted, "QUEUE_FULL"),
            QueueError::Closed => (Code::Unavailable, "QUEUE_AWAY"),
            error if error.is_transient() => (Code::Unavailable, "QUEUE_AWAY"),
            _ => (Code::Internal, "QUEUE_DEFECT"),
        },
        Refusal::Store(StoreError::JobErased) => (Code::FailedPrecondition, "JOB_ERASED"),
        Refusal::Store(error) if crate::blobs::is_full(error) => {
            (Code::ResourceExhausted, "STORE_FULL")
        }
        Refusal::Store(error) if error.is_transient() => (Code::Unavailable, "STORE_AWAY"),
        Refusal::Store(_) => (Code::Internal, "STORE_DEFECT"),
        Refusal::Broken { .. } => (Code::Internal, "STORED_BYTES_BROKEN"),
    }
}

fn retry_after(refusal: &Refusal, code: Code) -> Option<Duration> {
    match (refusal, code) {
        (Refusal::TooLarge { .. }, _) => None,
        (
            Refusal::Busy { retry_after, .. }
            | Refusal::Quota { retry_after, .. }
            | Refusal::Stored { retry_after, .. },
            _,
        ) => Some(*retry_after),
        (_, Code::Unavailable | Code::Aborted) => Some(RETRY_AWAY),
        (_, Code::ResourceExhausted) => Some(RETRY_AWAY * 5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::Exit;

    use super::*;
    use crate::tokens::TokensError;

    #[test]
    fn what_a_file_of_the_settings_lacks_ends_as_a_wrong_setting_does() {
        let tokens = TokensError::Syntax {
            path: "tokens.toml".into(),
        };
        assert_eq!(Error::from(tokens).into_stop().exit, Exit::Usage);
        let broken = Error::Listener(std::io::Error::other("gone"));
        assert_eq!(broken.into_stop().exit, Exit::Failed);
    }

    fn check(refusal: &Refusal, code: Code, text: &str, retries: bool) {
        let status = status(refusal);
        assert_eq!((status.code(), status.message()), (code, text));
        let details = status.get_error_details();
        assert_eq!(
            details.error_info().map(|info| info.domain.as_str()),
            Some(DOMAIN)
        );
        assert_eq!(details.retry_info().is_some(), retries);
    }

    /// Such a job is there, whatever its caller was told: it runs once there is room.
    #[test]
    fn a_job_that_is_noted_though_its_submit_is_refused_is_named() {
        let named = |source: QueueError| {
            let job = JobId::from_bytes([7; 16]);
            let name = job_name(&job);
            let status = status(&Refusal::Unfinished { job, source });
            assert!(status.message().contains(&name), "{status:?}");
            let details = status.get_error_details();
            let info = details.error_info().expect("a reason");
            assert_eq!(info.metadata.get("job"), Some(&name));
            assert!(details.retry_info().is_some(), "{status:?}");
            (status.code(), info.reason.clone())
        };
        let full = QueueError::Full {
            stream: "intake".into(),
            limit: "maximum messages exceeded".into(),
        };
        let full = named(full);
        assert_eq!(full, (Code::ResourceExhausted, "QUEUE_FULL".to_owned()));
        let away = named(QueueError::unavailable("publish"));
        assert_eq!(away, (Code::Unavailable, "QUEUE_AWAY".to_owned()));
    }

    /// To the millisecond, whatever its text rounds: by then there is room, and before that there is none.
    #[test]
    fn who_is_over_a_quota_is_told_when_to_come_back() {
        let retry_after = Duration::from_millis(6_500);
        let refused = status(&Refusal::Quota {
            what: "jobs a minute",
            retry_after,
        });
        let details = refused.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        assert_eq!(
            (refused.code(), reason),
            (Code::ResourceExhausted, Some("QUOTA"))
        );
        let told = details.retry_info().and_then(|info| info.retry_delay);
        assert_eq!(told, Some(retry_after));
    }

    /// Nobody has to read its text to know how much has to go.
    #[test]
    fn who_has_too_much_stored_is_told_how_much() {
        let refusal = Refusal::Stored {
            used: 2 << 30,
            brings: 3 << 10,
            allowed: 2 << 30,
            retry_after: Duration::from_secs(5),
        };
        check(
            &refusal,
            Code::ResourceExhausted,
            "this tenant has 2.0 GiB stored or on its way and brings 3.0 KiB, and may have 2.0 GiB (its quota stored_bytes_max): \
             erase jobs that are not needed any more, or ask who runs the fleet for a shorter retention or a larger quota; come \
             back in 6 s",
            true,
        );
        let details = status(&refusal).get_error_details();
        let info = details.error_info().expect("a reason");
        assert_eq!(info.reason, "QUOTA");
        for key in ["stored_bytes", "stored_bytes_max"] {
            let found = info.metadata.get(key).map(String::as_str);
            assert_eq!(found, Some("2147483648"), "{key}");
        }
    }

    #[test]
    fn refusals_become_statuses() {
        let invalid = Refusal::invalid("task.answer.question", "1 to 16384 bytes");
        check(
            &invalid,
            Code::InvalidArgument,
            "task.answer.question: 1 to 16384 bytes",
            false,
        );
        let details = status(&invalid).get_error_details();
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.clone());
        assert_eq!(
            violations.map(|v| v[0].field.clone()).as_deref(),
            Some("task.answer.question")
        );
        check(
            &Refusal::TaskUnavailable {
                task: TaskKind::Embed,
            },
            Code::Unimplemented,
            "task: embed needs a MedSigLIP model, which this fleet does not have; available: report, answer, classify, localise, compare, extract",
            false,
        );
        check(
            &crate::accept::UPLOAD_GONE,
            Code::NotFound,
            "no such upload, or it has expired; send the file again",
            false,
        );
        let full = QueueError::Full {
            stream: "INTAKE_PREPROCESS".into(),
            limit: "maximum messages exceeded".into(),
        };
        check(
            &Refusal::Queue(full),
            Code::ResourceExhausted,
            "a stream of this fleet's queue is full; come back after the given delay",
            true,
        );
        let full = StoreError::Full { bytes: 10, free: 5 };
        check(
            &Refusal::Store(full),
            Code::ResourceExhausted,
            "this fleet's blob store is full; come back after the given delay",
            true,
        );
        let away = QueueError::unavailable("create record");
        check(
            &Refusal::Queue(away),
            Code::Unavailable,
            "the queue did not take the request",
            true,
        );
        // A client that goes by the code asks for the offset and goes on; as INVALID_ARGUMENT it would give up.
        check(
            &Refusal::Moved,
            Code::Aborted,
            "another stream of this upload has stored more since its offset was asked for; ask GetUpload, and go on from there",
            true,
        );
        check(
            &Refusal::WrongState {
                state: JobState::Failed,
                wanted: "only a completed one has a result",
            },
            Code::FailedPrecondition,
            "the job is failed; only a completed one has a result",
            false,
        );
    }
}
