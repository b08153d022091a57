//! Reads the committed reference outputs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype as Stored, SafeTensors};
use serde::Deserialize;
use tempfile::TempDir;

use super::all;
use crate::{Dtype, Frame, ImageTokens, Message, Model, Part, Prompt, Role};

/// Long text with a system message, a text below the window, and one to three images in every place.
pub(super) const CASES: [&str; 5] = [
    "text",
    "short",
    "one_image",
    "two_images",
    "grey_first_last",
];

pub(super) fn tiny_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/tiny")
}

/// A copy of the tiny folder that a test may damage.
pub(super) fn tiny_copy() -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in std::fs::read_dir(tiny_dir()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

pub(super) fn tiny() -> Model {
    Model::load(&tiny_dir(), all(Dtype::F32)).unwrap()
}

pub(super) fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// What a fixtures' JSON file says.
pub(super) fn facts<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(dir().join(file)).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Described {
    system: String,
    content: String,
    images: Vec<usize>,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    logits_first: usize,
}

#[derive(Deserialize)]
struct Facts {
    cases: BTreeMap<String, Described>,
}

/// Stored tensors.
pub(super) struct Tensors(Vec<u8>);

pub(super) struct Fixtures {
    facts: Facts,
    tensors: Tensors,
}

/// One reference case, prepared with this model's own tokenizer and vision tower.
pub(super) struct Case {
    pub(super) prompt: Prompt,
    pub(super) images: Vec<ImageTokens>,
    pub(super) expected_prompt: Vec<u32>,
    pub(super) greedy: Vec<u32>,
    /// The reference's, at `positions` of prompt and answer.
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) positions: Vec<usize>,
}

impl Fixtures {
    pub(super) fn read() -> Self {
        Self {
            facts: facts("tiny.json"),
            tensors: Tensors::read("tiny.safetensors"),
        }
    }

    pub(super) fn case(&self, model: &Model, name: &str) -> Case {
        let described = &self.facts.cases[name];
        let mut messages = Vec::new();
        if !described.system.is_empty() {
            messages.push(Message {
                role: Role::System,
                parts: vec![Part::Text(described.system.clone())],
            });
        }
        let mut parts = Vec::new();
        for (index, text) in described.content.split("<start_of_image>").enumerate() {
            if index > 0 {
                parts.push(Part::Image);
            }
            parts.push(Part::Text(text.to_owned()));
        }
        messages.push(Message {
            role: Role::User,
            parts,
        });
        let frames: Vec<Frame> = described
            .images
            .iter()
            .map(|index| self.picture(*index))
            .collect();
        let logits = self.rows(&format!("{name}.logits"));
        let first = described.logits_first;
        Case {
            prompt: model.prompt(&messages, frames.len()).unwrap(),
            images: model.encode(&frames).unwrap(),
            expected_prompt: described.prompt.clone(),
            greedy: described.greedy.clone(),
            positions: (first..first + logits.len()).collect(),
            logits,
        }
    }

    pub(super) fn picture(&self, index: usize) -> Frame {
        self.tensors.picture(&format!("picture_{index}"))
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors.bytes(name)
    }

    /// A matrix of f32.
    pub(super) fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.tensors.rows(name)
    }
}

impl Tensors {
    pub(super) fn read(file: &str) -> Self {
        Self(std::fs::read(dir().join(file)).unwrap())
    }

    fn get<T>(&self, name: &str, take: impl Fn(safetensors::tensor::TensorView) -> T) -> T {
        take(
            SafeTensors::deserialize(&self.0)
                .unwrap()
                .tensor(name)
                .unwrap(),
        )
    }

    pub(super) fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0)
            .unwrap()
            .tensor(name)
            .is_ok()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        self.get(name, |view| view.data().to_vec())
    }

    pub(super) fn picture(&self, name: &str) -> Frame {
        let shape = self.get(name, |view| view.shape().to_vec());
        Frame::new(shape[0], shape[2], self.bytes(name)).unwrap()
    }

    /// A matrix of f32, or of bf16 widened.
    pub(super) fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        let width = self.get(name, |view| view.shape()[1]);
        let values = self.values(name);
        values.chunks_exact(width).map(<[f32]>::to_vec).collect()
    }

    /// Numbers of f32, or of bf16 widened, in order.
    pub(super) fn values(&self, name: &str) -> Vec<f32> {
        self.get(name, |view| match view.dtype() {
            Stored::BF16 => view
                .data()
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            Stored::F32 => words(view.data()).map(f32::from_bits).collect(),
            other => panic!("{name} is {other:?}"),
        })
    }

    /// Token ids.
    pub(super) fn ids(&self, name: &str) -> Vec<u32> {
        self.get(name, |view| {
            assert_eq!(view.dtype(), Stored::I32, "{name}");
            words(view.data()).collect()
        })
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
