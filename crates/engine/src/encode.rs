//! The vision half of the engine: requests of a few frames each, one after the other on the model's own thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::backend::{Description, EncodeBackend, EngineError, Frame, ImageTokens};
use crate::encoding::{Encoding, Purpose};
use crate::health::{Health, Reporter, ended, gone};

/// A handle on the encoder's thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct EncodeEngine {
    requests: mpsc::Sender<Request>,
    description: Arc<Description>,
    health: watch::Receiver<Health>,
    encoding: Encoding,
}

/// Image tokens in the frames' order, and how long the device took.
#[derive(Debug)]
pub struct Encoded {
    /// One entry a frame.
    pub tokens: Vec<ImageTokens>,
    /// Time in the model.
    pub device: Duration,
}

struct Request {
    frames: Vec<Frame>,
    purpose: Purpose,
    answer: oneshot::Sender<Result<Encoded, EngineError>>,
}

impl EncodeEngine {
    /// Starts the thread. `queue_max` requests wait in front of it; the next one waits in [`Self::encode`].
    ///
    /// # Errors
    /// When the machine cannot start a thread.
    pub fn start(backend: Box<dyn EncodeBackend>, queue_max: usize) -> io::Result<Self> {
        let (requests, receiver) = mpsc::channel(queue_max.max(1));
        let (reporter, health) = Reporter::new();
        let description = Arc::new(backend.description().clone());
        let encoding = Encoding::default();
        let shown = encoding.clone();
        std::thread::Builder::new()
            .name("encode-model".to_owned())
            .spawn(move || serve(backend, receiver, &reporter, &shown))?;
        Ok(Self {
            requests,
            description,
            health,
            encoding,
        })
    }

    /// What it does, for the decoder of the same process ([`DecodeEngine::start_beside`](crate::DecodeEngine::start_beside)).
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding.clone()
    }

    /// What the encoder is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Whether it can still work.
    #[must_use]
    pub fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// Waits until the engine ended, and says how.
    pub fn ended(&self) -> impl Future<Output = Health> + Send + use<> {
        ended(self.health.clone())
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
        let (answer, receiver) = oneshot::channel();
        let request = Request {
            frames,
            purpose,
            answer,
        };
        self.requests.send(request).await.map_err(|_| self.gone())?;
        receiver.await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> EngineError {
        gone(&self.health)
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
            frames,
            purpose,
            answer,
        } = request;
        if answer.is_closed() {
            continue;
        }
        let mark = encoding.begin(purpose);
        let start = Instant::now();
        let outcome = reporter.guard(|| checked(backend.as_mut(), &frames));
        // Before the answer goes out: its text may be here at once.
        encoding.end(mark, outcome.is_ok() && !answer.is_closed());
        let panicked = matches!(outcome, Err(EngineError::Panicked));
        let answered = outcome.map(|tokens| Encoded {
            tokens,
            device: start.elapsed(),
        });
        // The caller may have gone meanwhile: then nobody wants the answer.
        let _ = answer.send(answered);
        if panicked {
            return;
        }
    }
}

/// A backend that answers with another number or shape of tensors than asked must not be believed.
fn checked(
    backend: &mut dyn EncodeBackend,
    frames: &[Frame],
) -> Result<Vec<ImageTokens>, EngineError> {
    let tokens = backend.encode(frames)?;
    if tokens.len() != frames.len() {
        return Err(EngineError::Tokens {
            what: "number",
            expected: format!("{} tensors", frames.len()),
            found: format!("{} tensors", tokens.len()),
        });
    }
    for tensor in &tokens {
        tensor.check(backend.description())?;
    }
    Ok(tokens)
}
