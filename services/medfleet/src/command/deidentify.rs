//! `medfleet deidentify`: DICOM objects that may leave the hospital, and a manifest that says nothing about whose they are.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use medfleet_imaging::{BurnedIn, Deidentifier, Limits, Profile, Refusal, members};
use serde_json::{Value, json};

use super::lettering::LetteringArgs;
use super::whose;
use crate::exit::{CommandResult, Exit, Fault};
use crate::{paths, show};

/// Flags of `deidentify`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// DICOM files, or folders, zip or tar archives of them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Where to write the objects and manifest.json; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// File with the tenant's key, 64 hexadecimal digits: `openssl rand -hex 32 > FILE`. The same key maps the same
    /// patients, UIDs and dates in every run
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Keep dates, moved back by a number of days that is each patient's own
    #[arg(long)]
    modified_dates: bool,
    /// Keep descriptions and comments, without the header's names and numbers and what looks like such
    #[arg(long)]
    clean_descriptors: bool,
    /// Keep age (90 is the highest), sex, size and weight
    #[arg(long)]
    patient_characteristics: bool,
    /// Write objects whose pixels may carry text: ultrasound, secondary captures, digitised film, and what says so itself
    #[arg(long)]
    allow_burned_in: bool,
    #[command(flatten)]
    lettering: LetteringArgs,
    /// One JSON object per object and line on stdout
    #[arg(long)]
    json: bool,
}

/// Runs the command; exit code 1 if an object was refused.
pub(crate) fn run(args: Args) -> CommandResult {
    let key = whose::key(&args.key_file).map_err(Fault::usage)?;
    let profile = Profile {
        modified_dates: args.modified_dates,
        clean_descriptors: args.clean_descriptors,
        patient_characteristics: args.patient_characteristics,
        burned_in: if args.allow_burned_in {
            BurnedIn::Allow
        } else {
            BurnedIn::Refuse
        },
    };
    let text_check = args.lettering.check()?;
    let paths = paths::files(&args.paths).map_err(Fault::usage)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut set = Set {
        deidentifier: Deidentifier::new(key, profile).checking_text(text_check),
        limits: Limits::default(),
        out: &args.out,
        json: args.json,
        written: HashSet::new(),
        entries: Vec::new(),
        refused: 0,
    };
    for path in paths {
        set.path(&path)?;
    }
    let manifest =
        json!({"profile": profile, "pixels_read": text_check.is_some(), "objects": set.entries});
    let path = args.out.join("manifest.json");
    let text = serde_json::to_vec_pretty(&manifest).context("cannot write the manifest as JSON")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    if set.refused > 0 {
        let (refused, all) = (set.refused, set.entries.len());
        eprintln!(
            "medfleet: {refused} of {all} objects refused and not written; {} says why",
            path.display()
        );
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// The objects of one run.
struct Set<'a> {
    deidentifier: Deidentifier,
    limits: Limits,
    out: &'a Path,
    json: bool,
    /// Names of the files written, so that an object that comes twice is written once.
    written: HashSet<String>,
    entries: Vec<Value>,
    refused: usize,
}

impl Set<'_> {
    /// A file, or every file of an archive; of an archive one is in memory at a time.
    fn path(&mut self, path: &Path) -> Result<()> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !paths::is_archive(path)? {
            return self.object(Cow::Owned(bytes));
        }
        let mut done = Ok(());
        let opened = members(&bytes, &self.limits.clone(), &mut |member| {
            if done.is_ok() {
                done = self.object(Cow::Owned(member.bytes));
            }
        });
        done?;
        match opened {
            Ok(()) => Ok(()),
            Err(refusal) => self.refuse(&refusal),
        }
    }

    fn object(&mut self, bytes: Cow<'_, [u8]>) -> Result<()> {
        let object = match self.deidentifier.deidentify(&bytes, &self.limits) {
            Ok(object) => object,
            Err(refusal) => return self.refuse(&refusal),
        };
        // Named by the mapped UID, which is digits and points; never by what the input was called.
        let name = format!("{}.dcm", object.instance);
        let again = !self.written.insert(name.clone());
        if !again {
            let target = self.out.join(&name);
            std::fs::write(&target, &object.bytes)
                .with_context(|| format!("cannot write {}", target.display()))?;
        }
        let input = self.entries.len();
        let entry = json!({"input_index": input, "file": name, "duplicate": again, "changes": object.changes});
        let line = format!(
            "object {input}: {name}{}",
            if again { " (again)" } else { "" }
        );
        self.enter(entry, &line)
    }

    fn refuse(&mut self, refusal: &Refusal) -> Result<()> {
        self.refused += 1;
        let input = self.entries.len();
        let message = refusal.to_string();
        let entry = json!({"input_index": input, "refused": refusal, "message": message});
        self.enter(entry, &format!("object {input}: refused: {message}"))
    }

    fn enter(&mut self, entry: Value, line: &str) -> Result<()> {
        if self.json {
            show::print_json(&entry)?;
        } else {
            show::print(line)?;
        }
        self.entries.push(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(paths: Vec<PathBuf>, folder: &Path, key: &str) -> Args {
        let key_file = folder.join("key");
        std::fs::write(&key_file, key).expect("a key file");
        Args {
            paths,
            out: folder.join("out"),
            key_file,
            modified_dates: true,
            clean_descriptors: true,
            patient_characteristics: true,
            allow_burned_in: false,
            lettering: LetteringArgs::default(),
            json: true,
        }
    }

    #[test]
    fn phantoms_are_written_under_new_names_and_the_manifest_names_nobody() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let phantom = medfleet_phantom::Phantom::draw(3, 0, false);
        let bytes = phantom.dicom(32).expect("a file");
        let input = folder.path().join("PHANTOM-Jane.dcm");
        std::fs::write(&input, bytes).expect("a file");
        let text = folder.path().join("Jane.txt");
        std::fs::write(&text, "hello").expect("a file");
        let key = "5a".repeat(32);
        let done = run(args(vec![input, text], folder.path(), &key)).expect("it runs");
        assert_eq!(done, Exit::Failed, "a text is no object");
        let manifest = std::fs::read_to_string(folder.path().join("out/manifest.json"));
        let manifest = manifest.expect("a manifest");
        for secret in ["PHANTOM", "Jane", "Phantom"] {
            assert!(!manifest.contains(secret), "{manifest}");
        }
        let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
        let file = manifest["objects"][0]["file"].as_str().expect("a name");
        let object = std::fs::read(folder.path().join("out").join(file)).expect("an object");
        let found = object.windows(7).any(|window| window == b"PHANTOM");
        assert!(!found, "the name is gone");
    }

    #[test]
    fn a_key_of_another_form_is_a_usage_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let input = vec![folder.path().to_owned()];
        let fault = run(args(input, folder.path(), "secret")).expect_err("no key");
        assert_eq!(fault.exit, Exit::Usage);
    }
}
