//! Weights stored in a form of GGUF's, as ggml stores them.

use half::f16;

use super::Form;

/// Stores whole blocks of weights in [`Form::Q8_0`]: the same bytes as ggml makes of them (`quantize_row_q8_0_ref`). Of each
/// block the largest weight becomes 127 or -127 and the scale is rounded to f16. What is no number, or infinite, makes its
/// whole block none.
///
/// # Panics
/// Where `values` are no whole blocks, or `into` has not [`Form::row_bytes`] bytes for them.
pub fn store_q8_0(values: &[f32], into: &mut [u8]) {
    const FORM: Form = Form::Q8_0;
    assert!(
        FORM.row_bytes(values.len()) == Some(into.len()),
        "bytes for whole blocks"
    );
    let blocks = values.chunks_exact(FORM.block_inputs());
    for (values, block) in blocks.zip(into.chunks_exact_mut(FORM.block_bytes())) {
        let largest = values.iter().fold(0_f32, |most, x| most.max(x.abs()));
        // 0, or none where any of the block is infinite or no number.
        let sum: f32 = values.iter().map(|x| x * 0.0).sum();
        let scale = largest / 127.0 + sum;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (stored_scale, weights) = block.split_at_mut(2);
        stored_scale.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (weight, value) in weights.iter_mut().zip(values) {
            // Ties away from zero, as C's roundf.
            *weight = ((value * inverse).round() as i8).cast_unsigned();
        }
    }
}
