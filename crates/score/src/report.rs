//! An evaluation as files: JSON for programs, a Markdown table for a page, and an HTML page for people.

mod html;
mod markdown;

use std::path::{Path, PathBuf};

pub use html::html;
pub use markdown::markdown;

use crate::evaluation::{Band, Case, Evaluation, LabelRow};

/// A picture as a browser shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// `image/png` or `image/jpeg`.
    pub media_type: &'static str,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// All figures, counts, failures and worst cases.
    pub json: PathBuf,
    /// The figures as a table.
    pub markdown: PathBuf,
    /// Everything, with pictures; needs no other file.
    pub html: PathBuf,
}

/// A report that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{path} can't be written")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    /// serde_json's; none is known.
    #[error("the evaluation can't be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// Writes `<task>.json`, `<task>.md` and `<task>.html` to a folder, which is made if it isn't there. `picture` gives the
/// picture to show beside a case.
pub fn write(
    evaluation: &Evaluation,
    folder: &Path,
    picture: &mut dyn FnMut(&Case) -> Option<Picture>,
) -> Result<Files, WriteError> {
    let task = evaluation.task.name();
    let files = Files {
        json: folder.join(format!("{task}.json")),
        markdown: folder.join(format!("{task}.md")),
        html: folder.join(format!("{task}.html")),
    };
    std::fs::create_dir_all(folder).map_err(|source| WriteError::File {
        path: folder.to_owned(),
        source,
    })?;
    put(&files.json, &json(evaluation)?)?;
    put(&files.markdown, &markdown(evaluation))?;
    put(&files.html, &html(evaluation, picture))?;
    Ok(files)
}

/// The evaluation as JSON, for people to read too.
pub fn json(evaluation: &Evaluation) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(evaluation)?;
    text.push('\n');
    Ok(text)
}

/// What the set is, and what the figures are not.
pub fn statement(evaluation: &Evaluation) -> String {
    let about = &evaluation.about;
    let description = if about.description.is_empty() {
        String::new()
    } else {
        format!(", {}", about.description.trim_end_matches('.'))
    };
    let warning = if about.phantom {
        "Phantom demo, not for clinical use: the pictures are synthetic, and the figures say nothing about patients."
    } else {
        "Research figures of one set, not evidence for clinical use."
    };
    format!(
        "Set: {}{description}. {} of {} records have what this task needs. {warning}",
        about.name, evaluation.scored, evaluation.records
    )
}

/// How many records, questions or findings got no answer, in a sentence.
fn failed(evaluation: &Evaluation) -> String {
    match evaluation.failures.len() {
        0 => "Every request was answered.".into(),
        1 => "1 request failed; it counts as wrong.".into(),
        count => format!("{count} requests failed; they count as wrong."),
    }
}

/// Name and title of every figure that some band has: a band without sided findings has one less.
fn band_figures(evaluation: &Evaluation) -> Vec<(&'static str, &'static str)> {
    let mut figures = Vec::new();
    for named in evaluation.bands.iter().flat_map(|band| &band.figures) {
        if !figures.contains(&(named.name, named.title)) {
            figures.push((named.name, named.title));
        }
    }
    figures
}

/// How many labels a band's F1 is of; nothing for tasks that score none.
fn labels_of(band: &Band) -> String {
    match band.labels.len() {
        0 => String::new(),
        count => count.to_string(),
    }
}

/// The labels that some band has, in the order of the labels' table.
fn band_labels(evaluation: &Evaluation) -> Vec<&str> {
    let names = evaluation.labels.iter().map(|row| row.label.as_str());
    names
        .filter(|name| {
            let mut bands = evaluation.bands.iter();
            bands.any(|band| row_of(band, name).is_some())
        })
        .collect()
}

fn row_of<'a>(band: &'a Band, label: &str) -> Option<&'a LabelRow> {
    band.labels.iter().find(|row| row.label == label)
}

fn put(path: &Path, text: &str) -> Result<(), WriteError> {
    std::fs::write(path, text).map_err(|source| WriteError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
