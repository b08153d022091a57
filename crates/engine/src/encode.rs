//! The vision half of the engine: requests of a few frames each, frame by frame on the model's own thread, by class as `turns` has
//! it: a frame of STAT waits for the one under way, whatever is left of the request that has it. Beside that it waits only for earlier
//! requests of STAT and for those that go as STAT, since so many have passed them. On CPUs several at once would be no sooner: each has
//! thousands of patches, and the weights are read once for all of those.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::backend::{Description, EncodeBackend, EngineError, Frame, ImageTokens};
use crate::encoding::{Encoding, Purpose};
use crate::health::{Call, Health, Monitor, Patience, Reporter, Suspect};
use crate::turns::{Turn, Turns};

/// A handle on the encoder's thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct EncodeEngine {
    requests: mpsc::Sender<Request>,
    description: Arc<Description>,
    monitor: Monitor,
    encoding: Encoding,
    turns: Turns,
}

/// Image tokens in the frames' order, and how long the device took.
#[derive(Debug)]
pub struct Encoded {
    /// One entry a frame.
    pub tokens: Vec<ImageTokens>,
    /// Time in the model.
    pub device: Duration,
}

/// How busy an encoder is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeLoad {
    /// Requests that wait for others to be over.
    pub waiting: u64,
    /// How long the call into the model has taken that is under way; nothing between two.
    pub call: Duration,
}

struct Request {
    frame: Frame,
    purpose: Purpose,
    suspect: Suspect,
    answer: oneshot::Sender<Result<One, EngineError>>,
    /// Kept until it is over, also where its caller is gone.
    turn: Turn,
}

/// Tokens of one frame, how long it took, and the turn for the next one.
struct One {
    tokens: ImageTokens,
    device: Duration,
    turn: Turn,
}

impl EncodeEngine {
    /// Starts the thread. It has one frame at a time; the others wait in [`Self::encode`].
    pub fn start(backend: Box<dyn EncodeBackend>) -> io::Result<Self> {
        Self::start_with(backend, Patience::SAFE)
    }

    fn start_with(backend: Box<dyn EncodeBackend>, patience: Patience) -> io::Result<Self> {
        let (requests, receiver) = mpsc::channel(1);
        let (reporter, monitor) = Reporter::new(patience);
        let description = Arc::new(backend.description().clone());
        let encoding = Encoding::default();
        let shown = encoding.clone();
        std::thread::Builder::new()
            .name("encode-model".to_owned())
            .spawn(move || serve(backend, receiver, &reporter, &shown))?;
        Ok(Self {
            requests,
            description,
            monitor,
            encoding,
            turns: Turns::default(),
        })
    }

    /// What it does, for the decoder of the same process ([`DecodeEngine::start_beside`](crate::DecodeEngine::start_beside)).
    pub fn encoding(&self) -> Encoding {
        self.encoding.clone()
    }

    /// What the encoder is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Tells how busy it is. It is no handle: the thread ends without it.
    pub fn load(&self) -> impl Fn() -> EncodeLoad + Send + Sync + use<> {
        let (turns, monitor) = (self.turns.clone(), self.monitor.clone());
        move || EncodeLoad {
            waiting: turns.waiting() as u64,
            call: monitor.call(),
        }
    }

    /// Whether it can still work.
    pub fn health(&self) -> Health {
        self.monitor.health()
    }

    /// Waits until the engine ended, and says how. Without somebody who waits, a call into the model that does not come back
    /// is not found.
    pub fn ended(&self) -> impl Future<Output = Health> + Send + use<> {
        self.monitor.ended()
    }

    /// Image tokens of each frame, in order. A request whose caller is gone is not begun.
    ///
    /// # Errors
    /// A frame the model does not take, the model's own failure, or an engine that has ended.
    pub async fn encode(
        &self,
        frames: Vec<Frame>,
        purpose: Purpose,
    ) -> Result<Encoded, EngineError> {
        for frame in &frames {
            frame.check(self.description.frame_side)?;
        }
        let turn = self.turns.take(purpose.class);
        let mut turn = self.monitor.answer(&Suspect::default(), turn).await?;
        let mut encoded = Encoded {
            tokens: Vec::with_capacity(frames.len()),
            device: Duration::ZERO,
        };
        let mut frames = frames.into_iter();
        while let Some(frame) = frames.next() {
            let again = self.turns.again(turn);
            turn = self.monitor.answer(&Suspect::default(), again).await?;
            let is_last = purpose.is_last && frames.as_slice().is_empty();
            let purpose = Purpose { is_last, ..purpose };
            let one = self.encode_one(frame, purpose, turn).await?;
            encoded.tokens.push(one.tokens);
            encoded.device += one.device;
            turn = one.turn;
        }
        Ok(encoded)
    }

    async fn encode_one(
        &self,
        frame: Frame,
        purpose: Purpose,
        turn: Turn,
    ) -> Result<One, EngineError> {
        let (answer, receiver) = oneshot::channel();
        let suspect = Suspect::default();
        let request = Request {
            frame,
            purpose,
            suspect: suspect.clone(),
            answer,
            turn,
        };
        self.monitor.send(&self.requests, request).await?;
        let answer = self.monitor.answer(&suspect, receiver).await?;
        answer.map_err(|_| self.monitor.gone(&suspect))?
    }
}

fn serve(
    mut backend: Box<dyn EncodeBackend>,
    mut requests: mpsc::Receiver<Request>,
    reporter: &Reporter,
    encoding: &Encoding,
) {
    while let Some(request) = requests.blocking_recv() {
        let Request {
            frame,
            purpose,
            suspect,
            answer,
            turn,
        } = request;
        if answer.is_closed() {
            continue;
        }
        suspect.set(true);
        let mark = encoding.begin(purpose);
        let start = Instant::now();
        let outcome = reporter.guard(Call::compute(1), || checked(backend.as_mut(), &frame));
        let outcome = match outcome {
            Err(EngineError::NotFinite) => {
                // What is tried now is not of this frame.
                suspect.set(false);
                let tried = Call::compute(1);
                let found = reporter.without_numbers(tried, || backend.makes_numbers());
                Err(found.told())
            }
            outcome => outcome,
        };
        let is_broken = match &outcome {
            Ok(_) => {
                reporter.made_numbers();
                false
            }
            Err(EngineError::Panicked) => true,
            // Judged already.
            Err(EngineError::NotFinite | EngineError::Damaged) => reporter.has_ended(),
            Err(error) => !reporter.still_computes(error, || backend.computes()),
        };
        // Before the answer goes out: its text may be here at once.
        encoding.end(mark, outcome.is_ok() && !answer.is_closed());
        let answered = outcome.map(|tokens| One {
            tokens,
            device: start.elapsed(),
            turn,
        });
        // The caller may have gone meanwhile: then nobody wants the answer.
        let _ = answer.send(answered);
        if is_broken {
            break;
        }
    }
    // What it has not begun is done elsewhere.
    requests.close();
    while let Some(request) = requests.blocking_recv() {
        // As above.
        let _ = request.answer.send(Err(EngineError::Stopped));
    }
}

/// A backend that answers with another number or shape of tensors than asked must not be believed.
fn checked(backend: &mut dyn EncodeBackend, frame: &Frame) -> Result<ImageTokens, EngineError> {
    let mut tokens = backend.encode(std::slice::from_ref(frame))?;
    if tokens.len() != 1 {
        return Err(EngineError::Tokens {
            what: "number",
            expected: "1 tensor".to_owned(),
            found: format!("{} tensors", tokens.len()),
        });
    }
    let tokens = tokens.remove(0);
    tokens.check(backend.description())?;
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use medfleet_core::Class;

    use super::*;
    use crate::simulated::{Simulated, SimulatedShape, SimulatedTiming};

    /// Its device hangs until the test is over.
    struct Hanging(Simulated, blocking::Receiver<()>);

    impl EncodeBackend for Hanging {
        fn description(&self) -> &Description {
            EncodeBackend::description(&self.0)
        }
        fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
            // A test that is over permits nothing.
            let _ = self.1.recv();
            self.0.encode(frames)
        }
    }

    /// Its device fails, and does nothing more where it is said to be lost.
    struct Failing {
        inner: Simulated,
        is_lost: bool,
    }

    impl EncodeBackend for Failing {
        fn description(&self) -> &Description {
            EncodeBackend::description(&self.inner)
        }
        fn encode(&mut self, _: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
            Err(EngineError::Model("an illegal address".into()))
        }
        fn computes(&mut self) -> bool {
            !self.is_lost
        }
    }

    /// It makes no numbers, or some where that is tried.
    struct Damaged {
        inner: Simulated,
        makes_numbers: bool,
    }

    impl EncodeBackend for Damaged {
        fn description(&self) -> &Description {
            EncodeBackend::description(&self.inner)
        }
        fn encode(&mut self, _: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
            Err(EngineError::NotFinite)
        }
        fn makes_numbers(&mut self) -> bool {
            self.makes_numbers
        }
    }

    const SHAPE: SimulatedShape = SimulatedShape {
        frame_side: 8,
        tokens_per_image: 4,
        token_width: 8,
        words: 16,
    };

    fn grey() -> Frame {
        Frame {
            side: 8,
            channels: 1,
            pixels: vec![0; 64].into(),
        }
    }

    const LAST: Purpose = Purpose {
        class: Class::Routine,
        is_last: true,
    };

    #[tokio::test]
    async fn only_a_device_that_computes_no_more_ends_the_engine() {
        for (is_lost, expected) in [(false, Health::Running), (true, Health::Failed)] {
            let inner = Simulated::new(SHAPE, SimulatedTiming::default());
            let backend = Box::new(Failing { inner, is_lost });
            let engine = EncodeEngine::start(backend).expect("a thread starts");
            let failed = engine.encode(vec![grey()], LAST).await;
            assert!(matches!(failed, Err(EngineError::Model(_))), "{failed:?}");
            assert_eq!(engine.health(), expected);
            let again = engine.encode(vec![grey()], LAST).await;
            let is_refused = matches!(again, Err(EngineError::Stopped));
            assert_eq!(is_refused, is_lost, "{again:?}");
        }
    }

    #[tokio::test]
    async fn a_model_that_makes_no_numbers_ends_the_engine_and_frames_are_blamed_only_for_their_own()
     {
        for (makes_numbers, failures) in [(false, 1), (true, 8)] {
            let inner = Simulated::new(SHAPE, SimulatedTiming::default());
            let backend = Box::new(Damaged {
                inner,
                makes_numbers,
            });
            let engine = EncodeEngine::start(backend).expect("a thread starts");
            for _ in 0..failures {
                assert_eq!(engine.health(), Health::Running);
                let failed = engine.encode(vec![grey()], LAST).await;
                let is_blamed = matches!(failed, Err(EngineError::NotFinite));
                let is_spared = matches!(failed, Err(EngineError::Damaged));
                assert_eq!((is_blamed, is_spared), (makes_numbers, !makes_numbers));
            }
            assert_eq!(engine.ended().await, Health::Damaged);
            let again = engine.encode(vec![grey()], LAST).await;
            assert!(matches!(again, Err(EngineError::Stopped)), "{again:?}");
        }
    }

    #[tokio::test]
    async fn an_encode_that_does_not_come_back_ends_the_engine_and_only_its_caller_is_blamed() {
        let (permit, permits) = blocking::channel::<()>();
        let simulated = Simulated::new(SHAPE, SimulatedTiming::default());
        let hasty = Patience {
            unknown: Duration::from_millis(20),
            known: Duration::from_millis(20),
            slower: 20,
        };
        let backend = Box::new(Hanging(simulated, permits));
        let engine = EncodeEngine::start_with(backend, hasty).expect("a thread starts");
        let encode = || engine.encode(vec![grey()], LAST);
        let (ended, encoded, waited) = tokio::join!(engine.ended(), encode(), encode());
        assert_eq!(ended, Health::Hung);
        assert!(matches!(encoded, Err(EngineError::Hung)), "{encoded:?}");
        assert!(matches!(waited, Err(EngineError::Stopped)), "{waited:?}");
        let load = engine.load();
        assert_eq!(load().waiting, 0, "nobody waits any more");
        assert_ne!(load().call, Duration::ZERO);
        drop(permit);
    }

    /// Its first encode waits for permission; it notes the shades of the frames it is given.
    struct Noting {
        inner: Simulated,
        permits: blocking::Receiver<()>,
        shades: blocking::Sender<u8>,
    }

    impl EncodeBackend for Noting {
        fn description(&self) -> &Description {
            EncodeBackend::description(&self.inner)
        }
        fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
            // A test that is over neither permits nor listens.
            let _ = self.permits.recv();
            for frame in frames {
                let _ = self.shades.send(frame.pixels[0]);
            }
            self.inner.encode(frames)
        }
    }

    #[tokio::test]
    async fn a_frame_of_stat_waits_for_no_other_but_the_one_that_is_being_encoded() {
        let ((permit, permits), (shades, shown)) = (blocking::channel(), blocking::channel());
        let inner = Simulated::new(SHAPE, SimulatedTiming::default());
        let backend = Box::new(Noting {
            inner,
            permits,
            shades,
        });
        let engine = EncodeEngine::start(backend).expect("a thread starts");
        let encode = |class, shades: &[u8]| {
            let frames = shades.iter().map(|shade| Frame {
                pixels: vec![*shade; 64].into(),
                ..grey()
            });
            engine.encode(frames.collect(), Purpose { class, ..LAST })
        };
        // Polled in this order.
        let (first, bulk, stat, ()) = tokio::join!(
            encode(Class::Routine, &[1, 2]),
            encode(Class::Bulk, &[3]),
            encode(Class::Stat, &[4, 5]),
            async {
                assert_eq!(engine.load()().waiting, 2);
                drop(permit);
            },
        );
        let counts = [first, bulk, stat].map(|encoded| encoded.map(|of| of.tokens.len()).ok());
        assert_eq!(counts, [Some(2), Some(1), Some(2)]);
        drop(engine);
        let shown: Vec<u8> = shown.iter().collect();
        // The first request goes on where STAT has ended, before those that came later.
        assert_eq!(shown, [1, 4, 5, 2, 3]);
    }
}
