//! The scheduler with the simulated model: what it writes, what it refuses, how it stops.

use std::sync::mpsc as blocking;

use medfleet_model::StillThinking;

use super::*;
use crate::backend::{EncodeBackend, Frame, Sequence, Step};
use crate::prompt::Question;
use crate::simulated::{Simulated, SimulatedShape, SimulatedTiming};

const SHAPE: SimulatedShape = SimulatedShape {
    frame_side: 8,
    tokens_per_image: 4,
    token_width: 8,
    words: 16,
};
const LIMITS: DecodeLimits = DecodeLimits {
    sequences_max: 4,
    queue_max: 4,
    kv_bytes_max: 1 << 30,
};
const GREEDY: Decoding = Decoding {
    max_tokens: 64,
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    seed: 7,
};

fn simulated() -> Simulated {
    Simulated::new(SHAPE, SimulatedTiming::default())
}

fn engine(limits: DecodeLimits) -> DecodeEngine {
    DecodeEngine::start(Box::new(simulated()), limits).expect("a thread starts")
}

fn tokens(shade: u8) -> ImageTokens {
    let frame = Frame {
        side: 8,
        channels: 1,
        pixels: vec![shade; 64].into(),
    };
    simulated()
        .encode(&[frame])
        .expect("the simulated encoder works")
        .remove(0)
}

fn request(shades: &[u8], decoding: Decoding) -> DecodeRequest {
    let question = Question::Answer {
        question: "is there an effusion?".to_owned(),
    };
    DecodeRequest {
        prompt: question.prompt(shades.len()),
        images: shades.iter().map(|shade| tokens(*shade)).collect(),
        decoding,
    }
}

async fn text_of(
    engine: &DecodeEngine,
    request: DecodeRequest,
) -> Result<(String, Done), EngineError> {
    let mut stream = engine.decode(request).await?;
    let mut text = String::new();
    loop {
        match stream.next().await? {
            DecodeEvent::Text(delta) => text.push_str(&delta),
            DecodeEvent::Done(done) => return Ok((text, done)),
        }
    }
}

#[tokio::test]
async fn the_text_depends_on_every_image_their_order_the_prompt_and_the_seed() {
    let engine = engine(LIMITS);
    let write = async |shades: &[u8], seed| {
        let request = request(shades, Decoding { seed, ..GREEDY });
        text_of(&engine, request).await.expect("it decodes").0
    };
    let text = write(&[1, 2], 7).await;
    assert_eq!(text, write(&[1, 2], 7).await, "the same again");
    assert_ne!(text, write(&[2, 1], 7).await, "swapped");
    assert_ne!(text, write(&[1], 7).await, "one missing");
    assert_ne!(text, write(&[1, 3], 7).await, "a foreign one");
    assert_ne!(text, write(&[1, 2], 8).await, "another seed");
}

#[tokio::test]
async fn a_text_in_a_batch_is_the_text_alone_and_its_spans_cover_it() {
    let engine = engine(LIMITS);
    let requests: Vec<DecodeRequest> = (0..8).map(|i| request(&[i, i + 1], GREEDY)).collect();
    let expected: Vec<String> = requests
        .iter()
        .map(|r| simulated().text(&r.prompt, &r.images, GREEDY.seed))
        .collect();
    let mut running = tokio::task::JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        let engine = engine.clone();
        running.spawn(async move { (index, text_of(&engine, request).await) });
    }
    while let Some(ended) = running.join_next().await {
        let (index, outcome) = ended.expect("no task panics");
        let (text, done) = outcome.expect("it decodes");
        assert_eq!(text, expected[index]);
        assert_eq!(done.finish, Finish::Stop);
        assert_eq!(done.tokens.len(), 16);
        assert_eq!(
            done.tokens.last().map(|token| token.end as usize),
            Some(text.len())
        );
        assert!(
            done.tokens
                .windows(2)
                .all(|pair| pair[0].end == pair[1].start)
        );
        assert_eq!(done.prompt.image_tokens, 8);
    }
}

#[tokio::test]
async fn the_token_limit_cuts_and_says_so() {
    let decoding = Decoding {
        max_tokens: 3,
        ..GREEDY
    };
    let (text, done) = text_of(&engine(LIMITS), request(&[1], decoding))
        .await
        .expect("it decodes");
    assert_eq!((done.finish, done.tokens.len()), (Finish::Length, 3));
    assert!(!text.is_empty());
}

#[tokio::test]
async fn what_can_never_fit_is_refused_with_the_arithmetic() {
    let small = engine(DecodeLimits {
        kv_bytes_max: 1 << 20,
        ..LIMITS
    });
    let error = small
        .decode(request(&[1], GREEDY))
        .await
        .expect_err("too much memory");
    let message = error.to_string();
    assert!(matches!(error, EngineError::TooLong { .. }));
    assert!(
        message.contains("1048576") && message.contains("(4 of images)"),
        "{message}"
    );

    let long = Decoding {
        max_tokens: 131_072,
        ..GREEDY
    };
    let error = engine(LIMITS)
        .decode(request(&[], long))
        .await
        .expect_err("over the context");
    assert!(error.to_string().contains("context is 131072"), "{error}");
}

#[tokio::test]
async fn requests_wait_for_memory_instead_of_failing() {
    // 64 + 4 + 4 tokens of 136 KiB: room for one and a half.
    let one_at_a_time = engine(DecodeLimits {
        kv_bytes_max: 15 << 20,
        ..LIMITS
    });
    let both = tokio::join!(
        text_of(&one_at_a_time, request(&[1], GREEDY)),
        text_of(&one_at_a_time, request(&[2], GREEDY)),
    );
    assert!(both.0.is_ok() && both.1.is_ok());
}

#[tokio::test]
async fn images_that_do_not_match_the_prompt_or_the_model_are_refused() {
    let engine = engine(LIMITS);
    let mut fewer = request(&[1, 2], GREEDY);
    fewer.images.pop();
    assert!(matches!(
        engine.decode(fewer).await,
        Err(EngineError::Tokens { what: "number", .. })
    ));
    let mut short = request(&[1], GREEDY);
    short.images[0].bytes = short.images[0].bytes.slice(1..);
    assert!(matches!(
        engine.decode(short).await,
        Err(EngineError::Tokens { what: "length", .. })
    ));
    let mut wide = request(&[1], GREEDY);
    wide.images[0].width += 1;
    assert!(matches!(
        engine.decode(wide).await,
        Err(EngineError::Tokens { what: "shape", .. })
    ));
}

/// A model whose steps wait for permission, and which tells what was released; it panics on the step it is told to.
struct Gated {
    inner: Simulated,
    permits: blocking::Receiver<bool>,
    released: tokio::sync::mpsc::UnboundedSender<Sequence>,
}

impl DecodeBackend for Gated {
    fn description(&self) -> &Description {
        DecodeBackend::description(&self.inner)
    }
    fn measure(&self, prompt: &Prompt) -> Result<PromptSize, EngineError> {
        self.inner.measure(prompt)
    }
    fn kv_bytes(&self, tokens: u32) -> u64 {
        self.inner.kv_bytes(tokens)
    }
    fn prefill(
        &mut self,
        sequence: Sequence,
        prompt: &Prompt,
        images: &[ImageTokens],
        decoding: &Decoding,
    ) -> Result<Step, EngineError> {
        self.inner.prefill(sequence, prompt, images, decoding)
    }
    fn step(&mut self, sequences: &[Sequence]) -> Result<Vec<Step>, EngineError> {
        match self.permits.recv() {
            Ok(true) => self.inner.step(sequences),
            Ok(false) => panic!("the simulated device broke"),
            Err(_) => Err(EngineError::Stopped),
        }
    }
    fn release(&mut self, sequence: Sequence) {
        self.inner.release(sequence);
        self.released.send(sequence).expect("the test listens");
    }
}

fn gated() -> (
    DecodeEngine,
    blocking::Sender<bool>,
    tokio::sync::mpsc::UnboundedReceiver<Sequence>,
) {
    let (permit, permits) = blocking::channel();
    let (released, releases) = tokio::sync::mpsc::unbounded_channel();
    let backend = Gated {
        inner: simulated(),
        permits,
        released,
    };
    (
        DecodeEngine::start(Box::new(backend), LIMITS).expect("a thread starts"),
        permit,
        releases,
    )
}

#[tokio::test]
async fn dropping_the_stream_stops_between_two_tokens() {
    let (engine, permit, mut releases) = gated();
    let mut stream = engine
        .decode(request(&[1], GREEDY))
        .await
        .expect("it is taken");
    assert!(matches!(stream.next().await, Ok(DecodeEvent::Text(_))));
    drop(stream);
    permit
        .send(true)
        .expect("the model waits for its next step");
    assert_eq!(releases.recv().await, Some(Sequence(0)));
    // It did not go on writing: one permit was enough, and the engine takes the next request.
    assert_eq!(engine.health(), Health::Running);
}

#[tokio::test]
async fn a_panic_of_the_model_fails_its_batch_and_ends_the_engine() {
    let (engine, permit, _releases) = gated();
    let first = engine
        .decode(request(&[1], GREEDY))
        .await
        .expect("it is taken");
    permit
        .send(false)
        .expect("the model waits for its next step");
    let mut stream = first;
    let error = loop {
        match stream.next().await {
            Ok(DecodeEvent::Text(_)) => {}
            Ok(DecodeEvent::Done(_)) => panic!("a broken batch must not end well"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, EngineError::Panicked));
    assert_eq!(engine.ended().await, Health::Failed);
    assert!(matches!(
        engine.decode(request(&[1], GREEDY)).await,
        Err(EngineError::Panicked)
    ));
}

/// Its first sequence thinks until the end; the others write.
struct Thinker(Simulated);

impl Thinker {
    fn think(sequence: Sequence, step: Step) -> Step {
        if sequence != Sequence(0) {
            return step;
        }
        Step {
            token: None,
            text: String::new(),
            finish: step.finish.map(|_| Err(StillThinking)),
        }
    }
}

impl DecodeBackend for Thinker {
    fn description(&self) -> &Description {
        DecodeBackend::description(&self.0)
    }
    fn measure(&self, prompt: &Prompt) -> Result<PromptSize, EngineError> {
        self.0.measure(prompt)
    }
    fn kv_bytes(&self, tokens: u32) -> u64 {
        self.0.kv_bytes(tokens)
    }
    fn prefill(
        &mut self,
        sequence: Sequence,
        prompt: &Prompt,
        images: &[ImageTokens],
        decoding: &Decoding,
    ) -> Result<Step, EngineError> {
        let step = self.0.prefill(sequence, prompt, images, decoding)?;
        Ok(Self::think(sequence, step))
    }
    fn step(&mut self, sequences: &[Sequence]) -> Result<Vec<Step>, EngineError> {
        let steps = self.0.step(sequences)?.into_iter();
        let each = sequences.iter().zip(steps);
        Ok(each.map(|(s, step)| Self::think(*s, step)).collect())
    }
    fn release(&mut self, sequence: Sequence) {
        self.0.release(sequence);
    }
}

#[tokio::test]
async fn a_text_that_is_only_thinking_is_an_error_of_its_own_request() {
    let engine = DecodeEngine::start(Box::new(Thinker(simulated())), LIMITS).expect("a thread");
    let thinks = engine.decode(request(&[1], GREEDY)).await;
    let (mut thinks, writes) = (thinks.expect("fits"), engine.decode(request(&[2], GREEDY)));
    let (mut writes, mut text) = (writes.await.expect("fits"), String::new());
    let outcome = thinks.next().await;
    assert!(matches!(outcome, Err(EngineError::StillThinking(_))));
    while let DecodeEvent::Text(delta) = writes.next().await.expect("it writes") {
        text.push_str(&delta);
    }
    assert!(!text.is_empty());
}

#[tokio::test]
async fn the_thread_ends_with_its_last_handle() {
    let engine = engine(LIMITS);
    let ended = engine.ended();
    drop(engine);
    assert_eq!(ended.await, Health::Stopped);
}
