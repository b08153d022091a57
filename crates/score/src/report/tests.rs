//! The report's files: complete, well formed, and harmless whatever a draft says.

use super::*;
use crate::evaluation::{Options, Uncertain, evaluate};
use crate::metrics::bootstrap::Bootstrap;
use crate::outcome::{Outcome, Task};
use crate::record::{About, read_set};

const SET: &str = r#"{"id":"phantom-1-0","image":"images/0.png","labels":{"nodule":1,"oedema":0},"findings":[{"label":"nodule","side":"left","cnr":1.5}],"report":"There is a left nodule."}
{"id":"phantom-1-1","labels":{"nodule":0,"oedema":1},"findings":[{"label":"oedema","side":"bilateral","cnr":4.5}],"report":"Pulmonary oedema."}
{"id":"phantom-1-2","labels":{"nodule":0,"oedema":0},"report":"Normal chest."}
"#;

fn evaluation() -> Evaluation {
    let records = read_set(SET.as_bytes()).unwrap();
    let mut outcomes: Vec<Outcome> = records
        .iter()
        .map(|record| Outcome {
            text: Some("No nodule. <script>alert(1)</script> | oedema \"x\"".into()),
            ..Outcome::new(&record.id, Task::Report)
        })
        .collect();
    outcomes[1].failure = Some("refused <b>".into());
    let options = Options {
        bootstrap: Bootstrap::seeded(1),
        uncertain: Uncertain::Positive,
        about: About::of("tiny", &records),
    };
    evaluate(Task::Report, &records, &outcomes, &options)
}

fn png(_: &Case) -> Option<Picture> {
    Some(Picture {
        media_type: "image/png",
        bytes: vec![0, 1, 254, 255],
    })
}

#[test]
fn the_page_stands_alone() {
    let page = html(&evaluation(), &mut png);
    assert!(page.contains("Phantom demo, not for clinical use"));
    assert!(page.contains("src=\"data:image/png;base64,AAH+/w==\""));
    for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("refused &lt;b&gt;"));
    assert!(page.contains("1 request failed; it counts as wrong."));
    assert!(page.contains("prefers-color-scheme: dark"));
    for part in [
        "Macro F1 over labels",
        "<h2>Contrast</h2>",
        "<th class=\"n\">Macro F1</th>",
        "<th>F1 in band</th>",
        "<h2>Worst cases</h2>",
        "missed nodule",
        "[left nodule (cnr 1.5)]",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let open = |tag: &str| {
        page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count()
    };
    for tag in ["table", "tr", "td", "th", "div", "article", "p", "dl"] {
        assert_eq!(
            open(tag),
            page.matches(&format!("</{tag}>")).count(),
            "{tag}"
        );
    }
}

#[test]
fn a_case_without_a_picture_says_so() {
    assert!(html(&evaluation(), &mut |_| None).contains("no picture"));
}

#[test]
fn markdown_has_the_figures() {
    let text = markdown(&evaluation());
    assert!(
        text.contains("| Macro F1 over labels | 0.000 | 0.000–0.000 | 3 |"),
        "{text}"
    );
    assert!(text.contains("| phantom-1-1 |  | refused <b> |"), "{text}");
    assert!(
        text.contains("| contrast-to-noise | findings | labels | Macro F1 | Micro F1 | Named |"),
        "{text}"
    );
    let nothing = "0.000 (0.000–0.000)";
    assert!(
        text.contains(&format!(
            "| 1–2 | 1 | 1 | {nothing} | {nothing} | {nothing} | {nothing} |"
        )),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "| 4–5 | 1 | 1 | {nothing} | {nothing} | {nothing} | |"
        )),
        "{text}"
    );
    assert!(
        text.contains(&format!("| nodule | {nothing} | 1 | | |")),
        "{text}"
    );
    let columns = |line: &&str| line.starts_with('|');
    for table in text.split("\n\n") {
        let mut widths = table
            .lines()
            .filter(columns)
            .map(|line| line.replace("\\|", "").matches('|').count());
        if let Some(first) = widths.next() {
            assert!(widths.all(|width| width == first), "{table}");
        }
    }
}

#[test]
fn a_set_that_is_no_phantom_is_not_called_one() {
    let mut evaluation = evaluation();
    evaluation.about = About {
        name: "MIMIC".into(),
        description: "chest radiographs.".into(),
        phantom: false,
    };
    assert_eq!(
        statement(&evaluation),
        "Set: MIMIC, chest radiographs. 3 of 3 records have what this task needs. Research figures of one set, not evidence for clinical use."
    );
}

#[test]
fn files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let files = write(&evaluation(), &folder.path().join("deep"), &mut png).unwrap();
    let text = std::fs::read_to_string(&files.json).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["task"], "report");
    assert_eq!(value["figures"][0]["name"], "macro_f1");
    assert!(
        files.html.ends_with("report.html") && files.markdown.is_file() && files.html.is_file()
    );
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    let error = write(&evaluation(), &taken, &mut png).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} can't be written", taken.display())
    );
}
