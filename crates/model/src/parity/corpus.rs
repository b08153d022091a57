//! The real Gemma 3 tokenizer, from tokenizer.json and from the vocabulary inside a GGUF file, against ids made by
//! Python's `tokenizers` and transformers' chat template (`tests/reference/make_corpus.py`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cache::fetched;
use super::fixtures::facts;
use crate::gguf::file::GgufFile;
use crate::gguf::vocabulary;
use crate::{Message, Part, Prompt, Role, Tokenizer};

/// MedGemma's embedding: 262,144 rows for text and 64 more.
const ROWS: usize = 262_208;
const TOKENS_PER_IMAGE: usize = 256;

#[derive(Deserialize)]
struct Corpus {
    special: BTreeMap<String, u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Case {
    Plain {
        text: String,
        ids: Vec<Run>,
    },
    Conversation {
        system: String,
        turns: Vec<Turn>,
        ids: Vec<Run>,
    },
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    /// Nothing stands for an image.
    parts: Vec<Option<String>>,
}

/// An id, or an id with how often it follows itself.
#[derive(Deserialize)]
#[serde(untagged)]
enum Run {
    One(u32),
    Many(u32, usize),
}

fn expand(runs: &[Run]) -> Vec<u32> {
    let one = |run: &Run| match run {
        Run::One(id) => vec![*id],
        Run::Many(id, count) => vec![*id; *count],
    };
    runs.iter().flat_map(one).collect()
}

fn corpus() -> Corpus {
    facts("gemma3_tokenizer.json")
}

fn messages(system: &str, turns: &[Turn]) -> (Vec<Message>, usize) {
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(Message {
            role: Role::System,
            parts: vec![Part::Text(system.to_owned())],
        });
    }
    let mut images = 0;
    for turn in turns {
        let part = |part: &Option<String>| match part {
            Some(text) => Part::Text(text.clone()),
            None => Part::Image,
        };
        images += turn.parts.iter().filter(|part| part.is_none()).count();
        messages.push(Message {
            role: if turn.role == "user" {
                Role::User
            } else {
                Role::Model
            },
            parts: turn.parts.iter().map(part).collect(),
        });
    }
    (messages, images)
}

#[test]
fn the_real_tokenizer_is_the_references() {
    let path = fetched("tokenizer-gemma3-3.7.2/tokenizer.json");
    let tokenizer = Tokenizer::load(path.parent().unwrap(), ROWS, true).unwrap();
    let corpus = corpus();
    assert_eq!(corpus.cases.len(), 200);
    for (name, id) in &corpus.special {
        assert_eq!(tokenizer.id(name), Some(*id), "{name}");
        assert!(tokenizer.is_control(*id), "{name}");
    }
    let mut conversations = 0;
    for (index, case) in corpus.cases.iter().enumerate() {
        match case {
            Case::Plain { text, ids } => {
                assert_eq!(
                    tokenizer.encode(text).unwrap(),
                    expand(ids),
                    "{index}: {text:?}"
                );
            }
            Case::Conversation { system, turns, ids } => {
                let (messages, images) = messages(system, turns);
                let prompt =
                    Prompt::build(&tokenizer, &messages, Some(TOKENS_PER_IMAGE), images).unwrap();
                assert_eq!(prompt.tokens(), expand(ids), "{index}");
                conversations += 1;
            }
        }
    }
    assert_eq!(conversations, 25);
}

#[test]
fn the_vocabulary_inside_a_gguf_is_the_same_tokenizer() {
    let path = fetched("gemma-3-270m-1.0.0/gemma-3-270m-q4_k_m.gguf");
    let file = GgufFile::open(&path).unwrap();
    let tokenizer = vocabulary::tokenizer(&file.metadata, 262_144, false).unwrap();
    for (index, case) in corpus().cases.iter().enumerate() {
        match case {
            Case::Plain { text, ids } => {
                let ids = expand(ids);
                assert_eq!(tokenizer.encode(text).unwrap(), ids, "{index}: {text:?}");
                // The sign for a space and a space have the same ids.
                let spaced = text.replace('\u{2581}', " ");
                assert_eq!(tokenizer.decode(&ids), spaced, "{index}");
            }
            Case::Conversation { system, turns, ids } => {
                let (messages, images) = messages(system, turns);
                if images == 0 {
                    let prompt = Prompt::build(&tokenizer, &messages, None, 0).unwrap();
                    assert_eq!(prompt.tokens(), expand(ids), "{index}");
                }
            }
        }
    }
}
