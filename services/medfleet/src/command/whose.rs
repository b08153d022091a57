//! Whose the files are: pseudonyms of their patient and studies, given on the command line or made from the files' headers with a
//! key. They are made on this machine, so that nothing of a header leaves it this way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::NonEmptyStringValueParser;
use medfleet_core::STUDIES_MAX;
use medfleet_imaging::{DeidentificationKey, Limits, Whose};

/// Flags of `submit` that say whose a job is.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct WhoseArgs {
    /// Pseudonym of the patient, so that `erase --patient` finds the job: a keyed hash, 16 to 64 characters of A-Z, a-z, 0-9,
    /// '.', '_' and '-'; never a patient's number
    #[arg(long, value_name = "PSEUDONYM", conflicts_with = "patient_key_file", value_parser = NonEmptyStringValueParser::new())]
    patient: Option<String>,
    /// Pseudonym of a study, so that `erase --study` finds the job; may be given up to 4 times
    #[arg(long, value_name = "PSEUDONYM", conflicts_with = "patient_key_file", value_parser = NonEmptyStringValueParser::new())]
    study: Vec<String>,
    /// Make both of the DICOM headers with this key, as `deidentify --key-file` does: 64 hexadecimal digits. The key and what the
    /// headers say stay here
    #[arg(long, value_name = "FILE")]
    patient_key_file: Option<PathBuf>,
}

/// The pseudonyms of a job.
#[derive(PartialEq, Eq)]
pub(super) struct Pseudonyms {
    /// Empty where nothing is said.
    pub(super) patient: String,
    pub(super) studies: Vec<String>,
}

impl std::fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pseudonyms(hidden)")
    }
}

impl WhoseArgs {
    /// The pseudonyms of a job over these files. Reads each of them where there is a key.
    ///
    /// # Errors
    /// A key of another form, no file or one without a DICOM header, files of several patients or too many studies.
    pub(super) async fn pseudonyms(&self, files: &[PathBuf]) -> Result<Pseudonyms> {
        let Some(path) = &self.patient_key_file else {
            return Ok(Pseudonyms {
                patient: self.patient.clone().unwrap_or_default(),
                studies: self.study.clone(),
            });
        };
        let (key, files) = (key(path)?, files.to_vec());
        let reading = tokio::task::spawn_blocking(move || of_files(&key, &files));
        reading.await.context("reading the headers broke off")?
    }
}

/// A tenant's key, as `deidentify` takes it.
pub(super) fn key(path: &Path) -> Result<DeidentificationKey> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A key of 32 bytes as they are is as wrong as any other text.
    DeidentificationKey::parse(&String::from_utf8_lossy(&bytes))
        .with_context(|| path.display().to_string())
}

/// Whose one DICOM file is.
pub(super) fn of_file(key: &DeidentificationKey, path: &Path) -> Result<Whose> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(key.whose(&bytes, &Limits::default())?)
}

/// What all files say together; a file is named by its number, since names of files often are names of people.
fn of_files(key: &DeidentificationKey, files: &[PathBuf]) -> Result<Pseudonyms> {
    let (mut patients, mut studies) = (BTreeSet::new(), BTreeSet::new());
    for (index, path) in files.iter().enumerate() {
        let read = std::fs::read(path).map_err(anyhow::Error::from);
        let whose = read.and_then(|bytes| Ok(key.whose(&bytes, &Limits::default())?));
        let whose = whose.with_context(|| {
            let (number, count) = (index + 1, files.len());
            format!("file {number} of {count} does not say whose it is; give --patient and --study in place of --patient-key-file")
        })?;
        patients.insert(whose.patient);
        studies.insert(whose.study);
    }
    if files.is_empty() {
        bail!(
            "there is no file to say whose the job is; give --patient and --study in place of --patient-key-file"
        );
    }
    if patients.len() > 1 {
        let count = patients.len();
        bail!(
            "the files are of {count} patients: a job that can be erased by its patient is of one"
        );
    }
    if studies.len() > STUDIES_MAX {
        let count = studies.len();
        bail!(
            "the files are of {count} studies: a job that can be erased by its studies is of at most {STUDIES_MAX}"
        );
    }
    Ok(Pseudonyms {
        patient: patients.pop_first().unwrap_or_default(),
        studies: studies.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phantom(folder: &Path, patient: u64) -> PathBuf {
        let phantom = medfleet_phantom::Phantom::draw(3, patient, false);
        let path = folder.join(format!("{patient}.dcm"));
        std::fs::write(&path, phantom.dicom(32).expect("a file")).expect("is written");
        path
    }

    fn args(folder: &Path, key: &str) -> WhoseArgs {
        let path = folder.join("key");
        std::fs::write(&path, key).expect("a key file");
        WhoseArgs {
            patient_key_file: Some(path),
            ..WhoseArgs::default()
        }
    }

    #[tokio::test]
    async fn the_same_key_gives_the_same_pseudonyms() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = phantom(folder.path(), 0);
        let args = args(folder.path(), &"5a".repeat(32));
        let made = args.pseudonyms(&[file.clone(), file.clone()]).await;
        let made = made.expect("a header");
        assert_eq!((made.patient.len(), made.studies.len()), (16, 1));
        let whose = of_file(&key(&folder.path().join("key")).expect("a key"), &file);
        let whose = whose.expect("a header");
        assert_eq!(
            (made.patient, made.studies),
            (whose.patient, vec![whose.study])
        );
        let refused = args.pseudonyms(&[]).await.expect_err("no files");
        assert!(refused.to_string().contains("no file"), "{refused:#}");
    }

    #[test]
    fn a_file_that_is_no_key_is_told_what_one_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("key");
        for wrong in [&b"5a5a"[..], &[0xff; 32]] {
            std::fs::write(&path, wrong).expect("a file");
            let Err(error) = key(&path) else {
                panic!("{wrong:?} was taken");
            };
            assert!(
                format!("{error:#}").contains("64 hexadecimal digits"),
                "{error:#}"
            );
        }
    }

    #[tokio::test]
    async fn what_does_not_say_whose_it_is_is_refused_without_its_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("Jane.png");
        std::fs::write(&path, b"\x89PNG\r\n\x1a\n").expect("a file");
        let args = args(folder.path(), &"5a".repeat(32));
        let refused = args.pseudonyms(&[path]).await.expect_err("no header");
        let refused = format!("{refused:#}");
        assert!(
            refused.contains("file 1 of 1") && !refused.contains("Jane"),
            "{refused}"
        );
        let files = [phantom(folder.path(), 0), phantom(folder.path(), 1)];
        let refused = args.pseudonyms(&files).await.expect_err("two patients");
        assert!(refused.to_string().contains("2 patients"), "{refused:#}");
    }

    #[tokio::test]
    async fn what_was_given_is_taken_as_it_is() {
        let given = WhoseArgs {
            patient: Some("0A1B2C3D4E5F6071".to_owned()),
            ..WhoseArgs::default()
        };
        let made = given.pseudonyms(&[]).await.expect("given");
        assert_eq!(
            (made.patient.as_str(), made.studies.len()),
            ("0A1B2C3D4E5F6071", 0)
        );
    }
}
