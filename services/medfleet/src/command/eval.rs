//! `medfleet eval`: a labelled set through the fleet, scored. Each answer is written down as it comes, so that an evaluation
//! that was cut off goes on where it was.

mod ask;
mod outcomes;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use medfleet_imaging::{Format, Limits, decode_file, frame_to_png, sniff};
use medfleet_score::evaluation::Case;
use medfleet_score::metrics::bootstrap::Bootstrap;
use medfleet_score::report::{self, Picture};
use medfleet_score::{About, Evaluation, Options, Record, Task, Uncertain, evaluate, read_set};

use super::on_one_thread;
use crate::choices::one_of;
use crate::client::{Client, Retry, ServerArgs};
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;
use ask::{Asked, Asker};
use outcomes::Log;

/// Side of the pictures that are made for the page.
const PICTURE_SIDE_PIXELS: u32 = 448;

/// Flags of `eval`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Folder with set.jsonl and the pictures that it names (docs/evaluation.md says what a line holds)
    #[arg(long, value_name = "DIR")]
    set: PathBuf,
    /// What to ask
    #[arg(long, value_parser = one_of(&Task::ALL, Task::name))]
    task: Task,
    /// Folder for the answers and the report; with answers of an earlier run in it, only the others are asked for
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only the first N records
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Jobs under way at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    at_once: usize,
    /// Model alias [default: the fleet's]
    #[arg(
        long,
        value_name = "ALIAS",
        default_value = "",
        hide_default_value = true
    )]
    model: String,
    /// Seed of the confidence intervals
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object on stdout: the whole evaluation
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let records = records(&args).map_err(Fault::usage)?;
    let task = args.task;
    let all = ask::questions(&records, task).map_err(Fault::usage)?;
    let fleet = args.server.resolve()?;
    let set = std::fs::canonicalize(&args.set).unwrap_or_else(|_| args.set.clone());
    let asked_of = format!("set {}, model {:?}\n", set.display(), args.model);
    let mut log = Log::open(&args.out, task, &asked_of).map_err(Fault::usage)?;
    on_one_thread(async {
        let asker = Asker {
            client: Client::new(&fleet, Retry::PATIENT)?,
            set: args.set.clone(),
            model: args.model.clone(),
        };
        let left: Vec<Asked> = all.into_iter().filter(|asked| log.lacks(asked)).collect();
        let bar = ProgressBar::new(left.len() as u64);
        let style = ProgressStyle::with_template("{pos} of {len} answers {wide_bar} {eta}");
        bar.set_style(style.context("the progress bar's template")?);
        let mut answers = futures::stream::iter(&left)
            .map(|asked| asker.ask(asked))
            .buffer_unordered(args.at_once);
        while let Some(outcome) = answers.next().await {
            log.add(outcome?)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let options = Options {
            bootstrap: Bootstrap::seeded(args.seed),
            uncertain: Uncertain::Positive,
            about: about(&args.set, &records)?,
        };
        let evaluation = evaluate(task, &records, log.outcomes(), &options);
        let files = report::write(&evaluation, &args.out, &mut |case| picture(&args.set, case))
            .context("cannot write the report")?;
        show_evaluation(&args, &evaluation)?;
        eprintln!(
            "report: {}, {} and {}",
            files.html.display(),
            files.markdown.display(),
            files.json.display()
        );
        Ok(Exit::Done)
    })
}

fn records(args: &Args) -> Result<Vec<Record>> {
    let path = args.set.join("set.jsonl");
    let file =
        std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut records = read_set(std::io::BufReader::new(file))
        .with_context(|| format!("cannot read {}", path.display()))?;
    records.truncate(args.limit.unwrap_or(usize::MAX));
    Ok(records)
}

/// What the set says of itself in set.json, or what can be told from its records.
fn about(set: &Path, records: &[Record]) -> Result<About> {
    let path = set.join("set.json");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{} is not right", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = set.file_name().unwrap_or(set.as_os_str());
            Ok(About::of(&name.to_string_lossy(), records))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The picture beside a case: PNG and JPEG as they are, anything else as the fleet shows it to a model. Without one the page
/// says so: a case whose picture can't be shown is still worth its place.
fn picture(set: &Path, case: &Case) -> Option<Picture> {
    let bytes = std::fs::read(set.join(case.image.as_deref()?)).ok()?;
    let media_type = match sniff(&bytes).ok()? {
        Format::Png => "image/png",
        Format::Jpeg => "image/jpeg",
        _ => {
            let bytes = frame_of(&bytes).ok()?;
            return Some(Picture {
                media_type: "image/png",
                bytes,
            });
        }
    };
    Some(Picture { media_type, bytes })
}

/// The first frame of a file, as PNG.
fn frame_of(bytes: &[u8]) -> Result<Vec<u8>> {
    let options = medfleet_imaging::Options::new(PICTURE_SIDE_PIXELS, Limits::default())?;
    let decoded = decode_file(bytes, &options)?;
    let (frame, _) = decoded.frames.first().context("the file has no picture")?;
    Ok(frame_to_png(frame)?)
}

fn show_evaluation(args: &Args, evaluation: &Evaluation) -> Result<()> {
    if args.json {
        let value = serde_json::to_value(evaluation).context("the evaluation as JSON")?;
        return Ok(show::print_json(&value)?);
    }
    Ok(show::print(&report::markdown(evaluation))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_phantom::Phantom;

    #[test]
    fn pictures_of_any_format_are_shown() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shown = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).expect("a file");
            let case = Case {
                id: "a".into(),
                image: Some(name.into()),
                score: 0.0,
                question: None,
                truth: String::new(),
                said: String::new(),
                wrong: Vec::new(),
            };
            picture(folder.path(), &case)
        };
        let file = Phantom::draw(1, 0, false).dicom(128).expect("a DICOM file");
        let made = shown("a.dcm", &file).expect("a picture");
        assert_eq!(made.media_type, "image/png");
        assert_eq!(sniff(&made.bytes).ok(), Some(Format::Png));
        // A picture that a browser knows is not made anew.
        let as_it_is = shown("b.png", &made.bytes).expect("a picture");
        assert_eq!(as_it_is, made);
        assert_eq!(shown("c.dcm", b"nothing"), None);
    }
}
