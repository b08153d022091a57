//! The model against Hugging Face transformers over the matrix of uncomfortable checkpoints: `tests/reference` says what
//! they are and made the outputs, `recipe` makes the weights. f32 here, bf16 in `half`, scheduling in `schedules`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;
use tempfile::TempDir;

use super::fixtures::{Case, Tensors, facts};
use super::recipe::{Recipe, checksum};
use super::{TOLERANCE, all, difference, largest, println_figure};
use crate::generate::{Continue, Request};
use crate::text::Mutations;
use crate::{Dtype, GenerateError, LoadOptions, Model, Prompt};

#[derive(Deserialize)]
struct Described {
    made_with: BTreeMap<String, String>,
    #[serde(flatten)]
    recipe: Recipe,
    cases: BTreeMap<String, DescribedCase>,
}

#[derive(Deserialize)]
struct DescribedCase {
    prompt: Vec<u32>,
    /// First soft token of each image.
    images: Vec<usize>,
    pictures: Vec<usize>,
    greedy: Vec<u32>,
    positions: Vec<usize>,
}

struct Checkpoint {
    described: Described,
    tensors: Tensors,
}

/// The checkpoints, each read once for all tests.
pub(super) struct Matrix([OnceLock<Checkpoint>; CHECKPOINTS.len()]);

/// All checkpoints, in a fixed order.
pub(super) const CHECKPOINTS: [&str; 5] = [
    "text_only",
    "window_1024",
    "window_8_kv_1",
    "window_8_kv_2",
    "window_8_kv_4",
];

pub(super) fn matrix() -> &'static Matrix {
    static MATRIX: Matrix = Matrix([const { OnceLock::new() }; CHECKPOINTS.len()]);
    &MATRIX
}

impl Matrix {
    fn get(&self, checkpoint: &str) -> &Checkpoint {
        let at = CHECKPOINTS.iter().position(|name| *name == checkpoint);
        self.0[at.unwrap()].get_or_init(|| Checkpoint {
            described: facts(&format!("matrix/{checkpoint}.json")),
            tensors: Tensors::read(&format!("matrix/{checkpoint}.safetensors")),
        })
    }

    pub(super) fn recipe(&self, checkpoint: &str) -> &Recipe {
        &self.get(checkpoint).described.recipe
    }

    pub(super) fn tensors(&self, checkpoint: &str) -> &Tensors {
        &self.get(checkpoint).tensors
    }

    pub(super) fn case_names(&self, checkpoint: &str) -> Vec<&str> {
        let cases = self.get(checkpoint).described.cases.keys();
        cases.map(String::as_str).collect()
    }

    pub(super) fn model(&self, checkpoint: &str, dtype: Dtype) -> Model {
        self.load(checkpoint, all(dtype))
    }

    pub(super) fn load(&self, checkpoint: &str, options: LoadOptions) -> Model {
        let dir = TempDir::new().unwrap();
        self.recipe(checkpoint).write(dir.path());
        Model::load(dir.path(), options).unwrap()
    }

    /// One case; `kind` is "" or "bf16." for the logits of the reference in that dtype.
    pub(super) fn case(&self, model: &Model, checkpoint: &str, name: &str, kind: &str) -> Case {
        let tensors = self.tensors(checkpoint);
        let described = &self.get(checkpoint).described.cases[name];
        let frames: Vec<_> = described
            .pictures
            .iter()
            .map(|i| tensors.picture(&format!("picture_{i}")))
            .collect();
        let tokens_per_image = model.image_shape().map_or(0, |[tokens, _]| tokens);
        let images = if frames.is_empty() {
            Vec::new()
        } else {
            model.encode(&frames).unwrap()
        };
        Case {
            prompt: Prompt::from_tokens(
                described.prompt.clone(),
                described.images.clone(),
                tokens_per_image,
            ),
            images,
            expected_prompt: described.prompt.clone(),
            greedy: described.greedy.clone(),
            logits: tensors.rows(&format!("{name}.{kind}logits")),
            positions: described.positions.clone(),
        }
    }
}

#[test]
fn the_matrix_is_what_its_name_says() {
    let mut heads = Vec::new();
    for checkpoint in CHECKPOINTS {
        let config = matrix().model(checkpoint, Dtype::F32).config().clone();
        let text = &config.text;
        assert_ne!(text.heads * text.head_dim, text.hidden, "{checkpoint}");
        assert!((text.query_scalar - text.head_dim as f64).abs() > 1.0);
        assert_ne!(text.layers.len() % 6, 0, "{checkpoint}");
        heads.push((text.kv_heads, text.window));
        for name in matrix().case_names(checkpoint) {
            let described = &matrix().get(checkpoint).described.cases[name];
            assert_eq!(described.greedy.len(), 64, "{checkpoint} {name}");
            assert_eq!(described.images.len(), described.pictures.len());
        }
    }
    assert_eq!(heads, [(1, 8), (2, 1024), (1, 8), (2, 8), (4, 8)]);
}

#[test]
fn the_page_names_the_versions_that_made_the_outputs() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/model.md");
    let page = std::fs::read_to_string(page).unwrap();
    for checkpoint in CHECKPOINTS {
        for (package, version) in &matrix().get(checkpoint).described.made_with {
            let version = version.split('+').next().unwrap();
            assert!(page.contains(&format!("{package} {version}")), "{package}");
        }
    }
}

#[test]
fn weights_are_the_references() {
    for checkpoint in CHECKPOINTS {
        let recipe = matrix().recipe(checkpoint);
        assert_eq!(checksum(&recipe.make()), recipe.checksum, "{checkpoint}");
    }
}

/// The largest distance over the selected rows, and over the best logit of each of the last positions.
fn distance(model: &Model, checkpoint: &str, name: &str, case: &Case) -> f32 {
    let rows = case.all_logits(model);
    let best = matrix().tensors(checkpoint).values(&format!("{name}.best"));
    let last = rows[rows.len() - best.len()..].iter();
    let of_best = last
        .zip(&best)
        .map(|(row, best)| (largest(row.iter().copied()) - best).abs());
    difference(&case.selected(&rows), &case.logits).max(largest(of_best))
}

/// Logits, and the answer through paged keys and values.
fn check_reference(checkpoint: &str) {
    let model = matrix().model(checkpoint, Dtype::F32);
    for name in matrix().case_names(checkpoint) {
        let case = matrix().case(&model, checkpoint, name, "");
        let found = distance(&model, checkpoint, name, &case);
        println_figure(&format!("{checkpoint} {name}"), found);
        assert!(found <= TOLERANCE, "{checkpoint} {name}: {found}");
        let mut request = Request::greedy(&model, &case.prompt, &case.images, case.greedy.len());
        request.stop_tokens = &[];
        let mut tokens = Vec::new();
        let answer = model.generate(&request, &mut |delta| {
            tokens.extend(delta.map(|delta| delta.choice.token));
            Continue::Yes
        });
        // Random weights may well open a block of thinking; what counts is the tokens.
        assert!(matches!(
            answer,
            Ok(_) | Err(GenerateError::StillThinking(_))
        ));
        assert_eq!(tokens, case.greedy, "{checkpoint} {name}");
    }
}

mod reference {
    over_the_matrix!(check_reference);
}

/// A mistake, and whether a case on a checkpoint is there to show it.
type Fault = (&'static str, fn(&mut Mutations), fn(&Model, &Case) -> bool);

const FAULTS: [Fault; 8] = [
    ("window + 1", |m| m.window_delta = 1, |_, _| true),
    ("window - 1", |m| m.window_delta = -1, |_, _| true),
    (
        "no rope factor",
        |m| m.no_rope_factor = true,
        |model, _| model.config().text.rope_global_factor > 1.0,
    ),
    ("no image mask", |m| m.no_image_mask = true, has_images),
    ("head_dim scale", |m| m.head_dim_scale = true, |_, _| true),
    ("SiLU", |m| m.silu = true, |_, _| true),
    ("images scaled", |m| m.scaled_images = true, has_images),
    // bf16 has every integer up to 256.
    (
        "bf16 positions",
        |m| m.bf16_positions = true,
        |_, case| case.prompt.tokens().len() > 258,
    ),
];

fn has_images(_: &Model, case: &Case) -> bool {
    !case.images.is_empty()
}

fn check_faults(checkpoint: &str) {
    let mut model = matrix().model(checkpoint, Dtype::F32);
    let check = |what: &str, name: &str, found: f32| {
        assert!(
            found >= 100.0 * TOLERANCE,
            "{what}, {checkpoint} {name}: {found}"
        );
    };
    for name in matrix().case_names(checkpoint) {
        let mut case = matrix().case(&model, checkpoint, name, "");
        for (what, apply, shows) in FAULTS {
            if !shows(&model, &case) {
                continue;
            }
            let mut mutations = Mutations::default();
            apply(&mut mutations);
            model.mutate(mutations);
            let found = distance(&model, checkpoint, name, &case);
            check(what, name, found);
            println_figure(&format!("{what} on {checkpoint} {name}"), found);
        }
        model.mutate(Mutations::default());
        if case.images.len() > 1 {
            case.images.reverse();
            check(
                "images swapped",
                name,
                distance(&model, checkpoint, name, &case),
            );
        }
    }
}

mod mistakes_show {
    over_the_matrix!(check_faults);
}
