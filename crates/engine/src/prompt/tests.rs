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
fn check(version: &str, question: &Question, images: &Images, expected: &str) {
    let system = if images.count() == 0 { "" } else { RADIOLOGIST };
    check_system(version, question, images, (system, expected));
}

#[track_caller]
fn check_system(
    version: &str,
    question: &Question,
    images: &Images,
    (system, expected): (&str, &str),
) {
    let prompts = Prompts::of(version).expect("a version");
    let asked = prompts.ask(question, images, false).expect("it has words");
    assert_eq!(turn(&asked.prompt), expected);
    assert_eq!(asked.prompt.images(), images.count());
    if !matches!(question, Question::Extract { .. }) {
        assert_eq!(asked.prompt.system, system);
    }
}

/// Pictures of which nothing says what they are.
fn pictures(count: usize) -> Images {
    Images::of("", count)
}

fn volume(modality: &str, count: usize) -> Images {
    Images {
        arrangement: Arrangement::Volume,
        ..Images::of(modality, count)
    }
}

fn slide(count: usize) -> Images {
    Images {
        arrangement: Arrangement::Slide,
        ..Images::of("SM", count)
    }
}

fn mixed(modalities: &[&str]) -> Images {
    Images {
        modalities: modalities.iter().map(|one| (*one).to_owned()).collect(),
        arrangement: Arrangement::Apart,
    }
}

fn report(context: &str) -> Question {
    Question::Report {
        clinical_context: context.to_owned(),
    }
}

fn answer(question: &str) -> Question {
    Question::Answer {
        question: question.to_owned(),
    }
}

fn compare() -> Question {
    Question::Compare {
        clinical_context: String::new(),
    }
}

fn classify() -> Question {
    Question::Classify {
        label: "pleural effusion".to_owned(),
    }
}

fn localise() -> Question {
    Question::Localise {
        target: "the heart".to_owned(),
    }
}

#[test]
fn the_versions_are_there_and_the_current_one_has_every_task() {
    assert_eq!(
        Prompts::versions().collect::<Vec<_>>(),
        ["prompts-1", "prompts-2", "prompts-3"]
    );
    let images = [
        pictures(1),
        pictures(2),
        volume("CT", 3),
        slide(3),
        mixed(&["DX", "CT", ""]),
    ];
    for question in all() {
        for images in &images {
            for think in [false, true] {
                let asked = Prompts::current()
                    .ask(&question, images, think)
                    .expect("words");
                let prompt = &asked.prompt;
                assert_eq!(prompt.images(), images.count());
                let last = prompt.parts.last();
                assert!(matches!(last, Some(Part::Text(_))), "the question is last");
                let begun = prompt.system.starts_with("SYSTEM INSTRUCTION: think");
                assert_eq!(begun, think, "{}", prompt.system);
                let words = turn(prompt);
                for name in [
                    "slice", "context", "question", "target", "schema", "image", "images", "shown",
                    "list", "volume",
                ] {
                    let name = format!("{{{name}}}");
                    assert!(!words.contains(&name), "{name} in {words}");
                }
            }
        }
    }
    let old = Prompts::of("prompts-1").expect("it is there");
    let refused = old
        .ask(&all()[3], &pictures(1), false)
        .expect_err("it has no boxes");
    assert_eq!(
        refused.to_string(),
        "the prompts of version prompts-1 have no task localise"
    );
    assert!(
        old.ask(&all()[0], &pictures(1), true).is_err(),
        "nor thinking"
    );
}

const FORM: &str = "Write a section that begins with \"Findings:\" and then a section that begins with \"Impression:\".";
const COMPARE: &str = "The first image is the prior examination, the second image is the current one. Compare the two: say what is new, what has improved, what has worsened and what is unchanged.";
const LOCALISE: &str = "Find the heart in this image. Answer with a JSON list of boxes, each {\"box_2d\": [y0, x0, y1, x1], \"label\": \"...\"}, with whole numbers from 0 to 1000 relative to the image, and an empty list if there is none.";
const YES_OR_NO: &str = "End with either \"Final Answer: yes\" or \"Final Answer: no\".";

/// What results of these versions replay by.
#[test]
fn the_words_of_old_versions_stay() {
    let slices = "These are the slices of one series, in order, each followed by its number.";
    let patches = "These are patches of one pathology slide. ";
    for version in ["prompts-1", "prompts-2"] {
        for one in ["", "DX", "CT", "XC"] {
            let expected = format!("*|Describe this X-ray. {FORM}");
            check(version, &report("  "), &Images::of(one, 1), &expected);
        }
        let expected =
            format!("*|*|Clinical context: cough\n\nDescribe these X-rays of one study. {FORM}");
        check(version, &report(" cough "), &pictures(2), &expected);
        let asked = answer(" Is {question} an effusion?\n");
        let expected = "*|*|Is {question} an effusion?";
        check(version, &asked, &pictures(2), expected);
        check(version, &asked, &pictures(0), &expected[4..]);
        check(
            version,
            &compare(),
            &Images::of("CT", 2),
            &format!("*|*|{COMPARE}"),
        );
    }
    let check = |question: &Question, images: &Images, expected: String| {
        check("prompts-2", question, images, &expected);
    };
    let expected = format!("{slices}|*|SLICE 1|*|SLICE 2|Describe this volume. {FORM}");
    check(&report(""), &volume("CT", 2), expected);
    let described = "Describe the tissue and give a short diagnosis. ";
    let expected = format!("*|*|Clinical context: lump\n\n{patches}{described}{FORM}");
    check(&report("lump"), &slide(2), expected.clone());
    // Told from patches only since the third version.
    check(&report("lump"), &Images::of("SM", 2), expected);
    let expected = format!("{slices}|*|SLICE 1|*|SLICE 2|*|SLICE 3|why?");
    check(&answer("why?"), &volume("MR", 3), expected);
    check(&answer("why?"), &slide(1), format!("*|{patches}why?"));
    let expected = format!("*|Is there pleural effusion in this image? {YES_OR_NO}");
    check(&classify(), &pictures(1), expected);
    let expected = format!("*|*|Is there pleural effusion in these images? {YES_OR_NO}");
    check(&classify(), &pictures(2), expected);
    check(&localise(), &pictures(1), format!("*|{LOCALISE}"));
}

/// The demo model was trained on the second version's words for radiographs, and MedGemma on some of them.
#[test]
fn of_radiographs_every_word_is_as_it_was() {
    let second = Prompts::of("prompts-2").expect("it is there");
    let mut questions = all().to_vec();
    questions.extend([report(""), compare()]);
    for question in &questions {
        let radiographs = [
            Images::of("CR", 1),
            Images::of("DX", 1),
            Images::of("DX", 2),
            mixed(&["DX", "CR"]),
            Images::of("DX", 0),
        ];
        for images in radiographs {
            for think in [false, true] {
                let asked = Prompts::current().ask(question, &images, think);
                let before = second.ask(question, &images, think);
                let [asked, before] = [asked, before].map(|asked| asked.expect("words"));
                assert_eq!(asked, before, "{question:?} {images:?}");
            }
        }
    }
}

#[test]
fn reports_are_of_what_the_images_are() {
    let check = |images: &Images, (system, expected): (&str, &str)| {
        let expected = format!("{expected}{FORM}");
        check_system("prompts-3", &report(""), images, (system, &expected));
    };
    let assistant = "You are a helpful medical assistant.";
    let (pathologist, ophthalmologist) = (
        "You are an expert pathologist.",
        "You are an expert ophthalmologist.",
    );
    for (modality, system, image) in [
        ("DX", RADIOLOGIST, "X-ray"),
        ("CR", RADIOLOGIST, "X-ray"),
        ("MG", RADIOLOGIST, "mammogram"),
        ("CT", RADIOLOGIST, "single CT slice"),
        ("MR", RADIOLOGIST, "single MR slice"),
        ("US", RADIOLOGIST, "ultrasound image"),
        ("SM", pathologist, "pathology image"),
        ("GM", pathologist, "microscopic image"),
        ("DM", pathologist, "microscopic image"),
        ("OP", ophthalmologist, "ophthalmic photograph"),
        ("OPT", ophthalmologist, "ophthalmic tomography image"),
        (
            "DMS",
            "You are an expert dermatologist.",
            "dermoscopic image",
        ),
        ("XC", assistant, "clinical photograph"),
        ("ES", assistant, "endoscopic image"),
        ("", assistant, "medical image"),
        ("ZZ", assistant, "medical image"),
    ] {
        let expected = format!("*|Describe this {image}. ");
        check(&Images::of(modality, 1), (system, &expected));
    }
    for (modality, system, images) in [
        ("DX", RADIOLOGIST, "X-rays of one study"),
        ("MG", RADIOLOGIST, "mammograms of one study"),
        ("CT", RADIOLOGIST, "CT slices"),
        ("XC", assistant, "clinical photographs"),
        ("", assistant, "medical images"),
    ] {
        let expected = format!("*|*|Describe these {images}. ");
        check(&Images::of(modality, 2), (system, &expected));
    }
    for modality in ["CT", "MR"] {
        let expected = format!(
            "These are the slices of one {modality} series, in order, each followed by its number.|*|SLICE 1|*|SLICE 2|Describe this {modality} volume. "
        );
        check(&volume(modality, 2), (RADIOLOGIST, &expected));
    }
    let expected = "*|*|These are patches of one pathology slide. Describe the tissue and give a short diagnosis. ";
    check(&slide(2), (pathologist, expected));
    // Of several kinds it is said which is which; whose they are for where all of them have one reader.
    let expected = "*|*|Describe these images, which are in this order: an X-ray, a CT slice. ";
    check(&mixed(&["DX", "CT"]), (RADIOLOGIST, expected));
    let expected =
        "*|*|Describe these images, which are in this order: an X-ray, a medical image. ";
    check(&mixed(&["CR", ""]), (assistant, expected));
}

#[test]
fn questions_say_what_the_images_are() {
    let check = |question: &Question, images: &Images, expected: String| {
        check("prompts-3", question, images, &expected);
    };
    let ct = |count| Images::of("CT", count);
    let slices = |modality: &str| {
        format!(
            "These are the slices of one {modality} series, in order, each followed by its number.|*|SLICE 1|*|SLICE 2|"
        )
    };
    let slice = "This is a single CT slice. ";
    check(&answer("{shown}?"), &ct(1), format!("*|{slice}{{shown}}?"));
    check(&answer("why?"), &ct(0), "why?".to_owned());
    let expected = format!("{}why?", slices("CT"));
    check(&answer("why?"), &volume("CT", 2), expected);
    let expected = "*|*|The images are in this order: an X-ray, an MR slice. why?".to_owned();
    check(&answer("why?"), &mixed(&["DX", "MR"]), expected);
    let asked = format!("Is there pleural effusion in this image? {YES_OR_NO}");
    check(&classify(), &ct(1), format!("*|{slice}{asked}"));
    let asked = format!("Is there pleural effusion in these images? {YES_OR_NO}");
    let expected = format!("*|*|These are mammograms. {asked}");
    check(&classify(), &Images::of("MG", 2), expected);
    let asked = format!("Is there pleural effusion in this MR volume? {YES_OR_NO}");
    let expected = format!("{}{asked}", slices("MR"));
    check(&classify(), &volume("MR", 2), expected);
    check(&localise(), &ct(1), format!("*|{slice}{LOCALISE}"));
    // The two of a comparison are of two studies, whatever they are: never slices of one series.
    let expected = format!("*|*|These are CT slices. {COMPARE}");
    check(&compare(), &ct(2), expected.clone());
    check(&compare(), &volume("CT", 2), expected);
    let expected = format!("*|*|The images are in this order: an X-ray, a CT slice. {COMPARE}");
    check(&compare(), &mixed(&["DX", "CT"]), expected);
    let unsaid = |question: &Question, images: &Images, expected: &str| {
        let assistant = "You are a helpful medical assistant.";
        check_system("prompts-3", question, images, (assistant, expected));
    };
    unsaid(&answer("why?"), &pictures(2), "*|*|why?");
    unsaid(&compare(), &pictures(2), &format!("*|*|{COMPARE}"));
    let expected = "*|*|These are patches of one pathology slide. why?";
    let pathologist = "You are an expert pathologist.";
    check_system(
        "prompts-3",
        &answer("why?"),
        &slide(2),
        (pathologist, expected),
    );
}

#[test]
fn labels_boxes_and_fields_have_a_form() {
    let schema = r#"{"type": "object", "title": "{label}"}"#;
    let extract = Question::Extract {
        json_schema: schema.to_owned(),
    };
    let extracted = format!(
        "Extract what is asked for from the images above. Answer with JSON of this schema only:\n{schema}"
    );
    for version in ["prompts-2", "prompts-3"] {
        check(version, &extract, &pictures(1), &format!("*|{extracted}"));
    }
    let form = |question: &Question| question.prompt(&pictures(1)).expect("words").constraint;
    assert_eq!(
        form(&classify()),
        Some(Constraint::Regex("Final Answer: (yes|no)".to_owned()))
    );
    assert_eq!(
        form(&extract),
        Some(Constraint::JsonSchema(schema.to_owned()))
    );
    assert!(matches!(form(&localise()), Some(Constraint::JsonSchema(_))));
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
