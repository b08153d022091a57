//! Image tokens: what crosses from an encode worker to a decode worker, one frame at a time.
//! Pooled but neither normalised nor projected: exact, half the size, and good for every decoder that shares the tower.

use candle_core::{Device, Tensor};

use crate::config::VisionConfig;
use crate::dtype::Dtype;
use crate::error::{BackendError, EncodeError, ImageTokensError};

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
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Of each element.
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Row by row, little endian.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Row by row, little endian.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether these tokens are of the shape and dtype a model works with.
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
    ///
    /// # Errors
    /// [`EncodeError::NotFinite`]: a fleet keeps tokens for every later job with the same picture, so that those of a device
    /// that computed wrongly once would stay.
    pub(crate) fn from_tensor(tensor: &Tensor, dtype: Dtype) -> Result<Self, EncodeError> {
        let (shape, values) = rounded(tensor, dtype)?;
        if !values.iter().all(|x| x.is_finite()) {
            return Err(EncodeError::NotFinite);
        }
        let values = values.iter();
        let bytes = match dtype {
            Dtype::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::Bf16 => values
                .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                .collect(),
        };
        Ok(Self {
            shape,
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

/// Shape and values of a tensor [tokens, hidden], rounded to a dtype. bf16 is the upper half of f32, so widening it again is
/// exact.
fn rounded(tensor: &Tensor, dtype: Dtype) -> Result<([usize; 2], Vec<f32>), BackendError> {
    let (tokens, hidden) = tensor.dims2()?;
    let rounded = tensor.to_dtype(dtype.candle())?.flatten_all()?;
    let values = rounded.to_dtype(candle_core::DType::F32)?.to_vec1()?;
    Ok(([tokens, hidden], values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_no_image() {
        let check = |value: f32, dtype: Dtype, expected: Option<EncodeError>| {
            let tensor = Tensor::new(&[[1.0f32, value]], &Device::Cpu).unwrap();
            let found = ImageTokens::from_tensor(&tensor, dtype);
            assert_eq!(found.err(), expected, "{value} in {dtype}");
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            check(3.0e38, dtype, None);
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                check(wrong, dtype, Some(EncodeError::NotFinite));
            }
        }
        // The largest f32 is beyond the largest bf16.
        check(f32::MAX, Dtype::F32, None);
        check(f32::MAX, Dtype::Bf16, Some(EncodeError::NotFinite));
    }

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
