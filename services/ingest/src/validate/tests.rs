//! What is refused, with the field, and what defaults are filled in.

use std::path::PathBuf;

use super::*;
use crate::config::{AcceptConfig, CostConfig, DispatcherConfig, QuotasConfig, WatchConfig};

/// Alias to pool.
fn models(named: &[(&str, &str)]) -> BTreeMap<String, PoolName> {
    let pool = |name: &str| PoolName::new(name).expect("a pool");
    let named = named.iter();
    let named = named.map(|(alias, name)| ((*alias).to_owned(), pool(name)));
    named.collect()
}

fn config() -> Config {
    Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        tls: None,
        tokens: PathBuf::new(),
        tokens_reload: medfleet_runtime::DurationText::from_secs(1),
        models: models(&[("tiny", "tiny-main")]),
        default_model: "tiny".to_owned(),
        embedders: BTreeMap::new(),
        default_embedder: None,
        limits: Limits {
            images_max: 4,
            ..Limits::default()
        },
        quotas: QuotasConfig::default(),
        retention: crate::config::RetentionConfig::default(),
        cost: CostConfig::default(),
        accept: AcceptConfig::default(),
        watch: WatchConfig::default(),
        dispatcher: DispatcherConfig::default(),
        edge: None,
    }
}

fn image() -> v1::Input {
    v1::Input {
        source: Some(v1::input::Source::Content(Bytes::from_static(b"image"))),
        ..v1::Input::default()
    }
}

fn request(kind: Kind, images: usize) -> v1::SubmitJobRequest {
    v1::SubmitJobRequest {
        task: Some(v1::Task { kind: Some(kind) }),
        inputs: (0..images).map(|_| image()).collect(),
        ..Default::default()
    }
}

fn report() -> v1::SubmitJobRequest {
    request(Kind::Report(v1::ReportTask::default()), 1)
}

/// The fields named, or none when accepted.
fn check(request: v1::SubmitJobRequest, expected: &[&str]) {
    let fields = match plan(request, &config()) {
        Ok(_) => Vec::new(),
        Err(Refusal::Invalid(violations)) => {
            assert!(violations.iter().all(|v| !v.allowed.is_empty()));
            violations.into_iter().map(|v| v.field).collect()
        }
        Err(other) => vec![other.to_string()],
    };
    assert_eq!(fields, expected);
}

fn answer(question: &str) -> v1::SubmitJobRequest {
    request(
        Kind::Answer(v1::AnswerTask {
            question: question.to_owned(),
        }),
        0,
    )
}

#[test]
fn tasks_say_how_many_images_they_take() {
    check(report(), &[]);
    check(answer("what is this?"), &[]);
    check(v1::SubmitJobRequest::default(), &["task"]);
    check(
        request(Kind::Report(v1::ReportTask::default()), 0),
        &["inputs"],
    );
    check(
        request(Kind::Report(v1::ReportTask::default()), 5),
        &["inputs"],
    );
    check(request(Kind::Compare(v1::CompareTask::default()), 2), &[]);
    check(
        request(Kind::Compare(v1::CompareTask::default()), 1),
        &["inputs"],
    );
    let refusal = "task: embed needs a MedSigLIP model, which this fleet does not have; available: report, answer, classify, localise, compare, extract";
    check(request(Kind::Embed(v1::EmbedTask {}), 1), &[refusal]);
}

#[test]
fn each_task_goes_to_a_model_that_does_it() {
    let mut config = config();
    config.embedders = models(&[("small", "small-main"), ("large", "large-main")]);
    config.default_embedder = Some("large".to_owned());
    let labels = vec!["a clear lung".to_owned()];
    let zero_shot = || {
        Kind::ZeroShot(v1::ZeroShotTask {
            labels: labels.clone(),
        })
    };
    let pool = |kind: Kind, model: &str| {
        let request = v1::SubmitJobRequest {
            model: model.to_owned(),
            ..request(kind, 1)
        };
        let planned = plan(request, &config);
        planned
            .map(|plan| plan.pool.to_string())
            .map_err(|refusal| refusal.to_string())
    };
    let report = || Kind::Report(v1::ReportTask::default());
    assert_eq!(pool(report(), ""), Ok("tiny-main".to_owned()));
    assert_eq!(pool(zero_shot(), ""), Ok("large-main".to_owned()));
    assert_eq!(pool(zero_shot(), "small"), Ok("small-main".to_owned()));
    for (kind, model, known) in [
        (zero_shot(), "tiny", "large, small"),
        (report(), "small", "tiny"),
    ] {
        let refused = pool(kind, model).expect_err("that model does not do it");
        assert!(refused.contains(known), "{refused}");
    }
    let none = pool(Kind::ZeroShot(v1::ZeroShotTask::default()), "");
    let refused = none.expect_err("there is nothing to compare with");
    assert!(refused.contains("task.zero_shot.labels"), "{refused}");
}

#[test]
fn texts_have_limits() {
    // Blanks, punctuation and what nobody sees ask nothing.
    for nothing in ["", " ", "?", "\u{200b}", "\u{2026}\u{ff1f}"] {
        check(answer(nothing), &["task.answer.question"]);
        let target = nothing.to_owned();
        let localise = request(Kind::Localise(v1::LocaliseTask { target }), 1);
        check(localise, &["task.localise.target"]);
    }
    for something in ["Warum?", "なぜ", "¿por qué?", "почему", "2"] {
        check(answer(something), &[]);
    }
    check(
        answer(&"x".repeat((16 << 10) + 1)),
        &["task.answer.question"],
    );
    let context = Kind::Report(v1::ReportTask {
        clinical_context: "x".repeat((16 << 10) + 1),
    });
    check(request(context, 1), &["task.report.clinical_context"]);
    check(
        v1::SubmitJobRequest {
            request_id: "x".repeat(129),
            ..report()
        },
        &["request_id"],
    );
    check(
        v1::SubmitJobRequest {
            request_id: "x".repeat(128),
            ..report()
        },
        &[],
    );
}

#[test]
fn pseudonyms_are_looked_at_with_the_rest() {
    let with = |patient: &str, study: &str| v1::SubmitJobRequest {
        patient_pseudonym: patient.to_owned(),
        study_pseudonyms: vec![study.to_owned()],
        ..report()
    };
    let hash = "0A1B2C3D4E5F6071";
    check(with(hash, hash), &[]);
    check(with("4711", hash), &["patient_pseudonym"]);
    check(with(hash, "1.2.3"), &["study_pseudonyms[0]"]);
    let planned = plan(with(hash, hash), &config()).expect("is right");
    assert_eq!(
        (planned.whose.patient.as_str(), planned.whose.studies.len()),
        (hash, 1)
    );
}

fn classify(labels: &[&str]) -> v1::SubmitJobRequest {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect();
    request(Kind::Classify(v1::ClassifyTask { labels }), 1)
}

#[test]
fn labels_and_schemas_have_a_form() {
    check(classify(&["effusion", "cardiomegaly"]), &[]);
    check(classify(&[]), &["task.classify.labels"]);
    check(classify(&["x"; 65]), &["task.classify.labels"]);
    check(
        classify(&["a", " ", "a", "b\nc", &"x".repeat(257)]),
        &[
            "task.classify.labels[1]",
            "task.classify.labels[2]",
            "task.classify.labels[3]",
            "task.classify.labels[4]",
        ],
    );
    // A label is asked about without the blanks around it, but with its case.
    check(
        classify(&["?!", "\u{200b}"]),
        &["task.classify.labels[0]", "task.classify.labels[1]"],
    );
    check(
        classify(&["Effusion", "effusion", " effusion"]),
        &["task.classify.labels[2]"],
    );
    let extract = |json_schema: &str| {
        let json_schema = json_schema.to_owned();
        request(Kind::Extract(v1::ExtractTask { json_schema }), 1)
    };
    check(extract(r#"{"type": "object"}"#), &[]);
    for bad in ["", " ", "{", "[]", "{}"] {
        check(extract(bad), &["task.extract.json_schema"]);
    }
}

#[test]
fn texts_with_a_form_take_neither_stops_nor_thinking() {
    let decoding = v1::DecodingParameters {
        stop: vec!["END".to_owned()],
        think: true,
        min_p: 0.1,
        repetition_penalty: 1.1,
        ..Default::default()
    };
    let with = |request: v1::SubmitJobRequest| v1::SubmitJobRequest {
        decoding: Some(decoding.clone()),
        ..request
    };
    check(with(report()), &[]);
    check(with(classify(&["x"])), &["decoding.stop", "decoding.think"]);
}

#[test]
fn labels_that_a_comparison_cannot_tell_apart_are_refused() {
    let config = Config {
        embedders: models(&[("siglip", "siglip-main")]),
        default_embedder: Some("siglip".to_owned()),
        ..config()
    };
    let check = |labels: &[&str], expected: &[usize]| {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let request = request(Kind::ZeroShot(v1::ZeroShotTask { labels }), 1);
        let found: Vec<String> = match plan(request, &config) {
            Ok(_) => Vec::new(),
            Err(Refusal::Invalid(wrong)) => wrong.into_iter().map(|one| one.field).collect(),
            Err(other) => panic!("{other}"),
        };
        let expected = expected.iter();
        let expected: Vec<String> = expected
            .map(|index| format!("task.zero_shot.labels[{index}]"))
            .collect();
        assert_eq!(found, expected, "{found:?}");
    };
    check(&["a clear lung", "a pleural effusion"], &[]);
    // These were scored as the empty text.
    check(&["...", "a clear lung", " - "], &[0, 2]);
    // And these are one text to the model.
    check(&["A chest X-ray.", "a  chest xray", "a chest x ray"], &[1]);
}

#[test]
fn a_stop_string_that_leaves_nothing_of_a_report_is_refused() {
    let with = |stop: &str, request: v1::SubmitJobRequest| v1::SubmitJobRequest {
        decoding: Some(v1::DecodingParameters {
            stop: vec!["END".to_owned(), stop.to_owned()],
            ..Default::default()
        }),
        ..request
    };
    for nothing in ["Findings:", "F", ": ", " "] {
        check(with(nothing, report()), &["decoding.stop"]);
        check(with(nothing, answer("what is seen?")), &[]);
    }
    for something in ["Impression:", "\n\n", "findings", "."] {
        check(with(something, report()), &[]);
    }
}

#[test]
fn what_an_input_shows_is_a_word_of_dicom() {
    let with = |modality: &str| v1::SubmitJobRequest {
        inputs: vec![v1::Input {
            modality: modality.to_owned(),
            ..image()
        }],
        ..report()
    };
    let words = GivenModality::ALL.iter().map(|known| known.as_str());
    for known in words.chain([""]) {
        check(with(known), &[]);
    }
    for unknown in ["ct", "XRAY", "OT", " DX"] {
        check(with(unknown), &["inputs[0].modality"]);
    }
}

#[test]
fn the_contract_names_every_modality_that_may_be_given() {
    let contract = include_str!("../../../../proto/medfleet/v1/job.proto").replace("\n  // ", " ");
    let words = GivenModality::ALL.iter().map(|known| known.as_str());
    let told = format!("one of {}. ", words.collect::<Vec<_>>().join(", "));
    assert!(contract.contains(&told), "job.proto does not say {told:?}");
}

#[test]
fn everything_wrong_is_named_at_once() {
    let wrong = v1::SubmitJobRequest {
        class: 99,
        model: "other".to_owned(),
        decoding: Some(v1::DecodingParameters {
            max_tokens: 1 << 20,
            temperature: f32::NAN,
            top_p: 1.5,
            min_p: -0.1,
            repetition_penalty: 11.0,
            stop: vec![String::new()],
            ..Default::default()
        }),
        time_to_live: Some(prost_types::Duration {
            seconds: -1,
            nanos: 0,
        }),
        ..report()
    };
    let fields = [
        "class",
        "decoding.max_tokens",
        "decoding.temperature",
        "decoding.top_p",
        "decoding.min_p",
        "decoding.repetition_penalty",
        "decoding.stop",
        "time_to_live",
        "model",
    ];
    check(wrong, &fields);
}

#[test]
fn a_time_to_live_is_above_zero_and_bounded_whatever_is_sent() {
    let lives = |seconds, nanos, expected: &[&str]| {
        let sent = v1::SubmitJobRequest {
            time_to_live: Some(prost_types::Duration { seconds, nanos }),
            ..report()
        };
        check(sent, expected);
    };
    let week = 7 * 24 * 60 * 60;
    lives(0, 1_000_000, &[]);
    lives(week, 0, &[]);
    lives(0, 0, &["time_to_live"]);
    lives(0, i32::MIN, &["time_to_live"]);
    lives(week, 1, &["time_to_live"]);
    lives(i64::MAX, i32::MAX, &["time_to_live"]);
    lives(i64::MIN, 0, &["time_to_live"]);
    lives(i64::MIN, i32::MIN, &["time_to_live"]);
}

#[test]
fn inputs_are_looked_at_one_by_one() {
    let inputs = |source| v1::SubmitJobRequest {
        inputs: vec![image(), v1::Input { source, ..image() }],
        ..report()
    };
    use v1::input::Source::{Content, Upload};
    check(inputs(None), &["inputs[1]"]);
    check(inputs(Some(Content(Bytes::new()))), &["inputs[1].content"]);
    check(
        inputs(Some(Upload("uploads/x".to_owned()))),
        &["inputs[1].upload"],
    );
    check(
        inputs(Some(Upload(format!("uploads/{}", "a".repeat(32))))),
        &[],
    );
    check(inputs(Some(Content(vec![0; 3 << 20].into()))), &["inputs"]);
}

#[test]
fn defaults_are_filled_in() {
    let plan = plan(report(), &config()).expect("is right");
    let decoding = v1::DecodingParameters {
        max_tokens: 1024,
        top_p: 1.0,
        repetition_penalty: 1.0,
        ..Default::default()
    };
    assert_eq!((plan.decoding, plan.class), (decoding, Class::Routine));
    assert_eq!(
        (plan.model.as_str(), plan.pool.as_str()),
        ("tiny", "tiny-main")
    );
    assert_eq!(plan.time_to_live, Duration::from_secs(24 * 60 * 60));
}

/// A request for a report about as many images, of which an encoded study stands for.
fn encoded(images: u32) -> v1::SubmitJobRequest {
    v1::SubmitJobRequest {
        inputs: vec![v1::Input {
            encoded_images: images,
            ..image()
        }],
        ..report()
    }
}

#[test]
fn an_encoded_study_counts_as_the_images_that_it_stands_for() {
    check(encoded(4), &[]);
    check(encoded(5), &["inputs"]);
    let plan = plan(encoded(4), &config()).expect("is right");
    assert_eq!((plan.encoded_images, plan.sources.len()), (4, 1));
    let compare = |request: v1::SubmitJobRequest| v1::SubmitJobRequest {
        task: Some(v1::Task {
            kind: Some(Kind::Compare(v1::CompareTask::default())),
        }),
        ..request
    };
    check(compare(encoded(2)), &[]);
    check(compare(encoded(1)), &["inputs"]);
    let mut beside = encoded(1);
    beside.inputs.push(image());
    check(beside, &["inputs"]);
}

#[test]
fn where_images_stay_a_job_needs_the_encoder_that_is_there() {
    let config = Config {
        embedders: models(&[("siglip", "siglip-main")]),
        ..config()
    };
    let check = |request, travels, field: Option<&str>| {
        let plan = plan(request, &config).expect("is right");
        let found = match can_travel(&plan, travels) {
            Ok(()) => None,
            Err(Refusal::Invalid(violations)) => Some(violations[0].field.clone()),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(found.as_deref(), field);
    };
    let embed = || request(Kind::Embed(v1::EmbedTask {}), 1);
    check(embed(), Travels::Files, None);
    check(embed(), Travels::Tokens, Some("task"));
    check(report(), Travels::Tokens, None);
    let stopped = || v1::SubmitJobRequest {
        decoding: Some(v1::DecodingParameters {
            stop: vec!["Impression".to_owned()],
            ..Default::default()
        }),
        ..report()
    };
    check(stopped(), Travels::Files, None);
    check(stopped(), Travels::Tokens, Some("decoding.stop"));
    check(encoded(2), Travels::Files, None);
    check(
        encoded(2),
        Travels::Tokens,
        Some("inputs[0].encoded_images"),
    );
}

#[test]
fn a_refusal_fits_into_what_libraries_take_of_headers() {
    let mut config = config();
    config.limits.images_max = 2048;
    let asked = v1::SubmitJobRequest {
        inputs: vec![v1::Input::default(); 2048],
        ..report()
    };
    let refusal = plan(asked, &config).expect_err("there is nothing in it");
    let status = crate::error::status(&refusal);
    let said = status.message();
    assert!(said.starts_with("inputs[0]: needs an upload"), "{said}");
    assert!(said.ends_with("not right either, and 2035 more"), "{said}");
    let bytes = said.len() + status.details().len();
    assert!(bytes < 4 << 10, "{bytes}");
}
