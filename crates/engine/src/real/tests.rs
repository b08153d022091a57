//! The scheduler over the tiny checkpoint: what it writes in a batch is what the model writes alone.

use std::path::PathBuf;

use medfleet_core::Class;
use medfleet_model::{Constraint, Detokenizer, StillThinking, Want};

use super::decoder::Writing;
use super::*;
use crate::backend::{Decoding, Finish, Step};
use crate::decode::{DecodeEngine, DecodeLimits, DecodeRequest, Done, Haste};
use crate::encode::EncodeEngine;
use crate::encoding::Purpose;
use crate::prompt::{Images, Question};
use crate::text::choose_among;

mod draft;
mod quantised;
mod speculation;

const KV_BYTES_MAX: u64 = 64 << 20;
const LIMITS: DecodeLimits = DecodeLimits {
    sequences_max: 4,
    queue_max: 8,
    prefill_tokens_max: 24,
    prefill_measured: false,
    speculation: None,
};

const PURPOSE: Purpose = Purpose {
    class: Class::Routine,
    is_last: true,
};

fn tiny() -> Loaded {
    tiny_on(ComputeDevice::Cpu)
}

fn tiny_on(device: ComputeDevice) -> Loaded {
    load(FolderSource::new(tiny_folder()), device, Dtype::F32)
}

fn tiny_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/tiny")
}

fn load(source: FolderSource, device: ComputeDevice, dtype: Dtype) -> Loaded {
    Loaded::load(&Origin::Folder(source), device, dtype, Half::Both)
        .expect("the repository ships this checkpoint")
}

/// The folder with this value in place of one of this tensor.
fn poisoned(tensor: &str, index: usize, value: f32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(tiny_folder()).expect("it is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a file's name");
        std::fs::copy(&path, dir.path().join(name)).expect("it is copied");
    }
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("it is read");
    // The header's length, the header, the tensors.
    let length = u64::from_le_bytes(*bytes.first_chunk().expect("it has a length"));
    let header = 8 + usize::try_from(length).expect("it is small");
    let text = String::from_utf8_lossy(&bytes[8..header]).into_owned();
    let tensor = text.split_once(&format!("\"{tensor}\""));
    let place = tensor.and_then(|(_, of)| of.split_once("\"data_offsets\":["));
    let from = place.and_then(|(_, of)| of.split_once(','));
    let from = from.and_then(|(from, _)| from.parse::<usize>().ok());
    let at = header + from.expect("the header says where it is") + 4 * index;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(&path, bytes).expect("it is written");
    dir
}

#[test]
fn weights_that_are_no_numbers_are_found_when_they_are_loaded() {
    let check = |tensor, broken, named: &str, sound| {
        let dir = poisoned(tensor, 0, f32::NAN);
        let load = |half| {
            let origin = Origin::Folder(FolderSource::new(dir.path()));
            Loaded::load(&origin, ComputeDevice::Cpu, Dtype::F32, half)
        };
        let Err(EngineError::Model(reason)) = load(broken) else {
            panic!("every job would fail");
        };
        let reason = reason.to_string();
        assert!(reason.contains("no numbers"), "{reason}");
        assert!(reason.contains(named), "{reason}");
        // The other half does not have them.
        assert!(load(sound).is_ok());
    };
    let (encode, decode) = (Half::Encode, Half::Decode);
    check("language_model.model.norm.weight", decode, "", encode);
    let vision = "vision_tower.vision_model.encoder.layers.1.self_attn.k_proj.weight";
    check(vision, encode, vision, decode);
    let vision = "vision_tower.vision_model.embeddings.position_embedding.weight";
    check(vision, encode, vision, decode);
    let projector = "multi_modal_projector.mm_soft_emb_norm.weight";
    check(projector, decode, projector, encode);
}

fn frame(side: u32, seed: u32) -> Frame {
    let pixels: Vec<u8> = (0..side * side)
        .map(|i| (i.wrapping_mul(seed * 2 + 3) % 251) as u8)
        .collect();
    Frame {
        side,
        channels: 1,
        pixels: pixels.into(),
    }
}

fn answer(question: impl Into<String>) -> Question {
    Question::Answer {
        question: question.into(),
    }
}

fn decoding(max_tokens: u32, temperature: f32, seed: u64) -> Decoding {
    Decoding {
        temperature,
        top_k: 20,
        top_p: 0.9,
        seed,
        ..Decoding::greedy(max_tokens)
    }
}

async fn write_text(engine: &DecodeEngine, request: DecodeRequest) -> (String, Done) {
    let mut stream = engine.decode(request).await.expect("it fits");
    stream.collect().await.expect("it decodes")
}

/// What is written of four requests side by side.
async fn write_four(engine: &DecodeEngine, requests: &[DecodeRequest]) -> [(String, Done); 4] {
    let [a, b, c, d] = requests else {
        panic!("four requests");
    };
    let (a, b, c, d) = tokio::join!(
        write_text(engine, a.clone()),
        write_text(engine, b.clone()),
        write_text(engine, c.clone()),
        write_text(engine, d.clone()),
    );
    [a, b, c, d]
}

/// Memory for a few texts.
const SMALL: usize = 1 << 24;

fn small_pool(model: &Model) -> model::KvPool {
    let pool = model.kv_pool(KvOptions {
        block_tokens: BLOCK_TOKENS,
        budget_bytes: SMALL,
    });
    pool.expect("a small pool")
}

fn small_decoder(loaded: &Loaded) -> Decoder {
    Decoder::new(loaded.clone(), small_pool(&loaded.model), SMALL as u64)
}

/// The prompt as the model reads it.
fn built(loaded: &Loaded, request: &DecodeRequest) -> model::Prompt {
    let built = small_decoder(loaded).build(&request.prompt);
    built.expect("the prompt is good")
}

/// What the model writes by itself.
fn alone(loaded: &Loaded, request: &DecodeRequest) -> (String, Vec<f32>) {
    let model = &loaded.model;
    let prompt = built(loaded, request);
    let images = request.images.iter().map(|image| {
        let shape = [image.count as usize, image.width as usize];
        model::ImageTokens::from_bytes(shape, image.dtype, image.bytes.to_vec())
    });
    let images: Vec<_> = images
        .collect::<Result<_, _>>()
        .expect("the tokens are whole");
    let asked = model::Request {
        sampling: request.decoding.sampling(),
        ..model::Request::greedy(
            model,
            &prompt,
            &images,
            request.decoding.max_tokens as usize,
        )
    };
    let written = model
        .generate(&asked, &mut |_| model::Continue::Yes)
        .expect("it generates");
    let kept = match written.finish {
        model::Finish::Stop => written.choices.len() - 1,
        model::Finish::Length | model::Finish::Cancelled => written.choices.len(),
    };
    (
        written.text,
        written.choices[..kept]
            .iter()
            .map(|choice| choice.logprob)
            .collect(),
    )
}

fn start(loaded: &Loaded, limits: DecodeLimits, kv_bytes_max: u64) -> DecodeEngine {
    let backend = loaded
        .decoder(kv_bytes_max, limits.prefill_tokens_max)
        .expect("the budget holds blocks");
    DecodeEngine::start(backend, limits).expect("a thread starts")
}

async fn two_images(loaded: &Loaded) -> Vec<ImageTokens> {
    let side = loaded.description().frame_side;
    let encoder = EncodeEngine::start(loaded.encoder()).expect("a thread starts");
    let frames = vec![frame(side, 1), frame(side, 2)];
    let encoded = encoder.encode(frames, PURPOSE).await;
    encoded.expect("it encodes").tokens
}

fn request(question: &Question, images: &[ImageTokens], decoding: Decoding) -> DecodeRequest {
    let radiographs = Images::of("DX", images.len());
    let asked = question.prompt(&radiographs).expect("it has words");
    DecodeRequest {
        prompt: asked.prompt,
        images: images.to_vec(),
        decoding: Decoding {
            constraint: asked.constraint,
            ..decoding
        },
        scope: Digest::new([0; 32]),
        haste: Haste::STAT,
    }
}

fn check(request: &DecodeRequest, loaded: &Loaded, text: &str, done: &Done) {
    let (expected, log_probabilities) = alone(loaded, request);
    assert_eq!(text, expected);
    assert_eq!(done.tokens.len(), log_probabilities.len());
    for (token, expected) in done.tokens.iter().zip(&log_probabilities) {
        assert!((token.log_probability - expected).abs() < 1e-4);
    }
    assert_eq!(
        done.tokens.last().map(|token| token.end as usize),
        Some(text.len())
    );
}

#[tokio::test]
async fn a_batch_writes_what_the_model_writes_alone() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let engine = start(&loaded, LIMITS, KV_BYTES_MAX);
    let report = Question::Report {
        clinical_context: String::new(),
    };
    let compare = Question::Compare {
        clinical_context: "cough".to_owned(),
    };
    let swapped = [tokens[1].clone(), tokens[0].clone()];
    let requests = [
        request(&report, &tokens[..1], decoding(12, 0.0, 0)),
        request(&compare, &tokens, decoding(20, 0.0, 0)),
        request(&compare, &swapped, decoding(20, 0.0, 0)),
        request(&answer("is the heart large?"), &[], decoding(7, 0.8, 5)),
    ];
    let together = write_four(&engine, &requests).await;
    for ((text, done), request) in together.iter().zip(&requests) {
        check(request, &loaded, text, done);
    }
    // So small a model may choose the same words, but not with the same confidence.
    assert_ne!(
        together[1].1.tokens, together[2].1.tokens,
        "swapped images are seen"
    );
    // Again, over the beginnings that are remembered now.
    for ((text, done), request) in together.iter().zip(&requests) {
        let (again, done_again) = write_text(&engine, request.clone()).await;
        assert_eq!(&again, text);
        assert!(done_again.prefix_tokens > 0 && done_again.prefix_tokens < done.prompt.tokens);
        check(request, &loaded, &again, &done_again);
    }
}

/// Sampled texts of different lengths and classes, with so little memory that they give way to each other.
#[tokio::test]
async fn neighbours_and_classes_and_memory_change_no_token() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let mut preemptions = 0;
    for seed in 0..6_u64 {
        let request = |n: u64| {
            let question = answer("what is seen? ".repeat((seed + n) as usize % 3 + 1));
            let images = &tokens[..(seed + n) as usize % 3];
            let mut decoding = decoding(20 + n as u32, 0.7, seed * 10 + n);
            decoding.min_p = 0.05;
            decoding.repetition_penalty = 1.2;
            // Whoever comes later goes first.
            let haste = Haste {
                class: Class::ALL[3 - n as usize],
                ..Haste::STAT
            };
            let request = request(&question, images, decoding);
            DecodeRequest { haste, ..request }
        };
        let requests: Vec<DecodeRequest> = (0..4).map(request).collect();
        let most = requests
            .iter()
            .map(|request| blocks(&loaded, request))
            .max();
        let (most, block_bytes) = most.expect("four requests");
        let blocks = most + seed as usize % 3;
        let engine = start(&loaded, LIMITS, (block_bytes * blocks) as u64);
        let together = write_four(&engine, &requests).await;
        for ((text, done), request) in together.iter().zip(&requests) {
            check(request, &loaded, text, done);
            preemptions += done.preemptions;
        }
    }
    assert!(preemptions > 0, "memory did run out");
}

/// Several questions about one study: what they have in common, the images with it, is read once.
#[tokio::test]
async fn another_question_about_a_study_reads_the_question_alone() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    for images in [&tokens[..1], &tokens[..]] {
        let engine = start(&loaded, LIMITS, KV_BYTES_MAX);
        let mut known = 0;
        for question in [
            "is the heart large?",
            "are the ribs whole?",
            "what of the lungs?",
        ] {
            let asked = request(&answer(question), images, decoding(8, 0.0, 0));
            let (text, done) = write_text(&engine, asked.clone()).await;
            check(&asked, &loaded, &text, &done);
            let built = built(&loaded, &asked);
            let last = built.images().last().expect("it has images");
            let behind = last + loaded.description().tokens_per_image as usize;
            assert!(done.prefix_tokens as usize >= behind * known, "{question}");
            known = 1;
        }
    }
}

/// Blocks that a request may need, and the bytes of one.
fn blocks(loaded: &Loaded, request: &DecodeRequest) -> (usize, usize) {
    let mut pool = small_pool(&loaded.model);
    pool.limit_stretches(LIMITS.prefill_tokens_max as usize);
    let (layout, block_bytes) = (*pool.blocks().layout(), pool.block_bytes());
    let tokens = built(loaded, request).tokens().len() + request.decoding.max_tokens as usize;
    (layout.blocks_of(tokens), block_bytes)
}

#[tokio::test]
async fn a_form_is_kept_and_a_choice_has_shares() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let engine = start(&loaded, LIMITS, KV_BYTES_MAX);
    let classify = Question::Classify {
        label: "an effusion".to_owned(),
    };
    let asked = request(
        &classify,
        &tokens[..1],
        Decoding {
            alternatives: 20,
            ..Decoding::greedy(32)
        },
    );
    let (text, done) = write_text(&engine, asked).await;
    let options = ["yes", "no"];
    let lead = "Final Answer: ";
    let answer = text.strip_prefix(lead).expect("the form is kept");
    let chosen = options.iter().position(|option| *option == answer);
    let shares = choose_among(lead, &options, &text, &done.tokens, &done.alternatives);
    let shares = shares.expect("a token decided");
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(shares.iter().all(|share| *share > 0.0), "{shares:?}");
    assert!(chosen.is_some(), "{text}");

    let schema = r#"{"type": "object", "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9},
        "seen": {"enum": ["heart", "lung"]}}, "required": ["count", "seen"], "additionalProperties": false}"#;
    let extract = Question::Extract {
        json_schema: schema.to_owned(),
    };
    let asked = request(&extract, &tokens[..1], Decoding::greedy(80));
    let (text, done) = write_text(&engine, asked).await;
    assert_eq!(done.finish, Finish::Stop);
    assert!(
        text.starts_with("{\"count\": ") && text.ends_with('}'),
        "{text}"
    );
}

/// The sequence of a prompt that was read, and the steps that these tokens make of it.
fn steps(tokens: &[&str], max_tokens: u32) -> Vec<Step> {
    let loaded = tiny();
    let tokenizer = loaded.model.tokenizer().expect("the text half is loaded");
    let rows = loaded.model.config().text.vocab;
    let mut writing = Writing {
        written: 0,
        decoding: Decoding::greedy(max_tokens),
        stream: Detokenizer::default(),
        guide: None,
    };
    let step = |token: &&str| {
        let mut logits = vec![0.0; rows];
        let id = tokenizer.id(token).expect("it is in the vocabulary");
        logits[id as usize] = 9.0;
        let (step, _) = writing.write(&loaded, &logits, &[]).expect("it writes");
        step
    };
    tokens.iter().map(step).collect()
}

/// A device that finds the likeliest token by itself gives nothing else.
#[test]
fn only_a_plain_greedy_text_does_without_logits() {
    let loaded = tiny();
    let tokenizer = loaded.model.tokenizer().expect("the text half is loaded");
    let rows = loaded.model.config().text.vocab;
    let guides = tokenizer.guides(rows, tokenizer.special().end_of_turn);
    let guides = guides.expect("the vocabulary is whole");
    let digits = Constraint::Regex("[0-9]+".to_owned());
    let guide = guides.guide(&digits).expect("it is a regular expression");
    let want = |decoding, guide| {
        let writing = Writing {
            written: 0,
            decoding,
            stream: Detokenizer::default(),
            guide,
        };
        writing.want()
    };
    let greedy = || Decoding::greedy(8);
    assert_eq!(want(greedy(), None), Want::Likeliest);
    assert_eq!(want(greedy(), Some(guide)), Want::Last);
    for decoding in [
        Decoding {
            temperature: 0.5,
            ..greedy()
        },
        Decoding {
            repetition_penalty: 1.2,
            ..greedy()
        },
        Decoding {
            alternatives: 2,
            ..greedy()
        },
    ] {
        assert_eq!(want(decoding, None), Want::Last);
    }
}

#[test]
fn thinking_is_neither_text_nor_token() {
    let answer = [
        "<unused94>",
        "a",
        "<0xC3>",
        "<unused95>",
        "b",
        "<end_of_turn>",
    ];
    let written = steps(&answer, 9);
    let texts: Vec<&str> = written.iter().map(|step| step.text.as_str()).collect();
    assert_eq!(texts, ["", "", "", "", "b", ""]);
    let counted: Vec<bool> = written.iter().map(|step| step.token.is_some()).collect();
    assert_eq!(counted, [false, false, false, false, true, false]);
    let finish: Vec<_> = written.iter().map(|step| step.finish).collect();
    assert_eq!(finish[..5], [None; 5]);
    assert_eq!(finish[5], Some(Ok(Finish::Stop)));

    let check = |tokens: &[&str], max_tokens| {
        let written = steps(tokens, max_tokens);
        let last = written.last().expect("at least one");
        assert_eq!(last.finish, Some(Err(StillThinking)), "{tokens:?}");
        let texts: Vec<&str> = written.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(texts.concat(), "", "{tokens:?}");
    };
    check(&["<unused94>", "a", "b"], 3);
    check(&["<unused94>"], 1);
    check(&["<unused94>", "<0xC3>", "<end_of_turn>"], 9);
}

#[tokio::test]
async fn damage_that_loading_does_not_find_ends_an_engine_at_its_first_image() {
    // Numbers all of them, but too large.
    let damaged = |tensor, index, value| {
        let dir = poisoned(tensor, index, value);
        let source = FolderSource::new(dir.path());
        (load(source, ComputeDevice::Cpu, Dtype::F32), dir)
    };
    // It is added to every patch, and the sum of several is infinite.
    let bias = "vision_tower.vision_model.post_layernorm.bias";
    let (loaded, _dir) = damaged(bias, 0, f32::MAX);
    let picture = frame(loaded.description().frame_side, 1);
    let encoder = EncodeEngine::start(loaded.encoder()).expect("a thread starts");
    let failed = encoder.encode(vec![picture.clone()], PURPOSE).await;
    assert!(matches!(failed, Err(EngineError::Damaged)), "{failed:?}");

    // A token of every prompt, and not the first one, which is read when a model is loaded. Embeddings are eight times as large
    // as their weights here, which makes this one infinite.
    let tiny = tiny();
    let special = tiny.model.tokenizer().expect("it is loaded").special();
    let at = special.start_of_turn as usize * tiny.model.config().text.hidden + 1;
    let embeddings = "language_model.model.embed_tokens.weight";
    let (loaded, _dir) = damaged(embeddings, at, 5e37);
    let tokens = tiny.encoder().encode(&[picture]).expect("it is sound");
    let backend = loaded.decoder(KV_BYTES_MAX, LIMITS.prefill_tokens_max);
    let decoder = DecodeEngine::start(backend.expect("a block fits"), LIMITS);
    let question = answer("is there an effusion?");
    let request = request(&question, &tokens, Decoding::greedy(4));
    let stream = decoder.expect("a thread starts").decode(request).await;
    let failed = stream.expect("it fits").collect().await;
    assert!(matches!(failed, Err(EngineError::Damaged)), "{failed:?}");
}
