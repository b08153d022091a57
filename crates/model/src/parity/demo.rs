//! The demo model, which was trained and can read pictures, against what transformers wrote with the same weights: reports,
//! answers, boxes and comparisons about phantoms that it never saw. `tests/reference/train_demo.py` made both.

use std::path::Path;

use serde::Deserialize;

use super::all;
use super::fixtures::facts;
use crate::generate::{Continue, Request};
use crate::{Dtype, Frame, Model, Prompt};

/// Width and height of a picture in `demo.u8`.
const SIDE: usize = 224;
/// Below this lead of the reference's token over the next, either may be written.
const LEAD_MIN: f32 = 1e-3;

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
    /// With the token that ends it.
    greedy: Vec<u32>,
    /// The smallest lead of a token of `greedy` over the next best.
    lead: f32,
}

fn pictures(count: usize) -> Vec<Frame> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/demo.u8");
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), count * SIDE * SIDE);
    let frames = bytes.chunks_exact(SIDE * SIDE);
    frames
        .map(|pixels| Frame::new(SIDE, 1, pixels.to_vec()).unwrap())
        .collect()
}

#[test]
fn what_it_writes_is_the_references() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo/phantom-demo");
    let model = Model::load(&dir, all(Dtype::F32)).unwrap();
    let facts: Facts = facts("demo.json");
    let encoded = model.encode(&pictures(facts.pictures)).unwrap();
    let [tokens_per_image, _] = model.image_shape().unwrap();
    let soft = model.tokenizer().unwrap().special().image.unwrap().soft;
    let mut clear = 0;
    for case in &facts.cases {
        let first = |at: &usize| case.prompt[*at] == soft && case.prompt[at - 1] != soft;
        let starts: Vec<usize> = (1..case.prompt.len()).filter(first).collect();
        let prompt = Prompt::from_tokens(case.prompt.clone(), starts, tokens_per_image);
        let images: Vec<_> = case.images.iter().map(|at| encoded[*at].clone()).collect();
        let mut request = Request::greedy(&model, &prompt, &images, case.greedy.len());
        request.stop_tokens = &[];
        let answer = model.generate(&request, &mut |_| Continue::Yes).unwrap();
        let written: Vec<u32> = answer.choices.iter().map(|choice| choice.token).collect();
        if case.lead >= LEAD_MIN {
            clear += 1;
            assert_eq!(written, case.greedy, "{}", case.task);
        }
    }
    assert!(clear >= 80, "{clear} cases with a clear lead");
}
