//! The two number formats the model computes in, and why there is no third.

use std::fmt;
use std::str::FromStr;

/// What weights and activations are held in, and what image tokens travel in (little endian).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit IEEE.
    F32,
    /// bfloat16.
    Bf16,
}

/// A name that is not a dtype of this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DtypeError {
    /// Half precision overflows in Gemma 3's residual stream and gives empty or garbled text.
    #[error(
        "f16 is refused: gemma 3's residual stream exceeds its range of 65504; allowed are f32 and bf16"
    )]
    F16,
    #[error("dtype is {found}, allowed are f32 and bf16")]
    Unknown { found: String },
}

impl Dtype {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub(crate) const fn candle(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::Bf16 => candle_core::DType::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = DtypeError;

    fn from_str(text: &str) -> Result<Self, DtypeError> {
        match text.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "fp16" | "float16" | "half" => Err(DtypeError::F16),
            _ => Err(DtypeError::Unknown {
                found: text.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!("bf16".parse(), Ok(Dtype::Bf16));
        assert_eq!("float32".parse(), Ok(Dtype::F32));
        assert_eq!("F16".parse::<Dtype>(), Err(DtypeError::F16));
        assert!(matches!(
            "q4".parse::<Dtype>(),
            Err(DtypeError::Unknown { .. })
        ));
    }
}
