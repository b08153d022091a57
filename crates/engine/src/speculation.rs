//! Several tokens of a text in one forward pass: the next ones are proposed, all are verified at once, and those that the
//! model would have written anyway are kept. Nothing of it shows in a text, so it is only done where the logits of a row are
//! the same bits whatever else is in the pass.
//!
//! Proposals are what followed the last tokens where the text, or its prompt, had them before (`proposals`), or where the
//! same tenant's earlier texts had them (`memory`); and where an operator names a second, smaller model, what that would
//! write (`real`). How often they are right is measured (`chances`), what a longer pass and the second model cost is too
//! (`pace`), and as many are verified as pay: often none.

pub(crate) mod chances;
pub(crate) mod memory;
pub(crate) mod pace;
pub(crate) mod proposals;

use std::time::Duration;

pub use memory::Phrases;

/// Most tokens that may be proposed for a text at once.
pub const PROPOSED_TOKENS_MAX: u32 = 31;

/// How much may be proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens proposed for a text in one pass at most, up to [`PROPOSED_TOKENS_MAX`].
    pub tokens_max: u32,
    /// Memory for what tenants' texts had in common, all tenants together; with 0 a text is only compared with itself.
    pub memory_bytes_max: u64,
    /// Verify whatever is proposed, whether it pays or not: to compare, and for tests.
    pub always: bool,
}

/// What a proposed token is worth, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposed {
    /// The chance that it is right when those before it are.
    pub chance: f32,
    /// Whether a second model proposed it; otherwise it followed the same tokens before.
    pub drafted: bool,
}

/// What was proposed for several texts.
#[derive(Debug, Clone, Default)]
pub struct Proposing {
    /// Of each text, in order.
    pub texts: Vec<Vec<Proposed>>,
    /// What that took of a second model.
    pub steps: DraftSteps,
}

/// Steps of a second model: in each it proposes one more token of every text that goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftSteps {
    /// Texts in the first of them.
    pub texts: usize,
    /// How many; those in which more was read than what came since the last ones do not count.
    pub count: u32,
    /// What they took together.
    pub time: Duration,
}
