//! The scheduler over the tiny checkpoint: what it writes in a batch is what the model writes alone.

use std::path::PathBuf;

use super::*;
use crate::decode::{DecodeEngine, DecodeEvent, DecodeLimits, DecodeRequest, Done};
use crate::encode::EncodeEngine;
use crate::prompt::Question;

const KV_BYTES_MAX: u64 = 64 << 20;

fn tiny() -> Loaded {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/tiny");
    Loaded::load(&folder, Dtype::F32, Half::Both).expect("the repository ships this checkpoint")
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

fn decoding(max_tokens: u32, temperature: f32, seed: u64) -> Decoding {
    Decoding {
        max_tokens,
        temperature,
        top_k: 20,
        top_p: 0.9,
        seed,
    }
}

async fn write_text(engine: &DecodeEngine, request: DecodeRequest) -> (String, Done) {
    let mut stream = engine.decode(request).await.expect("it fits");
    let mut text = String::new();
    loop {
        match stream.next().await.expect("it decodes") {
            DecodeEvent::Text(delta) => text.push_str(&delta),
            DecodeEvent::Done(done) => return (text, done),
        }
    }
}

/// What the model writes by itself.
fn alone(loaded: &Loaded, request: &DecodeRequest) -> (String, Vec<f32>) {
    let model = &loaded.model;
    let pool = loaded.model.kv_pool(KvOptions {
        block_tokens: BLOCK_TOKENS,
        budget_bytes: 1 << 20,
    });
    let decoder = Decoder {
        loaded: loaded.clone(),
        pool: pool.expect("a small pool"),
        running: HashMap::new(),
    };
    let prompt = decoder.build(&request.prompt).expect("the prompt is good");
    let images = request.images.iter().map(|image| {
        let shape = [image.count as usize, image.width as usize];
        model::ImageTokens::from_bytes(shape, model::Dtype::F32, image.bytes.to_vec())
    });
    let images: Vec<_> = images
        .collect::<Result<_, _>>()
        .expect("the tokens are whole");
    let Decoding {
        max_tokens,
        temperature,
        top_k,
        top_p,
        seed,
    } = request.decoding;
    let sampling = Sampling {
        temperature,
        top_k: top_k as usize,
        top_p,
        seed,
    };
    let asked = model::Request {
        sampling,
        ..model::Request::greedy(model, &prompt, &images, max_tokens as usize)
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

#[tokio::test]
async fn a_batch_writes_what_the_model_writes_alone() {
    let loaded = tiny();
    let side = loaded.description().frame_side;
    let encoder = EncodeEngine::start(loaded.encoder(), 1).expect("a thread starts");
    let frames = vec![frame(side, 1), frame(side, 2)];
    let tokens = encoder.encode(frames).await.expect("it encodes").tokens;
    let limits = DecodeLimits {
        sequences_max: 4,
        queue_max: 4,
        kv_bytes_max: KV_BYTES_MAX,
    };
    let backend = loaded
        .decoder(KV_BYTES_MAX)
        .expect("the budget holds blocks");
    let engine = DecodeEngine::start(backend, limits).expect("a thread starts");

    let report = Question::Report {
        clinical_context: String::new(),
    };
    let compare = Question::Compare {
        clinical_context: "cough".to_owned(),
    };
    let answer = Question::Answer {
        question: "is the heart large?".to_owned(),
    };
    let request = |question: &Question, images: &[ImageTokens], decoding| DecodeRequest {
        prompt: question.prompt(images.len()),
        images: images.to_vec(),
        decoding,
    };
    let swapped = [tokens[1].clone(), tokens[0].clone()];
    let requests = [
        request(&report, &tokens[..1], decoding(12, 0.0, 0)),
        request(&compare, &tokens, decoding(20, 0.0, 0)),
        request(&compare, &swapped, decoding(20, 0.0, 0)),
        request(&answer, &[], decoding(7, 0.8, 5)),
    ];
    let [a, b, c, d] = &requests;
    let together = tokio::join!(
        write_text(&engine, a.clone()),
        write_text(&engine, b.clone()),
        write_text(&engine, c.clone()),
        write_text(&engine, d.clone()),
    );
    let together = [together.0, together.1, together.2, together.3];
    for ((text, done), request) in together.iter().zip(&requests) {
        let (expected, log_probabilities) = alone(&loaded, request);
        assert_eq!(text, &expected);
        assert_eq!(done.tokens.len(), log_probabilities.len());
        for (token, expected) in done.tokens.iter().zip(&log_probabilities) {
            assert!((token.log_probability - expected).abs() < 1e-4);
        }
        assert_eq!(
            done.tokens.last().map(|token| token.end as usize),
            Some(text.len())
        );
    }
    // So small a model may choose the same words, but not with the same confidence.
    assert_ne!(
        together[1].1.tokens, together[2].1.tokens,
        "swapped images are seen"
    );
}

/// The sequence of a prompt that was read, and the steps that these tokens make of it.
fn steps(tokens: &[&str], max_tokens: u32) -> Vec<Step> {
    let loaded = tiny();
    let tokenizer = loaded.model.tokenizer().expect("the text half is loaded");
    let rows = loaded.model.config().text.vocab;
    let mut running = Running {
        table: BlockTable::default(),
        cached: 0,
        last: 0,
        written: 0,
        max_tokens,
        sampling: Sampling::greedy(),
        stream: Detokenizer::default(),
    };
    let step = |token: &&str| {
        let mut logits = vec![0.0; rows];
        let id = tokenizer.id(token).expect("it is in the vocabulary");
        logits[id as usize] = 9.0;
        write(&loaded.model, &mut running, &logits).expect("it writes")
    };
    tokens.iter().map(step).collect()
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
