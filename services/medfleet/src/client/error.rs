//! Why a call to a fleet failed, and the exit code that it deserves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use medfleet_ingest::UPLOAD_INSTEAD;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::retry;
use crate::exit::{Exit, Fault};
use crate::show::seconds;

/// What to do about a token that is none.
const OTHER_TOKEN: &str =
    "give a token that this fleet knows, with MEDFLEET_TOKEN or --token TOKEN";

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call to a fleet failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(
        "{server} cannot be reached: {attempts} attempts in {}, the last one said: {said}; \
         see that a fleet answers there {}, or name another with --server URL",
        seconds(*waited),
        spoken(server)
    )]
    Unreachable {
        server: String,
        attempts: u32,
        waited: Duration,
        said: String,
    },
    /// The fleet answered every time that it has no room now, or that something it depends on is away.
    #[error("the fleet does not take it now: {said} ({attempts} attempts in {}); try again later", seconds(*waited))]
    Busy {
        attempts: u32,
        waited: Duration,
        said: String,
    },
    #[error("the fleet refused ({code}): {}{said}", of(file.as_deref()))]
    Refused {
        code: &'static str,
        exit: Exit,
        /// The file that was being sent: the fleet was told no name of it.
        file: Option<PathBuf>,
        said: String,
        /// The fields that it named, each with what is allowed in it.
        violations: Vec<(String, String)>,
    },
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is empty; leave it out, or export the study again", path.display())]
    Empty { path: PathBuf },
    #[error("{} changed while it was sent: {total} bytes at the start, {sent} bytes at the end; submit it once nobody writes to it", path.display())]
    FileChanged {
        path: PathBuf,
        total: u64,
        sent: u64,
    },
    #[error("{server:?} is not a server address; expected http://HOST:PORT or https://HOST:PORT")]
    Server { server: String },
    #[error(
        "the token has characters that a header cannot carry; give the one line of the token file"
    )]
    Token,
    #[error(
        "{server} needs TLS and no certificates to trust are known: name the authority's PEM file with --ca FILE \
         (for a public authority the system's bundle, such as /etc/ssl/certs/ca-certificates.crt)"
    )]
    NoCertificates { server: String },
    /// Certificates without TLS: whoever names or shows one expects that nobody else can read the images.
    #[error(
        "{server} is called without TLS, and {flag} is for TLS alone: name the fleet by https://, or leave {flag} out"
    )]
    PlainText { server: String, flag: &'static str },
    #[error("cannot use {} as {what}; expected a PEM file", path.display())]
    Certificates {
        path: PathBuf,
        /// What for, with the flag that names it.
        what: &'static str,
        source: Source,
    },
    #[error(
        "the fleet's answer lacks {missing}: its version and this program's do not fit together"
    )]
    Protocol { missing: &'static str },
    /// What the caller does with events failed: standard output is gone.
    #[error("cannot write the output")]
    Output {
        #[from]
        source: std::io::Error,
    },
}

impl ClientError {
    /// Translates the status that ended `attempts` attempts.
    pub(crate) fn from_status(
        server: &str,
        attempts: u32,
        waited: Duration,
        status: Status,
    ) -> Self {
        let said = match status.code() {
            Code::Unauthenticated => format!("{}; {OTHER_TOKEN}", said(&status)),
            _ => said(&status),
        };
        let exit = match status.code() {
            _ if retry::is_busy(&status) || retry::is_told_away(&status) => {
                return Self::Busy {
                    attempts,
                    waited,
                    said,
                };
            }
            // Somebody answered: the line is too slow for so large a request.
            _ if retry::is_late(&status) => Exit::Usage,
            code if retry::is_broken(&status)
                || matches!(code, Code::Unavailable | Code::DeadlineExceeded) =>
            {
                return Self::Unreachable {
                    server: server.to_owned(),
                    attempts,
                    waited,
                    said,
                };
            }
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::ResourceExhausted
            | Code::OutOfRange => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::Refused {
            code: word(status.code()),
            exit,
            file: None,
            said,
            violations: violations(&status),
        }
    }

    /// Whether the request was larger than the fleet takes within one, or than the line carries in time. The same files can then
    /// be uploaded.
    pub(crate) fn wants_uploads(&self) -> bool {
        match self {
            // Other deadlines say nothing of the request: nobody answered.
            Self::Refused { code, said, .. } => {
                *code == word(Code::DeadlineExceeded) || said.contains(UPLOAD_INSTEAD)
            }
            _ => false,
        }
    }

    /// As [`Self::of_file`], with the name that the person knows where the file was read under another one, as those of archives
    /// are.
    pub(crate) fn known_by(mut self, files: &[PathBuf], names: &[PathBuf]) -> Self {
        if let Self::File { path, .. }
        | Self::Empty { path }
        | Self::FileChanged { path, .. }
        | Self::Refused {
            file: Some(path), ..
        } = &mut self
            && let Some((_, name)) = files.iter().zip(names).find(|(file, _)| **file == *path)
        {
            path.clone_from(name);
        }
        self
    }

    /// What a call failed for besides that field of its request; none where that is all.
    pub(crate) fn besides(mut self, field: &str) -> Option<Self> {
        if let Self::Refused {
            said, violations, ..
        } = &mut self
            && violations.iter().any(|(named, _)| named == field)
        {
            violations.retain(|(named, _)| named != field);
            if violations.is_empty() {
                return None;
            }
            let others = violations.iter();
            let others = others.map(|(named, allowed)| format!("{named}: {allowed}"));
            *said = others.collect::<Vec<_>>().join("; ");
        }
        Some(self)
    }

    /// Says which file was refused.
    pub(crate) fn of_file(mut self, path: &Path) -> Self {
        if let Self::Refused { file, .. } = &mut self {
            *file = Some(path.to_owned());
        }
        self
    }

    /// The exit code that fits.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } => Exit::Unreachable,
            Self::Refused { exit, .. } => *exit,
            Self::Server { .. }
            | Self::Token
            | Self::NoCertificates { .. }
            | Self::PlainText { .. }
            | Self::Certificates { .. } => Exit::Usage,
            Self::File { .. } | Self::Empty { .. } => Exit::Usage,
            Self::FileChanged { .. } | Self::Protocol { .. } | Self::Output { .. } => Exit::Failed,
        }
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        Self {
            exit: error.exit(),
            error: error.into(),
        }
    }
}

/// How a server is spoken to, for who has mixed up the two.
fn spoken(server: &str) -> &'static str {
    match server.starts_with("https:") {
        true => "with TLS (https)",
        false => "without TLS (http)",
    }
}

/// The file in front of what is said of it.
fn of(file: Option<&Path>) -> String {
    file.map_or_else(String::new, |path| format!("{}: ", path.display()))
}

fn violations(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let named = details.bad_request().into_iter();
    let named = named.flat_map(|bad| &bad.field_violations);
    named
        .map(|violation| (violation.field.clone(), violation.description.clone()))
        .collect()
}

/// What the status says, with every field violation it names.
pub(super) fn said(status: &Status) -> String {
    let mut said = match status.message() {
        "" => word(status.code()).to_owned(),
        message => message.to_owned(),
    };
    let details = status.get_error_details();
    if let Some(bad) = details.bad_request() {
        for violation in &bad.field_violations {
            if !said.contains(&violation.description) {
                said.push_str(&format!("; {}: {}", violation.field, violation.description));
            }
        }
    }
    // A transport failure keeps its reason ("connection refused") at the end of its source chain.
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said.push_str(&format!(": {text}"));
        }
        cause = error.source();
    }
    said
}

fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    fn check(status: Status, exit: Exit, expected: &str) {
        let error =
            ClientError::from_status("http://localhost:1", 3, Duration::from_millis(1500), status);
        assert_eq!(error.exit(), exit);
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn codes_become_exit_codes_and_words() {
        check(
            Status::not_found("no such job"),
            Exit::Failed,
            "the fleet refused (NOT_FOUND): no such job",
        );
        check(
            Status::unauthenticated(""),
            Exit::Usage,
            "the fleet refused (UNAUTHENTICATED): UNAUTHENTICATED; give a token that this fleet knows, with MEDFLEET_TOKEN or \
             --token TOKEN",
        );
        check(
            Status::unavailable("connection refused"),
            Exit::Unreachable,
            "http://localhost:1 cannot be reached: 3 attempts in 1.5 s, the last one said: connection refused; \
             see that a fleet answers there without TLS (http), or name another with --server URL",
        );
    }

    /// As where a fleet with TLS is called without.
    #[test]
    fn a_connection_that_breaks_is_no_refusal() {
        let broken = Box::new(std::io::Error::other("frame with invalid size"));
        check(
            Status::from_error(broken),
            Exit::Unreachable,
            "http://localhost:1 cannot be reached: 3 attempts in 1.5 s, the last one said: frame with invalid size; \
             see that a fleet answers there without TLS (http), or name another with --server URL",
        );
        check(
            Status::unknown("a proxy's own word"),
            Exit::Failed,
            "the fleet refused (UNKNOWN): a proxy's own word",
        );
    }

    /// The advice must not be to look for another address.
    #[test]
    fn a_fleet_that_says_that_its_queue_is_away_was_reached() {
        let none = [] as [(String, String); 0];
        let details = ErrorDetails::with_error_info("QUEUE_AWAY", "medfleet", none);
        let said = "the queue did not take the request";
        check(
            Status::with_error_details(Code::Unavailable, said, details),
            Exit::Unreachable,
            "the fleet does not take it now: the queue did not take the request (3 attempts in 1.5 s); try again later",
        );
    }

    #[test]
    fn what_is_too_much_now_is_not_what_is_too_much_at_all() {
        let later = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        check(
            Status::with_error_details(Code::ResourceExhausted, "the store is full", later),
            Exit::Unreachable,
            "the fleet does not take it now: the store is full (3 attempts in 1.5 s); try again later",
        );
        check(
            Status::resource_exhausted("the file is too large"),
            Exit::Usage,
            "the fleet refused (RESOURCE_EXHAUSTED): the file is too large",
        );
    }

    #[test]
    fn a_line_too_slow_for_a_request_is_not_a_fleet_that_is_away() {
        let late =
            ErrorDetails::with_error_info("REQUEST_LATE", "medfleet", [] as [(String, String); 0]);
        check(
            Status::with_error_details(
                Code::DeadlineExceeded,
                "send large files by UploadInput",
                late,
            ),
            Exit::Usage,
            "the fleet refused (DEADLINE_EXCEEDED): send large files by UploadInput",
        );
    }

    #[test]
    fn what_is_too_much_within_a_request_is_uploaded() {
        let check = |status: Status, expected| {
            let error = ClientError::from_status("http://localhost:1", 1, Duration::ZERO, status);
            assert_eq!(error.wants_uploads(), expected, "{error}");
        };
        let late =
            ErrorDetails::with_error_info("REQUEST_LATE", "medfleet", [] as [(String, String); 0]);
        check(
            Status::with_error_details(Code::DeadlineExceeded, "late", late),
            true,
        );
        let large = format!("inputs: at most 1B {UPLOAD_INSTEAD}");
        check(Status::invalid_argument(large), true);
        check(Status::deadline_exceeded("no answer came"), false);
        check(Status::invalid_argument("model: one of a, b"), false);
    }

    #[test]
    fn a_refused_file_is_named() {
        let status = Status::resource_exhausted("start.total_bytes must be at most 512MiB");
        let refused = ClientError::from_status("http://localhost:1", 1, Duration::ZERO, status);
        let refused = refused.of_file(Path::new("study/17.dcm"));
        assert_eq!(refused.exit(), Exit::Usage);
        assert_eq!(
            refused.to_string(),
            "the fleet refused (RESOURCE_EXHAUSTED): study/17.dcm: start.total_bytes must be at most 512MiB"
        );
    }

    #[test]
    fn a_file_of_an_archive_is_named_as_it_is_there() {
        let [file, name] = ["/tmp/x/00000", "study.zip/1.dcm"].map(PathBuf::from);
        let status = Status::resource_exhausted("too large");
        let refused = ClientError::from_status("http://localhost:1", 1, Duration::ZERO, status);
        let refused = refused.of_file(&file);
        let empty = ClientError::Empty { path: file.clone() };
        for (error, expected) in [
            (empty, "study.zip/1.dcm is empty"),
            (
                refused,
                "the fleet refused (RESOURCE_EXHAUSTED): study.zip/1.dcm: too large",
            ),
        ] {
            let said = error.known_by(from_ref(&file), from_ref(&name));
            let said = said.to_string();
            assert!(said.starts_with(expected), "{said}");
        }
    }

    #[test]
    fn field_violations_are_shown() {
        let violation =
            FieldViolation::new("task.answer.question", "is required, 1 to 16384 bytes");
        let details = ErrorDetails::with_bad_request(vec![violation]);
        check(
            Status::with_error_details(Code::InvalidArgument, "the request is not valid", details),
            Exit::Usage,
            "the fleet refused (INVALID_ARGUMENT): the request is not valid; \
             task.answer.question: is required, 1 to 16384 bytes",
        );
    }

    #[test]
    fn what_a_request_lacks_on_purpose_is_not_what_it_is_refused_for() {
        let refused = |fields: &[&str]| {
            let named = fields.iter();
            let named: Vec<_> = named
                .map(|field| FieldViolation::new(*field, "other"))
                .collect();
            let details = ErrorDetails::with_bad_request(named);
            let status = Status::with_error_details(Code::InvalidArgument, "no", details);
            let error = ClientError::from_status("http://localhost:1", 1, Duration::ZERO, status);
            error.besides("inputs[0]").map(|error| error.to_string())
        };
        assert_eq!(refused(&["inputs[0]"]), None);
        let model = "the fleet refused (INVALID_ARGUMENT): model: other";
        assert_eq!(refused(&["model", "inputs[0]"]).as_deref(), Some(model));
        let all = "the fleet refused (INVALID_ARGUMENT): no; inputs: other";
        assert_eq!(refused(&["inputs"]).as_deref(), Some(all));
    }
}
