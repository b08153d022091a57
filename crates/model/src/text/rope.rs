//! Rotary position embedding: cosines and sines for just the positions of a batch, in f32 whatever the model's dtype.
//! bf16 has no exact integers above 256, so positions must never pass through it.

use candle_core::{DType, Device, Tensor};

use crate::config::{LayerKind, TextConfig};
use crate::error::BackendError;
use crate::text::Mutations;

/// The tables of one batch, one pair per kind of layer, each [rows, 1, head_dim / 2] f32.
pub(crate) struct Rope {
    local: (Tensor, Tensor),
    global: (Tensor, Tensor),
}

impl Rope {
    pub(crate) fn new(
        config: &TextConfig,
        positions: &[usize],
        mutations: Mutations,
        device: &Device,
    ) -> Result<Self, BackendError> {
        let factor = if mutations.no_rope_factor {
            1.0
        } else {
            config.rope_global_factor
        };
        let table = |theta, factor| {
            let (cos, sin) = angles(positions, config.head_dim, theta, factor);
            let shape = (positions.len(), 1, config.head_dim / 2);
            Ok::<_, BackendError>((
                Tensor::from_vec(cos, shape, device)?,
                Tensor::from_vec(sin, shape, device)?,
            ))
        };
        Ok(Self {
            local: table(config.rope_local_theta, 1.0)?,
            global: table(config.rope_global_theta, factor)?,
        })
    }

    /// x [rows, heads, head_dim]: the first half of a head is rotated against the second half.
    pub(crate) fn apply(&self, x: &Tensor, kind: LayerKind) -> Result<Tensor, BackendError> {
        let (cos, sin) = match kind {
            LayerKind::Local => &self.local,
            LayerKind::Global => &self.global,
        };
        let half = x.dim(2)? / 2;
        let wide = x.to_dtype(DType::F32)?;
        let (a, b) = (wide.narrow(2, 0, half)?, wide.narrow(2, half, half)?);
        let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        Ok(Tensor::cat(&[first, second], 2)?.to_dtype(x.dtype())?)
    }
}

/// position × theta^(−2i / dim) / factor, rounded to f32 at each step as the reference does.
fn angles(positions: &[usize], dim: usize, theta: f64, factor: f64) -> (Vec<f32>, Vec<f32>) {
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / dim as f32;
        (1.0 / (theta as f32).powf(exponent)) / factor as f32
    };
    let frequencies: Vec<f32> = (0..dim / 2).map(frequency).collect();
    let angle = |position: &usize| {
        let position = *position as f32;
        frequencies
            .iter()
            .map(move |frequency| position * frequency)
            .collect::<Vec<_>>()
    };
    positions
        .iter()
        .flat_map(angle)
        .map(|angle| (angle.cos(), angle.sin()))
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(position: usize, factor: f64, expected: f32) {
        let (cos, sin) = angles(&[position], 4, 10_000.0, factor);
        assert!((cos[0] - expected.cos()).abs() < 1e-6 && (sin[0] - expected.sin()).abs() < 1e-6);
        assert!((sin[1] - (expected / 100.0).sin()).abs() < 1e-6);
    }

    #[test]
    fn the_factor_divides_positions() {
        check(0, 1.0, 0.0);
        check(257, 1.0, 257.0);
        check(257, 8.0, 32.125);
    }
}
