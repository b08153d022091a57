//! Whether a request can ever fit, with the arithmetic for whoever asked too much.

use crate::backend::{DecodeBackend, EngineError, PromptSize};

/// Looks whether a prompt of this size and a text of so many tokens fit the model's context, and its memory when they are alone.
///
/// # Errors
/// [`EngineError::TooLong`].
pub(super) fn fit(
    backend: &dyn DecodeBackend,
    size: PromptSize,
    text: u32,
) -> Result<(), EngineError> {
    let total = u64::from(size.tokens) + u64::from(text);
    let context = backend.description().context_tokens_max;
    let asked = format!(
        "the prompt has {} tokens ({} of images) and the text may have {text}: {total}",
        size.tokens, size.image_tokens
    );
    if total > u64::from(context) {
        let arithmetic = format!("{asked} tokens; the model's context is {context}");
        return Err(EngineError::TooLong { arithmetic });
    }
    let kv = backend.kv();
    let blocks = kv.blocks_of(total);
    if blocks > kv.blocks {
        let bytes = (blocks as u64).saturating_mul(kv.block_bytes);
        let arithmetic = format!(
            "{asked} tokens take {blocks} blocks of {} bytes, {bytes} bytes of KV memory; the budget of {} bytes holds {} blocks",
            kv.block_bytes, kv.budget_bytes, kv.blocks
        );
        return Err(EngineError::TooLong { arithmetic });
    }
    Ok(())
}
