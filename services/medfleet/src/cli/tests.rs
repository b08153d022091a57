//! The command line agrees with itself, and with what the pages tell people to type.

use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};

use super::Cli;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_count_of_none_is_refused() {
    let plan = "plan --jobs-per-second 1 --encode-seconds 1 --decode-seconds 1";
    let lines = [
        // It would leave an empty set where one was.
        "phantom --out x --count".to_owned(),
        "eval --set x --task report --out x --limit".to_owned(),
        "eval --set x --task report --out x --at-once".to_owned(),
        // It would tell of jobs that take no time, as none is ever done.
        format!("{plan} --decoders 1 --encoders"),
        format!("{plan} --encoders 1 --decoders"),
        format!("{plan} --slots-per-decoder"),
        format!("{plan} --simulated-jobs"),
        // It would wait for nobody.
        "bench throughput --clients".to_owned(),
        "bench throughput --jobs".to_owned(),
        "bench throughput --rounds".to_owned(),
        "bench throughput --slots".to_owned(),
    ];
    for line in lines {
        let typed = |count: &str| {
            let words = line.split_whitespace().chain([count]);
            let read = Cli::try_parse_from(std::iter::once("medfleet").chain(words));
            read.err().map(|error| error.kind())
        };
        assert_eq!(typed("0"), Some(ErrorKind::ValueValidation), "{line}");
        assert_eq!(typed("1"), None, "{line}");
    }
}

#[test]
fn more_workers_than_can_be_counted_are_refused() {
    let plan = "plan --jobs-per-second 1 --encode-seconds 1 --decode-seconds 1";
    let is_typed = |flags: &str| {
        let words = plan.split(' ').chain(flags.split(' '));
        Cli::try_parse_from(std::iter::once("medfleet").chain(words)).is_ok()
    };
    for (most, more) in [
        ("--slots-per-decoder 4096", "--slots-per-decoder 4097"),
        (
            "--encoders 1 --decoders 100000",
            "--encoders 1 --decoders 100001",
        ),
        (
            "--decoders 1 --encoders 100000",
            "--decoders 1 --encoders 100001",
        ),
    ] {
        assert!(is_typed(most) && !is_typed(more), "{most}");
    }
}

/// As from a script whose variable is not set: to the fleet an empty name means every tenant, an empty request id a new job with
/// each try, and an empty pseudonym none.
#[test]
fn an_empty_word_is_not_taken_for_none() {
    let lines = [
        "pause --class bulk --tenant",
        "resume --class bulk --tenant",
        "requeue --tenant",
        "submit a.dcm --task report --request-id",
        "submit a.dcm --task report --patient",
        "submit a.dcm --task report --study",
    ];
    for line in lines {
        let is_typed = |word: &str| {
            let words = line.split(' ').chain([word]);
            Cli::try_parse_from(std::iter::once("medfleet").chain(words)).is_ok()
        };
        assert!(is_typed("north") && !is_typed(""), "{line}");
    }
}

#[test]
fn every_command_on_the_pages_can_be_typed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    find(&root.join("docs"), &mut pages);
    find(&root.join("deploy"), &mut pages);
    let cli = built();
    let (mut count, mut wrong) = (0, Vec::new());
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page is text");
        for command in commands(&text) {
            count += 1;
            let trouble = trouble(&cli, &command);
            wrong.extend(trouble.map(|why| format!("{}: {command}: {why}", page.display())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 50, "only {count} commands were found");
}

#[test]
fn a_command_that_is_not_there_is_found() {
    let check = |page: &str, expected: &[&str]| {
        let cli = built();
        let found = commands(page);
        let found: Vec<String> = found
            .iter()
            .filter_map(|command| trouble(&cli, command))
            .collect();
        assert_eq!(found, expected, "{page}");
    };
    check("`medfleet submit FILE --task=report`, `medfleet …`", &[]);
    check("```\n$ medfleet dead list --json    # --all\n```\n", &[]);
    check("`medfleet list | head`, and medfleet without a mark", &[]);
    check(
        "`medfleet send FILE`",
        &["`medfleet` has no command `send`"],
    );
    check("`medfleet get JOB [--all]`", &["`get` has no flag --all"]);
    check("`medfleet submit FILE`", &["`submit` needs --task"]);
    check("`medfleet submit`, `medfleet submit FILE …`", &[]);
    check(
        "```\nmedfleet submit FILE \\\n  --sort\n```\n",
        &["`submit` has no flag --sort"],
    );
}

/// The command line with every command's own `--help`.
fn built() -> Command {
    let mut cli = Cli::command();
    cli.build();
    cli
}

/// The pages of a folder and of those in it.
fn find(folder: &Path, pages: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            find(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
}

/// Commands of this program on a page: lines of code, and what stands in backticks.
fn commands(page: &str) -> Vec<String> {
    let page = page.replace("\\\n", " ");
    let (mut in_code, mut texts) = (false, Vec::new());
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if in_code {
            texts.push(line);
        } else {
            texts.extend(line.split('`').skip(1).step_by(2));
        }
    }
    let texts = texts.into_iter().map(|text| {
        let text = text.trim().trim_start_matches("$ ");
        text.trim_start_matches("target/debug/")
    });
    let ours = texts.filter(|text| text.starts_with("medfleet "));
    let alone = ours.map(|text| {
        let ends = [" #", " |", ";", " &&"];
        let end = ends.iter().filter_map(|end| text.find(*end)).min();
        text[..end.unwrap_or(text.len())].to_owned()
    });
    alone.collect()
}

/// Why a command cannot be typed; none where it can be. Values are not looked at.
fn trouble(cli: &Command, command: &str) -> Option<String> {
    let (mut at, mut flags, mut has_operand) = (cli, Vec::new(), false);
    for word in command.split_whitespace().skip(1) {
        let word = word.trim_matches(['[', ']', ',']);
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or(flag);
            if !at
                .get_arguments()
                .any(|known| known.get_long() == Some(flag))
            {
                return Some(format!("`{}` has no flag --{flag}", at.get_name()));
            }
            flags.push(flag);
        } else if let Some(inner) = at.find_subcommand(word) {
            at = inner;
        } else if at.has_subcommands() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
            return Some(format!("`{}` has no command `{word}`", at.get_name()));
        } else {
            has_operand |= flags.is_empty();
        }
    }
    // What begins with an operand is to be typed as it stands; other lines name a command, or a flag of it.
    if !has_operand || command.contains('…') {
        return None;
    }
    let required = at.get_arguments().filter(|known| known.is_required_set());
    let mut required = required.filter_map(|known| known.get_long());
    let lacking = required.find(|flag| !flags.contains(flag))?;
    Some(format!("`{}` needs --{lacking}", at.get_name()))
}
