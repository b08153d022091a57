//! `medfleet erase`: removes everything that was stored for jobs, named one by one, or by the patient or study they are of.

use std::path::PathBuf;

use clap::ValueEnum;
use medfleet_proto::v1::{EraseJobsRequest, EraseJobsResponse, erase_jobs_request::Whose};

use super::{job_name, whose, with_client};
use crate::client::ServerArgs;
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// Flags of `erase`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The jobs, as submit and list print them; one that has not ended is cancelled first
    #[arg(value_name = "JOB", required_unless_present_any = ["patient", "study", "dicom"])]
    jobs: Vec<String>,
    /// Every job that was submitted with this pseudonym of a patient
    #[arg(long, value_name = "PSEUDONYM", conflicts_with_all = ["jobs", "study", "dicom"])]
    patient: Option<String>,
    /// Every job that was submitted with this pseudonym of a study
    #[arg(long, value_name = "PSEUDONYM", conflicts_with_all = ["jobs", "dicom"])]
    study: Option<String>,
    /// Every job of the patient, or the study (--of), that this DICOM file is of
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "jobs",
        requires = "patient_key_file",
        requires = "of"
    )]
    dicom: Option<PathBuf>,
    /// The key with which those jobs were submitted, see `submit --patient-key-file`
    #[arg(long, value_name = "FILE", requires = "dicom")]
    patient_key_file: Option<PathBuf>,
    /// What of the DICOM file is meant
    #[arg(long, value_enum, requires = "dicom")]
    of: Option<Of>,
    /// Erase the jobs of a patient or a study; without it they are only counted
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object on stdout, and for jobs named one by one, one for each and line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Of {
    Patient,
    Study,
}

pub(crate) fn run(args: Args) -> CommandResult {
    match whose_jobs(&args)? {
        Some(whose) => all_of(&args, whose),
        None => named(&args),
    }
}

/// The patient or study that is meant; none where jobs are named.
fn whose_jobs(args: &Args) -> Result<Option<Whose>, Fault> {
    if let (Some(file), Some(key), Some(of)) = (&args.dicom, &args.patient_key_file, args.of) {
        let key = whose::key(key).map_err(Fault::usage)?;
        let whose = whose::of_file(&key, file).map_err(Fault::usage)?;
        return Ok(Some(match of {
            Of::Patient => Whose::PatientPseudonym(whose.patient),
            Of::Study => Whose::StudyPseudonym(whose.study),
        }));
    }
    let patient = args.patient.clone().map(Whose::PatientPseudonym);
    Ok(patient.or_else(|| args.study.clone().map(Whose::StudyPseudonym)))
}

/// Jobs one by one.
fn named(args: &Args) -> CommandResult {
    let names = args.jobs.iter().map(|job| job_name(job));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    with_client(&args.server, async |client| {
        let mut exit = Exit::Done;
        for name in &names {
            let erased = match client.erase(name).await {
                Ok(erased) => erased,
                // Such as one that is not there: the others go all the same. The fleet's answer does not say which it was.
                Err(error) if error.exit() == Exit::Failed => {
                    eprintln!("medfleet: {name}: {error}");
                    exit = Exit::Failed;
                    continue;
                }
                Err(error) => return Err(anyhow::Error::new(error).context(name.clone()).into()),
            };
            if args.json {
                show::print_json(&show::erased_json(&erased))?;
            } else {
                show::print(&show::erased_line(name, &erased))?;
            }
        }
        Ok(exit)
    })
}

/// Every job of a patient or a study, or how many they are.
fn all_of(args: &Args, whose: Whose) -> CommandResult {
    let count_only = !args.yes;
    with_client(&args.server, async |client| {
        let mut request = EraseJobsRequest {
            whose: Some(whose),
            count_only,
            page_token: String::new(),
        };
        let mut done = EraseJobsResponse::default();
        loop {
            let page = client.erase_jobs(&request).await?;
            add(&mut done, &page);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if args.json {
            show::print_json(&show::erasure_json(&done, count_only))?;
        } else {
            show::print(&show::erasure_line(&done, count_only))?;
        }
        let exit = ending(&done, count_only);
        if exit == Exit::Usage {
            eprintln!("medfleet: nothing was erased; repeat it with --yes to erase these jobs");
        }
        Ok(exit)
    })
}

/// Adds what a page did to what was done before.
fn add(done: &mut EraseJobsResponse, page: &EraseJobsResponse) {
    done.jobs_erased += page.jobs_erased;
    done.jobs_cancelled += page.jobs_cancelled;
    done.jobs_erased_before += page.jobs_erased_before;
    done.jobs_failed += page.jobs_failed;
    done.jobs_unreadable += page.jobs_unreadable;
    done.objects_removed += page.objects_removed;
    done.objects_shared += page.objects_shared;
}

/// Done only where nothing is left; where jobs were counted and are there, the command line lacks its --yes.
fn ending(done: &EraseJobsResponse, count_only: bool) -> Exit {
    if count_only && done.jobs_erased > 0 {
        return Exit::Usage;
    }
    match done.jobs_failed + done.jobs_unreadable {
        0 => Exit::Done,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::parsed;

    /// Whether the words are a command line, and whose jobs they mean.
    fn check(line: &str, expected: Option<Option<Whose>>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let args = parsed(&words).ok();
        let found = args.map(|args| whose_jobs(&args).expect("no file is read"));
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn jobs_or_a_patient_or_a_study_are_meant() {
        let hash = "0A1B2C3D4E5F6071".to_owned();
        check("jobs/a b", Some(None));
        check(
            "--patient 0A1B2C3D4E5F6071",
            Some(Some(Whose::PatientPseudonym(hash.clone()))),
        );
        check(
            "--yes --study 0A1B2C3D4E5F6071",
            Some(Some(Whose::StudyPseudonym(hash))),
        );
        for wrong in [
            "",
            "a --patient x",
            "a --study x",
            "--patient x --study y",
            "--dicom f --of patient",
            "--dicom f --patient-key-file k",
            "--patient-key-file k",
            "a --dicom f --of study --patient-key-file k",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_file_says_whose_jobs_are_meant() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let phantom = medfleet_phantom::Phantom::draw(3, 0, false);
        std::fs::write(path("a.dcm"), phantom.dicom(32).expect("a file")).expect("is written");
        std::fs::write(path("key"), "5a".repeat(32)).expect("is written");
        let whose = |of: &str| {
            let (file, key) = (path("a.dcm"), path("key"));
            let args = parsed(&[
                "--dicom",
                file.to_str().expect("a name"),
                "--patient-key-file",
                key.to_str().expect("a name"),
                "--of",
                of,
            ]);
            whose_jobs(&args.expect("the flags exist")).expect("a header")
        };
        let (patient, study) = (whose("patient"), whose("study"));
        assert!(matches!(patient, Some(Whose::PatientPseudonym(text)) if text.len() == 16));
        assert!(matches!(study, Some(Whose::StudyPseudonym(text)) if text.starts_with("2.25.")));
    }

    #[test]
    fn who_forgets_yes_and_what_could_not_be_erased_show_in_the_exit_code() {
        let done = |erased, failed| EraseJobsResponse {
            jobs_erased: erased,
            jobs_failed: failed,
            ..EraseJobsResponse::default()
        };
        assert_eq!(ending(&done(2, 0), false), Exit::Done);
        assert_eq!(ending(&done(2, 1), false), Exit::Failed);
        assert_eq!(ending(&done(2, 0), true), Exit::Usage);
        assert_eq!(ending(&done(0, 0), true), Exit::Done);
    }
}
