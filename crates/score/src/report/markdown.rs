//! The figures as Markdown tables.

use std::fmt::Write;

use super::{band_figures, band_labels, failed, labels_of, row_of, statement};
use crate::evaluation::Evaluation;
use crate::metrics::bootstrap::Figure;

/// Failures that the Markdown lists; the JSON and the page list all.
const FAILURES_MAX: usize = 20;

pub fn markdown(evaluation: &Evaluation) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_all(evaluation, &mut text);
    text
}

fn write_all(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    writeln!(to, "# Evaluation: {}\n", evaluation.task.name())?;
    writeln!(to, "{}\n{}\n", statement(evaluation), failed(evaluation))?;
    let plan = &evaluation.bootstrap;
    writeln!(
        to,
        "| figure | value | {:.0} % interval | of |\n|---|---|---|---|",
        plan.level * 100.0
    )?;
    for named in &evaluation.figures {
        let Figure { value, low, high } = named.figure;
        let (title, count) = (named.title, named.count);
        writeln!(
            to,
            "| {title} | {value:.3} | {low:.3}–{high:.3} | {count} |"
        )?;
    }
    writeln!(
        to,
        "\nIntervals: percentile bootstrap over records, {} draws, seed {}.",
        plan.resamples, plan.seed
    )?;
    labels(evaluation, to)?;
    confusion(evaluation, to)?;
    bands(evaluation, to)?;
    bands_of_labels(evaluation, to)?;
    if !evaluation.failures.is_empty() {
        writeln!(
            to,
            "\n## Failures\n\n| record | item | reason |\n|---|---|---|"
        )?;
        for failure in evaluation.failures.iter().take(FAILURES_MAX) {
            let item = failure
                .item
                .map(|item| item.to_string())
                .unwrap_or_default();
            writeln!(
                to,
                "| {} | {item} | {} |",
                cell(&failure.id),
                cell(&failure.reason)
            )?;
        }
        let more = evaluation.failures.len().saturating_sub(FAILURES_MAX);
        if more > 0 {
            writeln!(to, "\n{more} more are in the JSON.")?;
        }
    }
    if !evaluation.notes.is_empty() {
        writeln!(to, "\n## Notes\n")?;
        for note in &evaluation.notes {
            writeln!(to, "- {note}.")?;
        }
    }
    Ok(())
}

fn labels(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    if evaluation.labels.is_empty() {
        return Ok(());
    }
    writeln!(
        to,
        "\n## Labels\n\n| label | precision | recall | F1 | AUC | IoU | tp | fp | fn | tn |\n|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for row in &evaluation.labels {
        let with = |figure: Option<Figure>| figure.map(with_interval).unwrap_or_default();
        let counts = row.counts.map_or_else(
            || "| | | ".to_owned(),
            |counts| {
                format!(
                    "{} | {} | {} | {}",
                    counts.true_positive,
                    counts.false_positive,
                    counts.false_negative,
                    counts.true_negative
                )
            },
        );
        let name = if row.derived {
            format!("{} (in no mean)", row.label)
        } else {
            row.label.clone()
        };
        writeln!(
            to,
            "| {} | {} | {} | {} | {} | {} | {counts} |",
            cell(&name),
            with(row.precision),
            with(row.recall),
            with(row.f1),
            with(row.auc),
            with(row.iou)
        )?;
    }
    Ok(())
}

fn confusion(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    let Some(confusion) = &evaluation.confusion else {
        return Ok(());
    };
    writeln!(to, "\n## Confusion\n")?;
    writeln!(to, "| true \\ said | {} |", confusion.said.join(" | "))?;
    writeln!(to, "|---|{}", "---|".repeat(confusion.said.len()))?;
    for (truth, counts) in confusion.truths.iter().zip(&confusion.counts) {
        write!(to, "| {truth} |")?;
        for count in counts {
            write!(to, " {count} |")?;
        }
        writeln!(to)?;
    }
    Ok(())
}

fn bands(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    if evaluation.bands.is_empty() {
        return Ok(());
    }
    let columns = band_figures(evaluation);
    writeln!(to, "\n## Contrast bands\n")?;
    write!(to, "| contrast-to-noise | findings | labels |")?;
    for (_, title) in &columns {
        write!(to, " {title} |")?;
    }
    writeln!(to, "\n|---|---|---|{}", "---|".repeat(columns.len()))?;
    for band in &evaluation.bands {
        write!(
            to,
            "| {:.0}–{:.0} | {} | {} |",
            band.low,
            band.high,
            band.findings,
            labels_of(band)
        )?;
        for (name, _) in &columns {
            let figure = band.figures.iter().find(|other| other.name == *name);
            match figure.map(|other| other.figure) {
                Some(figure) => write!(to, " {} |", with_interval(figure))?,
                None => write!(to, " |")?,
            }
        }
        writeln!(to)?;
    }
    Ok(())
}

/// F1 of each label in each band, and of how many.
fn bands_of_labels(evaluation: &Evaluation, to: &mut String) -> std::fmt::Result {
    let labels = band_labels(evaluation);
    if labels.is_empty() {
        return Ok(());
    }
    write!(to, "\n| F1 by contrast-to-noise |")?;
    for band in &evaluation.bands {
        write!(to, " {:.0}–{:.0} | of |", band.low, band.high)?;
    }
    writeln!(to, "\n|---|{}", "---|---|".repeat(evaluation.bands.len()))?;
    for label in labels {
        write!(to, "| {} |", cell(label))?;
        for band in &evaluation.bands {
            let row = row_of(band, label);
            let figure = row.and_then(|row| Some((row.f1?, row.counts?.support())));
            match figure {
                Some((figure, count)) => write!(to, " {} | {count} |", with_interval(figure))?,
                None => write!(to, " | |")?,
            }
        }
        writeln!(to)?;
    }
    Ok(())
}

fn with_interval(Figure { value, low, high }: Figure) -> String {
    format!("{value:.3} ({low:.3}–{high:.3})")
}

/// Text that can't leave its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
