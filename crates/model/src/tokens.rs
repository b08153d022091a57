//! Image tokens: what crosses from an encode worker to a decode worker, one frame at a time.
//! Pooled but neither normalised nor projected: exact, half the size, and good for every decoder that shares the tower.

use candle_core::{Device, Tensor};

use crate::config::VisionConfig;
use crate::dtype::Dtype;
use crate::error::{BackendError, ImageTokensError};

/// The pooled output of the vision tower for one frame: [tokens per image, vision hidden], little endian.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageTokens {
    shape: [usize; 2],
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for ImageTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values are derived from patient images and stay out of logs.
        f.debug_struct("ImageTokens")
            .field("shape", &self.shape)
            .field("dtype", &self.dtype)
            .finish_non_exhaustive()
    }
}

impl ImageTokens {
    /// From the wire. Shape and dtype are what the sender declared; whether they are this model's is checked by
    /// [`ImageTokens::check`] and again by every forward.
    ///
    /// # Errors
    /// [`ImageTokensError::Bytes`] unless the bytes fill the shape exactly.
    pub fn from_bytes(
        shape: [usize; 2],
        dtype: Dtype,
        bytes: Vec<u8>,
    ) -> Result<Self, ImageTokensError> {
        let expected = shape[0]
            .saturating_mul(shape[1])
            .saturating_mul(dtype.bytes());
        if bytes.len() != expected {
            return Err(ImageTokensError::Bytes {
                expected,
                found: bytes.len(),
            });
        }
        Ok(Self {
            shape,
            dtype,
            bytes,
        })
    }

    /// [tokens per image, vision hidden].
    #[must_use]
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Of each element.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Row by row, little endian.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Row by row, little endian.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether these tokens are of the shape and dtype a model works with.
    ///
    /// # Errors
    /// [`ImageTokensError::Shape`] and [`ImageTokensError::Dtype`].
    pub fn check(&self, vision: &VisionConfig, dtype: Dtype) -> Result<(), ImageTokensError> {
        let expected = [vision.tokens_per_image, vision.hidden];
        if self.shape != expected {
            return Err(ImageTokensError::Shape {
                expected,
                found: self.shape,
            });
        }
        if self.dtype != dtype {
            return Err(ImageTokensError::Dtype {
                expected: dtype,
                found: self.dtype,
            });
        }
        Ok(())
    }

    /// From a tensor [tokens, hidden] of f32 or bf16.
    pub(crate) fn from_tensor(tensor: &Tensor, dtype: Dtype) -> Result<Self, BackendError> {
        let (tokens, hidden) = tensor.dims2()?;
        let flat = tensor.to_dtype(dtype.candle())?.flatten_all()?;
        let bytes = match dtype {
            Dtype::F32 => flat
                .to_vec1::<f32>()?
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect(),
            // bf16 is the upper half of f32, so widening and cutting is exact.
            Dtype::Bf16 => {
                let wide = flat.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
                wide.iter()
                    .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                    .collect()
            }
        };
        Ok(Self {
            shape: [tokens, hidden],
            dtype,
            bytes,
        })
    }

    pub(crate) fn to_tensor(&self, device: &Device) -> Result<Tensor, BackendError> {
        Ok(Tensor::from_raw_buffer(
            &self.bytes,
            self.dtype.candle(),
            &self.shape,
            device,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back_in_both_dtypes() {
        let tensor = Tensor::new(&[[1.0f32, -2.5], [3.0e30, 0.1]], &Device::Cpu).unwrap();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let tokens = ImageTokens::from_tensor(&tensor, dtype).unwrap();
            let again =
                ImageTokens::from_bytes(tokens.shape(), dtype, tokens.as_bytes().to_vec()).unwrap();
            assert_eq!(again, tokens);
            let rounded = tensor
                .to_dtype(dtype.candle())
                .unwrap()
                .to_dtype(candle_core::DType::F32)
                .unwrap();
            let back = again
                .to_tensor(&Device::Cpu)
                .unwrap()
                .to_dtype(candle_core::DType::F32)
                .unwrap();
            assert_eq!(
                back.to_vec2::<f32>().unwrap(),
                rounded.to_vec2::<f32>().unwrap()
            );
        }
    }

    #[test]
    fn bytes_must_fill_the_shape() {
        let found = ImageTokens::from_bytes([2, 3], Dtype::F32, vec![0; 23]);
        assert_eq!(
            found,
            Err(ImageTokensError::Bytes {
                expected: 24,
                found: 23
            })
        );
        assert!(ImageTokens::from_bytes([usize::MAX, 3], Dtype::F32, vec![]).is_err());
    }
}
