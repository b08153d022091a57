//! The program that a configuration of preprocess names to read text in pixels.

use std::path::PathBuf;

use medfleet_preprocess::TextReaderConfig;
use medfleet_runtime::config::{Sources, load};

use super::Finding;
use crate::exit::Fault;

/// The one table of a service's configuration that is needed here.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Configured {
    preprocess: Preprocess,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Preprocess {
    text_reader: TextReaderConfig,
}

/// Whether the program that the file names looks at a picture; `None` where it names none.
pub(super) fn look(file: PathBuf) -> Result<Option<Finding>, Fault> {
    let sources = Sources::of_process(Some(file), Vec::new());
    let configured: Configured = load(&sources).map_err(Fault::usage)?;
    Ok(finding(&configured.preprocess.text_reader))
}

fn finding(config: &TextReaderConfig) -> Option<Finding> {
    const CHECK: &str = "text reader";
    let program = config.program.as_ref()?;
    Some(match config.check() {
        Ok(()) => Finding::ok(CHECK, format!("{} looks at pictures", program.display())),
        Err(error) => Finding::fail(
            CHECK,
            error.to_string(),
            "install Tesseract 5 with the models of the languages (Debian: tesseract-ocr), or name no program",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;

    #[test]
    fn only_a_program_that_is_named_is_looked_at() {
        assert_eq!(finding(&TextReaderConfig::default()), None);
        let config = TextReaderConfig::of(PathBuf::from("/nowhere/at/all"));
        let found = finding(&config).expect("it is named");
        assert_eq!(found.verdict, Verdict::Fail);
        assert!(found.found.contains("/nowhere/at/all"), "{found}");
    }

    #[test]
    fn the_table_is_found_in_a_services_configuration() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("preprocess.toml");
        let text =
            "[preprocess]\npool = 'm'\n[preprocess.text_reader]\nprogram = '/nowhere/at/all'\n";
        std::fs::write(&file, text).expect("a file");
        let found = look(file).expect("it is read").expect("it is named");
        assert_eq!(found.verdict, Verdict::Fail);
    }
}
