//! Every file of five public corpora against what pydicom and its plugins make of it (`tests/corpus/reference.py`): the same
//! values, or a refusal with a reason. `tests/corpus/outcomes.jsonl` is what comes out of each file, and `docs/imaging-corpus.md`
//! counts it; a change in either has to be looked at.

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
const OUTCOMES: &str = include_str!("../corpus/outcomes.jsonl");
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

/// Files that the reference gives values for and this crate refuses, and what is wrong with them.
const WHY: &[(&str, &str)] = &[
    (
        "pydicom-3.0.2/test_files/GDCMJ2K_TextGBR.dcm",
        "a JP2 file where DICOM has a bare codestream: it could bring colours of its own",
    ),
    (
        "pydicom-3.0.2/test_files/JPEG2000.dcm",
        "250 bytes unpack to 524,288, beyond `compression_ratio_max`",
    ),
    (
        "pydicom-3.0.2/test_files/SC_rgb_jpeg.dcm",
        "elements in implicit encoding, where its transfer syntax has explicit",
    ),
    (
        "pydicom-3.0.2/test_files/liver_1frame.dcm",
        "functional groups of three frames for one",
    ),
    (
        "pydicom-3.0.2/test_files/liver_expb_1frame.dcm",
        "the same in big endian",
    ),
];

/// Transfer syntaxes of the corpora, as people call them.
const SYNTAXES: &[(&str, &str)] = &[
    ("1.2.840.10008.1.2", "implicit little endian"),
    ("1.2.840.10008.1.2.1", "explicit little endian"),
    ("1.2.840.10008.1.2.1.99", "deflated"),
    ("1.2.840.10008.1.2.2", "explicit big endian"),
    ("1.2.840.10008.1.2.4.50", "JPEG baseline"),
    ("1.2.840.10008.1.2.4.51", "JPEG extended, 12 bits"),
    ("1.2.840.10008.1.2.4.70", "JPEG lossless"),
    ("1.2.840.10008.1.2.4.80", "JPEG-LS"),
    ("1.2.840.10008.1.2.4.81", "JPEG-LS near-lossless"),
    ("1.2.840.10008.1.2.4.90", "JPEG 2000 lossless"),
    ("1.2.840.10008.1.2.4.91", "JPEG 2000"),
    ("1.2.840.10008.1.2.5", "RLE"),
];

/// One line of the reference.
#[derive(Deserialize)]
struct Line {
    file: String,
    fails: Option<String>,
    syntax: Option<String>,
    photometric: Option<String>,
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
        Outcome::Twin => "equal to the file it was made of".to_owned(),
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

/// One line a file, in the order of the reference.
fn outcomes_of(outcomes: &[(Line, Outcome)]) -> String {
    let lines = outcomes.iter().map(|(line, outcome)| {
        let line = serde_json::json!({"file": line.file, "outcome": word(outcome)});
        format!("{line}\n")
    });
    lines.collect()
}

/// How many files of a kind the reference gives values for, and what came of them.
#[derive(Default)]
struct Row {
    files: u32,
    equal: u32,
    close: u32,
    other: u32,
}

/// The outcomes of the files that the reference gives values for, counted by what `kind` says of a file.
fn table(head: &str, outcomes: &[(Line, Outcome)], kind: impl Fn(&Line) -> String) -> String {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (line, outcome) in outcomes.iter().filter(|(line, _)| line.fails.is_none()) {
        let row = rows.entry(kind(line)).or_default();
        row.files += 1;
        match outcome {
            Outcome::Equal => row.equal += 1,
            Outcome::Close(_) => row.close += 1,
            _ => row.other += 1,
        }
    }
    let mut table = format!(
        "| {head} | files | equal | lossy, close | refused or explained |\n|---|---|---|---|---|\n"
    );
    for (kind, row) in rows {
        let (files, equal, close, other) = (row.files, row.equal, row.close, row.other);
        writeln!(table, "| {kind} | {files} | {equal} | {close} | {other} |").unwrap();
    }
    table
}

fn syntax(line: &Line) -> String {
    let uid = line.syntax.as_deref().unwrap_or_default();
    match SYNTAXES.iter().find(|(known, _)| *known == uid) {
        Some((_, name)) => format!("{uid} {name}"),
        None => uid.to_owned(),
    }
}

/// Each file that the reference gives values for and this crate does not, or others.
fn explained(outcomes: &[(Line, Outcome)]) -> String {
    let mut table = String::from("| file | medfleet | why |\n|---|---|---|\n");
    for (line, outcome) in outcomes.iter().filter(|(line, _)| line.fails.is_none()) {
        let (file, said) = (&line.file, word(outcome));
        let why = match outcome {
            Outcome::Equal | Outcome::Close(_) => continue,
            Outcome::Twin => "the reference reads its palette in the wrong byte order",
            _ => WHY
                .iter()
                .find(|(known, _)| known == file)
                .map_or("**nobody knows**", |(_, why)| *why),
        };
        writeln!(table, "| `{file}` | {said} | {why} |").unwrap();
    }
    table
}

/// What became of the files that the reference gives no values for.
fn without_values(outcomes: &[(Line, Outcome)]) -> String {
    let mut rows: BTreeMap<(String, &str), (u32, &str)> = BTreeMap::new();
    for (line, outcome) in outcomes {
        if let Some(fails) = line.fails.as_deref() {
            let row = rows.entry((word(outcome), fails));
            row.or_insert((0, line.file.as_str())).0 += 1;
        }
    }
    let mut table = String::from("| medfleet | reference | files | such as |\n|---|---|---|---|\n");
    for ((said, fails), (files, first)) in rows {
        writeln!(table, "| {said} | {fails} | {files} | `{first}` |").unwrap();
    }
    table
}

/// How many files a decoder gives the same values of, and how many it does not decode.
fn counts<'a>(said: impl Iterator<Item = &'a str>) -> String {
    let (mut same, mut fails) = (0, 0);
    for word in said {
        same += u32::from(word == "same");
        fails += u32::from(word == "does not decode");
    }
    format!("{same} | {fails}")
}

/// The page, from the outcomes in the order of the reference.
fn page(outcomes: &[(Line, Outcome)], seconds: &[Second]) -> String {
    let decoded = outcomes.iter().filter(|(line, _)| line.fails.is_none());
    let of_decoded = decoded.clone().count();
    let equal = decoded
        .filter(|(_, outcome)| matches!(outcome, Outcome::Equal | Outcome::Close(_)))
        .count();
    let mut page = String::from(
        "# Imaging: the files of the public corpora\n\n\
         Made by `cargo test -p medfleet-imaging --test it corpus`; the test fails when this page is not what comes out.\n\
         What comes out of each file is a line of `crates/imaging/tests/corpus/outcomes.jsonl`, which the same test compares.\n\
         The reference is pydicom with pylibjpeg and pyjpegls (`crates/imaging/tests/corpus/reference.py`).\n\
         *Equal*: bit for bit, up to 8 frames of a file; *close*: of what was compressed with loss, 256 values a frame within 3 of 255.\n\
         What the reference gives no values for has a table of its own.\n\n",
    );
    writeln!(
        page,
        "Of {} files, the reference gives values for {of_decoded}; {equal} of these come out equal or close ({:.1} %), and every other is refused or explained.\n",
        outcomes.len(),
        100.0 * equal as f64 / of_decoded as f64
    )
    .unwrap();
    let source = |line: &Line| {
        let source = line.file.split('/').next();
        source.unwrap_or_default().to_owned()
    };
    let photometric = |line: &Line| line.photometric.clone().unwrap_or_default();
    let sections = [
        ("By source", table("source", outcomes, source)),
        (
            "By transfer syntax",
            table("transfer syntax", outcomes, syntax),
        ),
        (
            "By photometric interpretation",
            table("photometric interpretation", outcomes, photometric),
        ),
        ("Refused or explained", explained(outcomes)),
        ("Without values", without_values(outcomes)),
        (
            "Whether the reference is right",
            format!(
                "Two more decoders were given what is compressed (`crates/imaging/tests/corpus/second_reference.py`):\n\n\
                 | decoder | the same values | does not decode |\n|---|---|---|\n| GDCM 3.2.6 | {} |\n| DCMTK 3.6.7 | {} |\n",
                counts(seconds.iter().map(|second| second.gdcm.as_str())),
                counts(seconds.iter().map(|second| second.dcmtk.as_str()))
            ),
        ),
    ];
    let sections = sections.map(|(title, body)| format!("## {title}\n\n{body}"));
    page + &sections.join("\n")
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
    let found_outcomes = outcomes_of(&outcomes);
    let written = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(written.join("imaging-corpus.md"), &found).unwrap();
    std::fs::write(written.join("outcomes.jsonl"), &found_outcomes).unwrap();
    let wrong: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Differs(_)))
        .map(|(line, outcome)| format!("{}: {}", line.file, word(outcome)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!found.contains("nobody knows"), "{found}");
    let decoded = outcomes.iter().filter(|(line, _)| line.fails.is_none());
    let equal = decoded
        .clone()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Equal | Outcome::Close(_)));
    let share = equal.count() as f64 / decoded.count() as f64;
    assert!(share >= EQUAL_SHARE_MIN, "{share}");
    assert!(
        found_outcomes == OUTCOMES && found == PAGE,
        "docs/imaging-corpus.md or outcomes.jsonl is not what comes out; the new ones are in {}",
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
