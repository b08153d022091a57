//! How the work is cut up changes nothing: chunks and the whole, many sequences and one, blocks in any order.

use super::fixtures::{CASES, Case, Fixtures, tiny};
use super::{TOLERANCE, difference};
use crate::{
    BlockTable, Chunk, Continue, Dtype, EncodeError, Finish, ForwardError, GenerateError,
    ImageSpan, ImageTokensError, KvOptions, KvPool, LoadOptions, Message, Model, Parts, Request,
    Sampling, Want,
};

fn pool(model: &Model, block_tokens: usize) -> KvPool {
    let budget_bytes = 1200 * model.kv_position_bytes();
    model
        .kv_pool(KvOptions {
            block_tokens,
            budget_bytes,
        })
        .unwrap()
}

/// The images whose run starts in `range`, at offsets from its start.
fn spans<'a>(case: &'a Case, range: &std::ops::Range<usize>) -> Vec<ImageSpan<'a>> {
    let placed = case.prompt.images().iter().zip(&case.images);
    let inside = placed.filter(|(first, _)| range.contains(first));
    inside
        .map(|(first, tokens)| ImageSpan {
            offset: first - range.start,
            tokens,
        })
        .collect()
}

/// All logits of one sequence in one chunk.
pub(super) fn whole(model: &Model, tokens: &[u32], case: &Case) -> Vec<Vec<f32>> {
    let mut pool = pool(model, 16);
    let mut table = BlockTable::default();
    pool.reserve(&mut table, tokens.len()).unwrap();
    let images = spans(case, &(0..tokens.len()));
    let chunk = Chunk {
        tokens,
        images: &images,
        start: 0,
        table: &table,
        want: Want::All,
    };
    model.forward(&mut pool, &[chunk]).unwrap().remove(0).rows
}

#[test]
fn chunked_prefill_equals_the_whole() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    for name in CASES {
        let case = fixtures.case(&model, name);
        let expected = whole(&model, case.prompt.tokens(), &case);
        // Below, at and above the window of 12; blocks that divide neither.
        for (size, block) in [(1, 7), (5, 16), (12, 3), (13, 5), (30, 16)] {
            let mut pool = pool(&model, block);
            let mut table = BlockTable::default();
            let mut rows = Vec::new();
            while rows.len() < expected.len() {
                let range = case.prompt.chunk(rows.len(), size);
                pool.reserve(&mut table, range.end).unwrap();
                let images = spans(&case, &range);
                let tokens = &case.prompt.tokens()[range.clone()];
                let chunk = Chunk {
                    tokens,
                    images: &images,
                    start: range.start,
                    table: &table,
                    want: Want::All,
                };
                rows.extend(model.forward(&mut pool, &[chunk]).unwrap().remove(0).rows);
            }
            let found = difference(&rows, &expected);
            assert!(found <= TOLERANCE, "{name} in chunks of {size}: {found}");
        }
    }
}

/// All cases in one pool at once, out of step with each other: each prefills in its own chunks and then decodes, so
/// that batches mix prompts, images and single tokens, and block tables interleave.
#[test]
fn a_batch_equals_one_at_a_time() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let cases = CASES.map(|name| fixtures.case(&model, name));
    let sizes = [9, 4, 1, 20, 33];
    let mut pool = pool(&model, 8);
    let mut tables: Vec<BlockTable> = cases.iter().map(|_| BlockTable::default()).collect();
    let mut rows: Vec<Vec<Vec<f32>>> = cases.iter().map(|_| Vec::new()).collect();
    let steps = |case: &Case| case.prompt.tokens().len() + 10;
    while let Some(active) = Some(
        (0..5)
            .filter(|i| rows[*i].len() < steps(&cases[*i]))
            .collect::<Vec<_>>(),
    ) && !active.is_empty()
    {
        let ranges = active
            .iter()
            .map(|i| next(&cases[*i], rows[*i].len(), sizes[*i]))
            .collect::<Vec<_>>();
        for (i, (range, _)) in active.iter().zip(&ranges) {
            pool.reserve(&mut tables[*i], range.end).unwrap();
        }
        let images: Vec<_> = active
            .iter()
            .zip(&ranges)
            .map(|(i, (range, _))| spans(&cases[*i], range))
            .collect();
        let chunks: Vec<Chunk> = (0..active.len())
            .map(|k| Chunk {
                tokens: &ranges[k].1,
                images: &images[k],
                start: ranges[k].0.start,
                table: &tables[active[k]],
                want: Want::All,
            })
            .collect();
        let found = model.forward(&mut pool, &chunks).unwrap();
        for (i, found) in active.iter().zip(found) {
            rows[*i].extend(found.rows);
        }
    }
    for (case, rows) in cases.iter().zip(&rows) {
        let mut tokens = case.prompt.tokens().to_vec();
        tokens.extend(&case.greedy[..10]);
        assert!(difference(rows, &whole(&model, &tokens, case)) <= TOLERANCE);
    }
}

/// The next positions of a case and their tokens: a piece of the prompt, then one token of the answer at a time.
fn next(case: &Case, done: usize, size: usize) -> (std::ops::Range<usize>, Vec<u32>) {
    let prompt = case.prompt.tokens();
    if done < prompt.len() {
        let range = case.prompt.chunk(done, size);
        return (range.clone(), prompt[range].to_vec());
    }
    (done..done + 1, vec![case.greedy[done - prompt.len()]])
}

fn refused(model: &Model, tokens: &[u32], images: &[ImageSpan], reach: usize) -> ForwardError {
    let mut pool = pool(model, 16);
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
