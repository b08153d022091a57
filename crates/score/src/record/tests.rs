//! Lines of phantoms and of other sets, and errors that name line and field.

use super::*;

fn check(text: &str, expected: &str) {
    let error = read_set(text.as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

const PHANTOM: &str = r#"{"id":"phantom-5-1","image":"images/000001.png","modality":"DX","index":1,"rows":2430,"cols":2048,"labels":{"atelectasis":1,"oedema":0},"findings":[{"label":"atelectasis","side":"right","zone":"mid","size":"small","cnr":1.26,"box":[495,263,518,398]}],"report":"Findings: None.","questions":[{"question":"Is there a pneumothorax?","answer":"no"},{"question":"Which side?","answer":"Right."}],"prior":{"index":0,"changes":[{"label":"atelectasis","side":"right","change":"unchanged"}],"report":"Same."}}"#;

#[test]
fn a_phantom_is_read_whole() {
    let records = read_set(PHANTOM.as_bytes()).unwrap();
    let record = &records[0];
    assert_eq!(record.images, ["images/000001.png"]);
    assert_eq!(record.modality, "DX");
    assert_eq!(record.labels["atelectasis"], Truth::Positive);
    assert_eq!(record.labels["oedema"], Truth::Negative);
    assert_eq!(record.findings[0].side, Some(Side::Right));
    assert_eq!(
        record.findings[0].area,
        Some(Rect::new(495.0, 263.0, 518.0, 398.0).unwrap())
    );
    assert_eq!(record.questions[0].kind, QuestionKind::Closed);
    assert_eq!(record.questions[1].kind, QuestionKind::Open);
    let prior = record.prior.as_ref().unwrap();
    let changes = prior.changes.as_ref().unwrap();
    assert_eq!(changes[0].change, "unchanged");
    assert!(About::of("x", &records).phantom);
}

#[test]
fn other_sets_leave_most_out() {
    let text = r#"{"id":7,"images":["a.jpg","b.jpg"],"labels":{"Edema":-1.0,"Fracture":null,"Pneumonia":1.0}}

{"id":"vqa","image":null,"questions":[{"question":"How many?","answer":3,"kind":"closed"}],"unknown":{}}
"#;
    let records = read_set(text.as_bytes()).unwrap();
    assert_eq!(records[0].id, "7");
    assert_eq!(records[0].images.len(), 2);
    assert_eq!(records[0].modality, "");
    assert_eq!(records[0].labels["Edema"], Truth::Uncertain);
    assert_eq!(records[0].labels["Fracture"], Truth::Negative);
    assert_eq!(records[1].questions[0].answer, "3");
    assert_eq!(records[1].questions[0].kind, QuestionKind::Closed);
    assert!(!About::of("x", &records).phantom);
}

#[test]
fn a_prior_says_that_nothing_changed_or_nothing_at_all() {
    let text = r#"{"id":"a","prior":{"id":"b","changes":[]}}
{"id":"c","prior":{"image":"old.png","report":"Same."}}"#;
    let records = read_set(text.as_bytes()).unwrap();
    let prior = |record: &Record| record.prior.clone().unwrap();
    assert_eq!(prior(&records[0]).changes, Some(Vec::new()));
    assert_eq!(prior(&records[1]).changes, None);
    assert_eq!(prior(&records[1]).images, ["old.png"]);
}

#[test]
fn changes_have_many_names() {
    for change in Change::ALL {
        assert_eq!(Change::named(change.name()), Some(change));
    }
    assert_eq!(Change::named(" Stable"), Some(Change::Unchanged));
    assert_eq!(Change::named("elsewhere"), None);
}

#[test]
fn errors_name_line_and_field() {
    check(
        "{\"id\":\"a\"}\n{\"report\":\"b\"}",
        "line 2 of the set, field id: is missing",
    );
    check(
        "{\"id\":\"a\"}\nnonsense",
        "line 2 of the set is not a JSON object",
    );
    check(
        "{\"id\":\"a\"}\n{\"id\":\"a\"}",
        "line 2 of the set, field id: a is the name of an earlier record",
    );
    check(
        r#"{"id":"a","labels":{"oedema":2}}"#,
        "line 1 of the set, field labels.oedema: expected 1, 0, -1, true, false or null",
    );
    check(
        r#"{"id":"a","findings":[{"label":"x"},{"label":"x","box":[1,2,3]}]}"#,
        "line 1 of the set, field findings[1].box: invalid length 3, expected an array of length 4",
    );
    check(
        r#"{"id":"a","findings":[{"label":"x","side":"up"}]}"#,
        "line 1 of the set, field findings[0].side: unknown variant `up`, expected one of `left`, `right`, `bilateral`, `midline`",
    );
    check(
        r#"{"id":"a","report":["b"]}"#,
        "line 1 of the set, field report: expected text, found a list",
    );
    check("", "the set has no record");
}

#[test]
fn a_line_has_a_limit() {
    let text = format!("{{\"id\":\"{}\"}}", "a".repeat(LINE_BYTES_MAX));
    check(&text, "line 1 of the set has more than 1048576 bytes");
}
