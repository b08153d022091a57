//! The loop on the model's thread: continuous batching. Between two steps at most one waiting request is read in
//! (prefill), so that a newcomer delays the running texts by one prompt at most; then one forward pass writes the next
//! token of every active sequence.
//!
//! Memory is reserved for prompt and longest text when a sequence begins, so that a running one is never evicted.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::{DecodeEvent, DecodeLimits, DecodeRequest, Done};
use crate::backend::{DecodeBackend, EngineError, PromptSize, Sequence, Step};
use crate::health::Reporter;
use crate::text::TokenSpan;

type Events = mpsc::Sender<Result<DecodeEvent, EngineError>>;

/// A request on its way to the thread.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) request: DecodeRequest,
    pub(super) events: Events,
    pub(super) admitted: oneshot::Sender<Result<(), EngineError>>,
}

/// A request that fits and waits for memory.
struct Waiting {
    request: DecodeRequest,
    events: Events,
    size: PromptSize,
    kv_bytes: u64,
    arrived: Instant,
}

/// A sequence that is being written.
struct Active {
    sequence: Sequence,
    events: Events,
    size: PromptSize,
    kv_bytes: u64,
    arrived: Instant,
    first_token: Instant,
    text_bytes: u32,
    tokens: Vec<TokenSpan>,
}

pub(super) struct Scheduler {
    backend: Box<dyn DecodeBackend>,
    limits: DecodeLimits,
    reporter: Reporter,
    waiting: VecDeque<Waiting>,
    active: Vec<Active>,
    kv_bytes_used: u64,
    next_sequence: u64,
}

/// The model panicked: the thread must end.
struct Panicked;

impl Scheduler {
    pub(super) fn new(
        backend: Box<dyn DecodeBackend>,
        limits: DecodeLimits,
        reporter: Reporter,
    ) -> Self {
        Self {
            backend,
            limits,
            reporter,
            waiting: VecDeque::new(),
            active: Vec::new(),
            kv_bytes_used: 0,
            next_sequence: 0,
        }
    }

    /// Serves until every handle is gone and every sequence has ended, or until the model panics.
    pub(super) fn serve(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut open = true;
        loop {
            if open && self.active.is_empty() && self.waiting.is_empty() {
                match requests.blocking_recv() {
                    Some(request) => {
                        if self.look_at(request).is_err() {
                            return;
                        }
                    }
                    None => open = false,
                }
            }
            while open && self.waiting.len() < self.limits.queue_max.max(1) {
                match requests.try_recv() {
                    Ok(request) => {
                        if self.look_at(request).is_err() {
                            return;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            if !open && self.active.is_empty() && self.waiting.is_empty() {
                return;
            }
            self.drop_cancelled();
            if self.begin_one().is_err() || self.step_all().is_err() {
                return;
            }
        }
    }

    /// Refuses what can never fit; queues the rest.
    fn look_at(&mut self, request: Request) -> Result<(), Panicked> {
        let Request {
            request,
            events,
            admitted,
        } = request;
        let fit = self.fit(&request);
        let panicked = matches!(fit, Err(EngineError::Panicked));
        let answer = fit.map(|(size, kv_bytes)| {
            let arrived = Instant::now();
            self.waiting.push_back(Waiting {
                request,
                events,
                size,
                kv_bytes,
                arrived,
            });
        });
        // A caller that is gone meanwhile has also dropped its stream: the next look at cancellations finds it.
        let _ = admitted.send(answer);
        if panicked {
            Err(self.fail_all())
        } else {
            Ok(())
        }
    }

    fn fit(&self, request: &DecodeRequest) -> Result<(PromptSize, u64), EngineError> {
        let size = self
            .reporter
            .guard(|| self.backend.measure(&request.prompt))?;
        let text = request.decoding.max_tokens;
        let total = u64::from(size.tokens) + u64::from(text);
        let context = self.backend.description().context_tokens_max;
        let asked = format!(
            "the prompt has {} tokens ({} of images) and the text may have {text}: {total}",
            size.tokens, size.image_tokens
        );
        if total > u64::from(context) {
            let arithmetic = format!("{asked} tokens; the model's context is {context}");
            return Err(EngineError::TooLong { arithmetic });
        }
        // Within the context, which is a u32.
        let kv_bytes = self.backend.kv_bytes(size.tokens + text);
        if kv_bytes > self.limits.kv_bytes_max {
            let max = self.limits.kv_bytes_max;
            let arithmetic =
                format!("{asked} tokens take {kv_bytes} bytes of KV memory; the budget is {max}");
            return Err(EngineError::TooLong { arithmetic });
        }
        Ok((size, kv_bytes))
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|waiting| !waiting.events.is_closed());
        let mut index = 0;
        while index < self.active.len() {
            if self.active[index].events.is_closed() {
                self.end(index);
            } else {
                index += 1;
            }
        }
    }

    /// Reads in the request that waits longest, if there is room for it.
    fn begin_one(&mut self) -> Result<(), Panicked> {
        let room = self.active.len() < self.limits.sequences_max.max(1);
        let fits =
            |waiting: &Waiting| self.kv_bytes_used + waiting.kv_bytes <= self.limits.kv_bytes_max;
        if !room || !self.waiting.front().is_some_and(fits) {
            return Ok(());
        }
        let Some(waiting) = self.waiting.pop_front() else {
            return Ok(());
        };
        let Waiting {
            request,
            events,
            size,
            kv_bytes,
            arrived,
        } = waiting;
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        let backend = self.backend.as_mut();
        let first = self.reporter.guard(|| {
            backend.prefill(
                sequence,
                &request.prompt,
                &request.images,
                &request.decoding,
            )
        });
        match first {
            Ok(step) => {
                self.kv_bytes_used += kv_bytes;
                let first_token = Instant::now();
                let (text_bytes, tokens) = (0, Vec::new());
                self.active.push(Active {
                    sequence,
                    events,
                    size,
                    kv_bytes,
                    arrived,
                    first_token,
                    text_bytes,
                    tokens,
                });
                self.take(self.active.len() - 1, step);
                Ok(())
            }
            Err(error) => {
                let panicked = matches!(error, EngineError::Panicked);
                // The reader may be gone: then nobody wants to know.
                let _ = events.try_send(Err(error));
                if panicked {
                    Err(self.fail_all())
                } else {
                    Ok(())
                }
            }
        }
    }

    /// One forward pass over every active sequence.
    fn step_all(&mut self) -> Result<(), Panicked> {
        if self.active.is_empty() {
            return Ok(());
        }
        let sequences: Vec<Sequence> = self.active.iter().map(|active| active.sequence).collect();
        let backend = self.backend.as_mut();
        let outcome = self.reporter.guard(|| {
            let steps = backend.step(&sequences)?;
            if steps.len() == sequences.len() {
                Ok(steps)
            } else {
                Err(EngineError::Model(
                    "another number of steps than sequences".into(),
                ))
            }
        });
        match outcome {
            Ok(steps) => {
                // From the back, so that ending one does not move those still to come.
                for (index, step) in steps.into_iter().enumerate().rev() {
                    self.take(index, step);
                }
                Ok(())
            }
            Err(EngineError::Panicked) => Err(self.fail_all()),
            Err(error) => {
                let message = error.to_string();
                while let Some(index) = self.active.len().checked_sub(1) {
                    let lost = EngineError::Model(message.clone().into());
                    // As above: a reader that is gone wants no error.
                    let _ = self.active[index].events.try_send(Err(lost));
                    self.end(index);
                }
                Ok(())
            }
        }
    }

    /// Takes in one step of one sequence; ends the sequence on its last.
    fn take(&mut self, index: usize, step: Step) {
        let active = &mut self.active[index];
        let start = active.text_bytes;
        // Texts are bounded by the context: far below 4 GiB.
        let end = start.saturating_add(u32::try_from(step.text.len()).unwrap_or(u32::MAX));
        active.text_bytes = end;
        if let Some(token) = step.token {
            let log_probability = token.log_probability;
            active.tokens.push(TokenSpan {
                start,
                end,
                log_probability,
            });
        } else if let Some(last) = active.tokens.last_mut() {
            last.end = end;
        }
        if !step.text.is_empty() {
            // A closed stream is a cancellation, which the next turn acts on; a full one cannot be (see `decode`).
            let _ = active.events.try_send(Ok(DecodeEvent::Text(step.text)));
        }
        let finish = match step.finish {
            None => return,
            Some(Ok(finish)) => finish,
            Some(Err(error)) => {
                // As above.
                let _ = active.events.try_send(Err(error.into()));
                self.end(index);
                return;
            }
        };
        let done = Done {
            finish,
            tokens: std::mem::take(&mut active.tokens),
            prompt: active.size,
            time_to_first_token: active.first_token - active.arrived,
            decode: active.first_token.elapsed(),
        };
        // As above.
        let _ = active.events.try_send(Ok(DecodeEvent::Done(done)));
        self.end(index);
    }

    fn end(&mut self, index: usize) {
        let ended = self.active.swap_remove(index);
        self.kv_bytes_used -= ended.kv_bytes;
        self.backend.release(ended.sequence);
    }

    /// After a panic nothing of the model is used again: every stream learns it.
    fn fail_all(&mut self) -> Panicked {
        let active = self.active.drain(..).map(|active| active.events);
        for events in active.chain(self.waiting.drain(..).map(|waiting| waiting.events)) {
            // As above.
            let _ = events.try_send(Err(EngineError::Panicked));
        }
        Panicked
    }
}
