//! The evaluation as one HTML page: no script, no font, no picture from elsewhere; pictures are data URIs.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Picture, band_figures, band_labels, failed, labels_of, row_of, statement};
use crate::evaluation::{Case, Evaluation, LabelRow};
use crate::metrics::bootstrap::Figure;

/// Inline: the page has to stand alone.
const STYLE: &str = include_str!("page.css");

/// The evaluation as a page. `picture` gives the picture to show beside a case.
#[must_use]
pub fn html(evaluation: &Evaluation, picture: &mut dyn FnMut(&Case) -> Option<Picture>) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_all(evaluation, picture, &mut text);
    text
}

fn write_all(
    evaluation: &Evaluation,
    picture: &mut dyn FnMut(&Case) -> Option<Picture>,
    to: &mut String,
) -> std::fmt::Result {
    let title = format!("{}: {}", evaluation.task.name(), evaluation.about.name);
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{}</h1>\n",
        escaped(&title),
        escaped(&title)
    )?;
    writeln!(
        to,
        "<p class=\"statement\">{}</p>",
        escaped(&statement(evaluation))
    )?;
    let class = if evaluation.failures.is_empty() {
        "quiet"
    } else {
        "alert"
    };
    writeln!(to, "<p class=\"{class}\">{}</p>", failed(evaluation))?;
    figures(evaluation, to)?;
    labels(&evaluation.labels, to)?;
    confusion(evaluation, to)?;
    bands(evaluation, to)?;
    bands_of_labels(evaluation, to)?;
    worst(&evaluation.worst, picture, to)?;
    failures(evaluation, to)?;
    if !evaluation.notes.is_empty() {
        writeln!(to, "<h2>Notes</h2>\n<ul>")?;
        for note in &evaluation.notes {
            writeln!(to, "<li>{}.</li>", escaped(note))?;
        }
        writeln!(to, "</ul>")?;
    }
    writeln!(to, "</main>\n</body>\n</html>")
}

fn figures(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    let plan = &evaluation.bootstrap;
    writeln!(
        to,
        "<h2>Figures</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>figure</th><th class=\"n\">value</th>\
         <th class=\"n\">{:.0} % interval</th><th class=\"scale\"></th><th class=\"n\">of</th></tr></thead>\n<tbody>",
        plan.level * 100.0
    )?;
    for named in &evaluation.figures {
        let Figure { value, low, high } = named.figure;
        writeln!(
            to,
            "<tr><td>{}</td><td class=\"n\"><b>{value:.3}</b></td><td class=\"n\">{low:.3}–{high:.3}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            escaped(named.title),
            scale(&named.figure),
            named.count
        )?;
    }
    writeln!(
        to,
        "</tbody></table></div>\n<p class=\"quiet\">Intervals: percentile bootstrap over records, {} draws, seed {}.</p>",
        plan.resamples, plan.seed
    )
}

fn with_interval(Figure { value, low, high }: Figure) -> String {
    format!("{value:.3} <small>{low:.2}–{high:.2}</small>")
}

/// The figure between 0 and 1; nothing for those that lie elsewhere.
fn scale(figure: &Figure) -> String {
    let Figure { value, low, high } = *figure;
    if low < 0.0 || high > 1.0 {
        return String::new();
    }
    format!(
        "<div class=\"bar\"><i style=\"left:{:.1}%;width:{:.1}%\"></i><b style=\"left:{:.1}%\"></b></div>",
        low * 100.0,
        (high - low) * 100.0,
        value * 100.0
    )
}

/// A column: its head, and the cell of a row.
type Column = (&'static str, fn(&LabelRow) -> Option<String>);

fn labels(rows: &[LabelRow], to: &mut String) -> std::fmt::Result {
    fn with(figure: Option<Figure>) -> Option<String> {
        figure.map(with_interval)
    }
    if rows.is_empty() {
        return Ok(());
    }
    let all: [Column; 9] = [
        ("precision", |row| with(row.precision)),
        ("recall", |row| with(row.recall)),
        ("F1", |row| with(row.f1)),
        ("AUC", |row| with(row.auc)),
        ("IoU", |row| with(row.iou)),
        ("there, said", |row| {
            row.counts.map(|counts| counts.true_positive.to_string())
        }),
        ("not there, said", |row| {
            row.counts.map(|counts| counts.false_positive.to_string())
        }),
        ("there, not said", |row| {
            row.counts.map(|counts| counts.false_negative.to_string())
        }),
        ("not there, not said", |row| {
            row.counts.map(|counts| counts.true_negative.to_string())
        }),
    ];
    // Only columns that hold something.
    let columns: Vec<&Column> = all
        .iter()
        .filter(|(_, cell)| rows.iter().any(|row| cell(row).is_some()))
        .collect();
    write!(
        to,
        "<h2>Labels</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>label</th>"
    )?;
    for (head, _) in &columns {
        write!(to, "<th class=\"n\">{head}</th>")?;
    }
    writeln!(to, "</tr></thead>\n<tbody>")?;
    for row in rows {
        let class = if row.derived { " class=\"quiet\"" } else { "" };
        let remark = if row.derived { " (in no mean)" } else { "" };
        write!(
            to,
            "<tr{class}><td>{}{remark}</td>",
            escaped(&row.label.replace('_', " "))
        )?;
        for (_, cell) in &columns {
            write!(to, "<td class=\"n\">{}</td>", cell(row).unwrap_or_default())?;
        }
        writeln!(to, "</tr>")?;
    }
    writeln!(to, "</tbody></table></div>")
}

fn confusion(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    let Some(confusion) = &evaluation.confusion else {
        return Ok(());
    };
    write!(
        to,
        "<h2>Confusion</h2>\n<p class=\"quiet\">Rows: what is true. Columns: what was said.</p>\n\
         <div class=\"wide\"><table>\n<thead><tr><th></th>"
    )?;
    for said in &confusion.said {
        write!(to, "<th class=\"n\">{said}</th>")?;
    }
    writeln!(to, "</tr></thead>\n<tbody>")?;
    for (truth, counts) in confusion.truths.iter().zip(&confusion.counts) {
        write!(to, "<tr><td>{truth}</td>")?;
        for count in counts {
            write!(to, "<td class=\"n\">{count}</td>")?;
        }
        writeln!(to, "</tr>")?;
    }
    writeln!(to, "</tbody></table></div>")
}

fn bands(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    if evaluation.bands.is_empty() {
        return Ok(());
    }
    let columns = band_figures(evaluation);
    write!(
        to,
        "<h2>Contrast</h2>\n<p class=\"quiet\">Findings by their contrast-to-noise ratio: the lower, the harder to see.</p>\n\
         <div class=\"wide\"><table>\n<thead><tr><th>band</th><th class=\"n\">findings</th><th class=\"n\">labels</th>"
    )?;
    for (_, title) in &columns {
        write!(
            to,
            "<th class=\"n\">{}</th><th class=\"scale\"></th>",
            escaped(title)
        )?;
    }
    writeln!(to, "</tr></thead>\n<tbody>")?;
    for band in &evaluation.bands {
        write!(
            to,
            "<tr><td>{:.0}–{:.0}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
            band.low,
            band.high,
            band.findings,
            labels_of(band)
        )?;
        for (name, _) in &columns {
            let figure = band.figures.iter().find(|other| other.name == *name);
            match figure.map(|other| other.figure) {
                Some(figure) => write!(
                    to,
                    "<td class=\"n\">{}</td><td>{}</td>",
                    with_interval(figure),
                    scale(&figure)
                )?,
                None => write!(to, "<td></td><td></td>")?,
            }
        }
        writeln!(to, "</tr>")?;
    }
    writeln!(to, "</tbody></table></div>")
}

/// F1 of each label in each band, and of how many.
fn bands_of_labels(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    let labels = band_labels(evaluation);
    if labels.is_empty() {
        return Ok(());
    }
    write!(
        to,
        "<div class=\"wide\"><table>\n<thead><tr><th>F1 in band</th>"
    )?;
    for band in &evaluation.bands {
        write!(
            to,
            "<th class=\"n\">{:.0}–{:.0}</th><th class=\"n\">of</th>",
            band.low, band.high
        )?;
    }
    writeln!(to, "</tr></thead>\n<tbody>")?;
    for label in labels {
        write!(to, "<tr><td>{}</td>", escaped(&label.replace('_', " ")))?;
        for band in &evaluation.bands {
            let row = row_of(band, label);
            let figure = row.and_then(|row| Some((row.f1?, row.counts?.support())));
            match figure {
                Some((figure, count)) => write!(
                    to,
                    "<td class=\"n\">{}</td><td class=\"n\">{count}</td>",
                    with_interval(figure)
                )?,
                None => write!(to, "<td></td><td></td>")?,
            }
        }
        writeln!(to, "</tr>")?;
    }
    writeln!(to, "</tbody></table></div>")
}

fn worst(
    cases: &[Case],
    picture: &mut dyn FnMut(&Case) -> Option<Picture>,
    to: &mut String,
) -> std::fmt::Result {
    if cases.is_empty() {
        return Ok(());
    }
    writeln!(to, "<h2>Worst cases</h2>")?;
    for case in cases {
        writeln!(to, "<article>")?;
        match picture(case) {
            Some(picture) => writeln!(
                to,
                "<img alt=\"{}\" src=\"data:{};base64,{}\">",
                escaped(&case.id),
                picture.media_type,
                STANDARD.encode(&picture.bytes)
            )?,
            None => writeln!(to, "<div class=\"blank\">no picture</div>")?,
        }
        writeln!(to, "<div><h3>{}</h3>", escaped(&case.id))?;
        if let Some(question) = &case.question {
            writeln!(to, "<p>{}</p>", escaped(question))?;
        }
        writeln!(
            to,
            "<p class=\"wrong\">{}</p>\n<dl><dt>Truth</dt><dd>{}</dd><dt>Said</dt><dd>{}</dd></dl></div>\n</article>",
            escaped(&case.wrong.join("; ")),
            escaped(&case.truth),
            escaped(&case.said)
        )?;
    }
    Ok(())
}

fn failures(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    if evaluation.failures.is_empty() {
        return Ok(());
    }
    writeln!(
        to,
        "<h2>Failures</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>record</th><th class=\"n\">item</th><th>reason</th></tr></thead>\n<tbody>"
    )?;
    for failure in &evaluation.failures {
        let item = failure
            .item
            .map(|item| item.to_string())
            .unwrap_or_default();
        writeln!(
            to,
            "<tr><td>{}</td><td class=\"n\">{item}</td><td>{}</td></tr>",
            escaped(&failure.id),
            escaped(&failure.reason)
        )?;
    }
    writeln!(to, "</tbody></table></div>")
}

/// Text that can't be taken for a tag or leave an attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}
