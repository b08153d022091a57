//! The status page as HTML: one file, no script, nothing from elsewhere. Every text that is not ours is escaped, whatever
//! form it promises to have.

use std::fmt::Write;

use medfleet_core::setting::ByteSize;

use super::{Part, Report};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--well:#2a7d46;--ill:#b3261e}\
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .4rem}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);white-space:nowrap}\
th{font-weight:600}.n{text-align:right}td.n{font-variant-numeric:tabular-nums}\
code{font-family:ui-monospace,monospace;font-size:.92em}\
.well{color:var(--well)}.ill{color:var(--ill);font-weight:600}.dim{opacity:.65}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;margin:.8rem 0}dd{margin:0}";

/// What an empty table says.
const NONE: &str = "None.";

/// A column: its head, and whether it holds numbers.
type Column = (&'static str, bool);

pub(super) fn html(report: &Report) -> String {
    let mut out = String::with_capacity(8 << 10);
    out.push_str("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>medfleet status</title>");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width\"><style>");
    out.push_str(STYLE);
    out.push_str("</style></head><body><h1>medfleet</h1>");
    head(&mut out, report);
    backlog(&mut out, report);
    workers(&mut out, report);
    jobs(&mut out, report);
    letters(&mut out, report);
    streams(&mut out, report);
    out.push_str("<p class=\"dim\">The same as JSON: <code>/status.json</code>. Figures over time: <code>/metrics</code>.</p></body></html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    out.push_str("<dl>");
    let leader = match (report.dispatcher.is_here, &report.dispatcher.holder) {
        (true, _) => Part {
            is_well: true,
            what: "here".to_owned(),
        },
        (false, Some(holder)) => Part {
            is_well: true,
            what: format!("another replica, {holder}"),
        },
        (false, None) => Part {
            is_well: false,
            what: "nobody: nothing is released".to_owned(),
        },
    };
    for (name, part) in [
        ("Queue", &report.queue),
        ("Store", &report.store),
        ("Dispatcher", &leader),
    ] {
        let class = if part.is_well { "well" } else { "ill" };
        entry(out, name, &part.what, class);
    }
    for trouble in &report.troubles {
        entry(out, "Not known", trouble, "ill");
    }
    entry(
        out,
        "Seen",
        &format!("{} by version {}", report.time, report.version),
        "dim",
    );
    out.push_str("</dl>");
}

fn entry(out: &mut String, name: &str, text: &str, class: &str) {
    let text = escape(text);
    add(
        out,
        format_args!("<dt>{name}</dt><dd class=\"{class}\">{text}</dd>"),
    );
}

fn backlog(out: &mut String, report: &Report) {
    const COLUMNS: [Column; 7] = [
        ("Stage", false),
        ("Pool", false),
        ("Class", false),
        ("Held", true),
        ("Waiting", true),
        ("In hand", true),
        ("Oldest", true),
    ];
    let rows = report.backlog.iter().map(|row| {
        vec![
            row.stage.to_owned(),
            row.pool.clone(),
            row.class.to_owned(),
            row.held.map_or("–".to_owned(), |held| held.to_string()),
            row.waiting.to_string(),
            row.in_flight.to_string(),
            row.oldest_seconds.map_or("–".to_owned(), duration),
        ]
    });
    let title = ("Backlog, in units", none(report));
    table(out, title, &COLUMNS, rows.collect());
}

fn workers(out: &mut String, report: &Report) {
    const COLUMNS: [Column; 6] = [
        ("Worker", false),
        ("Stage", false),
        ("Pool", false),
        ("Busy", true),
        ("Slots", true),
        ("Version", false),
    ];
    let rows = report.workers.iter().map(|worker| {
        let draining = if worker.is_draining { ", stopping" } else { "" };
        vec![
            worker.worker.clone(),
            worker.stage.to_owned(),
            worker.pool.clone(),
            worker.busy.to_string(),
            worker.slots.to_string(),
            format!("{}{draining}", worker.version),
        ]
    });
    table(
        out,
        ("Workers heard within 5 seconds", NONE),
        &COLUMNS,
        rows.collect(),
    );
}

fn jobs(out: &mut String, report: &Report) {
    const COLUMNS: [Column; 5] = [
        ("Job", false),
        ("State", false),
        ("Chunks", true),
        ("Attempt", true),
        ("Since", false),
    ];
    let rows = report.recent_jobs.iter().map(|job| {
        vec![
            job.job.clone(),
            job.state.clone(),
            format!("{} of {}", job.chunks_done, job.chunks_total),
            job.attempt.to_string(),
            job.time.clone(),
        ]
    });
    let title = "Jobs that moved last, since this process started";
    table(out, (title, NONE), &COLUMNS, rows.collect());
}

fn letters(out: &mut String, report: &Report) {
    const COLUMNS: [Column; 4] = [
        ("Job", false),
        ("Stage", false),
        ("Reason", false),
        ("Time", false),
    ];
    let rows = report.dead_letters.last.iter().map(|letter| {
        vec![
            letter.job.clone(),
            letter.stage.clone(),
            letter.reason.clone(),
            letter.time.clone(),
        ]
    });
    let total = report.dead_letters.total;
    let total = total.map_or("not known".to_owned(), |total| total.to_string());
    let title = format!("Dead letters: {total}");
    table(
        out,
        (title.as_str(), none(report)),
        &COLUMNS,
        rows.collect(),
    );
}

fn streams(out: &mut String, report: &Report) {
    const COLUMNS: [Column; 5] = [
        ("Stream", false),
        ("Messages", true),
        ("Bytes", true),
        ("Limit", true),
        ("Full", true),
    ];
    let rows = report.streams.iter().map(|stream| {
        let limit = stream
            .bytes_max
            .map(|max| ByteSize::from_bytes(max).rounded());
        let full = stream.full_percent.map(|full| format!("{full} %"));
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        vec![
            stream.stream.clone(),
            stream.messages.to_string(),
            ByteSize::from_bytes(stream.bytes).rounded(),
            or_none(limit),
            or_none(full),
        ]
    });
    table(out, ("Streams", none(report)), &COLUMNS, rows.collect());
}

/// What an empty table of things that the queue was asked for says.
const fn none(report: &Report) -> &'static str {
    match report.troubles.is_empty() {
        true => NONE,
        false => "None is known: not everything could be asked.",
    }
}

/// `none`: what it says where it has no rows.
fn table(
    out: &mut String,
    (title, none): (&str, &str),
    columns: &[Column],
    rows: Vec<Vec<String>>,
) {
    add(out, format_args!("<h2>{}</h2>", escape(title)));
    if rows.is_empty() {
        add(out, format_args!("<p class=\"dim\">{none}</p>"));
        return;
    }
    let class = |is_number: bool| if is_number { " class=\"n\"" } else { "" };
    out.push_str("<table><tr>");
    for (head, is_number) in columns {
        add(out, format_args!("<th{}>{head}</th>", class(*is_number)));
    }
    out.push_str("</tr>");
    for row in rows {
        out.push_str("<tr>");
        for (cell, (_, is_number)) in row.iter().zip(columns) {
            let (class, cell) = (class(*is_number), escape(cell));
            add(out, format_args!("<td{class}>{cell}</td>"));
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text)
        .expect("writing to a String cannot fail");
}

/// As text of an element or of a quoted attribute. What cannot be seen is made visible, so that no name looks like another.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters, and those that turn the direction of writing.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Job, Letter, Row, Stream, Worker};
    use super::*;

    /// What an attacker on the queue would call a thing.
    const HOSTILE: &str = "<script>alert('x')</script>\"&\u{202e}\0</td>";

    #[test]
    fn no_name_becomes_markup() {
        let name = || HOSTILE.to_owned();
        let mut report = Report {
            time: name(),
            troubles: vec![name()],
            ..Report::default()
        };
        report.queue.what = name();
        report.store.what = name();
        report.dispatcher.holder = Some(name());
        report.backlog = vec![Row {
            pool: name(),
            ..Row::default()
        }];
        report.workers = vec![Worker {
            worker: name(),
            pool: name(),
            version: name(),
            ..Worker::default()
        }];
        report.recent_jobs = vec![Job {
            time: name(),
            job: name(),
            state: name(),
            ..Job::default()
        }];
        report.dead_letters.last = vec![Letter {
            time: name(),
            job: name(),
            stage: name(),
            reason: name(),
        }];
        report.streams = vec![Stream {
            stream: name(),
            ..Stream::default()
        }];
        let page = html(&report);
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains('\u{202e}') && !page.contains('\0'), "{page}");
        let escaped =
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}\u{fffd}&lt;/td&gt;";
        assert_eq!(page.matches(escaped).count(), 17, "{page}");
        // As many cells as the columns say: no text closed one.
        assert_eq!(page.matches("</td>").count(), 7 + 6 + 5 + 4 + 5);
        assert!(!page.contains("http"), "nothing from elsewhere: {page}");
    }

    #[test]
    fn an_empty_fleet_has_a_page_too() {
        let page = html(&Report::default());
        assert!(page.contains("nobody: nothing is released"), "{page}");
        assert_eq!(page.matches("None.").count(), 5, "{page}");
    }

    #[test]
    fn what_could_not_be_asked_is_not_said_to_be_nothing() {
        let report = Report {
            troubles: vec!["the dead letters: nobody answers".to_owned()],
            ..Report::default()
        };
        let page = html(&report);
        assert!(page.contains("Dead letters: not known"), "{page}");
        // Workers and the latest jobs are heard of, not asked for.
        assert_eq!(page.matches("None.").count(), 2, "{page}");
        assert_eq!(page.matches("None is known").count(), 3, "{page}");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(7320), "2 h 2 min");
    }
}
