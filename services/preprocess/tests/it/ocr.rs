//! The program that reads text: a script that stands in for it, run as the real one is, and the real one where it is installed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use medfleet_imaging::{Area, Page, TextReader, TextReaderError, Word};
use medfleet_preprocess::codecs::Stop;
use medfleet_preprocess::ocr::{Ocr, OcrSettings};
use medfleet_preprocess::{TextReaderConfig, Times};

use crate::PATIENCE;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/reads-text.sh");
/// 180 x 40 pixels with two words in light grey on dark grey, one of letters and one of digits.
const WORDS: &[u8] = include_bytes!("words.pgm");
const WORDS_HEAD: &[u8] = b"P5\n180 40\n255\n";

fn settings(program: &Path, languages: &str, times: Times) -> OcrSettings {
    OcrSettings {
        program: program.to_owned(),
        languages: languages.to_owned(),
        data_folder: None,
        memory_bytes_max: 512 << 20,
        times,
    }
}

/// The script, which behaves as its "language" says, under the limits that the service's own binary sets.
fn script(behaviour: &str, times: Times) -> Ocr {
    Ocr::new(limiter(), settings(Path::new(SCRIPT), behaviour, times))
}

fn limiter() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_medfleet-preprocess"))
}

fn patience() -> Times {
    Times::of(PATIENCE)
}

/// What it answers about a picture of 64 x 32 pixels.
fn read(reader: &Ocr) -> Result<Vec<Word>, TextReaderError> {
    reader.read(&Page {
        width: 64,
        height: 32,
        channels: 1,
        pixels: &[7; 64 * 32],
    })
}

#[test]
fn words_come_back_with_their_places() {
    let area = |left, width| Area {
        left,
        top: 6,
        width,
        height: 10,
    };
    let word = |text: &str, confidence, area_of_word| Word {
        text: text.to_owned(),
        confidence,
        area: area_of_word,
        line: area(10, 45),
    };
    let expected = vec![
        word("DOE^JANE", 91.5, area(10, 30)),
        word("L", 96.0, area(45, 10)),
    ];
    assert_eq!(read(&script("words", patience())), Ok(expected));
}

#[test]
fn it_is_limited_and_gets_nothing_of_our_environment() {
    let reader = script("last_arguments", Times::of(Duration::from_secs(60)));
    assert_eq!(read(&reader), Ok(Vec::new()));
    assert_eq!(reader.trial(), Ok(()));
}

#[test]
fn what_gives_no_answer_is_told() {
    let check = |behaviour, expected| {
        assert_eq!(
            read(&script(behaviour, patience())),
            Err(expected),
            "{behaviour}"
        );
    };
    check("something_else", TextReaderError::Failed);
    check("fails", TextReaderError::Failed);
    check("without_end", TextReaderError::Failed);
}

#[test]
fn a_program_that_is_not_there_is_not_the_pictures_fault() {
    let settings = settings(Path::new("/nowhere/at/all"), "eng", patience());
    let limited = Ocr::new(limiter(), settings.clone());
    assert_eq!(read(&limited), Err(TextReaderError::Unavailable));
    let unlimited = Ocr::unlimited(settings);
    assert_eq!(unlimited.trial(), Err(TextReaderError::Unavailable));
}

/// So is what it has started, which would hold the pipe for ten minutes. The picture is not to blame: it used nothing.
#[test]
fn one_that_hangs_is_ended_at_its_time() {
    let started = Instant::now();
    let times = Times {
        wall_max: Duration::from_secs(1),
        ..patience()
    };
    let reader = script("hangs", times);
    assert_eq!(read(&reader), Err(TextReaderError::Overdue));
    assert!(started.elapsed() < PATIENCE);
}

/// However long the machine lets it wait for that.
#[test]
fn one_that_uses_its_processor_time_is_ended() {
    let times = Times {
        processor_max: Duration::from_secs(1),
        ..patience()
    };
    let reader = script("busy", times);
    assert_eq!(read(&reader), Err(TextReaderError::TooSlow));
}

/// A shell starts a reader, as a thread of the service does, and is killed: the reader, by now another program, is gone too,
/// which nobody can tell it any more.
#[test]
fn one_whose_parent_is_killed_ends() {
    let arguments = "read-text 1073741824 60 $$ sleep 600";
    let mut shell = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("\"$1\" {arguments} & echo $!; wait"))
        .args(["sh", env!("CARGO_BIN_EXE_medfleet-preprocess")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(shell.stdout.take().unwrap());
    let mut id = String::new();
    printed.read_line(&mut id).unwrap();
    let name = format!("/proc/{}/comm", id.trim());
    let is_it = || fs::read_to_string(&name).is_ok_and(|name| name.trim() == "sleep");
    let started = Instant::now();
    while !is_it() {
        assert!(started.elapsed() < PATIENCE, "it becomes the program");
        thread::yield_now();
    }
    shell.kill().unwrap();
    shell.wait().unwrap();
    // Whoever lives holds the other end of the pipe.
    let (closed, waits) = mpsc::channel();
    thread::spawn(move || closed.send(printed.read_to_end(&mut Vec::new())));
    let read = waits.recv_timeout(PATIENCE);
    assert_eq!(read.expect("nobody is left").unwrap(), 0);
}

/// Its parent died before the kernel was asked to tell it.
#[test]
fn one_whose_parent_is_another_by_now_does_not_begin() {
    let mut command = Command::new(limiter());
    // This test's own parent is not the one that started it.
    let parent = std::os::unix::process::parent_id().to_string();
    command.args(["read-text", "1073741824", "60", &parent, "true"]);
    assert_eq!(command.status().unwrap().code(), Some(125));
}

#[test]
fn one_that_nobody_waits_for_is_ended() {
    let (stop, reader) = (Stop::default(), script("hangs", patience()));
    let started = Instant::now();
    let answer = thread::scope(|scope| {
        let read = scope.spawn(|| stop.during(|| read(&reader)));
        // Before it is started or after: both end it.
        stop.stop();
        read.join().unwrap()
    });
    assert_eq!(answer, Err(TextReaderError::Stopped));
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_configuration_with_it_is_accepted() {
    let config = TextReaderConfig {
        languages: vec!["words".to_owned()],
        ..TextReaderConfig::of(PathBuf::from(SCRIPT))
    };
    config.check().unwrap();
    let config = TextReaderConfig {
        languages: vec!["something_else".to_owned()],
        ..config
    };
    let said = config.check().unwrap_err().to_string();
    assert!(said.contains("does not look at a picture"), "{said}");
}

/// Names in that language would be missed without a word.
#[test]
fn a_language_without_a_model_is_told_beside_one_that_has_one() {
    let config = TextReaderConfig {
        languages: ["words", "fails"].map(str::to_owned).to_vec(),
        ..TextReaderConfig::of(PathBuf::from(SCRIPT))
    };
    let reader = Ocr::unlimited(config.settings().unwrap());
    assert!(read(&reader).is_ok());
    let said = config.check().unwrap_err().to_string();
    assert!(said.contains("a model for each of the languages"), "{said}");
}

#[test]
fn tesseract_itself_finds_the_words_of_a_picture() {
    // Its place as a shell finds it.
    let found = Command::new("/bin/sh")
        .args(["-c", "command -v tesseract"])
        .output();
    let path = String::from_utf8(found.unwrap().stdout).unwrap();
    let program = Path::new(path.trim());
    if path.trim().is_empty() {
        // Past the test runner's capture, so that nobody takes it for tried.
        let said = "skipped: Tesseract is not installed (Debian: apt-get install tesseract-ocr)";
        writeln!(std::io::stderr(), "{said}").unwrap();
        return;
    }
    let reader = Ocr::new(limiter(), settings(program, "eng", patience()));
    let words = reader.read(&Page {
        width: 180,
        height: 40,
        channels: 1,
        pixels: WORDS.strip_prefix(WORDS_HEAD).unwrap(),
    });
    let words = words.unwrap();
    for expected in ["PHANTOM", "4711-883"] {
        let word = words.iter().find(|word| word.text == expected);
        let Word {
            area, confidence, ..
        } = word.expect(expected);
        assert!(*confidence > 60.0, "{expected}: {confidence}");
        assert!((5..15).contains(&area.top) && area.height < 25, "{area:?}");
    }
}
