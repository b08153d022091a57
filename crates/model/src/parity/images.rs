//! The vision tower and the projector against the reference, over the matrix' grids, poolings and both dtypes.

use candle_core::Device;

use super::matrix::{CHECKPOINTS, matrix};
use super::{cosine, difference, println_figure};
use crate::Dtype;

/// Pooled and projected tokens of every picture: the smallest cosine of a row, and the largest difference.
fn compare(checkpoint: &str, dtype: Dtype, kind: &str) -> (f64, f32) {
    let (model, stored) = (
        matrix().model(checkpoint, dtype),
        matrix().tensors(checkpoint),
    );
    let (mut closest, mut off) = (1.0f64, 0f32);
    for index in 0.. {
        let name = format!("picture_{index}");
        if !stored.has(&name) {
            assert!(index >= 2, "{checkpoint} has {index} pictures");
            break;
        }
        let picture = stored.picture(&name);
        let tokens = model.encode(&[picture]).unwrap().remove(0);
        assert_eq!(Some(tokens.shape()), model.image_shape());
        let wide = |tensor: candle_core::Tensor| {
            let tensor = tensor.to_dtype(candle_core::DType::F32).unwrap();
            tensor.to_vec2::<f32>().unwrap()
        };
        for (stage, found) in [
            ("pooled", wide(tokens.to_tensor(&Device::Cpu).unwrap())),
            ("projected", wide(model.project(&tokens))),
        ] {
            let expected = stored.rows(&format!("{kind}{stage}_{index}"));
            off = off.max(difference(&found, &expected));
            let cosines = found.iter().zip(&expected).map(|(a, b)| cosine(a, b));
            closest = cosines.fold(closest, f64::min);
        }
    }
    (closest, off)
}

#[test]
fn image_tokens_are_the_references() {
    for checkpoint in &CHECKPOINTS[1..] {
        let (cosine, off) = compare(checkpoint, Dtype::F32, "");
        println_figure(checkpoint, off);
        assert!(
            cosine >= 0.99999 && off <= 1e-4,
            "{checkpoint}: {cosine}, {off}"
        );
        let (cosine, off) = compare(checkpoint, Dtype::Bf16, "bf16.");
        println_figure(&format!("{checkpoint} in bf16, cosine {cosine}"), off);
        assert!(cosine >= 0.9999, "{checkpoint}: {cosine}");
    }
}
