//! Texts that are answers, and texts that are none.

use super::*;

fn done(finish: Finish) -> Done {
    Done {
        finish,
        tokens: Vec::new(),
        alternatives: Vec::new(),
        prompt: PromptSize {
            tokens: 20,
            image_tokens: 4,
        },
        time_to_first_token: Duration::from_millis(5),
        decode: Duration::from_millis(7),
        steps: 1,
        prefix_tokens: 0,
        preemptions: 0,
    }
}

/// An image of 200 × 100 pixels in a square of 200, 50 black rows above it.
fn frame() -> v1::FrameUsed {
    v1::FrameUsed {
        original_width: 200,
        original_height: 100,
        placement: Some(v1::Placement {
            pad_left_pixels: 0,
            pad_top_pixels: 50,
            padded_side_pixels: 200,
        }),
        ..Default::default()
    }
}

fn localise(text: &str, finish: Finish) -> Result<Written, DecodeError> {
    let question = Question::Localise {
        target: "the heart".to_owned(),
    };
    written(&question, text.to_owned(), done(finish), Some(&frame()))
}

fn check_boxes(text: &str, expected: &[[f64; 4]], warnings: usize) {
    let written = localise(text, Finish::Stop).expect("an answer");
    assert_eq!(written.warnings.len(), warnings, "{:?}", written.warnings);
    let Output::Localisation(found) = written.output else {
        panic!("no boxes");
    };
    assert_eq!(found.text, text);
    let edges = found
        .boxes
        .iter()
        .map(|b| [b.left_pixels, b.top_pixels, b.right_pixels, b.bottom_pixels]);
    assert_eq!(edges.collect::<Vec<_>>(), expected, "{text}");
}

#[test]
fn an_answer_without_text_says_so() {
    let compare = Question::Compare {
        clinical_context: String::new(),
    };
    let answer = Question::Answer {
        question: "Is there an effusion?".to_owned(),
    };
    for question in [answer, compare] {
        let check = |text: &str, expected: usize| {
            let written = written(&question, text.to_owned(), done(Finish::Stop), None);
            let warnings = written.expect("an answer").warnings;
            assert_eq!(warnings.len(), expected, "{text:?}: {warnings:?}");
        };
        check("No.", 0);
        check("", 1);
        check(" \n", 1);
    }
}

#[test]
fn boxes_and_comparisons_take_the_frames_they_are_about() {
    let task = |kind| v1::Task { kind: Some(kind) };
    let localise = task(Kind::Localise(v1::LocaliseTask::default()));
    let compare = task(Kind::Compare(v1::CompareTask::default()));
    assert!(asks(&localise, 1).is_ok() && asks(&compare, 2).is_ok());
    let refused = asks(&localise, 2).expect_err("on which one?").to_string();
    assert_eq!(
        refused,
        "localise takes exactly 1 frames; the inputs have 2"
    );
    assert!(asks(&compare, 3).is_err());
    let embed = task(Kind::Embed(v1::EmbedTask {}));
    let refused = asks(&embed, 1).expect_err("it takes another model");
    assert!(refused.to_string().contains("MedSigLIP"), "{refused}");
    assert_eq!(compares(&embed).expect("embeddings"), Compares::Nothing);
    let report = task(Kind::Report(v1::ReportTask::default()));
    let refused = compares(&report).expect_err("it takes another model");
    assert!(refused.to_string().contains("MedGemma"), "{refused}");
}

#[test]
fn boxes_are_mapped_to_the_original_image() {
    check_boxes("[]", &[], 0);
    // y from 300 to 700 of 1000 is 60 to 140 of the square, 10 to 90 of the image.
    check_boxes(
        r#"[{"box_2d": [300, 100, 700, 500], "label": "heart"}]"#,
        &[[20.0, 10.0, 100.0, 90.0]],
        0,
    );
    // What reaches into the padding is cut at the image's edge.
    check_boxes(
        r#"[{"box_2d": [0, 0, 1000, 1000], "label": "all"}]"#,
        &[[0.0, 0.0, 200.0, 100.0]],
        0,
    );
    // In the padding alone, and with its corners the wrong way round: no guess what was meant.
    check_boxes(
        r#"[{"box_2d": [0, 0, 250, 1000], "label": "a"}, {"box_2d": [700, 0, 300, 9], "label": "b"}]"#,
        &[],
        1,
    );
}

#[test]
fn what_is_no_list_of_boxes_is_an_error() {
    let refused = |text, finish| localise(text, finish).expect_err("no answer").to_string();
    for text in [
        "",
        "There is none.",
        "{}",
        r#"[{"box_2d": [1, 2, 3], "label": "x"}]"#,
        r#"[{"box_2d": [1, 2, 3, 1001], "label": "x"}]"#,
        r#"[{"box_2d": [-1, 2, 3, 4], "label": "x"}]"#,
        r#"[{"box_2d": [1, 2, 3, 4]}]"#,
    ] {
        assert!(
            refused(text, Finish::Stop).contains("did not write JSON"),
            "{text}"
        );
    }
    let cut = refused(r#"[{"box_2d": [1, 2"#, Finish::Length);
    assert!(cut.contains("raise max_tokens"), "{cut}");
    let question = Question::Localise {
        target: String::new(),
    };
    let unplaced = v1::FrameUsed {
        placement: None,
        ..frame()
    };
    let missing = written(
        &question,
        "[]".to_owned(),
        done(Finish::Stop),
        Some(&unplaced),
    );
    assert!(matches!(missing, Err(DecodeError::Manifest(_))));
}

#[test]
fn extracted_text_is_json_or_an_error() {
    let question = Question::Extract {
        json_schema: "{}".to_owned(),
    };
    let extract = |text: &str, finish| written(&question, text.to_owned(), done(finish), None);
    let json = r#"{"side": "left"}"#;
    let found = extract(json, Finish::Stop).expect("an answer").output;
    let expected = v1::Extraction {
        json: json.to_owned(),
    };
    assert_eq!(found, Output::Extraction(expected));
    // Of a number what was written before the limit reads as one.
    for begun in [r#"{"side": "le"#, "12"] {
        let cut = extract(begun, Finish::Length).expect_err("cut");
        assert!(cut.to_string().contains("raise max_tokens"), "{begun}");
    }
}

#[test]
fn a_report_without_its_sections_has_a_warning() {
    let question = Question::Report {
        clinical_context: String::new(),
    };
    let warnings = |text: &str| {
        let written = written(&question, text.to_owned(), done(Finish::Stop), None);
        written.expect("a report").warnings.len()
    };
    assert_eq!(warnings("Findings: clear.\nImpression: normal."), 0);
    assert_eq!(warnings("Clear."), 1);
}

#[test]
fn a_label_has_the_share_of_yes() {
    let text = "Final Answer: no";
    let tokens = [(0, 13), (13, 16)].map(|(start, end)| TokenSpan {
        start,
        end,
        log_probability: 0.0,
    });
    let alternative = |text: &str, probability: f32| Alternative {
        id: 0,
        text: text.to_owned(),
        log_probability: probability.ln(),
    };
    let decided = vec![
        vec![alternative("Final Answer:", 1.0)],
        vec![alternative(" no", 0.3), alternative(" yes", 0.1)],
    ];
    let found = score("effusion", text, &tokens, &decided).expect("decided");
    assert!(!found.applies && (found.probability - 0.25).abs() < 1e-6);
    assert_eq!(line(&found), "effusion: no\n");
    assert!(score("effusion", text, &tokens, &[]).is_err());
    let both = vec![
        (found.clone(), done(Finish::Stop)),
        (found, done(Finish::Stop)),
    ];
    let all = classified("lines".to_owned(), both);
    assert_eq!((all.prompt.tokens, all.prompt.image_tokens), (40, 8));
    assert_eq!(
        all.time_to_first_token + all.decode,
        Duration::from_millis(24)
    );
}
