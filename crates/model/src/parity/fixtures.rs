//! Reads the committed reference outputs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;

use crate::{Dtype, Frame, ImageTokens, LoadOptions, Message, Model, Part, Parts, Prompt, Role};

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

pub(super) fn tiny() -> Model {
    Model::load(
        &tiny_dir(),
        LoadOptions {
            dtype: Dtype::F32,
            parts: Parts::All,
        },
    )
    .unwrap()
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

pub(super) struct Fixtures {
    facts: Facts,
    tensors: Vec<u8>,
}

/// One reference case, prepared with this model's own tokenizer and vision tower.
pub(super) struct Case {
    pub(super) prompt: Prompt,
    pub(super) images: Vec<ImageTokens>,
    pub(super) expected_prompt: Vec<u32>,
    pub(super) greedy: Vec<u32>,
    /// From this position on.
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) logits_first: usize,
}

impl Fixtures {
    pub(super) fn read() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let facts =
            serde_json::from_str(&std::fs::read_to_string(dir.join("tiny.json")).unwrap()).unwrap();
        Self {
            facts,
            tensors: std::fs::read(dir.join("tiny.safetensors")).unwrap(),
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
        Case {
            prompt: model.prompt(&messages, frames.len()).unwrap(),
            images: model.encode(&frames).unwrap(),
            expected_prompt: described.prompt.clone(),
            greedy: described.greedy.clone(),
            logits: self.rows(&format!("{name}.logits")),
            logits_first: described.logits_first,
        }
    }

    pub(super) fn picture(&self, index: usize) -> Frame {
        let shape = self.shape(&format!("picture_{index}"));
        Frame::new(shape[0], shape[2], self.bytes(&format!("picture_{index}"))).unwrap()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.tensors)
            .unwrap()
            .tensor(name)
            .unwrap()
            .data()
            .to_vec()
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.tensors)
            .unwrap()
            .tensor(name)
            .unwrap()
            .shape()
            .to_vec()
    }

    /// A matrix of f32.
    pub(super) fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        let width = self.shape(name)[1];
        let values: Vec<f32> = self
            .bytes(name)
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        values.chunks_exact(width).map(<[f32]>::to_vec).collect()
    }
}
