//! Requests as they come: what cannot be computed is refused with its reason, and answers stop, stream and cancel.

use super::device;
use super::fixtures::{Fixtures, tiny};
use super::schedules::{pool, spans};
use crate::{
    BlockTable, Chunk, Continue, Dtype, EncodeError, Finish, ForwardError, GenerateError,
    ImageSpan, ImageTokensError, LoadOptions, Message, Model, Parts, Request, Sampling, Want,
};

fn refused(model: &Model, tokens: &[u32], images: &[ImageSpan], reach: usize) -> ForwardError {
    let mut pool = pool(model, 16, 1200);
    let mut table = BlockTable::default();
    pool.reserve(&mut table, reach).unwrap();
    let chunk = Chunk {
        tokens,
        images,
        start: 0,
        table: &table,
        want: Want::Last,
    };
    model.forward(&mut pool, &[chunk]).unwrap_err()
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "one_image");
    let (tokens, first) = (case.prompt.tokens(), case.prompt.images()[0]);
    let span = spans(&case, &(0..tokens.len()));
    let cut = |error| {
        matches!(
            error,
            ForwardError::CutImage {
                tokens_per_image: 16,
                ..
            }
        )
    };
    // Without its image, cut in its middle, beginning in its middle, at the wrong place.
    assert!(cut(refused(&model, tokens, &[], 100)));
    assert!(cut(refused(&model, &tokens[..first + 9], &span, 100)));
    assert!(cut(refused(&model, &tokens[first + 9..], &[], 100)));
    let shifted = [ImageSpan {
        offset: first + 1,
        tokens: &case.images[0],
    }];
    assert!(cut(refused(&model, tokens, &shifted, 100)));
    let twice = [span[0], span[0]];
    assert!(cut(refused(&model, tokens, &twice, 100)));
    assert!(matches!(
        refused(&model, &[], &[], 16),
        ForwardError::EmptyChunk { chunk: 0 }
    ));
    assert!(matches!(
        refused(&model, &[99_999], &[], 16),
        ForwardError::TokenId { id: 99_999, .. }
    ));
    let short = ForwardError::BlockTable {
        chunk: 0,
        end: 17,
        capacity: 16,
    };
    assert_eq!(refused(&model, &[9; 17], &[], 16), short);
    let long = vec![9; model.config().text.positions_max + 1];
    assert!(matches!(
        refused(&model, &long, &[], 16),
        ForwardError::Context { max: 4096, .. }
    ));
}

#[test]
fn image_tokens_of_another_model_are_refused() {
    let model = tiny();
    let prompt = model.prompt(&[Message::user(1, "x")], 1).unwrap();
    let refused = |shape: [usize; 2], dtype: Dtype| {
        let bytes = vec![0; shape[0] * shape[1] * dtype.bytes()];
        let images = [crate::ImageTokens::from_bytes(shape, dtype, bytes).unwrap()];
        model
            .generate(&Request::greedy(&model, &prompt, &images, 1), &mut |_| {
                Continue::Yes
            })
            .unwrap_err()
    };
    let image = |error| GenerateError::Forward(ForwardError::Image(error));
    let (expected, found) = ([16, 48], [16, 44]);
    assert_eq!(
        refused(found, Dtype::F32),
        image(ImageTokensError::Shape { expected, found })
    );
    let (expected, found) = (Dtype::F32, Dtype::Bf16);
    assert_eq!(
        refused([16, 48], Dtype::Bf16),
        image(ImageTokensError::Dtype { expected, found })
    );
    let none = model
        .generate(&Request::greedy(&model, &prompt, &[], 1), &mut |_| {
            Continue::Yes
        })
        .unwrap_err();
    assert_eq!(
        none,
        GenerateError::ImageCount {
            images: 0,
            placeholders: 1
        }
    );
    let long = model.generate(&Request::greedy(&model, &prompt, &[], 5000), &mut |_| {
        Continue::Yes
    });
    assert!(long.is_err());
}

#[test]
fn answers_stop_stream_and_cancel() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "text");
    let mut request = Request::greedy(&model, &case.prompt, &[], 20);
    request.prefill_tokens_max = 10;
    let stop = [case.greedy[7]];
    let first = case.greedy.iter().position(|t| *t == stop[0]).unwrap();
    request.stop_tokens = &stop;
    let mut streamed = String::new();
    let answer = model.generate(&request, &mut |delta| {
        streamed.extend(delta.map(|delta| delta.text.as_str()));
        Continue::Yes
    });
    let answer = answer.unwrap();
    assert_eq!(
        (answer.finish, answer.choices.len()),
        (Finish::Stop, first + 1)
    );
    assert!(answer.text.starts_with(&streamed) && answer.logits.is_empty());
    assert!(answer.choices.iter().all(|choice| choice.logprob <= 0.0));

    request.stop_tokens = &[];
    let mut seen = 0;
    let mut three = |delta: Option<&crate::Delta>| {
        seen += usize::from(delta.is_some());
        if seen == 3 {
            Continue::No
        } else {
            Continue::Yes
        }
    };
    let answer = model.generate(&request, &mut three).unwrap();
    assert_eq!(
        (answer.finish, answer.choices.len()),
        (Finish::Cancelled, 3)
    );
    let answer = model.generate(&request, &mut |_| Continue::No).unwrap();
    assert_eq!(
        (answer.finish, answer.choices.len()),
        (Finish::Cancelled, 0)
    );
}

#[test]
fn sampled_answers_repeat_with_their_seed() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "short");
    let tokens = |seed| {
        let mut request = Request::greedy(&model, &case.prompt, &[], 24);
        request.sampling = Sampling {
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            seed,
            ..Sampling::greedy()
        };
        request.stop_tokens = &[];
        let answer = model.generate(&request, &mut |_| Continue::Yes).unwrap();
        answer
            .choices
            .iter()
            .map(|choice| choice.token)
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(5), tokens(5));
    assert_ne!(tokens(5), tokens(6));
    let mut request = Request::greedy(&model, &case.prompt, &[], 1);
    request.sampling.top_p = 2.0;
    assert!(matches!(
        model.generate(&request, &mut |_| Continue::Yes),
        Err(GenerateError::Sampling(_))
    ));
}

#[test]
fn half_a_model_says_so() {
    let load = |parts| {
        Model::load(
            &super::fixtures::tiny_dir(),
            LoadOptions {
                dtype: Dtype::Bf16,
                parts,
                device: device(),
            },
        )
        .unwrap()
    };
    let (text, vision) = (load(Parts::Text), load(Parts::Vision));
    let frame = Fixtures::read().picture(2);
    assert_eq!(
        text.encode(std::slice::from_ref(&frame)),
        Err(EncodeError::NotLoaded)
    );
    assert!(vision.prompt(&[Message::user(0, "x")], 0).is_err());
    assert_eq!(text.digests(), vision.digests());
    // An encoder's bytes are a decoder's input: the two halves make the whole, in bf16 too.
    let tokens = vision.encode(&[frame]).unwrap().remove(0);
    let sent = crate::ImageTokens::from_bytes(tokens.shape(), tokens.dtype(), tokens.into_bytes())
        .unwrap();
    let prompt = text.prompt(&[Message::user(1, "x")], 1).unwrap();
    let images = [sent];
    let request = Request::greedy(&text, &prompt, &images, 4);
    assert!(
        !text
            .generate(&request, &mut |_| Continue::Yes)
            .unwrap()
            .choices
            .is_empty()
    );
}
