//! The scheduler with the simulated model: what it writes, what it refuses, how it stops.

use std::sync::mpsc as blocking;

use medfleet_model::{Blocks, Progress, StillThinking};

use super::*;
use crate::backend::{EncodeBackend, Frame, KvMemory, Outcome, Sequence, Step, Work};
use crate::prompt::{Images, Question};
use crate::simulated::{Simulated, SimulatedDecoder, SimulatedShape, SimulatedTiming};

mod company;
mod lost;
mod memory;

const SHAPE: SimulatedShape = SimulatedShape {
    frame_side: 8,
    tokens_per_image: 4,
    token_width: 8,
    words: 16,
};
const LIMITS: DecodeLimits = DecodeLimits {
    sequences_max: 4,
    queue_max: 4,
    prefill_tokens_max: 8,
    prefill_measured: false,
    speculation: None,
};
/// Prompts are read in one pass.
const WHOLE: DecodeLimits = DecodeLimits {
    prefill_tokens_max: 64,
    ..LIMITS
};
const PLENTY: u64 = 1 << 30;

fn greedy() -> Decoding {
    Decoding {
        seed: 7,
        ..Decoding::greedy(64)
    }
}

fn simulated() -> Simulated {
    Simulated::new(SHAPE, SimulatedTiming::default())
}

fn engine(limits: DecodeLimits, kv_bytes_max: u64) -> DecodeEngine {
    let backend = simulated().decoder(kv_bytes_max);
    DecodeEngine::start(Box::new(backend), limits).expect("a thread starts")
}

fn frame(shade: u8) -> Frame {
    Frame {
        side: 8,
        channels: 1,
        pixels: vec![shade; 64].into(),
    }
}

fn tokens(shade: u8) -> ImageTokens {
    simulated()
        .encode(&[frame(shade)])
        .expect("the simulated encoder works")
        .remove(0)
}

fn request(shades: &[u8], decoding: Decoding) -> DecodeRequest {
    let question = Question::Answer {
        question: "is there an effusion?".to_owned(),
    };
    let radiographs = Images::of("DX", shades.len());
    DecodeRequest {
        prompt: question.prompt(&radiographs).expect("words").prompt,
        images: shades.iter().map(|shade| tokens(*shade)).collect(),
        decoding,
        scope: Digest::new([0; 32]),
        haste: Haste::STAT,
    }
}

async fn text_of(
    engine: &DecodeEngine,
    request: DecodeRequest,
) -> Result<(String, Done), EngineError> {
    engine.decode(request).await?.collect().await
}

#[tokio::test]
async fn the_text_depends_on_every_image_their_order_the_prompt_and_the_seed() {
    let engine = engine(LIMITS, PLENTY);
    let write = async |shades: &[u8], seed| {
        let request = request(shades, Decoding { seed, ..greedy() });
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
    let engine = engine(LIMITS, PLENTY);
    let requests: Vec<DecodeRequest> = (0..8).map(|i| request(&[i, i + 1], greedy())).collect();
    let expected: Vec<String> = requests
        .iter()
        .map(|r| simulated().text(&r.prompt, &r.images, greedy().seed))
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
        assert_eq!(done.steps, 17, "with the one that ended it");
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
        ..greedy()
    };
    let (text, done) = text_of(&engine(LIMITS, PLENTY), request(&[1], decoding))
        .await
        .expect("it decodes");
    assert_eq!((done.finish, done.tokens.len()), (Finish::Length, 3));
    assert!(!text.is_empty());
}

#[tokio::test]
async fn what_can_never_fit_is_refused_with_the_arithmetic() {
    let small = engine(LIMITS, 1 << 20);
    let error = small
        .decode(request(&[1], greedy()))
        .await
        .expect_err("too much memory");
    assert!(matches!(error, EngineError::TooLong { .. }));
    assert_eq!(
        error.to_string(),
        "the prompt has 14 tokens (4 of images) and the text may have 64: 78 tokens take 5 blocks of 327680 bytes, \
         1638400 bytes of KV memory; the budget of 1048576 bytes holds 3 blocks"
    );

    let long = Decoding {
        max_tokens: 131_072,
        ..greedy()
    };
    let error = engine(LIMITS, PLENTY)
        .decode(request(&[], long))
        .await
        .expect_err("over the context");
    assert!(error.to_string().contains("context is 131072"), "{error}");
}

#[tokio::test]
async fn requests_wait_for_memory_instead_of_failing() {
    // 78 tokens take 5 blocks: room for one of them.
    let one_at_a_time = engine(LIMITS, 5 * 2_228_224);
    let both = tokio::join!(
        text_of(&one_at_a_time, request(&[1], greedy())),
        text_of(&one_at_a_time, request(&[2], greedy())),
    );
    assert!(both.0.is_ok() && both.1.is_ok());
}

#[tokio::test]
async fn images_that_do_not_match_the_prompt_or_the_model_are_refused() {
    let engine = engine(LIMITS, PLENTY);
    let mut fewer = request(&[1, 2], greedy());
    fewer.images.pop();
    assert!(matches!(
        engine.decode(fewer).await,
        Err(EngineError::Tokens { what: "number", .. })
    ));
    let mut short = request(&[1], greedy());
    short.images[0].bytes = short.images[0].bytes.slice(1..);
    assert!(matches!(
        engine.decode(short).await,
        Err(EngineError::Tokens { what: "length", .. })
    ));
    let mut wide = request(&[1], greedy());
    wide.images[0].width += 1;
    assert!(matches!(
        engine.decode(wide).await,
        Err(EngineError::Tokens { what: "shape", .. })
    ));
}

/// What a wrapped backend does with a pass.
type Pass =
    Box<dyn FnMut(&mut SimulatedDecoder, &[Work]) -> Result<Vec<Outcome>, EngineError> + Send>;

/// The simulated model with passes of its own, and which tells what was released.
struct Wrapped {
    inner: SimulatedDecoder,
    pass: Pass,
    computes: bool,
    makes_numbers: bool,
    released: tokio::sync::mpsc::UnboundedSender<Sequence>,
}

impl DecodeBackend for Wrapped {
    fn description(&self) -> &Description {
        self.inner.description()
    }
    fn kv(&self) -> KvMemory {
        self.inner.kv()
    }
    fn open(&mut self, s: Sequence, request: &DecodeRequest) -> Result<PromptSize, EngineError> {
        self.inner.open(s, request)
    }
    fn begin(&mut self, sequence: Sequence) -> u32 {
        self.inner.begin(sequence)
    }
    fn progress(&self, sequence: Sequence) -> Option<&Progress> {
        self.inner.progress(sequence)
    }
    fn blocks(&self) -> &Blocks {
        self.inner.blocks()
    }
    fn reserve(&mut self, sequence: Sequence, tokens: u32) -> bool {
        self.inner.reserve(sequence, tokens)
    }
    fn rows_stand_alone(&self) -> bool {
        true
    }
    fn run(&mut self, works: &[Work]) -> Result<Vec<Outcome>, EngineError> {
        (self.pass)(&mut self.inner, works)
    }
    fn suspend(&mut self, sequence: Sequence) {
        self.inner.suspend(sequence);
    }
    fn release(&mut self, sequence: Sequence) {
        self.inner.release(sequence);
        // Not every test listens.
        let _ = self.released.send(sequence);
    }
    fn computes(&mut self) -> bool {
        self.computes
    }
    fn makes_numbers(&mut self) -> bool {
        self.makes_numbers
    }
}

type Releases = tokio::sync::mpsc::UnboundedReceiver<Sequence>;

/// A backend that computes, and what it releases.
fn wrap(kv_bytes_max: u64, pass: Pass) -> (Wrapped, Releases) {
    let (released, releases) = tokio::sync::mpsc::unbounded_channel();
    let backend = Wrapped {
        inner: simulated().decoder(kv_bytes_max),
        pass,
        computes: true,
        makes_numbers: true,
        released,
    };
    (backend, releases)
}

fn wrapped(limits: DecodeLimits, kv_bytes_max: u64, pass: Pass) -> (DecodeEngine, Releases) {
    wrapped_with(limits, kv_bytes_max, pass, Patience::SAFE)
}

async fn taken(engine: &DecodeEngine, request: DecodeRequest) -> DecodeStream {
    engine.decode(request).await.expect("it is taken")
}

/// Far longer than the engine's thread may wait for a processor while it takes a request on.
const HASTY: Patience = Patience {
    unknown: Duration::from_millis(500),
    known: Duration::from_millis(500),
    slower: 20,
};

fn wrapped_with(
    limits: DecodeLimits,
    kv_bytes_max: u64,
    pass: Pass,
    patience: Patience,
) -> (DecodeEngine, Releases) {
    let (backend, releases) = wrap(kv_bytes_max, pass);
    let engine = DecodeEngine::start_with(Box::new(backend), limits, None, patience);
    (engine.expect("a thread starts"), releases)
}

/// Every pass waits for permission; `false` makes it panic.
fn gated() -> (DecodeEngine, blocking::Sender<bool>, Releases) {
    let (permit, permits) = blocking::channel();
    let pass: Pass = Box::new(move |inner, works| match permits.recv() {
        Ok(true) => inner.run(works),
        Ok(false) => panic!("the simulated device broke"),
        Err(_) => Err(EngineError::Stopped),
    });
    let (engine, releases) = wrapped(WHOLE, PLENTY, pass);
    (engine, permit, releases)
}

#[tokio::test]
async fn dropping_the_stream_stops_between_two_tokens() {
    let (engine, permit, mut releases) = gated();
    let mut stream = taken(&engine, request(&[1], greedy())).await;
    permit
        .send(true)
        .expect("the model waits for its first pass");
    assert!(matches!(stream.next().await, Ok(DecodeEvent::Text(_))));
    drop(stream);
    permit
        .send(true)
        .expect("the model waits for its next pass");
    assert_eq!(releases.recv().await, Some(Sequence(0)));
    // It did not go on writing: one permit was enough, and the engine takes the next request.
    assert_eq!(engine.health(), Health::Running);
}

#[tokio::test]
async fn who_is_gone_before_it_was_looked_at_is_not_begun() {
    let (permit, permits) = blocking::channel::<()>();
    let (begins, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let pass: Pass = Box::new(move |inner, works| {
        let sequences: Vec<u64> = works.iter().map(|work| work.sequence.0).collect();
        // A test that is over neither listens nor permits.
        let _ = (begins.send(sequences), permits.recv());
        inner.run(works)
    });
    let (engine, _releases) = wrapped(WHOLE, PLENTY, pass);
    let _first = taken(&engine, request(&[1], greedy())).await;
    assert_eq!(begun.recv().await, Some(vec![0]));
    // The model is at its pass: this one was sent when it waits, and nobody has looked at it.
    tokio::select! {
        biased;
        _ = engine.decode(request(&[2], greedy())) => panic!("nobody looks"),
        () = std::future::ready(()) => {}
    }
    // Polled in this order: the next pass begins when it was sent.
    let (_second, ()) = tokio::join!(taken(&engine, request(&[3], greedy())), async {
        permit.send(()).expect("the first pass waits");
    });
    assert_eq!(begun.recv().await, Some(vec![0, 1]), "the model knows two");
    drop(permit);
}

#[tokio::test]
async fn a_panic_of_the_model_fails_its_batch_and_ends_the_engine() {
    let (engine, permit, _releases) = gated();
    let mut stream = taken(&engine, request(&[1], greedy())).await;
    permit
        .send(false)
        .expect("the model waits for its next step");
    let error = loop {
        match stream.next().await {
            Ok(DecodeEvent::Text(_)) => {}
            Ok(DecodeEvent::Done(_)) => panic!("a broken batch must not end well"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, EngineError::Panicked));
    assert_eq!(engine.monitor().ended().await, Health::Failed);
    assert!(matches!(
        engine.decode(request(&[1], greedy())).await,
        Err(EngineError::Stopped)
    ));
}

#[tokio::test]
async fn a_pass_that_is_lost_tells_its_texts_why() {
    let pass: Pass = Box::new(|_, _| Err(EngineError::Model("no memory on the device".into())));
    let (engine, _releases) = wrapped(LIMITS, PLENTY, pass);
    for shade in [1, 2] {
        let lost = text_of(&engine, request(&[shade], greedy())).await;
        let Err(EngineError::Model(cause)) = lost else {
            panic!("the model failed");
        };
        assert_eq!(cause.to_string(), "no memory on the device");
    }
    assert_eq!(engine.health(), Health::Running);
}

#[tokio::test]
async fn a_device_that_computes_no_more_ends_the_engine() {
    let pass: Pass = Box::new(|_, _| Err(EngineError::Model("an illegal address".into())));
    let (mut backend, mut releases) = wrap(PLENTY, pass);
    backend.computes = false;
    let engine = DecodeEngine::start(Box::new(backend), LIMITS).expect("a thread starts");
    let lost = text_of(&engine, request(&[1], greedy())).await;
    let Err(EngineError::Model(cause)) = lost else {
        panic!("the pass failed");
    };
    assert_eq!(cause.to_string(), "an illegal address");
    assert_eq!(engine.health(), Health::Failed);
    assert_eq!(releases.recv().await, Some(Sequence(0)));
    // It takes nothing that it would only fail.
    let refused = engine.decode(request(&[2], greedy())).await;
    assert!(matches!(refused, Err(EngineError::Stopped)), "{refused:?}");
}

#[tokio::test]
async fn a_pass_that_does_not_come_back_ends_the_engine_and_its_texts() {
    let (permit, permits) = blocking::channel::<()>();
    let pass: Pass = Box::new(move |inner, works| {
        // Until the test is over.
        let _ = permits.recv();
        inner.run(works)
    });
    let (engine, _releases) = wrapped_with(LIMITS, PLENTY, pass, HASTY);
    let mut stream = taken(&engine, request(&[1], greedy())).await;
    let (ended, event) = tokio::join!(engine.monitor().ended(), stream.next());
    assert_eq!(ended, Health::Hung);
    assert!(matches!(event, Err(EngineError::Hung)), "{event:?}");
    let refused = engine.decode(request(&[1], greedy())).await;
    assert!(matches!(refused, Err(EngineError::Stopped)));
    drop(permit);
}

/// Its first sequence thinks until the end; the others write.
fn thinker() -> Pass {
    Box::new(|inner, works| {
        let outcomes = inner.run(works)?;
        let think = |(work, outcome): (&Work, Outcome)| {
            if work.sequence != Sequence(0) {
                return outcome;
            }
            let thinks = |step: Step| Step {
                token: None,
                text: String::new(),
                finish: step.finish.map(|_| Err(StillThinking)),
            };
            outcome.into_iter().map(|step| step.map(thinks)).collect()
        };
        Ok(works.iter().zip(outcomes).map(think).collect())
    })
}

#[tokio::test]
async fn a_text_that_is_only_thinking_is_an_error_of_its_own_request() {
    let (engine, _releases) = wrapped(LIMITS, PLENTY, thinker());
    let thinks = engine.decode(request(&[1], greedy())).await;
    let (mut thinks, writes) = (
        thinks.expect("fits"),
        engine.decode(request(&[2], greedy())),
    );
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
    let engine = engine(LIMITS, PLENTY);
    let ended = engine.monitor().ended();
    drop(engine);
    assert_eq!(ended.await, Health::Stopped);
}
