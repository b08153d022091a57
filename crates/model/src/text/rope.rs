//! Rotary position embedding. Angles, cosines and sines are computed in f32 whatever the model's dtype, since bf16 has no
//! exact integers above 256; the tables are then rounded to it, and rotation is done in it, as the reference does.
//!
//! Tables are built once, shared by all layers of a kind, and reach only as far as any sequence has come.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use crate::config::{LayerKind, TextConfig};
use crate::dtype::Dtype;
use crate::error::BackendError;
use crate::fused;
use crate::layers::RmsNorm;
use crate::text::Mutations;

/// Rows built first; then as many again as there are, so that a long answer rebuilds them a few times only.
const ROWS_MIN: usize = 1024;

/// What all positions of a kind of layer share.
struct Spin {
    theta: f64,
    factor: f64,
}

/// Cosines and sines, each [positions, head_dim / 2].
#[derive(Clone)]
struct Pair {
    cos: Tensor,
    sin: Tensor,
}

struct Built {
    rows: usize,
    local: Pair,
    global: Pair,
}

/// The tables of both kinds of layer, as far as they were needed.
pub(crate) struct Tables {
    local: Spin,
    global: Spin,
    head_dim: usize,
    rows_max: usize,
    dtype: Dtype,
    device: Device,
    round_positions: bool,
    built: Mutex<Option<Built>>,
}

impl Tables {
    pub(crate) fn new(
        config: &TextConfig,
        dtype: Dtype,
        mutations: Mutations,
        device: &Device,
    ) -> Self {
        let factor = if mutations.no_rope_factor {
            1.0
        } else {
            config.rope_global_factor
        };
        Self {
            local: Spin {
                theta: config.rope_local_theta,
                factor: 1.0,
            },
            global: Spin {
                theta: config.rope_global_theta,
                factor,
            },
            head_dim: config.head_dim,
            rows_max: config.positions_max,
            dtype,
            device: device.clone(),
            round_positions: mutations.bf16_positions,
            built: Mutex::new(None),
        }
    }

    #[cfg(test)]
    pub(crate) const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The rows of a batch, extending the tables where a position lies beyond them.
    pub(crate) fn of(&self, positions: &[usize]) -> Result<Rope, BackendError> {
        let end = positions.iter().max().map_or(0, |last| last + 1);
        // A table is replaced whole or not at all, so one left by a panic is as good as any.
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let built = match &mut *built {
            Some(built) if built.rows >= end => built,
            place => place.insert(self.build(end)?),
        };
        // Positions are below the context, which fits u32 with room (`SIZE_MAX` of the configuration).
        let rows: Vec<u32> = positions.iter().map(|position| *position as u32).collect();
        let rows = Tensor::new(rows, &self.device)?;
        let pick = |pair: &Pair| {
            let of = |table: &Tensor| table.index_select(&rows, 0)?.unsqueeze(1);
            Ok::<_, candle_core::Error>(Pair {
                cos: of(&pair.cos)?,
                sin: of(&pair.sin)?,
            })
        };
        Ok(Rope {
            local: pick(&built.local)?,
            global: pick(&built.global)?,
        })
    }

    fn build(&self, end: usize) -> Result<Built, BackendError> {
        let rows = end
            .next_power_of_two()
            .max(ROWS_MIN)
            .min(self.rows_max.max(end));
        let table = |spin: &Spin| {
            let (cos, sin) = angles(0..rows, self.head_dim, spin, self.round_positions);
            let tensor = |values| {
                Tensor::from_vec(values, (rows, self.head_dim / 2), &self.device)?
                    .to_dtype(self.dtype.candle())
            };
            Ok::<_, BackendError>(Pair {
                cos: tensor(cos)?,
                sin: tensor(sin)?,
            })
        };
        Ok(Built {
            rows,
            local: table(&self.local)?,
            global: table(&self.global)?,
        })
    }
}

/// The tables of one batch, each [rows, 1, head_dim / 2].
pub(crate) struct Rope {
    local: Pair,
    global: Pair,
}

impl Rope {
    /// x [rows, heads, head_dim] through a norm of each head, then rotated.
    pub(crate) fn apply_after(
        &self,
        norm: &RmsNorm,
        x: &Tensor,
        kind: LayerKind,
    ) -> Result<Tensor, BackendError> {
        let Pair { cos, sin } = self.of(kind);
        if let Some(norm) = norm.cpu() {
            return norm.rotated(x, cos, sin);
        }
        match fused::norm_rope(x, norm.scale(), cos, sin)? {
            Some(rotated) => Ok(rotated),
            None => self.apply(&norm.forward(x)?, kind),
        }
    }

    const fn of(&self, kind: LayerKind) -> &Pair {
        match kind {
            LayerKind::Local => &self.local,
            LayerKind::Global => &self.global,
        }
    }

    /// x [rows, heads, head_dim]: the first half of a head is rotated against the second half.
    fn apply(&self, x: &Tensor, kind: LayerKind) -> Result<Tensor, BackendError> {
        let Pair { cos, sin } = self.of(kind);
        let half = x.dim(2)? / 2;
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        Ok(Tensor::cat(&[first, second], 2)?)
    }
}

/// position × theta^(−2i / dim) / factor, rounded to f32 at each step as the reference does.
fn angles(
    positions: std::ops::Range<usize>,
    dim: usize,
    spin: &Spin,
    round_positions: bool,
) -> (Vec<f32>, Vec<f32>) {
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / dim as f32;
        (1.0 / (spin.theta as f32).powf(exponent)) / spin.factor as f32
    };
    let frequencies: Vec<f32> = (0..dim / 2).map(frequency).collect();
    let angle = |position: usize| {
        let mut position = position as f32;
        if round_positions {
            position = f32::from_bits((position.to_bits() + 0x8000) & 0xFFFF_0000);
        }
        frequencies
            .iter()
            .map(move |frequency| position * frequency)
            .collect::<Vec<_>>()
    };
    positions
        .flat_map(angle)
        .map(|angle| (angle.cos(), angle.sin()))
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(position: usize, factor: f64, expected: f32) {
        let spin = Spin {
            theta: 10_000.0,
            factor,
        };
        let (cos, sin) = angles(position..position + 1, 4, &spin, false);
        assert!((cos[0] - expected.cos()).abs() < 1e-6 && (sin[0] - expected.sin()).abs() < 1e-6);
        assert!((sin[1] - (expected / 100.0).sin()).abs() < 1e-6);
    }

    #[test]
    fn the_factor_divides_positions() {
        check(0, 1.0, 0.0);
        check(257, 1.0, 257.0);
        check(257, 8.0, 32.125);
    }

    #[test]
    fn tables_reach_as_far_as_needed_and_no_further() {
        let config =
            r#"{"model_type": "gemma3_text", "head_dim": 4, "max_position_embeddings": 5000}"#;
        let config = crate::config::Config::parse(config, None).unwrap().text;
        let tables = Tables::new(&config, Dtype::F32, Mutations::default(), &Device::Cpu);
        let rows = |tables: &Tables| tables.built.lock().unwrap().as_ref().map(|b| b.rows);
        assert_eq!(rows(&tables), None);
        tables.of(&[3, 0]).unwrap();
        assert_eq!(rows(&tables), Some(ROWS_MIN));
        let far = tables.of(&[1500, 3]).unwrap();
        assert_eq!(rows(&tables), Some(2048));
        tables.of(&[7]).unwrap();
        assert_eq!(rows(&tables), Some(2048));
        // Rows are those of their positions, in the batch's order.
        let sines = far.local.sin.squeeze(1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((sines[0][0], sines[1][0]), (1500f32.sin(), 3f32.sin()));
        tables.of(&[4999]).unwrap();
        assert_eq!(rows(&tables), Some(5000));
    }
}
