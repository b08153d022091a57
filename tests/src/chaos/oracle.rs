//! What the simulated model must answer, computed from the pixels that were sent and without any of the fleet's code: the digests
//! and the words of the prompts are written here a second time on purpose. A swapped, missing or foreign image gives another
//! text, whatever happened on the way.

use std::fmt::Write;

/// Side of the simulated model's frames in the test fleets, in pixels.
pub const SIDE: u32 = 64;
const TOKENS_PER_IMAGE: u32 = 16;
const TOKEN_WIDTH: u32 = 32;
const WORDS: usize = 16;
/// The version of the prompts whose words are stated here, unless another is asked for.
const PROMPTS: &str = "prompts-3";

/// A frame as the model takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// 1 or 3.
    pub channels: u32,
    /// Row by row.
    pub bytes: Vec<u8>,
    /// Whether the file says that it is a radiograph; of other pictures nothing says what they are.
    pub is_film: bool,
}

/// What a job asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Report(String),
    Answer(String),
}

/// The text that the fleet must give.
pub fn text(question: &Question, images: &[Pixels], seed: u64) -> String {
    text_by(PROMPTS, question, images, seed)
}

/// The text that a release must give whose prompts are of this version.
pub fn text_by(version: &str, question: &Question, images: &[Pixels], seed: u64) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("medfleet simulated text v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&prompt(version, question, images));
    for image in images {
        let tokens = tokens(image);
        hasher.update(&TOKENS_PER_IMAGE.to_le_bytes());
        hasher.update(&TOKEN_WIDTH.to_le_bytes());
        hasher.update(b"bf16");
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        hasher.update(&tokens);
    }
    let mut digest = hasher.finalize_xof();
    let mut text = String::new();
    for index in 0..WORDS {
        let mut word = [0; 4];
        digest.fill(&mut word);
        let word = u32::from_le_bytes(word);
        let stop = if index == 7 || index == 15 { "." } else { "" };
        match index {
            0 => text.push_str("Findings:"),
            8 => text.push_str("\nImpression:"),
            _ => write!(text, " {word:08x}{stop}").expect("writing to a String cannot fail"),
        }
    }
    text
}

fn tokens(image: &Pixels) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new_derive_key("medfleet simulated image tokens v1");
    hasher.update(&image.channels.to_le_bytes());
    hasher.update(&image.bytes);
    let mut bytes = vec![0; (TOKENS_PER_IMAGE * TOKEN_WIDTH * 2) as usize];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn prompt(version: &str, question: &Question, images: &[Pixels]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut push = |kind: u8, text: &str| {
        bytes.push(kind);
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    // A job has films alone or pictures alone, which were films to the versions before.
    let are_films = version != PROMPTS || images.iter().all(|image| image.is_film);
    let reader = if are_films {
        "You are an expert radiologist."
    } else {
        "You are a helpful medical assistant."
    };
    push(b's', reader);
    for _ in images {
        push(b'i', "");
    }
    let asked = match question {
        Question::Answer(question) => question.clone(),
        Question::Report(context) => {
            let context = if context.is_empty() {
                String::new()
            } else {
                format!("Clinical context: {context}\n\n")
            };
            let describe = match (are_films, images.len()) {
                (true, 1) => "Describe this X-ray. ",
                (true, _) => "Describe these X-rays of one study. ",
                (false, 1) => "Describe this medical image. ",
                (false, _) => "Describe these medical images. ",
            };
            let form = "Write a section that begins with \"Findings:\" and then a section that begins with \"Impression:\".";
            format!("{context}{describe}{form}")
        }
    };
    push(b't', &asked);
    bytes
}
