//! `infer --draft`: the same text by the engine's decoder, in which a second model proposes what the first one verifies.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use medfleet_core::Digest;
use medfleet_engine::{
    DecodeEngine, DecodeEvent, DecodeLimits, DecodeRequest, Decoding, Done, Haste, ImageTokens,
    LoadedModel, Prompt as Question, Speculation, Verified, real::Loaded,
};
use medfleet_model::{Choice, Finish, Frame, Generation, Message, Model, Prompt};

use super::{Args, Spans};
use crate::command::on_one_thread;
use crate::exit::Exit;

/// As a worker has it by default.
const PROPOSED_TOKENS_MAX: u32 = 15;
/// Tokens of the prompt that are read at once.
const PREFILL_TOKENS_MAX: u32 = 512;
/// Room beyond prompt and text: whole blocks, in every group of layers.
const SPARE_TOKENS: usize = 64;

/// Writes the answer greedily. The token that ends it is not among the generation's, nor is what the model thinks. Also says
/// how many tokens were proposed and how many of them were right.
pub(super) fn generate(
    (model, draft): (Model, Model),
    prompt: &Prompt,
    images: &[Frame],
    args: &Args,
) -> Result<(Generation, Spans, Verified)> {
    let begun = Instant::now();
    let images = super::encode(&model, images)?;
    let encode = begun.elapsed();
    let tokens_max = u32::try_from(args.max_tokens).context("--max-tokens is too large")?;
    let tokens = prompt.tokens().len() + args.max_tokens;
    let engine = start(model, draft, tokens)?;
    let request = DecodeRequest {
        prompt: Question {
            system: String::new(),
            parts: Message::user(images.len(), args.prompt.as_str()).parts,
        },
        images: images.into_iter().map(ImageTokens::from).collect(),
        decoding: Decoding {
            // Which token each was.
            alternatives: 1,
            ..Decoding::greedy(tokens_max)
        },
        scope: Digest::new([0; 32]),
        haste: Haste::STAT,
    };
    let (mut text, mut first_token, mut ended) = (String::new(), None, None);
    let outcome = on_one_thread(async {
        let mut events = engine.decode(request).await.context("cannot generate")?;
        while ended.is_none() {
            match events.next().await.context("cannot generate")? {
                DecodeEvent::Text(delta) => {
                    first_token.get_or_insert_with(|| begun.elapsed());
                    if !args.json {
                        super::stream(&delta).context("cannot write the text")?;
                    }
                    text.push_str(&delta);
                }
                DecodeEvent::Done(done) => ended = Some(done),
            }
        }
        Ok(Exit::Done)
    });
    outcome.map_err(|fault| fault.error)?;
    let done = ended.context("the decoder ended without an answer")?;
    let spans = Spans::of(begun, encode, first_token);
    let verified = engine.load()().verified();
    Ok((generation(&done, text), spans, verified))
}

/// A decoder for one text of so many tokens, prompt included.
fn start(model: Model, draft: Model, tokens: usize) -> Result<DecodeEngine> {
    let position_bytes = model.kv_position_bytes() + draft.kv_position_bytes();
    let kv_bytes_max = (tokens + SPARE_TOKENS) as u64 * position_bytes as u64;
    let loaded = Loaded::of(model, "").with_draft(draft)?;
    if let Some(cause) = loaded.verifies_none_because() {
        bail!("{cause}: leave --draft out");
    }
    let limits = DecodeLimits {
        sequences_max: 1,
        queue_max: 1,
        prefill_tokens_max: PREFILL_TOKENS_MAX,
        prefill_measured: false,
        speculation: Some(Speculation {
            tokens_max: PROPOSED_TOKENS_MAX,
            memory_bytes_max: 0,
            always: false,
        }),
    };
    let started = LoadedModel::Real(loaded).start_decode(kv_bytes_max, limits, None)?;
    started.engine().context("the model writes no text")
}

fn generation(done: &Done, text: String) -> Generation {
    let tokens = done.tokens.iter().zip(&done.alternatives);
    let choices = tokens.filter_map(|(span, likeliest)| {
        Some(Choice {
            token: likeliest.first()?.id,
            logprob: span.log_probability,
        })
    });
    Generation {
        choices: choices.collect(),
        text,
        finish: match done.finish {
            medfleet_engine::Finish::Stop => Finish::Stop,
            medfleet_engine::Finish::Length => Finish::Length,
        },
        logits: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use medfleet_model::{ComputeDevice, Continue, LoadOptions, Parts, Request};

    use super::*;
    use crate::command::parsed;

    fn demo() -> Model {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo/phantom-demo");
        let options = LoadOptions {
            dtype: medfleet_model::Dtype::F32,
            parts: Parts::All,
            device: ComputeDevice::Cpu,
        };
        Model::load(&folder, options).expect("the repository ships this checkpoint")
    }

    #[test]
    fn a_draft_model_writes_what_is_written_without() {
        let side = demo()
            .config()
            .vision
            .as_ref()
            .map(|vision| vision.image_size);
        let side = side.expect("it sees images");
        let frame = Frame::new(side, 1, vec![90; side * side]).expect("a square");
        for images in [vec![], vec![frame]] {
            let args: Args = parsed(&[
                "--model",
                "m",
                "--prompt",
                "Describe.",
                "--json",
                "--max-tokens",
                "24",
            ])
            .expect("the flags exist");
            let model = demo();
            let messages = [Message::user(images.len(), args.prompt.as_str())];
            let prompt = model.prompt(&messages, images.len()).expect("a prompt");
            let tokens = model.encode(&images).expect("it encodes");
            let request = Request::greedy(&model, &prompt, &tokens, args.max_tokens);
            let expected = model.generate(&request, &mut |_| Continue::Yes);
            let mut expected = expected.expect("it generates");
            if expected.finish == Finish::Stop {
                expected.choices.pop();
            }
            let (found, _, _) =
                generate((model, demo()), &prompt, &images, &args).expect("it generates");
            assert_eq!(found.text, expected.text);
            assert_eq!(found.finish, expected.finish);
            assert_eq!(found.choices.len(), expected.choices.len());
            for (found, expected) in found.choices.iter().zip(&expected.choices) {
                assert_eq!(found.token, expected.token);
                assert!((found.logprob - expected.logprob).abs() < 1e-4);
            }
        }
    }
}
