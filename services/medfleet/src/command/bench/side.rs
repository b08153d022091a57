//! One of the models that `bench model` compares, with what it is in the middle of: an encoded image and texts that are being
//! written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use medfleet_model::{
    BlockTable, Chunk, Frame, ImageSpan, ImageTokens, KvOptions, KvPool, LogitRows, Message, Model,
    Prompt, Want,
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::sample::Sample;

/// Positions in a block, as the fleet has it.
const BLOCK_TOKENS: usize = 16;
/// Words of the prompt beside its image: about 300 tokens with it.
const WORDS: usize = 30;
/// Steps before those that count, of each turn.
const WARM_STEPS: usize = 1;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Encode,
    /// A prompt with an image that is encoded already, until its first logits.
    Prefill,
    /// One step of so many texts side by side.
    Step(usize),
}

/// How much of it.
#[derive(Clone, Debug)]
pub(super) struct Amounts {
    /// How often a prompt is read in a turn.
    pub(super) repeat: usize,
    /// How often an image is encoded in a turn.
    pub(super) images: usize,
    /// Texts side by side.
    pub(super) batch: Vec<usize>,
    /// Steps in a turn.
    pub(super) steps: usize,
    pub(super) turns: usize,
    /// Tokens in front of the image.
    pub(super) context: usize,
}

/// A text that is being written.
struct Text {
    table: BlockTable,
    next: u32,
    length: usize,
}

/// A model at work.
pub(super) struct Side {
    pub(super) model: Model,
    pub(super) load: Duration,
    prompt: Prompt,
    image: ImageTokens,
    pool: KvPool,
    texts: Vec<Text>,
    times: BTreeMap<Work, Vec<Time>>,
}

/// A time by the clock, and the processor's of all threads in it.
#[derive(Clone, Copy, Debug)]
struct Time {
    clock: Duration,
    processor: Duration,
}

/// When something was begun, by both.
struct Begun {
    clock: Instant,
    processor: Duration,
}

impl Begun {
    fn now() -> Result<Self> {
        Ok(Self {
            clock: Instant::now(),
            processor: processor()?,
        })
    }
}

/// The processor time of this process so far.
pub(super) fn processor() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot read the processor time")?;
    let micros = [usage.user_time(), usage.system_time()].map(|time| time.num_microseconds());
    Ok(Duration::from_micros(
        micros.iter().sum::<i64>().unsigned_abs(),
    ))
}

/// Samples of one work.
pub(super) struct Samples {
    pub(super) clock: Sample,
    /// Of all threads together: on a machine that does other things too, it says more.
    pub(super) processor: Sample,
}

impl Side {
    /// Warms up: encodes an image, and reads the prompt of every text.
    pub(super) fn new((model, load): (Model, Duration), amounts: &Amounts) -> Result<Self> {
        let image = encode(&model, 0)?;
        let prompt = prompt(&model, amounts.context)?;
        let count = amounts.batch.iter().copied().max().unwrap_or(0);
        ensure!(!amounts.batch.contains(&0), "--batch has a 0");
        let steps = amounts.turns * amounts.batch.len() * (WARM_STEPS + amounts.steps);
        let positions = (prompt.tokens().len() + steps).next_multiple_of(BLOCK_TOKENS);
        let options = KvOptions {
            block_tokens: BLOCK_TOKENS,
            budget_bytes: (count + 1) * positions * model.kv_position_bytes(),
        };
        let pool = model.kv_pool(options).context("no room for the cache")?;
        let mut side = Self {
            model,
            load,
            prompt,
            image,
            pool,
            texts: Vec::new(),
            times: BTreeMap::new(),
        };
        // Texts side by side have no image: a step's time is that of the weights, and reading sixteen images is minutes.
        let short = match amounts.context {
            0 => words(&side.model)?,
            _ => side.prompt.clone(),
        };
        for _ in 0..count {
            let text = side.read(&short, positions)?;
            side.texts.push(text);
        }
        Ok(side)
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt.tokens().len()
    }

    /// The times of all turns.
    pub(super) fn samples(&self) -> BTreeMap<Work, Samples> {
        let samples = self.times.iter().map(|(work, times)| {
            let of = |time: fn(&Time) -> Duration| Sample::new(times.iter().map(time).collect());
            let samples = Samples {
                clock: of(|time| time.clock),
                processor: of(|time| time.processor),
            };
            (*work, samples)
        });
        samples.collect()
    }

    /// One turn of everything.
    pub(super) fn turn(&mut self, turn: usize, amounts: &Amounts) -> Result<()> {
        for index in 0..amounts.images {
            let begun = Begun::now()?;
            encode(&self.model, 1 + turn * amounts.images + index)?;
            self.note(Work::Encode, &begun)?;
        }
        for _ in 0..amounts.repeat {
            let begun = Begun::now()?;
            let prompt = self.prompt.clone();
            let text = self.read(&prompt, prompt.tokens().len())?;
            self.note(Work::Prefill, &begun)?;
            self.pool.release(text.table);
        }
        for count in amounts.batch.clone() {
            for step in 0..WARM_STEPS + amounts.steps {
                let begun = Begun::now()?;
                self.step(count)?;
                if step >= WARM_STEPS {
                    self.note(Work::Step(count), &begun)?;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, work: Work, begun: &Begun) -> Result<()> {
        let time = Time {
            clock: begun.clock.elapsed(),
            processor: processor()?.saturating_sub(begun.processor),
        };
        self.times.entry(work).or_default().push(time);
        Ok(())
    }

    /// Reads the prompt into the pool, with room for so many positions.
    fn read(&mut self, prompt: &Prompt, positions: usize) -> Result<Text> {
        let mut table = BlockTable::default();
        self.pool.reserve(&mut table, positions)?;
        let (tokens, mut start, mut last) = (prompt.tokens(), 0, None);
        while start < tokens.len() {
            let range = prompt.chunk(start, 512);
            let at = prompt.images().iter();
            let images: Vec<ImageSpan> = at
                .filter(|first| range.contains(first))
                .map(|first| ImageSpan {
                    offset: first - range.start,
                    tokens: &self.image,
                })
                .collect();
            let chunk = Chunk {
                tokens: &tokens[range.clone()],
                images: &images,
                start,
                table: &table,
                want: if range.end == tokens.len() {
                    Want::Likeliest
                } else {
                    Want::Nothing
                },
            };
            last = self.model.forward(&mut self.pool, &[chunk])?.pop();
            start = range.end;
        }
        Ok(Text {
            next: best(&last.context("an empty prompt")?)?,
            table,
            length: tokens.len(),
        })
    }

    /// One token more of the first texts.
    fn step(&mut self, count: usize) -> Result<()> {
        let texts = &mut self.texts[..count];
        let chunks: Vec<Chunk> = texts
            .iter()
            .map(|text| Chunk {
                tokens: std::slice::from_ref(&text.next),
                images: &[],
                start: text.length,
                table: &text.table,
                want: Want::Likeliest,
            })
            .collect();
        let logits = self.model.forward(&mut self.pool, &chunks)?;
        let tokens = logits.iter().map(best).collect::<Result<Vec<_>>>()?;
        for (text, token) in texts.iter_mut().zip(tokens) {
            text.next = token;
            text.length += 1;
        }
        Ok(())
    }
}

/// A grey image that differs from turn to turn.
fn encode(model: &Model, turn: usize) -> Result<ImageTokens> {
    let vision = model.config().vision.as_ref();
    let side = vision.context("the model takes no images")?.image_size;
    let pixels = (0..side * side).map(|at| ((at + 31 * turn) % 251) as u8);
    let frame = Frame::new(side, 1, pixels.collect()).context("cannot make an image")?;
    let tokens = model
        .encode(&[frame])
        .context("cannot encode the image")?
        .pop();
    tokens.context("no tokens of an image")
}

/// About [`WORDS`] words and no image.
fn words(model: &Model) -> Result<Prompt> {
    let message = Message::user(0, vec!["lungs"; WORDS].join(" "));
    let prompt = model.prompt(&[message], 0);
    prompt.context("cannot build the prompt")
}

/// One image and about [`WORDS`] words, after as many tokens as are asked for.
fn prompt(model: &Model, context: usize) -> Result<Prompt> {
    let words = |count: usize| vec!["lungs"; count].join(" ");
    let build = |before: usize| {
        let mut message = Message::user(1, words(WORDS));
        if before > 0 {
            message = merged(&Message::user(0, words(before)), &message);
        }
        model
            .prompt(&[message], 1)
            .context("cannot build the prompt")
    };
    // A word is some tokens of this tokenizer: measured, then asked for.
    let bare = build(0)?;
    if context == 0 {
        return Ok(bare);
    }
    let each = (build(100)?.tokens().len() - bare.tokens().len()).max(1) as f64 / 100.0;
    build((context as f64 / each) as usize)
}

fn merged(context: &Message, question: &Message) -> Message {
    let mut parts = context.parts.clone();
    parts.extend(question.parts.iter().cloned());
    Message {
        role: question.role,
        parts,
    }
}

/// The likeliest token that stands for text, of the last row; where the device has found one, that.
fn best(logits: &LogitRows) -> Result<u32> {
    if let Some(choice) = logits.likeliest {
        return Ok(choice.token);
    }
    let row = logits.rows.last().context("no logits")?;
    // Ids beyond the small tokenizer's are numbers only; those below include the image's, which may not stand alone.
    const FIRST: usize = 1024;
    let mut found = FIRST;
    for (id, value) in row.iter().enumerate().skip(FIRST) {
        if *value > row[found] {
            found = id;
        }
    }
    Ok(u32::try_from(found)?)
}
