//! Several tokens of a text in one forward pass: the next ones are proposed, all are verified at once, and those that the
//! model would have written anyway are kept. Nothing of it shows in a text, so it is only done where the logits of a row are
//! the same bits whatever else is in the pass.
//!
//! Proposals need no second model: they are what followed the last tokens where the text, or its prompt, had them before
//! ([`proposals`]), or where the same tenant's earlier texts had them ([`memory`]). How often they are right is measured
//! ([`chances`]), what a longer pass costs is too ([`pace`]), and as many are verified as pay: often none.

pub(crate) mod chances;
pub(crate) mod memory;
pub(crate) mod pace;
pub(crate) mod proposals;

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
