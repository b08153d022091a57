//! Every file of five public corpora against what pydicom and its plugins make of it (`tests/corpus/reference.py`): the same
//! values, or a refusal with a reason. `docs/imaging-corpus.md` is what comes out; a change in it has to be looked at.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use medfleet_imaging::{Format, Limits, Reason, Refusal, Values, decode_values, sniff};
use serde::Deserialize;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("../../../../docs/imaging-corpus.md");
const REFERENCE: &str = include_str!("../corpus/reference.jsonl");
const SECOND_REFERENCE: &str = include_str!("../corpus/second_reference.jsonl");

/// How far apart lossy decoders may be: values of 8 bits, and proportionally of more.
const LOSSY_DIFFERENCE_MAX: f64 = 3.0;
/// As many frames of a file as the reference keeps the values of.
const FRAMES_MAX: u32 = 8;
/// Of the files whose pixels the reference decodes, this share comes out equal.
const EQUAL_SHARE_MIN: f64 = 0.95;

/// Files whose palette the reference reads in the wrong byte order, and the file in the other order that they were made of.
const TWINS: &[(&str, &str)] = &[
    (
        "pydicom-data-1.0.0/OBXXXX1A_expb.dcm",
        "pydicom-data-1.0.0/OBXXXX1A.dcm",
    ),
    (
        "pydicom-data-1.0.0/OBXXXX1A_expb_2frame.dcm",
        "pydicom-data-1.0.0/OBXXXX1A_2frame.dcm",
    ),
];

/// One line of the reference.
#[derive(Deserialize)]
struct Line {
    file: String,
    fails: Option<String>,
    syntax: Option<String>,
    #[serde(default)]
    frames: Vec<FrameLine>,
    #[serde(default)]
    frames_total: u32,
}

#[derive(Deserialize)]
struct FrameLine {
    values: usize,
    sha256: Option<String>,
    samples: Option<String>,
}

/// What two other decoders make of a compressed file (`tests/corpus/second_reference.py`): `same` as the reference, or why not;
/// empty where they were not asked.
#[derive(Deserialize)]
struct Second {
    file: String,
    #[serde(default)]
    gdcm: String,
    #[serde(default)]
    dcmtk: String,
}

/// What came out of one file.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Equal,
    /// Of a lossy file: the largest difference at the sampled values.
    Close(f64),
    /// Equal to the reference's values of the file it was made of, where the reference is wrong about this one.
    Twin,
    Differs(String),
    Refused(Reason),
    /// The reference gives no values, we do.
    OnlyOurs,
}

/// Where the gate unpacks the corpora before the tests.
#[expect(
    clippy::disallowed_methods,
    reason = "the gate names its cache in the environment; no library code reads it"
)]
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("MEDFLEET_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            std::env::home_dir()
                .expect("a home directory")
                .join(".cache/medfleet")
        })
}

fn read(file: &str) -> Vec<u8> {
    let path = cache().join(file);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{error}: {} is missing; `cargo xtask fetch` brings it",
            path.display()
        )
    })
}

fn flat(values: Values) -> Vec<f64> {
    match values {
        Values::Grey(values) => values,
        Values::Colour { samples, .. } => samples.into_iter().map(f64::from).collect(),
    }
}

fn compare_frame(values: &[f64], line: &FrameLine) -> Result<Option<f64>, String> {
    if values.len() != line.values {
        return Err(format!(
            "{} values instead of {}",
            values.len(),
            line.values
        ));
    }
    if let Some(expected) = &line.sha256 {
        let mut digest = Sha256::new();
        for value in values {
            digest.update(value.to_le_bytes());
        }
        let found: String = digest
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        return if found == *expected {
            Ok(None)
        } else {
            Err("another digest".to_owned())
        };
    }
    let samples = STANDARD.decode(line.samples.as_ref().unwrap()).unwrap();
    let samples = samples
        .chunks_exact(4)
        .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let worst = samples
        .enumerate()
        .map(|(k, expected)| {
            let hash = (k as u64 * 2_654_435_761) % (1 << 32);
            let at = (hash * values.len() as u64) >> 32;
            (values[at as usize] - expected).abs()
        })
        .fold(0.0, f64::max);
    let scale = values
        .iter()
        .fold(255.0, |most: f64, value| most.max(value.abs()))
        / 255.0;
    if worst <= LOSSY_DIFFERENCE_MAX * scale {
        Ok(Some(worst))
    } else {
        Err(format!("differs by {worst} at a sampled value"))
    }
}

fn decode(bytes: &[u8], each: impl FnMut(u32, Values)) -> Result<u32, Refusal> {
    match sniff(bytes)? {
        Format::Dicom => decode_values(bytes, &Limits::default(), FRAMES_MAX, each),
        _ => Err(Refusal::new(Reason::NotAnImage)),
    }
}

/// Compares a file with the reference, or with its twin's line.
fn outcome(line: &Line, lines: &[Line]) -> Outcome {
    let twin = TWINS.iter().find(|(file, _)| *file == line.file);
    let Some((_, twin)) = twin else {
        return compare(line, &line.frames);
    };
    let twin = lines.iter().find(|line| line.file == *twin).unwrap();
    match compare(line, &twin.frames) {
        Outcome::Equal => Outcome::Twin,
        other => other,
    }
}

fn compare(line: &Line, expected: &[FrameLine]) -> Outcome {
    let (mut worst, mut lossy, mut wrong) = (0.0f64, false, None);
    let each = |index: u32, values: Values| {
        let Some(expected) = expected.get(index as usize) else {
            return;
        };
        match compare_frame(&flat(values), expected) {
            Ok(None) => {}
            Ok(Some(difference)) => {
                lossy = true;
                worst = worst.max(difference);
            }
            Err(text) => {
                wrong.get_or_insert(format!("frame {index}: {text}"));
            }
        }
    };
    match decode(&read(&line.file), each) {
        Err(refusal) => Outcome::Refused(refusal.reason),
        Ok(_) if line.fails.is_some() => Outcome::OnlyOurs,
        Ok(frames) if frames != line.frames_total => {
            Outcome::Differs(format!("{frames} frames instead of {}", line.frames_total))
        }
        Ok(_) => match wrong {
            Some(text) => Outcome::Differs(text),
            None if lossy => Outcome::Close(worst),
            None => Outcome::Equal,
        },
    }
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Equal => "equal".to_owned(),
        Outcome::Close(worst) => format!("within {worst:.1}"),
        Outcome::Twin => {
            "equal to the file it was made of; the reference reads its palette in the wrong byte order"
                .to_owned()
        }
        Outcome::Differs(text) => format!("**differs**: {text}"),
        Outcome::Refused(reason) => format!("refused: `{reason}`"),
        Outcome::OnlyOurs => "decodes".to_owned(),
    }
}

/// The lines of a file of JSON.
fn lines_of<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The page, from the outcomes in the order of the reference.
fn page(outcomes: &[(Line, Outcome)], seconds: &[Second]) -> String {
    let decoded = outcomes.iter().filter(|(line, _)| line.fails.is_none());
    let of_decoded = decoded.clone().count();
    let equal = decoded
        .filter(|(_, outcome)| matches!(outcome, Outcome::Equal | Outcome::Close(_)))
        .count();
    let mut page = String::from(
        "# Imaging: every file of the public corpora\n\n\
         Made by `cargo test -p medfleet-imaging --test it corpus`; the test fails when this page is not what comes out.\n\
         The reference is pydicom with pylibjpeg and pyjpegls (`crates/imaging/tests/corpus/reference.py`).\n\
         Equal means bit-exact values of every frame compared; lossy files are compared at 256 values a frame, in steps of 8-bit levels.\n\
         Of what is compressed, two columns say whether GDCM 3.2.6 and DCMTK 3.6.7 come to the reference's values (`crates/imaging/tests/corpus/second_reference.py`).\n\n",
    );
    writeln!(
        page,
        "Of {} files, the reference gives values for {of_decoded}; {equal} of these come out equal ({:.1} %), and every other is refused or explained.\n",
        outcomes.len(),
        100.0 * equal as f64 / of_decoded as f64
    )
    .unwrap();
    page.push_str(
        "| transfer syntax | files | equal | refused or explained |\n|---|---|---|---|\n",
    );
    let mut by_syntax: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
    for (line, outcome) in outcomes.iter().filter(|(line, _)| line.fails.is_none()) {
        let row = by_syntax
            .entry(line.syntax.as_deref().unwrap_or(""))
            .or_default();
        row.0 += 1;
        match outcome {
            Outcome::Equal | Outcome::Close(_) => row.1 += 1,
            _ => row.2 += 1,
        }
    }
    for (syntax, (files, equal, refused)) in by_syntax {
        writeln!(page, "| {syntax} | {files} | {equal} | {refused} |").unwrap();
    }
    page.push_str("\n| file | reference | GDCM | DCMTK | medfleet |\n|---|---|---|---|---|\n");
    for (line, outcome) in outcomes {
        let reference = match &line.fails {
            Some(why) => why.clone(),
            None => format!("{} frame(s)", line.frames_total),
        };
        let second = seconds.iter().find(|second| second.file == line.file);
        let (gdcm, dcmtk) = second.map_or(("", ""), |second| {
            (second.gdcm.as_str(), second.dcmtk.as_str())
        });
        let (file, outcome) = (&line.file, word(outcome));
        writeln!(
            page,
            "| {file} | {reference} | {gdcm} | {dcmtk} | {outcome} |"
        )
        .unwrap();
    }
    page
}

#[test]
fn no_file_differs_silently_and_the_page_is_current() {
    let lines: Vec<Line> = lines_of(REFERENCE);
    let seconds: Vec<Second> = lines_of(SECOND_REFERENCE);
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);
    // One file after the other: large ones lie beside each other.
    let next = AtomicUsize::new(0);
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        let compare = || {
            let mut of_thread = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(line) = lines.get(at) else {
                    return of_thread;
                };
                of_thread.push((at, outcome(line, &lines)));
            }
        };
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(compare)).collect();
        for one in started {
            found.extend(one.join().unwrap());
        }
    });
    found.sort_by_key(|(at, _)| *at);
    let outcomes = found.into_iter().map(|(_, outcome)| outcome);
    let outcomes: Vec<(Line, Outcome)> = lines.into_iter().zip(outcomes).collect();
    let found = page(&outcomes, &seconds);
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("imaging-corpus.md");
    std::fs::write(&written, &found).unwrap();
    let wrong: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Differs(_)))
        .map(|(line, outcome)| format!("{}: {}", line.file, word(outcome)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let decoded = outcomes.iter().filter(|(line, _)| line.fails.is_none());
    let equal = decoded
        .clone()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Equal | Outcome::Close(_)));
    let share = equal.count() as f64 / decoded.count() as f64;
    assert!(share >= EQUAL_SHARE_MIN, "{share}");
    assert!(
        found == PAGE,
        "docs/imaging-corpus.md is not what comes out; the new page is {}",
        written.display()
    );
}

/// Three decoders that are not related stand behind what a compressed file holds.
#[test]
fn the_reference_is_not_alone_in_what_it_says() {
    let lines: Vec<Line> = lines_of(REFERENCE);
    let seconds: Vec<Second> = lines_of(SECOND_REFERENCE);
    let mut same = (0, 0);
    for second in &seconds {
        let known = lines.iter().any(|line| line.file == second.file);
        assert!(known, "{}", second.file);
        for (said, count) in [(&second.gdcm, &mut same.0), (&second.dcmtk, &mut same.1)] {
            let differs = !matches!(said.as_str(), "" | "same" | "does not decode");
            assert!(!differs, "{}: {said}", second.file);
            *count += u32::from(said == "same");
        }
    }
    assert_eq!(same, (54, 46));
}
