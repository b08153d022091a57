//! What a forward is asked for, and the checks that make it safe to compute.

use crate::config::TextConfig;
use crate::error::ForwardError;
use crate::sampling::Choice;
use crate::text::blocks::BlockTable;
use crate::text::cache::KvPool;
use crate::tokens::ImageTokens;

/// A stretch of one sequence: a piece of its prompt, or the one token of a decode step.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Token ids; soft tokens where images stand.
    pub tokens: &'a [u32],
    /// The images of this stretch, in order; every soft token belongs to one, and each image is whole.
    pub images: &'a [ImageSpan<'a>],
    /// Position of the first token: as many tokens of this sequence are in the cache already.
    pub start: usize,
    /// Where this sequence's keys and values are; must reach `start + tokens.len()`.
    pub table: &'a BlockTable,
    /// Which logits to return.
    pub want: Want,
}

/// One image in a chunk.
#[derive(Debug, Clone, Copy)]
pub struct ImageSpan<'a> {
    /// Where its first soft token is, counted from the chunk's start.
    pub offset: usize,
    /// What the vision tower made of it.
    pub tokens: &'a ImageTokens,
}

/// Which positions of a chunk need logits: each costs a product with the whole vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// None: a prompt chunk that is not the last.
    Nothing,
    /// The last position.
    Last,
    /// What [`choose`](crate::choose) makes of the last position where it is greedy and all tokens but the forbidden ones are
    /// allowed. Where it is found beside the logits they are not carried; elsewhere, and where there is none, they are.
    Likeliest,
    /// Every position.
    All,
}

/// Logits of one chunk, f32.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitRows {
    /// One row of `vocab` values per position wanted, in order; none where `likeliest` is there.
    pub rows: Vec<Vec<f32>>,
    /// Where [`Want::Likeliest`] was asked for and it was found.
    pub likeliest: Option<Choice>,
}

/// How images stand in a sequence; absent where the checkpoint is text only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageRule {
    /// The id that stands for one image token, from the tokenizer.
    pub(crate) soft_token: u32,
    /// Length of an image's run.
    pub(crate) tokens_per_image: usize,
}

/// A checked batch, laid out as rows of one matrix.
pub(crate) struct Plan {
    /// Position in its sequence of each row.
    pub(crate) positions: Vec<usize>,
    /// First row of each chunk.
    pub(crate) rows: Vec<usize>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<u32>,
    /// Per chunk: the positions each image covers, within the sequence.
    pub(crate) runs: Vec<Vec<std::ops::Range<usize>>>,
}

impl Plan {
    pub(crate) fn check(
        chunks: &[Chunk],
        config: &TextConfig,
        pool: &KvPool,
        images: Option<ImageRule>,
    ) -> Result<Self, ForwardError> {
        let mut plan = Self {
            positions: Vec::new(),
            rows: Vec::new(),
            wanted: Vec::new(),
            runs: Vec::new(),
        };
        if chunks.is_empty() {
            return Err(ForwardError::EmptyChunk { chunk: 0 });
        }
        for (index, chunk) in chunks.iter().enumerate() {
            check_extent(index, chunk, (config, images), pool)?;
            plan.runs.push(runs(index, chunk, images)?);
            let first = plan.positions.len();
            plan.rows.push(first);
            plan.positions
                .extend(chunk.start..chunk.start + chunk.tokens.len());
            let wanted = match chunk.want {
                Want::Nothing => 0..0,
                Want::Last | Want::Likeliest => plan.positions.len() - 1..plan.positions.len(),
                Want::All => first..plan.positions.len(),
            };
            // A batch of 2³² rows would not fit any memory.
            plan.wanted.extend(wanted.map(|row| row as u32));
        }
        Ok(plan)
    }
}

fn check_extent(
    index: usize,
    chunk: &Chunk,
    (config, images): (&TextConfig, Option<ImageRule>),
    pool: &KvPool,
) -> Result<(), ForwardError> {
    if chunk.tokens.is_empty() {
        return Err(ForwardError::EmptyChunk { chunk: index });
    }
    // The soft token stands for an image and needs no row: GGUF files leave out the one it has elsewhere.
    let soft = images.map(|rule| rule.soft_token);
    let rowless = |id: &&u32| **id as usize >= config.vocab && Some(**id) != soft;
    if let Some(id) = chunk.tokens.iter().find(rowless) {
        return Err(ForwardError::TokenId {
            chunk: index,
            id: *id,
            max: config.vocab - 1,
        });
    }
    let end = chunk.start.saturating_add(chunk.tokens.len());
    if end > config.positions_max {
        return Err(ForwardError::Context {
            end,
            max: config.positions_max,
        });
    }
    let capacity = pool.capacity(chunk.table, chunk.start);
    if end > capacity {
        return Err(ForwardError::BlockTable {
            chunk: index,
            end,
            capacity,
        });
    }
    Ok(())
}

/// The positions of each image; refuses a soft token outside every image and an image that is not whole.
fn runs(
    index: usize,
    chunk: &Chunk,
    rule: Option<ImageRule>,
) -> Result<Vec<std::ops::Range<usize>>, ForwardError> {
    let Some(ImageRule {
        soft_token,
        tokens_per_image,
    }) = rule
    else {
        return if chunk.images.is_empty() {
            Ok(Vec::new())
        } else {
            Err(ForwardError::NotLoaded)
        };
    };
    let cut = |offset| ForwardError::CutImage {
        chunk: index,
        offset,
        tokens_per_image,
    };
    let is_soft = |id: &u32| *id == soft_token;
    let mut runs = Vec::with_capacity(chunk.images.len());
    let mut next = 0;
    for image in chunk.images {
        let end = image.offset.saturating_add(tokens_per_image);
        let gap = chunk
            .tokens
            .get(next..image.offset)
            .ok_or_else(|| cut(image.offset))?;
        let run = chunk
            .tokens
            .get(image.offset..end)
            .ok_or_else(|| cut(image.offset))?;
        if let Some(stray) = gap.iter().position(is_soft) {
            return Err(cut(next + stray));
        }
        if !run.iter().all(is_soft) {
            return Err(cut(image.offset));
        }
        runs.push(chunk.start + image.offset..chunk.start + end);
        next = end;
    }
    match chunk.tokens[next..].iter().position(is_soft) {
        Some(stray) => Err(cut(next + stray)),
        None => Ok(runs),
    }
}
