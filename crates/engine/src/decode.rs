//! The text half of the engine: several decodes at once on the model's own thread, streamed as they are written.
//!
//! A request that can never fit is refused with the arithmetic before it waits. A stream that is dropped is a decode
//! cancelled: the scheduler looks between two steps. The scheduler itself is in `scheduler`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use medfleet_core::{Class, Digest};
use medfleet_model::{Cacheable, PlacedImage, Progress};

use crate::backend::{
    Alternative, DecodeBackend, Decoding, Description, EngineError, Finish, ImageTokens, KvMemory,
    PromptSize,
};
use crate::encoding::Encoding;
use crate::health::{Health, Monitor, Patience, Reporter, Suspect};
use crate::prompt::Prompt;
use crate::speculation::{Phrases, Speculation};
use crate::text::TokenSpan;

mod beside;
mod company;
mod fit;
mod load;
mod scheduler;
mod stop;
mod stretch;
mod taken;
#[cfg(test)]
mod tests;

pub use fit::prompt_tokens;
pub use load::{DecodeLoad, Verified};

/// How much an engine takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Sequences decoded together at most; one of STAT may come beyond them.
    pub sequences_max: usize,
    /// Requests that wait in front of the thread; the next one waits in [`DecodeEngine::decode`].
    pub queue_max: usize,
    /// Tokens of prompts that are read in one forward pass at most, beside one token of each text that is written;
    /// more only where a single image has more.
    pub prefill_tokens_max: u32,
    /// Whether fewer are read at once where that takes no longer, by what the first long prompts take.
    pub prefill_measured: bool,
    /// Whether tokens may be proposed, and how many.
    pub speculation: Option<Speculation>,
}

#[derive(Debug, Clone)]
pub struct DecodeRequest {
    /// What the model is asked.
    pub prompt: Prompt,
    /// Tokens of each image the prompt names, in order.
    pub images: Vec<ImageTokens>,
    pub decoding: Decoding,
    /// Who may share what was read of the prompt: requests of different scopes share nothing, not even time.
    pub scope: Digest,
    /// Who goes before it, and whether it may wait for others beside a busy encoder.
    pub haste: Haste,
}

impl DecodeRequest {
    /// Its prompt, of which nothing is read: these tokens, with an image at each of these places.
    pub(crate) fn progress(
        &self,
        (tokens, places): (&[u32], &[usize]),
        tokens_per_image: u32,
        block_tokens: usize,
    ) -> Progress {
        let placed = places.iter().zip(&self.images);
        let placed: Vec<PlacedImage> = placed
            .map(|(first, image)| PlacedImage {
                first: *first,
                digest: Digest::new(*blake3::hash(&image.bytes).as_bytes()),
            })
            .collect();
        let cacheable = Cacheable {
            scope: self.scope,
            tokens,
            images: &placed,
            tokens_per_image: tokens_per_image as usize,
        };
        Progress::new(&cacheable, block_tokens)
    }
}

/// How soon a text matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Haste {
    /// Class of its job. STAT waits for nobody, other classes not for lower ones: a text of STAT begins with the next pass
    /// wherever it fits beside the others of STAT, and those of lower classes give way to it.
    pub class: Class,
    /// What is left of the job's time.
    pub time_left: Duration,
}

impl Haste {
    /// Waits for nobody.
    pub const STAT: Self = Self {
        class: Class::Stat,
        time_left: Duration::MAX,
    };
}

/// What a decode reports.
#[derive(Debug, Clone, PartialEq)]
pub enum DecodeEvent {
    /// The next piece of text, never empty.
    Text(String),
    /// The end; nothing follows.
    Done(Done),
}

/// The end of a decode.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// Why it ended.
    pub finish: Finish,
    /// The tokens written, by the bytes of the text they wrote.
    pub tokens: Vec<TokenSpan>,
    /// For each token the most likely ones in its place; empty unless asked for.
    pub alternatives: Vec<Vec<Alternative>>,
    /// Length of the prompt.
    pub prompt: PromptSize,
    /// Request taken to first token.
    pub time_to_first_token: Duration,
    /// First token to last, those that are not shown included.
    pub decode: Duration,
    /// Tokens chosen, at least 1: beside those of the text those of thinking, and the one that ended it.
    pub steps: u32,
    /// Tokens of the prompt that were in memory already, from requests of the same scope.
    pub prefix_tokens: u32,
    /// How often it gave its memory to a request of a higher class or an older one, and was read again.
    pub preemptions: u32,
}

/// A handle on the decoder's thread; cheap to clone. The thread ends when the last handle is dropped and its work is done.
#[derive(Debug, Clone)]
pub struct DecodeEngine {
    requests: mpsc::Sender<scheduler::Request>,
    description: Arc<Description>,
    /// Before anything was taken of it.
    kv: KvMemory,
    monitor: Monitor,
    load: Arc<load::Gauges>,
    /// Where tokens are proposed: what tenants' texts had in common.
    phrases: Option<Phrases>,
    /// Where it shares its device: what the encoder does.
    encoding: Option<Encoding>,
}

/// The events of one decode. Dropping it cancels the decode.
#[derive(Debug)]
pub struct DecodeStream {
    events: mpsc::Receiver<Result<DecodeEvent, EngineError>>,
    monitor: Monitor,
    suspect: Suspect,
    encoding: Option<Encoding>,
}

impl DecodeEngine {
    /// Starts the thread, on a device of its own.
    pub fn start(backend: Box<dyn DecodeBackend>, limits: DecodeLimits) -> io::Result<Self> {
        Self::start_beside(backend, limits, None)
    }

    /// Starts the thread. Where an encoder computes on the same device, texts wait for company while it is busy, as long as
    /// that makes more reports of the same time.
    pub fn start_beside(
        backend: Box<dyn DecodeBackend>,
        limits: DecodeLimits,
        encoding: Option<Encoding>,
    ) -> io::Result<Self> {
        Self::start_with(backend, limits, encoding, Patience::SAFE)
    }

    fn start_with(
        mut backend: Box<dyn DecodeBackend>,
        limits: DecodeLimits,
        encoding: Option<Encoding>,
        patience: Patience,
    ) -> io::Result<Self> {
        let phrases = limits
            .speculation
            .map(|speculation| Phrases::new(speculation.memory_bytes_max))
            .filter(|phrases| backend.speculate(phrases.clone()));
        let limits = DecodeLimits {
            speculation: limits.speculation.filter(|_| phrases.is_some()),
            prefill_measured: limits.prefill_measured && backend.rows_stand_alone(),
            ..limits
        };
        let (requests, receiver) = mpsc::channel(limits.queue_max.max(1));
        let (reporter, monitor) = Reporter::new(patience);
        let (description, kv) = (Arc::new(backend.description().clone()), backend.kv());
        let load = Arc::new(load::Gauges::default());
        let shown = Arc::clone(&load);
        let beside = encoding.clone().map(beside::Beside::new);
        std::thread::Builder::new()
            .name("decode-model".to_owned())
            .spawn(move || {
                let scheduler = scheduler::Scheduler::new(backend, limits, reporter, shown, beside);
                scheduler.serve(receiver);
            })?;
        Ok(Self {
            requests,
            description,
            kv,
            monitor,
            load,
            phrases,
            encoding,
        })
    }

    /// The encoder beside it, where it shares its device.
    pub fn encoding(&self) -> Option<Encoding> {
        self.encoding.clone()
    }

    /// What is known of earlier texts, where tokens are proposed: it was asked for, and this model on this device can do it
    /// without changing a text.
    pub fn phrases(&self) -> Option<Phrases> {
        self.phrases.clone()
    }

    /// Tells how busy it is, also after the last handle is gone.
    pub fn load(&self) -> impl Fn() -> DecodeLoad + Send + Sync + use<> {
        let (load, monitor) = (Arc::clone(&self.load), self.monitor.clone());
        move || load.read(monitor.call())
    }

    /// The most images, of this many, that one prompt may have beside a text of so many tokens, where the memory of keys and values
    /// holds no more than that; nothing where it holds all that the context does.
    pub fn images_held(&self, images: u32, text: u32) -> Option<u32> {
        fit::images_held(&self.kv, &self.description, images, text)
    }

    /// What the decoder is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Whether it can still work.
    pub fn health(&self) -> Health {
        self.monitor.health()
    }

    /// Whether it can still work, for whoever waits for its end.
    pub(crate) const fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Queues a decode; returns its stream once the engine has looked at it and found that it can fit.
    ///
    /// # Errors
    /// Images that are not what the prompt and the model need, a request that can never fit, an engine that has ended.
    pub async fn decode(&self, request: DecodeRequest) -> Result<DecodeStream, EngineError> {
        if request.images.len() != request.prompt.images() {
            return Err(EngineError::Tokens {
                what: "number",
                expected: format!("{} images as the prompt names", request.prompt.images()),
                found: format!("{} images", request.images.len()),
            });
        }
        for image in &request.images {
            image.check(&self.description)?;
        }
        // Every token is at most one event, and the end is one more: the thread never waits for a slow reader.
        let capacity = request.decoding.max_tokens as usize + 2;
        // More is not to be had of tokio; contexts are far smaller.
        let (events, receiver) = mpsc::channel(capacity.min(Semaphore::MAX_PERMITS));
        let (admitted, answer) = oneshot::channel();
        let suspect = Suspect::default();
        let request = scheduler::Request {
            request,
            events,
            suspect: suspect.clone(),
            admitted,
        };
        // Dropped while it waits here, the request is cancelled like any other.
        let stream = DecodeStream {
            events: receiver,
            monitor: self.monitor.clone(),
            suspect,
            encoding: self.encoding.clone(),
        };
        self.monitor.send(&self.requests, request).await?;
        if let Some(encoding) = &self.encoding {
            encoding.changed();
        }
        let answer = self.monitor.answer(&stream.suspect, answer).await?;
        answer.map_err(|_| self.monitor.gone(&stream.suspect))??;
        Ok(stream)
    }
}

impl DecodeStream {
    /// The next event. After [`DecodeEvent::Done`] or an error nothing follows: do not call it again.
    pub async fn next(&mut self) -> Result<DecodeEvent, EngineError> {
        let event = self.monitor.answer(&self.suspect, self.events.recv());
        match event.await? {
            Some(event) => event,
            None => Err(self.monitor.gone(&self.suspect)),
        }
    }

    /// All of the text that is still to come, and how it ended; nothing follows, as after [`DecodeStream::next`]'s last.
    pub async fn collect(&mut self) -> Result<(String, Done), EngineError> {
        let mut text = String::new();
        loop {
            match self.next().await? {
                DecodeEvent::Text(delta) => text.push_str(&delta),
                DecodeEvent::Done(done) => return Ok((text, done)),
            }
        }
    }
}

impl Drop for DecodeStream {
    fn drop(&mut self) {
        if let Some(encoding) = &self.encoding {
            // Closed first: whoever waits for company looks once.
            self.events.close();
            encoding.changed();
        }
    }
}
