//! Beside an encoder on the same device: who waits for what, and who for nothing, with the simulated model.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, yield_now};

use super::*;
use crate::encode::{EncodeEngine, Encoded};
use crate::encoding::Purpose;

/// How long a state may take to come.
const SOON: Duration = Duration::from_secs(30);

/// What the device did.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Did {
    Encoded,
    /// A pass of these sequences.
    Pass(Vec<u64>),
}

/// The simulated encoder; each image waits for permission.
struct Gated {
    inner: Simulated,
    begun: UnboundedSender<()>,
    permits: blocking::Receiver<()>,
    log: Arc<Mutex<Vec<Did>>>,
}

impl EncodeBackend for Gated {
    fn description(&self) -> &Description {
        EncodeBackend::description(&self.inner)
    }
    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
        // A test that is over neither listens nor permits.
        let _ = self.begun.send(());
        let _ = self.permits.recv();
        self.log.lock().expect("no panic").push(Did::Encoded);
        self.inner.encode(frames)
    }
}

/// Both halves on one device.
struct Device {
    encoder: EncodeEngine,
    decoder: DecodeEngine,
    images: JoinSet<Result<Encoded, EngineError>>,
    begun: UnboundedReceiver<()>,
    permit: blocking::Sender<()>,
    released: Releases,
    log: Arc<Mutex<Vec<Did>>>,
}

/// Images take so long as a rule.
fn device(usual: Duration) -> Device {
    let log: Arc<Mutex<Vec<Did>>> = Arc::default();
    let (begun, begins) = unbounded_channel();
    let (permit, permits) = blocking::channel();
    let backend = Gated {
        inner: simulated(),
        begun,
        permits,
        log: Arc::clone(&log),
    };
    let encoder = EncodeEngine::start(Box::new(backend)).expect("a thread starts");
    encoder.encoding().set_usual(usual);
    let passes = Arc::clone(&log);
    let pass: Pass = Box::new(move |inner, works| {
        let sequences = works.iter().map(|work| work.sequence.0).collect();
        passes.lock().expect("no panic").push(Did::Pass(sequences));
        inner.run(works)
    });
    let (backend, released) = wrap(PLENTY, pass);
    let encoding = Some(encoder.encoding());
    let decoder = DecodeEngine::start_beside(Box::new(backend), WHOLE, encoding);
    Device {
        encoder,
        decoder: decoder.expect("a thread starts"),
        images: JoinSet::new(),
        begun: begins,
        permit,
        released,
        log,
    }
}

impl Device {
    /// The last image of a job is being encoded, until it is permitted.
    async fn encode(&mut self, class: Class) {
        let purpose = Purpose {
            class,
            is_last: true,
        };
        let encoder = self.encoder.clone();
        self.images
            .spawn(async move { encoder.encode(vec![frame(0)], purpose).await });
        self.begun.recv().await.expect("the encoder begins");
    }

    async fn text(&self, class: Class, time_left: Duration) -> DecodeStream {
        let request = DecodeRequest {
            haste: Haste { class, time_left },
            ..request(&[1], greedy())
        };
        taken(&self.decoder, request).await
    }

    async fn routine(&self) -> DecodeStream {
        self.text(Class::Routine, Duration::MAX).await
    }

    /// Waits until so many texts wait for others.
    async fn held(&self, texts: u64) {
        let begun = Instant::now();
        while self.decoder.load()().held != texts {
            assert!(begun.elapsed() < SOON, "{texts} texts do not wait");
            yield_now().await;
        }
    }
}

/// Reads a text to its end.
async fn end(mut stream: DecodeStream) {
    while let DecodeEvent::Text(_) = stream.next().await.expect("it writes") {}
}

#[tokio::test]
async fn texts_beside_a_busy_encoder_are_written_together_after_its_image() {
    let mut device = device(Duration::from_secs(3600));
    device.encode(Class::Routine).await;
    let first = device.routine().await;
    device.held(1).await;
    let second = device.routine().await;
    device.held(2).await;
    device.permit.send(()).expect("the encoder waits");
    end(first).await;
    end(second).await;
    let log = device.log.lock().expect("no panic").clone();
    let (before, passes) = log.split_first().expect("something was done");
    assert_eq!(*before, Did::Encoded);
    assert!(!passes.is_empty());
    let both = Did::Pass(vec![0, 1]);
    assert!(passes.iter().all(|pass| *pass == both), "{passes:?}");
}

#[tokio::test]
async fn a_text_that_may_not_wait_takes_those_that_wait_along() {
    for (class, time_left) in [
        (Class::Stat, Duration::MAX),
        // An image takes longer than that.
        (Class::Routine, Duration::from_secs(60)),
    ] {
        let mut device = device(Duration::from_secs(3600));
        device.encode(Class::Routine).await;
        let waits = device.routine().await;
        device.held(1).await;
        let hasty = device.text(class, time_left).await;
        end(hasty).await;
        end(waits).await;
        // The image is not encoded yet.
        let log = device.log.lock().expect("no panic").clone();
        assert!(!log.contains(&Did::Encoded), "{class}");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_lower_class_or_longer_than_a_full_company_takes() {
    for (class, usual) in [
        (Class::Bulk, Duration::from_secs(3600)),
        (Class::Routine, Duration::from_millis(1)),
    ] {
        let mut device = device(usual);
        device.encode(class).await;
        end(device.routine().await).await;
        let log = device.log.lock().expect("no panic").clone();
        assert!(!log.contains(&Did::Encoded), "{class}");
    }
}

#[tokio::test]
async fn a_text_that_waits_is_cancelled_at_once() {
    let mut device = device(Duration::from_secs(3600));
    device.encode(Class::Routine).await;
    let first = device.routine().await;
    device.held(1).await;
    drop(first);
    assert_eq!(device.released.recv().await, Some(Sequence(0)));
    assert_eq!(*device.log.lock().expect("no panic"), []);
}

#[tokio::test]
async fn who_stops_waits_for_nobody() {
    let mut device = device(Duration::from_secs(3600));
    device.encode(Class::Routine).await;
    let first = device.routine().await;
    device.held(1).await;
    device.encoder.encoding().hurry();
    end(first).await;
    let log = device.log.lock().expect("no panic").clone();
    assert!(!log.contains(&Did::Encoded));
}
