//! The demo model, which was trained and can read pictures, against what transformers wrote with the same weights: reports,
//! answers, boxes and comparisons about phantoms that it never saw. `tests/reference/train_demo.py` made both.
//! And the controls: pictures that are spoiled, and faults of the model, by what they cost of the findings that reports name.

use std::path::Path;

use medfleet_score::labeler::{self, Label};
use medfleet_score::metrics::multilabel::{Cell, Counts, macro_f1};
use serde::Deserialize;

use super::all;
use super::fixtures::facts;
use crate::generate::{Continue, Generation, Request};
use crate::text::Mutations;
use crate::{Dtype, Frame, ImageTokens, Model, Prompt};

/// Width and height of a picture in `demo.u8`.
const SIDE: usize = 224;
/// Width and height of a patch: what the vision tower has a position for.
const PATCH: usize = 14;
/// Below this lead of the reference's token over the next, either may be written.
const LEAD_MIN: f32 = 1e-3;
/// Longer than any report about a phantom.
const REPORT_TOKENS_MAX: usize = 96;

#[derive(Deserialize)]
struct Facts {
    pictures: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    task: String,
    images: Vec<usize>,
    prompt: Vec<u32>,
    text: String,
    /// With the token that ends it.
    greedy: Vec<u32>,
    /// The smallest lead of a token of `greedy` over the next best.
    lead: f32,
}

struct Demo {
    model: Model,
    cases: Vec<Case>,
    pictures: Vec<Frame>,
}

impl Demo {
    fn load() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let model = root.join("../../deploy/demo/phantom-demo");
        let facts: Facts = facts("demo.json");
        let bytes = std::fs::read(root.join("tests/fixtures/demo.u8")).unwrap();
        assert_eq!(bytes.len(), facts.pictures * SIDE * SIDE);
        let pictures = bytes.chunks_exact(SIDE * SIDE);
        Self {
            model: Model::load(&model, all(Dtype::F32)).unwrap(),
            cases: facts.cases,
            pictures: pictures.map(|pixels| frame(pixels.to_vec())).collect(),
        }
    }

    /// What the model writes of a case, as long as it may be.
    fn written(&self, case: &Case, encoded: &[ImageTokens], tokens_max: usize) -> Generation {
        let [tokens_per_image, _] = self.model.image_shape().unwrap();
        let soft = self.model.tokenizer().unwrap().special();
        let soft = soft.image.unwrap().soft;
        let first = |at: &usize| case.prompt[*at] == soft && case.prompt[at - 1] != soft;
        let starts: Vec<usize> = (1..case.prompt.len()).filter(first).collect();
        let prompt = Prompt::from_tokens(case.prompt.clone(), starts, tokens_per_image);
        let images: Vec<_> = case.images.iter().map(|at| encoded[*at].clone()).collect();
        let request = Request::greedy(&self.model, &prompt, &images, tokens_max);
        let answer = self.model.generate(&request, &mut |_| Continue::Yes);
        answer.unwrap()
    }

    /// The reports about these in place of the pictures.
    fn reports(&self, pictures: &[Frame]) -> Vec<Report<'_>> {
        let encoded = self.model.encode(pictures).unwrap();
        let cases = self.cases.iter().filter(|case| case.task == "report");
        let reports = cases.map(|case| Report {
            case,
            written: self.written(case, &encoded, REPORT_TOKENS_MAX),
        });
        reports.collect()
    }
}

struct Report<'a> {
    case: &'a Case,
    written: Generation,
}

impl Report<'_> {
    fn is_the_references(&self) -> bool {
        tokens(&self.written) == self.case.greedy
    }
}

fn frame(pixels: Vec<u8>) -> Frame {
    Frame::new(SIDE, 1, pixels).unwrap()
}

fn tokens(written: &Generation) -> Vec<u32> {
    written.choices.iter().map(|choice| choice.token).collect()
}

/// Macro F1 of the findings that reports name, against those that the reference's name.
fn f1(reports: &[Report<'_>]) -> f64 {
    let read = |report: &Report<'_>| {
        let truth = labeler::read(&report.case.text);
        (truth, labeler::read(&report.written.text))
    };
    let readings: Vec<_> = reports.iter().map(read).collect();
    let is_finding = |label: &Label| label.phantom().is_some() && *label != Label::NoFinding;
    let counts = Label::all().filter(is_finding).map(|label| {
        let mut counts = Counts::default();
        for (truth, said) in &readings {
            let (truth, said) = (truth.has(label), said.has(label));
            counts.add(Cell { truth, said }, 1.0);
        }
        counts
    });
    let named: Vec<Counts> = counts.filter(|counts| counts.support() > 0.0).collect();
    assert!(named.len() >= 5, "{} findings are named", named.len());
    macro_f1(&named).unwrap()
}

#[test]
fn what_it_writes_is_the_references() {
    let demo = Demo::load();
    let encoded = demo.model.encode(&demo.pictures).unwrap();
    let mut clear = 0;
    for case in &demo.cases {
        let written = demo.written(case, &encoded, case.greedy.len());
        if case.lead >= LEAD_MIN {
            clear += 1;
            assert_eq!(tokens(&written), case.greedy, "{}", case.task);
        }
    }
    assert!(clear >= 80, "{clear} cases with a clear lead");
}

/// Each picture with, at each row and column, the pixel of another place; black where there is none.
fn rearranged(
    pictures: &[Frame],
    from: impl Fn(usize, usize) -> Option<(usize, usize)>,
) -> Vec<Frame> {
    let spoiled = pictures.iter().map(|picture| {
        let pixels = (0..SIDE * SIDE).map(|place| match from(place / SIDE, place % SIDE) {
            Some((row, column)) => picture.pixels()[row * SIDE + column],
            None => 0,
        });
        frame(pixels.collect())
    });
    spoiled.collect()
}

fn blank(pictures: &[Frame]) -> Vec<Frame> {
    vec![frame(vec![128; SIDE * SIDE]); pictures.len()]
}

/// Each job with the next one's picture.
fn anothers(pictures: &[Frame]) -> Vec<Frame> {
    let mut pictures = pictures.to_vec();
    pictures.rotate_left(1);
    pictures
}

fn upside_down(pictures: &[Frame]) -> Vec<Frame> {
    rearranged(pictures, |row, column| Some((SIDE - 1 - row, column)))
}

/// Every patch whole, in the place of another.
fn shuffled(pictures: &[Frame]) -> Vec<Frame> {
    const ACROSS: usize = SIDE / PATCH;
    rearranged(pictures, |row, column| {
        let patch = row / PATCH * ACROSS + column / PATCH;
        // Odd, and so of no common factor with 256 patches: each comes once.
        let from = (patch * 101 + 7) % (ACROSS * ACROSS);
        let (top, left) = (from / ACROSS * PATCH, from % ACROSS * PATCH);
        Some((top + row % PATCH, left + column % PATCH))
    })
}

/// As padding on the wrong side would put it.
fn aside(pictures: &[Frame], by: usize) -> Vec<Frame> {
    rearranged(pictures, |row, column| {
        Some((row.checked_sub(by)?, column.checked_sub(by)?))
    })
}

/// What is done to pictures, and a macro F1 that reports about them do not reach.
type Control = (&'static str, fn(&[Frame]) -> Vec<Frame>, f64);

const CONTROLS: [Control; 5] = [
    ("blank", blank, 0.3),
    ("another patient's", anothers, 0.5),
    ("upside down", upside_down, 0.4),
    ("patches shuffled", shuffled, 0.3),
    ("a patch aside", |pictures| aside(pictures, PATCH), 0.9),
];

#[test]
fn spoiled_pictures_cost_their_findings() {
    let demo = Demo::load();
    let right = f1(&demo.reports(&demo.pictures));
    assert!(right >= 1.0, "as they are: macro F1 {right:.2}");
    for (control, spoil, unreached) in CONTROLS {
        let spoiled = f1(&demo.reports(&spoil(&demo.pictures)));
        println!("{control}: macro F1 {spoiled:.2}");
        assert!(spoiled < unreached, "{control}: macro F1 {spoiled:.2}");
    }
}

/// What is done to pictures and to the model.
type Slight = (&'static str, fn(&[Frame]) -> Vec<Frame>, fn(&mut Mutations));

const SLIGHT: [Slight; 3] = [
    (
        "half a patch aside",
        |pictures| aside(pictures, PATCH / 2),
        |_| (),
    ),
    ("no image mask", <[Frame]>::to_vec, |fault| {
        fault.no_image_mask = true;
    }),
    ("images scaled", <[Frame]>::to_vec, |fault| {
        fault.scaled_images = true;
    }),
];

/// Faults that cost few findings or none, and so show in no figure of an evaluation: their words betray them, which are not the
/// reference's.
#[test]
fn slight_faults_change_words() {
    let mut demo = Demo::load();
    for (control, spoil, fault) in SLIGHT {
        let mut mutations = Mutations::default();
        fault(&mut mutations);
        demo.model.mutate(mutations);
        let reports = demo.reports(&spoil(&demo.pictures));
        let clear = reports.iter().filter(|of| of.case.lead >= LEAD_MIN);
        let others = clear.filter(|of| !of.is_the_references()).count();
        let figure = f1(&reports);
        println!("{control}: macro F1 {figure:.2}, {others} reports in other words");
        assert!(others > 0, "{control}: every report is as it was");
    }
}
