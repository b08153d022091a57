//! MedSigLIP against transformers' SiglipModel and SiglipTokenizer on a tiny checkpoint of its form
//! (`tests/reference/make_siglip.py`).

use std::path::Path;

use serde::Deserialize;

use super::fixtures::{self, Tensors};
use super::{cosine, device, println_figure};
use crate::{Dtype, Embedder, Frame};

/// 1 − cosine allowed.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Facts {
    texts: Vec<Described>,
    pictures: Vec<(usize, usize)>,
    row_step: usize,
}

#[derive(Deserialize)]
struct Described {
    text: String,
    ids: Vec<u32>,
}

fn facts() -> Facts {
    fixtures::facts("medsiglip.json")
}

fn tensors() -> Tensors {
    Tensors::read("medsiglip.safetensors")
}

fn embedder(dtype: Dtype) -> Embedder {
    Embedder::load(&fixtures::dir().join("tiny_medsiglip"), dtype, device()).unwrap()
}

/// The picture that the script makes by the same formula.
fn picture(side: usize, channels: usize) -> Frame {
    let mut pixels = Vec::new();
    for y in 0..side {
        for x in 0..side {
            pixels.extend((0..channels).map(|c| (((x * (3 + c)) ^ (y * 5)) + x * y / 16) as u8));
        }
    }
    Frame::new(side, channels, pixels).unwrap()
}

/// 1 − cosine.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    1.0 - cosine(a, b)
}

#[test]
fn ids_are_the_references() {
    let embedder = embedder(Dtype::F32);
    for Described { text, ids } in facts().texts {
        assert_eq!(embedder.ids(&text), ids, "{text:?}");
    }
    // Names of control tokens are text here; SiglipTokenizer would put the tokens themselves.
    assert_eq!(embedder.ids("</s> <unk> odd"), embedder.ids("s unk odd"));
}

#[test]
fn what_the_model_is_not_shown_of_a_text_is_known() {
    let embedder = embedder(Dtype::F32);
    let read = |text: &str| embedder.read(text).unwrap();
    let check = |text: &str, expected: (bool, bool, bool)| {
        let found = read(text);
        let found = (found.has_known, found.has_unknown, found.is_cut);
        assert_eq!(found, expected, "{text}");
    };
    check("a pleural effusion", (true, false, false));
    check("a 肺 effusion", (true, true, false));
    check("肺炎", (false, true, false));
    check("...", (false, false, false));
    check(&"effusion ".repeat(64), (true, false, true));
    assert!(read("Effusion.").reads_as(&read("effusion")));
    assert!(read("肺炎").reads_as(&read("骨折")));
    assert!(!read("effusion").reads_as(&read("fracture")));
}

#[test]
fn sampling_is_tensorflows_within_one() {
    let (facts, tensors) = (facts(), tensors());
    for (index, &(side, channels)) in facts.pictures.iter().enumerate() {
        if side == 448 {
            continue;
        }
        let expected = tensors.bytes(&format!("sampled_{index}"));
        let found = picture(side, channels).sampled(448).unwrap();
        let row = 448 * channels;
        assert_eq!(found.pixels().len(), 448 * row);
        let kept = found
            .pixels()
            .chunks_exact(row)
            .step_by(facts.row_step)
            .flatten();
        let off = kept.zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(1), "{side}: {off:?}");
        assert_eq!(expected.len(), 448usize.div_ceil(facts.row_step) * row);
        // The antialiased rule of the other model is another one.
        let other = picture(side, channels).resized(448).unwrap();
        let kept = other
            .pixels()
            .chunks_exact(row)
            .step_by(facts.row_step)
            .flatten();
        let off = kept.zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(side < 448 || off > Some(20), "{side}: {off:?}");
    }
}

#[test]
fn embeddings_are_the_references() {
    let (facts, embedder) = (facts(), embedder(Dtype::F32));
    let [texts, images, logits] = ["texts", "images", "logits"].map(|name| tensors().rows(name));
    let found: Vec<Vec<f32>> = facts
        .texts
        .iter()
        .map(|described| embedder.text(&described.text).unwrap())
        .collect();
    let mut worst = 0.0f64;
    for (found, expected) in found.iter().zip(&texts) {
        worst = worst.max(distance(found, expected));
    }
    println_figure("texts, 1 - cosine", worst as f32);
    assert!(worst <= TOLERANCE, "{worst}");
    let mut worst = (0.0f64, 0.0f32);
    for (index, &(side, channels)) in facts.pictures.iter().enumerate() {
        let image = embedder.image(&picture(side, channels)).unwrap();
        assert_eq!(image.len(), embedder.width());
        let length: f32 = image.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
        worst.0 = worst.0.max(distance(&image, &images[index]));
        for (text, expected) in found.iter().zip(&logits[index]) {
            worst.1 = worst.1.max((embedder.logit(&image, text) - expected).abs());
            let probability = embedder.probability(&image, text);
            let by_logit = 1.0 / (1.0 + (-f64::from(*expected)).exp());
            assert!((f64::from(probability) - by_logit).abs() < 1e-3);
        }
    }
    println_figure("images, 1 - cosine", worst.0 as f32);
    println_figure("scaled similarities", worst.1);
    assert!(worst.0 <= TOLERANCE && worst.1 <= 1e-2, "{worst:?}");
    // Other inputs have other embeddings: what is compared above could fail.
    assert!(distance(&texts[0], &texts[1]) > 1e3 * TOLERANCE);
    assert!(distance(&images[0], &images[1]) > 1e3 * TOLERANCE);
}

#[test]
fn bf16_stays_near() {
    let (facts, embedder) = (facts(), embedder(Dtype::Bf16));
    for (described, expected) in facts.texts.iter().zip(tensors().rows("texts")) {
        let found = distance(&embedder.text(&described.text).unwrap(), &expected);
        assert!(found < 2e-3, "{found}");
    }
    let (side, channels) = facts.pictures[0];
    let found = distance(
        &embedder.image(&picture(side, channels)).unwrap(),
        &tensors().rows("images")[0],
    );
    assert!(found < 2e-3, "{found}");
}

#[test]
fn a_damaged_folder_is_named() {
    let whole = fixtures::dir().join("tiny_medsiglip");
    let check = |change: &dyn Fn(&Path), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "spiece.model"] {
            std::fs::copy(whole.join(name), dir.path().join(name)).unwrap();
        }
        change(dir.path());
        let error = Embedder::load(dir.path(), Dtype::F32, device())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    };
    let edit = |dir: &Path, from: &str, to: &str| {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    };
    check(
        &|dir| edit(dir, "\"siglip\"", "\"clip\""),
        "model_type is clip",
    );
    check(
        &|dir| edit(dir, "\"projection_size\": 48", "\"projection_size\": 40"),
        "projection_size is 40",
    );
    check(
        &|dir| std::fs::remove_file(dir.join("spiece.model")).unwrap(),
        "cannot read tokenizer.json",
    );
    let poison = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(path, bytes).unwrap();
    };
    check(
        &poison,
        "vision_model.post_layernorm.weight in model.safetensors has values that are no numbers",
    );
    check(
        &|dir| std::fs::write(dir.join("spiece.model"), [0xff; 40]).unwrap(),
        "spiece.model: it does not parse",
    );
    check(
        &|dir| {
            edit(
                dir,
                "\"max_position_embeddings\": 64",
                "\"max_position_embeddings\": 65",
            )
        },
        "position_embedding.weight has shape [64, 40]",
    );
}
