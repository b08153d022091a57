//! `medfleet submit`: files in, job accepted, stages and text as they come, the draft at the end.

mod ends;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::builder::NonEmptyStringValueParser;
use futures::FutureExt;
use medfleet_core::setting::DurationText;
use medfleet_core::{Class, GivenModality, TaskKind};
use medfleet_proto::v1::{
    AnswerTask, ClassifyTask, CompareTask, DecodingParameters, EmbedTask, ExtractTask, Input, Job,
    LocaliseTask, ReportTask, SubmitJobRequest, SubmitJobResponse, Task, ZeroShotTask,
    input::Source, task::Kind,
};
use medfleet_queue::wire::class_to_wire;

use self::ends::{Ends, ignores_hangups};
use super::whose::WhoseArgs;
use super::{draw, follow};
use crate::choices::one_of;
use crate::client::{
    CONTENT_BYTES_MAX, Client, ClientError, KeptUploads, Retry, ServerArgs, UploadNews,
};
use crate::exit::{CommandResult, Exit, Fault};
use crate::show::{self, Progress};
use crate::{modality, paths};

/// What a shell expects of a program that was interrupted: 128 + SIGINT. Every signal that asks us to end ends us with it.
const INTERRUPTED: u8 = 130;
/// The field of a file that a request lacks.
const LACKING: &str = "inputs[0]";

/// Flags of `submit`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// DICOM, PNG, JPEG, TIFF or NIfTI files, or folders, zip or tar archives of them, in the order the task names them (compare: prior first)
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What to do with them
    #[arg(long, value_parser = one_of(TaskKind::ALL, TaskKind::as_str))]
    task: TaskKind,
    /// The question (answer), what to look for (localise), the clinical context (report, compare)
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Labels, separated by commas (classify, zero-shot)
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    labels: Vec<String>,
    /// File with the JSON Schema of the wanted object (extract)
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// What files show whose format does not say it: volumes (NIfTI) ct or mr, pictures (PNG, JPEG, TIFF) any
    #[arg(long, value_parser = modality::given(), ignore_case = true)]
    modality: Option<GivenModality>,
    /// How soon it matters
    #[arg(long, value_parser = one_of(Class::ALL, Class::as_str), default_value = "routine")]
    class: Class,
    /// How long it may take from its accept on, such as 30m or 12h; then it is EXPIRED [default: the fleet's]
    #[arg(long, value_name = "TIME")]
    time_to_live: Option<DurationText>,
    /// Idempotency key: the same key with the same request is the same job [default: a random one]
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    request_id: Option<String>,
    /// Model alias [default: the fleet's]
    #[arg(
        long,
        value_name = "ALIAS",
        default_value = "",
        hide_default_value = true
    )]
    model: String,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    whose: WhoseArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per line on stdout
    #[arg(long)]
    json: bool,
    /// Print the job and do not wait for it
    #[arg(long)]
    no_wait: bool,
    /// Write the first picture with the boxes on it, as PNG (localise)
    #[arg(long, value_name = "FILE.png", conflicts_with = "no_wait")]
    draw: Option<PathBuf>,
}

/// How text is decoded.
#[derive(clap::Args, Clone, Debug)]
struct DecodingArgs {
    /// Tokens to write at most [default: the fleet's]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_tokens: u32,
    /// 0 is greedy, up to 2
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keep the most likely tokens up to this mass, above 0 up to 1
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep the tokens at least this share as likely as the most likely one, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Above 1, what was said already is less likely to be said again; up to 10
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// The text ends before this string; may be given up to 8 times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Let the model think before it answers (report, answer, compare)
    #[arg(long)]
    think: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let started = Instant::now();
    let task = task(&args).map_err(Fault::usage)?;
    if let Some(out) = &args.draw {
        draw::check(out).map_err(Fault::usage)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let command = until_asked_to_end(&args, task, started).boxed_local();
    let outcome = runtime.block_on(command);
    // A thread that still reads or unpacks is not waited for: the folder that it would write to is gone.
    runtime.shutdown_background();
    outcome
}

/// Submits unless somebody asks us to end, in which case all that was unpacked goes.
async fn until_asked_to_end(args: &Args, task: Kind, started: Instant) -> CommandResult {
    // Elsewhere than on Linux there is no such file, and hangups are listened for.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Before anything is unpacked: by a signal that only kills, files of a patient would stay behind.
    let mut ends = Ends::listen(!ignores_hangups(&status)).context("cannot listen for signals")?;
    tokio::select! {
        outcome = submit(args, task, started) => outcome,
        () = ends.come() => Err(Fault {
            exit: Exit::Service(INTERRUPTED),
            error: anyhow!("interrupted; a job that was accepted goes on: `medfleet list` has it"),
        }),
    }
}

/// Files in, job accepted, its end awaited.
async fn submit(args: &Args, task: Kind, started: Instant) -> CommandResult {
    let files = paths::unpacked(args.paths.clone())
        .await
        .map_err(Fault::usage)?;
    check_count(args.task, files.files.len()).map_err(Fault::usage)?;
    let request_id = match &args.request_id {
        Some(id) => id.clone(),
        None => random_id()?,
    };
    let modality = args.modality.map_or("", GivenModality::as_str);
    if files.beside > 0 {
        eprintln!(
            "medfleet: {} files that are or lie beside a DICOMDIR are left out",
            files.beside
        );
    }
    let whose = args.whose.pseudonyms(&files.files).await;
    let whose = whose.map_err(Fault::usage)?;
    let fleet = args.server.resolve()?;
    let client = Client::new(&fleet, Retry::PATIENT)?;
    let mut progress = Progress::new(started);
    let request = SubmitJobRequest {
        request_id: request_id.clone(),
        task: Some(Task { kind: Some(task) }),
        inputs: Vec::new(),
        class: class_to_wire(args.class).into(),
        model: args.model.clone(),
        decoding: Some(args.decoding.wire()),
        time_to_live: args.time_to_live.map(on_the_wire).transpose()?,
        patient_pseudonym: whose.patient,
        study_pseudonyms: whose.studies,
    };
    let of_file = &mut |index, news: UploadNews| progress.upload(index, &news);
    let response = send(&client, &files.files, modality, request, of_file)
        .await
        .map_err(|error| error.known_by(&files.files, &files.names))
        .inspect_err(|error| {
            if args.request_id.is_none() && error.exit() == Exit::Unreachable {
                // Perhaps only the answer was lost, and the request id is known to nobody else.
                eprintln!(
                    "medfleet: to try again without making a second job, add --request-id {request_id}"
                );
            }
        })?;
    // Unpacked files are removed once they are sent, and not only when the job has ended, except for one that boxes are drawn on.
    let drawn = args.draw.as_ref().zip(files.files.first().cloned());
    let named = files.names.clone();
    let kept = drawn.is_some().then_some(files);
    let job = response.job.as_ref().ok_or(ClientError::Protocol {
        missing: "SubmitJobResponse.job",
    })?;
    if args.json {
        show::print_json(&show::accepted_json(&response, &request_id))?;
    } else {
        progress.line(&accepted(job, response.already_accepted));
    }
    if args.no_wait {
        if !args.json {
            show::print(&job.name)?;
        }
        return Ok(Exit::Done);
    }
    let followed = follow::follow(&client, &job.name, &named, args.json, progress).await;
    let exit = followed.map_err(|fault| fault.about(&job.name))?;
    if let (Some((out, file)), Exit::Done) = (drawn, exit) {
        draw::boxes(&file, &client.draft(&job.name).await?, out)?;
    }
    drop(kept);
    Ok(exit)
}

/// Whether the task takes so many files, as far as that needs no fleet.
fn check_count(task: TaskKind, files: usize) -> anyhow::Result<()> {
    let (least, most) = task.images();
    let takes = match most {
        Some(most) if least == most => format!("exactly {least}"),
        Some(most) => format!("{least} to {most}"),
        None => format!("{least} or more"),
    };
    let fits = u32::try_from(files)
        .is_ok_and(|files| files >= least && most.is_none_or(|most| files <= most));
    if !fits {
        bail!("--task {task} takes {takes} images; found {files} files");
    }
    Ok(())
}

/// That the fleet has it, for people.
fn accepted(job: &Job, before: bool) -> String {
    let again = if before { " (accepted before)" } else { "" };
    format!("accepted {}{again}, trace {}", job.name, job.trace_id)
}

/// Submits a job about these files; `modality` is what they show where their format does not say it. Small studies travel inside
/// the request; larger ones are uploaded before it, file by file, and `news` is told how each of them goes.
pub(super) async fn send(
    client: &Client,
    files: &[PathBuf],
    modality: &str,
    mut request: SubmitJobRequest,
    news: &mut (dyn FnMut(usize, UploadNews) + Send),
) -> Result<SubmitJobResponse, ClientError> {
    if total_bytes(files).await? <= CONTENT_BYTES_MAX {
        request.inputs = contents(files, modality).await?;
        match client.submit(&request).await {
            // A fleet may take less within a request than others do, or in less time (its `ingest.limits`).
            Err(refused) if refused.wants_uploads() => {}
            answered => return answered,
        }
    } else {
        request.inputs = lacking_one(files.len(), modality);
        if let Err(error) = client.submit(&request).await
            && let Some(refused) = error.besides(LACKING)
        {
            return Err(refused);
        }
    }
    request.inputs = uploads(client, files, modality, news).await?;
    client.submit(&request).await
}

async fn total_bytes(files: &[PathBuf]) -> Result<u64, ClientError> {
    let mut total = 0_u64;
    for path in files {
        let unreadable = |source| ClientError::File {
            path: path.clone(),
            source,
        };
        let length = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
        if length == 0 {
            return Err(ClientError::Empty { path: path.clone() });
        }
        total = total.saturating_add(length);
    }
    Ok(total)
}

async fn contents(files: &[PathBuf], modality: &str) -> Result<Vec<Input>, ClientError> {
    let mut inputs = Vec::with_capacity(files.len());
    for path in files {
        let unreadable = |source| ClientError::File {
            path: path.clone(),
            source,
        };
        let content = tokio::fs::read(path).await.map_err(unreadable)?;
        inputs.push(input(Some(Source::Content(content.into())), modality));
    }
    Ok(inputs)
}

/// The inputs of a trial request that asks the fleet for its objections before any file is sent. The first input has no source,
/// so every fleet refuses the request; what it is refused for besides, such as too many files, would hold with the files too.
fn lacking_one(files: usize, modality: &str) -> Vec<Input> {
    let of_none = || Source::Upload(format!("uploads/{}", "0".repeat(32)));
    let source = |index: usize| (index > 0).then(of_none);
    (0..files)
        .map(|index| input(source(index), modality))
        .collect()
}

async fn uploads(
    client: &Client,
    files: &[PathBuf],
    modality: &str,
    news: &mut (dyn FnMut(usize, UploadNews) + Send),
) -> Result<Vec<Input>, ClientError> {
    let mut inputs = Vec::with_capacity(files.len());
    let mut kept = KeptUploads::default();
    for (index, path) in files.iter().enumerate() {
        let of_file = &mut |how| news(index, how);
        let sent = client.upload(&mut kept, path, of_file).await;
        let upload = sent.map_err(|refused| refused.of_file(path))?;
        inputs.push(input(Some(Source::Upload(upload)), modality));
    }
    Ok(inputs)
}

fn input(source: Option<Source>, modality: &str) -> Input {
    Input {
        source,
        modality: modality.to_owned(),
        ..Input::default()
    }
}

/// The task with its words, or an error that names the flag that is missing or that the task does not take: silently dropping a
/// flag would hide a mistake.
fn task(args: &Args) -> anyhow::Result<Kind> {
    use TaskKind::{Answer, Classify, Compare, Extract, Localise, Report, ZeroShot};
    let given: [(bool, &str, &[TaskKind]); 4] = [
        (
            args.question.is_some(),
            "--question",
            &[Report, Answer, Localise, Compare],
        ),
        (!args.labels.is_empty(), "--labels", &[Classify, ZeroShot]),
        (args.schema.is_some(), "--schema", &[Extract]),
        (args.draw.is_some(), "--draw", &[Localise]),
    ];
    for (is_given, flag, takers) in given {
        if is_given && !takers.contains(&args.task) {
            let words: Vec<_> = takers.iter().map(|task| task.as_str()).collect();
            let words = words.join(", ");
            bail!(
                "--task {} takes no {flag}; it belongs to {words}",
                args.task
            );
        }
    }
    let text = || args.question.clone().unwrap_or_default();
    let required = |what: &str| {
        args.question
            .clone()
            .ok_or_else(|| anyhow!("--task {what} needs --question TEXT"))
    };
    let labels = |what: &str| match args.labels.as_slice() {
        [] => Err(anyhow!("--task {what} needs --labels A,B (1 to 64)")),
        labels => Ok(labels.to_vec()),
    };
    Ok(match args.task {
        TaskKind::Report => Kind::Report(ReportTask {
            clinical_context: text(),
        }),
        TaskKind::Compare => Kind::Compare(CompareTask {
            clinical_context: text(),
        }),
        TaskKind::Answer => Kind::Answer(AnswerTask {
            question: required("answer")?,
        }),
        TaskKind::Localise => Kind::Localise(LocaliseTask {
            target: required("localise")?,
        }),
        TaskKind::Classify => Kind::Classify(ClassifyTask {
            labels: labels("classify")?,
        }),
        TaskKind::ZeroShot => Kind::ZeroShot(ZeroShotTask {
            labels: labels("zero-shot")?,
        }),
        TaskKind::Embed => Kind::Embed(EmbedTask {}),
        TaskKind::Extract => {
            let path = args
                .schema
                .as_ref()
                .ok_or_else(|| anyhow!("--task extract needs --schema FILE"))?;
            let json_schema = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Kind::Extract(ExtractTask { json_schema })
        }
    })
}

/// A time as the contract has it.
fn on_the_wire(time: DurationText) -> Result<prost_types::Duration, Fault> {
    prost_types::Duration::try_from(time.get()).map_err(Fault::usage)
}

/// A key that makes repeating the call after a broken connection safe.
pub(super) fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow!("no randomness from the system: {error}"))?;
    Ok(format!("cli-{}", hex::encode(bytes)))
}

impl DecodingArgs {
    fn wire(&self) -> DecodingParameters {
        DecodingParameters {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            stop: self.stop.clone(),
            think: self.think,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Fleet;
    use crate::command::parsed;

    fn check(line: &str, expected: Result<Kind, &str>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let args = parsed(&words).expect("the flags exist");
        match (task(&args), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn tasks_take_their_words() {
        let context = || "cough".to_owned();
        check(
            "a.png --task report",
            Ok(Kind::Report(ReportTask::default())),
        );
        check(
            "a.png --task report --question cough",
            Ok(Kind::Report(ReportTask {
                clinical_context: context(),
            })),
        );
        check(
            "a.png --task answer --question cough",
            Ok(Kind::Answer(AnswerTask {
                question: context(),
            })),
        );
        let labels = vec!["a".to_owned(), "b".to_owned()];
        check(
            "a.png --task classify --labels a,b",
            Ok(Kind::Classify(ClassifyTask { labels })),
        );
    }

    #[test]
    fn missing_words_are_named() {
        check("a.png --task answer", Err("--question"));
        check("a.png --task zero-shot", Err("--labels"));
        check("a.png --task extract", Err("--schema"));
    }

    #[test]
    fn words_that_a_task_would_drop_are_refused() {
        let refused = |line, part| check(line, Err(part));
        refused(
            "a.png --task classify --labels a --question b",
            "classify takes no --question; it belongs to report, answer, localise, compare",
        );
        refused("a.png --task report --labels a", "takes no --labels");
        refused("a.png --task embed --schema s", "takes no --schema");
        refused("a.png --task report --draw b.png", "takes no --draw");
    }

    #[test]
    fn a_time_to_live_is_a_number_with_its_unit() {
        let given = |time: &str| parsed(&["a.png", "--task", "report", "--time-to-live", time]);
        let args: Args = given("90m").expect("the flags exist");
        let sent = args.time_to_live.map(on_the_wire).transpose();
        let sent = sent.expect("it fits").map(|sent| sent.seconds);
        assert_eq!(sent, Some(5_400));
        assert!(given("90").is_err());
    }

    #[test]
    fn too_many_files_are_refused_before_they_are_sent() {
        let check = |task, files, expected: Option<&str>| {
            let said = check_count(task, files)
                .err()
                .map(|error| error.to_string());
            assert_eq!(said.as_deref(), expected);
        };
        check(TaskKind::Compare, 2, None);
        let said = "--task compare takes exactly 2 images; found 900 files";
        check(TaskKind::Compare, 900, Some(said));
        let said = "--task report takes 1 or more images; found 0 files";
        check(TaskKind::Report, 0, Some(said));
        check(TaskKind::Report, 900, None);
        check(TaskKind::Answer, 0, None);
    }

    #[tokio::test]
    async fn an_empty_file_is_named_before_anything_is_sent() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = ["1.dcm", "2.dcm"].map(|name| folder.path().join(name));
        std::fs::write(&files[0], b"x").expect("writes");
        std::fs::write(&files[1], b"").expect("writes");
        let fleet = Fleet::plain("http://127.0.0.1:1", "t");
        let client = Client::new(&fleet, Retry::ONCE).expect("a URL");
        let request = SubmitJobRequest::default();
        let sent = send(&client, files.as_slice(), "", request, &mut |_, _| {}).await;
        let error = sent.expect_err("there is nothing to send");
        assert_eq!(error.exit(), Exit::Usage);
        let said = error.to_string();
        assert!(said.contains("2.dcm is empty"), "{said}");
    }
}
