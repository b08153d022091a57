//! Every task of every version, word for word.

use super::*;

const RADIOLOGIST: &str = "You are an expert radiologist.";

fn all() -> [Question; 6] {
    let text = || "{label} x".to_owned();
    [
        Question::Report {
            clinical_context: text(),
        },
        Question::Answer { question: text() },
        Question::Classify { label: text() },
        Question::Localise { target: text() },
        Question::Compare {
            clinical_context: text(),
        },
        Question::Extract {
            json_schema: r#"{"type": "object"}"#.to_owned(),
        },
    ]
}

/// The turn with `*` for each image and `|` between its parts.
fn turn(prompt: &Prompt) -> String {
    let parts = prompt.parts.iter().map(|part| match part {
        Part::Image => "*",
        Part::Text(text) => text,
    });
    parts.collect::<Vec<_>>().join("|")
}

#[track_caller]
fn check(version: &str, question: &Question, images: Images, expected: &str) {
    let prompts = Prompts::of(version).expect("a version");
    let asked = prompts.ask(question, images, false).expect("it has words");
    assert_eq!(turn(&asked.prompt), expected);
    assert_eq!(asked.prompt.images(), images.count);
    let system = if images.count == 0 { "" } else { RADIOLOGIST };
    if !matches!(question, Question::Extract { .. }) {
        assert_eq!(asked.prompt.system, system);
    }
}

const fn volume(count: usize) -> Images {
    let kind = ImageKind::Volume;
    Images { count, kind }
}

const fn slide(count: usize) -> Images {
    let kind = ImageKind::Slide;
    Images { count, kind }
}

#[test]
fn the_versions_are_there_and_the_current_one_has_every_task() {
    assert_eq!(
        Prompts::versions().collect::<Vec<_>>(),
        ["prompts-1", "prompts-2"]
    );
    for question in all() {
        for images in [1.into(), 2.into(), volume(3), slide(3)] {
            for think in [false, true] {
                let asked = Prompts::current()
                    .ask(&question, images, think)
                    .expect("words");
                let prompt = &asked.prompt;
                assert_eq!(prompt.images(), images.count);
                let last = prompt.parts.last();
                assert!(matches!(last, Some(Part::Text(_))), "the question is last");
                let begun = prompt.system.starts_with("SYSTEM INSTRUCTION: think");
                assert_eq!(begun, think, "{}", prompt.system);
                let words = turn(prompt);
                for name in ["{slice}", "{context}", "{question}", "{target}", "{schema}"] {
                    assert!(!words.contains(name), "{name} in {words}");
                }
            }
        }
    }
    let old = Prompts::of("prompts-1").expect("it is there");
    let refused = old.ask(&all()[3], 1, false).expect_err("it has no boxes");
    assert_eq!(
        refused.to_string(),
        "the prompts of version prompts-1 have no task localise"
    );
    assert!(old.ask(&all()[0], 1, true).is_err(), "nor thinking");
}

#[test]
fn reports() {
    let report = |context: &str| Question::Report {
        clinical_context: context.to_owned(),
    };
    let form = "Write a section that begins with \"Findings:\" and then a section that begins with \"Impression:\".";
    for version in ["prompts-1", "prompts-2"] {
        let one = format!("*|Describe this X-ray. {form}");
        check(version, &report("  "), 1.into(), &one);
        let two =
            format!("*|*|Clinical context: cough\n\nDescribe these X-rays of one study. {form}");
        check(version, &report(" cough "), 2.into(), &two);
    }
    let intro = "These are the slices of one series, in order, each followed by its number.";
    let expected = format!("{intro}|*|SLICE 1|*|SLICE 2|Describe this volume. {form}");
    check("prompts-2", &report(""), volume(2), &expected);
    let expected = format!(
        "*|*|Clinical context: lump\n\nThese are patches of one pathology slide. Describe the tissue and give a short diagnosis. {form}"
    );
    check("prompts-2", &report("lump"), slide(2), &expected);
}

#[test]
fn answers_and_comparisons() {
    let answer = Question::Answer {
        question: " Is {question} an effusion?\n".to_owned(),
    };
    for version in ["prompts-1", "prompts-2"] {
        let expected = "*|*|Is {question} an effusion?";
        check(version, &answer, 2.into(), expected);
        check(version, &answer, 0.into(), &expected[4..]);
        let compare = Question::Compare {
            clinical_context: String::new(),
        };
        let expected = "*|*|The first image is the prior examination, the second image is the current one. Compare the two: say what is new, what has improved, what has worsened and what is unchanged.";
        check(version, &compare, 2.into(), expected);
    }
    let intro = "These are the slices of one series, in order, each followed by its number.";
    let expected = format!("{intro}|*|SLICE 1|*|SLICE 2|*|SLICE 3|Is {{question}} an effusion?");
    check("prompts-2", &answer, volume(3), &expected);
    let expected = "*|These are patches of one pathology slide. Is {question} an effusion?";
    check("prompts-2", &answer, slide(1), expected);
}

#[test]
fn labels_boxes_and_fields_have_a_form() {
    let classify = Question::Classify {
        label: "pleural effusion".to_owned(),
    };
    let end = "End with either \"Final Answer: yes\" or \"Final Answer: no\".";
    let expected = format!("*|Is there pleural effusion in this image? {end}");
    check("prompts-2", &classify, 1.into(), &expected);
    let expected = format!("*|*|Is there pleural effusion in these images? {end}");
    check("prompts-2", &classify, 2.into(), &expected);
    let localise = Question::Localise {
        target: "the heart".to_owned(),
    };
    let expected = "*|Find the heart in this image. Answer with a JSON list of boxes, each {\"box_2d\": [y0, x0, y1, x1], \"label\": \"...\"}, with whole numbers from 0 to 1000 relative to the image, and an empty list if there is none.";
    check("prompts-2", &localise, 1.into(), expected);
    let schema = r#"{"type": "object", "title": "{label}"}"#;
    let extract = Question::Extract {
        json_schema: schema.to_owned(),
    };
    let expected = format!(
        "*|Extract what is asked for from the images above. Answer with JSON of this schema only:\n{schema}"
    );
    check("prompts-2", &extract, 1.into(), &expected);
    let form = |question: &Question| question.prompt(1).expect("words").constraint;
    assert_eq!(
        form(&classify),
        Some(Constraint::Regex("Final Answer: (yes|no)".to_owned()))
    );
    assert_eq!(
        form(&extract),
        Some(Constraint::JsonSchema(schema.to_owned()))
    );
    assert!(matches!(form(&localise), Some(Constraint::JsonSchema(_))));
    assert_eq!(form(&all()[0]), None);
}

#[test]
fn different_prompts_have_different_bytes() {
    let one = Prompt {
        system: "ab".to_owned(),
        parts: vec![Part::Text("c".to_owned())],
    };
    let two = Prompt {
        system: "a".to_owned(),
        parts: vec![Part::Text("bc".to_owned())],
    };
    assert_ne!(one.canonical_bytes(), two.canonical_bytes());
}
