//! What is asked of each record, the asking as a job, and the answer out of its result.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use medfleet_proto::v1::{
    self, AnswerTask, ClassifyTask, CompareTask, FrameUsed, JobState, LocaliseTask, ReportTask,
    SubmitJobRequest, ZeroShotTask, result::Output, task::Kind,
};
use medfleet_score::metrics::boxes::Rect;
use medfleet_score::outcome::SaidBox;
use medfleet_score::record::{Finding, Side};
use medfleet_score::{Outcome, Record, Task};

use crate::client::{Client, ClientError, Cursor};
use crate::command::submit;
use crate::show;

/// One job.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The record's.
    pub(super) id: String,
    pub(super) task: Task,
    /// Question or finding of the record.
    pub(super) item: Option<usize>,
    kind: Kind,
    images: Vec<String>,
    /// What the record says that they are.
    modality: String,
    /// Names of labels, in the order asked.
    labels: Vec<String>,
}

/// All jobs of a task, in the records' order. A record that has no truth for it gives none. It is an error if a picture to
/// compare with isn't in the set.
pub(super) fn questions(records: &[Record], task: Task) -> Result<Vec<Asked>> {
    if task == Task::Compare {
        return comparisons(records);
    }
    let asked = records.iter().flat_map(|record| of_record(record, task));
    Ok(asked.collect())
}

/// Each record that says what changed, with the picture before it.
fn comparisons(records: &[Record]) -> Result<Vec<Asked>> {
    let by_id: HashMap<&str, &Record> = records
        .iter()
        .map(|record| (record.id.as_str(), record))
        .collect();
    let mut asked = Vec::new();
    for record in records {
        let Some(prior) = record
            .prior
            .as_ref()
            .filter(|prior| prior.changes.is_some())
        else {
            continue;
        };
        let place = prior.index.and_then(|index| usize::try_from(index).ok());
        let before = match &prior.id {
            Some(id) => by_id.get(id.as_str()).copied(),
            None => place.and_then(|place| records.get(place)),
        };
        let before = before.and_then(|before| before.images.first());
        let images = [prior.images.first().or(before), record.images.first()];
        let [Some(before), Some(now)] = images else {
            return Err(anyhow!(
                "{} can't be compared: it, or the picture before it, has no image in the set",
                record.id
            ));
        };
        asked.push(Asked {
            id: record.id.clone(),
            task: Task::Compare,
            item: None,
            kind: Kind::Compare(CompareTask::default()),
            images: vec![before.clone(), now.clone()],
            modality: record.modality.clone(),
            labels: Vec::new(),
        });
    }
    Ok(asked)
}

fn of_record(record: &Record, task: Task) -> Vec<Asked> {
    let labels: Vec<String> = record.labels.keys().cloned().collect();
    let asked = |item, kind| Asked {
        id: record.id.clone(),
        task,
        item,
        kind,
        images: record.images.clone(),
        modality: record.modality.clone(),
        labels: labels.clone(),
    };
    match task {
        Task::Report if record.report.is_none() && labels.is_empty() => Vec::new(),
        Task::Report => vec![asked(None, Kind::Report(ReportTask::default()))],
        Task::Classify | Task::ZeroShot if labels.is_empty() => Vec::new(),
        Task::Classify => {
            let labels = labels.iter().map(|label| words(label)).collect();
            vec![asked(None, Kind::Classify(ClassifyTask { labels }))]
        }
        Task::ZeroShot => {
            let labels = labels.iter().map(|label| phrase(label)).collect();
            vec![asked(None, Kind::ZeroShot(ZeroShotTask { labels }))]
        }
        Task::Answer => {
            let questions = record.questions.iter().enumerate();
            let each = questions.map(|(item, question)| {
                let question = question.question.clone();
                asked(Some(item), Kind::Answer(AnswerTask { question }))
            });
            each.collect()
        }
        Task::Localise => {
            let findings = record.findings.iter().enumerate();
            let placed = findings.filter(|(_, finding)| finding.area.is_some());
            let each = placed.map(|(item, finding)| {
                let target = target(finding);
                asked(Some(item), Kind::Localise(LocaliseTask { target }))
            });
            each.collect()
        }
        // Needs other records: `comparisons`.
        Task::Compare => Vec::new(),
    }
}

/// A label as it stands in a sentence.
fn words(label: &str) -> String {
    label.replace('_', " ").to_lowercase()
}

/// What a picture with a label is compared with.
fn phrase(label: &str) -> String {
    format!("chest radiograph with {}", words(label))
}

fn target(finding: &Finding) -> String {
    let side = match finding.side {
        Some(Side::Left) => "left ",
        Some(Side::Right) => "right ",
        Some(Side::Bilateral | Side::Midline) | None => "",
    };
    format!("{side}{}", words(&finding.label))
}

/// Asks the fleet.
pub(super) struct Asker {
    pub(super) client: Client,
    /// The set's folder.
    pub(super) set: PathBuf,
    pub(super) model: String,
}

impl Asker {
    /// Runs one job to its end. A job that fails or is refused is an outcome too; a fleet that cannot be reached, or does
    /// not know us, is an error.
    pub(super) async fn ask(&self, asked: &Asked) -> Result<Outcome> {
        let mut outcome = Outcome::new(asked.id.clone(), asked.task);
        outcome.item = asked.item;
        // Of a comparison the later picture: its findings are asked for.
        outcome.image = match asked.task {
            Task::Compare => asked.images.last().cloned(),
            _ => asked.images.first().cloned(),
        };
        match self.run(asked, &mut outcome).await {
            Ok(()) => Ok(outcome),
            Err(error) => {
                let is_outcome = match error.downcast_ref::<ClientError>() {
                    Some(ClientError::Refused { code, .. }) => *code != "UNAUTHENTICATED",
                    Some(ClientError::Empty { .. }) => true,
                    _ => false,
                };
                if !is_outcome {
                    return Err(error);
                }
                outcome.failure = Some(error.to_string());
                Ok(outcome)
            }
        }
    }

    async fn run(&self, asked: &Asked, outcome: &mut Outcome) -> Result<()> {
        let files: Vec<PathBuf> = asked
            .images
            .iter()
            .map(|name| self.set.join(name))
            .collect();
        let request = SubmitJobRequest {
            request_id: submit::random_id()?,
            task: Some(v1::Task {
                kind: Some(asked.kind.clone()),
            }),
            class: v1::Class::Bulk.into(),
            model: self.model.clone(),
            ..SubmitJobRequest::default()
        };
        let (files, modality) = (files.as_slice(), asked.modality.as_str());
        let response = submit::send(&self.client, files, modality, request, &mut |_, _| {}).await?;
        let job = response.job.context("the fleet answered without a job")?;
        let job = self
            .client
            .watch(&job.name, Cursor::default(), &mut |_| Ok(()))
            .await?;
        if job.state == i32::from(JobState::Completed) {
            let draft = self.client.draft(&job.name).await?;
            read(asked, draft, outcome);
        } else {
            let why = job.failure.as_ref().map(show::failure_text);
            outcome.failure = Some(why.unwrap_or_else(|| show::state_word(job.state).to_owned()));
        }
        Ok(())
    }
}

/// Takes the answer out of a result.
fn read(asked: &Asked, draft: v1::Result, outcome: &mut Outcome) {
    match draft.output {
        Some(Output::Report(report)) => outcome.text = Some(report.text),
        Some(Output::Answer(answer)) => outcome.text = Some(answer.text),
        Some(Output::Classification(found)) => {
            let scores = asked.labels.iter().zip(&found.labels);
            let scores = scores.map(|(label, score)| (label.clone(), f64::from(score.probability)));
            outcome.scores = scores.collect();
        }
        Some(Output::ZeroShot(found)) => {
            let scores = found.images.first().map(|image| &image.labels);
            let scores = asked.labels.iter().zip(scores.into_iter().flatten());
            let scores = scores.map(|(label, score)| (label.clone(), f64::from(score.logit)));
            outcome.scores = scores.collect();
        }
        Some(Output::Localisation(found)) => {
            outcome.text = Some(found.text);
            let frame = draft.frames.first();
            let boxes = found.boxes.iter();
            outcome.boxes = boxes.filter_map(|said| said_box(said, frame?)).collect();
        }
        Some(Output::Extraction(_) | Output::Embeddings(_)) | None => {
            outcome.failure = Some("the result is of another task".to_owned());
        }
    }
}

/// A box on the original's pixels as thousandths of the square that the model saw.
fn said_box(said: &v1::Box, frame: &FrameUsed) -> Option<SaidBox> {
    let placement = frame.placement.as_ref()?;
    let side = f64::from(placement.padded_side_pixels);
    let x = |pixels: f64| (pixels + f64::from(placement.pad_left_pixels)) / side * 1000.0;
    let y = |pixels: f64| (pixels + f64::from(placement.pad_top_pixels)) / side * 1000.0;
    let numbers = [
        y(said.top_pixels),
        x(said.left_pixels),
        y(said.bottom_pixels),
        x(said.right_pixels),
    ];
    Some(SaidBox {
        label: None,
        side: None,
        area: Rect::try_from(numbers.map(|number| number.clamp(0.0, 1000.0))).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let line = r#"{"id": "a", "image": "a.png", "labels": {"pleural_effusion": 1, "nodule": 0}, "report": "x",
            "findings": [{"label": "pleural_effusion", "side": "left", "box": [1, 2, 3, 4]}, {"label": "nodule"}],
            "questions": [{"question": "q?", "answer": "yes"}]}"#;
        let line = line.replace('\n', " ");
        let mut records = medfleet_score::read_set(line.as_bytes()).expect("a record");
        records.remove(0)
    }

    #[test]
    fn a_record_is_asked_what_is_known_of_it() {
        let kinds = |task| {
            let asked = of_record(&record(), task);
            asked
                .into_iter()
                .map(|asked| (asked.item, asked.kind))
                .collect::<Vec<_>>()
        };
        let labels = vec!["nodule".to_owned(), "pleural effusion".to_owned()];
        assert_eq!(
            kinds(Task::Classify),
            [(None, Kind::Classify(ClassifyTask { labels }))]
        );
        let target = "left pleural effusion".to_owned();
        assert_eq!(
            kinds(Task::Localise),
            [(Some(0), Kind::Localise(LocaliseTask { target }))]
        );
        let question = "q?".to_owned();
        assert_eq!(
            kinds(Task::Answer),
            [(Some(0), Kind::Answer(AnswerTask { question }))]
        );
        let nothing = Record {
            id: "b".into(),
            ..Record::default()
        };
        for task in Task::ALL {
            assert!(of_record(&nothing, task).is_empty(), "{task:?}");
        }
    }

    #[test]
    fn a_picture_is_compared_with_the_one_before() {
        let check = |lines: &str, expected: Result<&[[&str; 2]], &str>| {
            let records = medfleet_score::read_set(lines.as_bytes()).expect("a set");
            match (questions(&records, Task::Compare), expected) {
                (Ok(found), Ok(expected)) => {
                    let images = found.into_iter().map(|asked| asked.images);
                    assert_eq!(images.collect::<Vec<Vec<String>>>(), expected);
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        let before = r#"{"id": "a", "image": "a.png"}"#;
        let after = |prior: &str| {
            format!("{before}\n{{\"id\": \"b\", \"image\": \"b.png\", \"prior\": {prior}}}")
        };
        let pair: &[[&str; 2]] = &[["a.png", "b.png"]];
        check(&after(r#"{"id": "a", "changes": []}"#), Ok(pair));
        check(&after(r#"{"index": 0, "changes": []}"#), Ok(pair));
        check(
            &after(r#"{"image": "old.png", "changes": []}"#),
            Ok(&[["old.png", "b.png"]]),
        );
        // What changed isn't known: nothing to score.
        check(&after(r#"{"id": "a"}"#), Ok(&[]));
        check(&after("null"), Ok(&[]));
        check(&after(r#"{"id": "c", "changes": []}"#), Err("b can't be"));
        check(&after(r#"{"changes": []}"#), Err("b can't be compared"));
    }

    #[test]
    fn boxes_go_back_to_the_square() {
        let frame = FrameUsed {
            placement: Some(v1::Placement {
                pad_left_pixels: 0,
                pad_top_pixels: 100,
                padded_side_pixels: 1000,
            }),
            ..FrameUsed::default()
        };
        let said = v1::Box {
            label: String::new(),
            left_pixels: 10.0,
            top_pixels: 20.0,
            right_pixels: 30.0,
            bottom_pixels: 40.0,
        };
        let found = said_box(&said, &frame).expect("a box");
        assert_eq!(Ok(found.area), Rect::try_from([120.0, 10.0, 140.0, 30.0]));
    }
}
