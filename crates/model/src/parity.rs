//! The model against Hugging Face transformers, on the tiny checkpoint in `deploy/tiny`: the reference outputs in
//! `tests/fixtures` were made by `tests/reference/make_tiny.py`, which says with which versions.
//! Each comparison is also shown to notice the mistakes it is there for.

/// One test per checkpoint of the matrix, for a check in the module around.
macro_rules! over_the_matrix {
    ($check:ident) => {
        over_the_matrix!($check: text_only window_1024 window_8_kv_1 window_8_kv_2 window_8_kv_4);
    };
    ($check:ident: $($checkpoint:ident)*) => {
        $(#[test]
        fn $checkpoint() {
            super::$check(stringify!($checkpoint));
        })*
    };
}

mod cache;
mod corpus;
mod demo;
mod fixtures;
mod folders;
mod gguf;
mod half;
mod images;
mod kept;
mod kernels;
mod matrix;
mod medsiglip;
mod prefix;
mod proposals;
mod real;
mod recipe;
mod requests;
mod schedules;

use crate::frame::Frame;
use crate::generate::{Continue, Finish, Request};
use crate::text::Mutations;
use crate::{ComputeDevice, Dtype, LoadOptions, Parts};
use fixtures::{CASES, Case, Fixtures, tiny};

/// Where the comparisons compute: the CPU, or what the variable says, such as `cuda` on a machine that has one.
#[expect(
    clippy::disallowed_methods,
    reason = "who runs the tests on a GPU says so to the test program, which takes no flags of ours"
)]
fn device() -> ComputeDevice {
    let device = std::env::var("MEDFLEET_TEST_DEVICE");
    device.map_or(ComputeDevice::Cpu, |device| device.parse().unwrap())
}

/// A whole model in this dtype.
fn all(dtype: Dtype) -> LoadOptions {
    on(device(), dtype)
}

/// A whole model on this device in this dtype.
fn on(device: ComputeDevice, dtype: Dtype) -> LoadOptions {
    LoadOptions {
        dtype,
        parts: Parts::All,
        device,
    }
}

/// Largest absolute difference allowed, over all logits.
const TOLERANCE: f32 = 1e-4;

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    largest(pairs.map(|(a, b)| (a - b).abs()))
}

/// Of these values; what is no number is above all of them, while `f32::max` leaves it out.
fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values
        .map(|value| if value.is_nan() { f32::INFINITY } else { value })
        .fold(f32::NEG_INFINITY, f32::max)
}

/// Of what is no number the least there is, which `f64::min` would leave out.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if cosine.is_nan() { -1.0 } else { cosine }
}

/// The token with the largest of these logits, of equal ones the first.
fn best(row: &[f32]) -> u32 {
    let better = |found: usize, id: usize| if row[id] > row[found] { id } else { found };
    (0..row.len()).fold(0, better) as u32
}

/// The distance of this model's logits from the reference over a case's prompt and the reference's own answer.
fn distance(fixtures: &Fixtures, name: &str, mutations: Mutations, reverse_images: bool) -> f32 {
    let mut model = tiny();
    let mut case = fixtures.case(&model, name);
    model.mutate(mutations);
    if reverse_images {
        case.images.reverse();
    }
    difference(&case.selected(&case.all_logits(&model)), &case.logits)
}

#[test]
fn prompts_are_the_references() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    for name in CASES {
        let case = fixtures.case(&model, name);
        assert_eq!(case.prompt.tokens(), case.expected_prompt, "{name}");
    }
}

#[test]
fn logits_are_the_references() {
    let fixtures = Fixtures::read();
    for name in CASES {
        let found = distance(&fixtures, name, Mutations::default(), false);
        assert!(found <= TOLERANCE, "{name}: {found}");
        println_figure(name, found);
    }
}

#[test]
fn greedy_tokens_are_the_references() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    for name in CASES {
        let case = fixtures.case(&model, name);
        let mut request = Request::greedy(&model, &case.prompt, &case.images, case.greedy.len());
        request.stop_tokens = &[];
        request.collect_logits = true;
        let answer = model.generate(&request, &mut |_| Continue::Yes).unwrap();
        assert!(case.greedy.len() >= 32);
        assert_eq!(
            answer.choices.iter().map(|c| c.token).collect::<Vec<_>>(),
            case.greedy,
            "{name}"
        );
        assert_eq!(answer.finish, Finish::Length);
        let last = case.logits.len() - answer.logits.len();
        assert!(
            difference(&answer.logits, &case.logits[last..]) <= TOLERANCE,
            "{name}"
        );
    }
}

/// A kernel that makes no numbers is not at distance zero.
#[test]
fn what_is_no_number_is_the_largest_difference() {
    let check = |a: f32, b: f32, expected: f32| {
        assert_eq!(difference(&[vec![0.5, a]], &[vec![0.5, b]]), expected);
    };
    check(1.0, 1.0, 0.0);
    check(1.0, 1.25, 0.25);
    check(f32::NAN, 1.25, f32::INFINITY);
    check(1.0, f32::NAN, f32::INFINITY);
    check(f32::NAN, f32::NAN, f32::INFINITY);
    assert_eq!(cosine(&[1.0, f32::NAN], &[1.0, 1.0]), -1.0);
}

/// A fault that the case must show.
type Fault = (&'static str, &'static str, fn(&mut Mutations));

const FAULTS: [Fault; 8] = [
    ("no image mask", "one_image", |m| m.no_image_mask = true),
    ("no image mask", "two_images", |m| m.no_image_mask = true),
    ("window + 1", "text", |m| m.window_delta = 1),
    ("window - 1", "text", |m| m.window_delta = -1),
    ("no rope factor", "text", |m| m.no_rope_factor = true),
    ("head_dim scale", "text", |m| m.head_dim_scale = true),
    ("SiLU", "text", |m| m.silu = true),
    ("images scaled", "one_image", |m| m.scaled_images = true),
];

#[test]
fn the_comparison_bites() {
    let fixtures = Fixtures::read();
    let check = |what: &str, found: f32| {
        assert!(found >= 100.0 * TOLERANCE, "{what}: {found}");
        println_figure(what, found);
    };
    for (what, name, fault) in FAULTS {
        let mut mutations = Mutations::default();
        fault(&mut mutations);
        check(what, distance(&fixtures, name, mutations, false));
    }
    check(
        "images swapped",
        distance(&fixtures, "two_images", Mutations::default(), true),
    );
}

/// Figures for whoever runs with --nocapture.
#[allow(clippy::print_stdout)]
fn println_figure(what: &str, found: impl std::fmt::LowerExp) {
    println!("{what}: largest difference {found:.1e}");
}

#[test]
fn the_vision_tower_is_the_references() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    for index in 0..3 {
        let tokens = model.encode(&[fixtures.picture(index)]).unwrap().remove(0);
        assert_eq!(Some(tokens.shape()), model.image_shape());
        let pooled = tokens
            .to_tensor(&candle_core::Device::Cpu)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let found = difference(&pooled, &fixtures.rows(&format!("pooled_{index}")));
        assert!(found <= 1e-5, "pooled {index}: {found}");
        let projected = model.project(&tokens).to_vec2::<f32>().unwrap();
        let found = difference(&projected, &fixtures.rows(&format!("projected_{index}")));
        assert!(found <= 1e-4, "projected {index}: {found}");
    }
}

#[test]
fn resizing_is_pillows() {
    let fixtures = Fixtures::read();
    for size in [100, 331] {
        let source = fixtures.bytes(&format!("resize_{size}.in"));
        let expected = fixtures.bytes(&format!("resize_{size}.out"));
        let grey = Frame::new(size, 1, source.clone())
            .unwrap()
            .resized(224)
            .unwrap();
        assert_eq!(grey.pixels(), expected, "{size}");
        let colour: Vec<u8> = source.iter().flat_map(|x| [*x; 3]).collect();
        let colour = Frame::new(size, 3, colour).unwrap().resized(224).unwrap();
        let green: Vec<u8> = colour.pixels().iter().skip(1).step_by(3).copied().collect();
        assert_eq!(green, expected, "{size}");
    }
}

impl Case {
    /// The prompt and the reference's answer up to here.
    fn tokens(&self, answered: usize) -> Vec<u32> {
        [self.prompt.tokens(), &self.greedy[..answered]].concat()
    }

    /// Logits of every position of the prompt and the reference's answer, in one chunk.
    fn all_logits(&self, model: &crate::Model) -> Vec<Vec<f32>> {
        schedules::whole(model, &self.tokens(self.greedy.len()), self)
    }

    /// The rows at the reference's positions.
    fn selected(&self, rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
        self.positions.iter().map(|at| rows[*at].clone()).collect()
    }
}
