//! A 256-bit digest of content. Which hash and which key made it is the business of the crate that computes it.

use std::fmt;
use std::str::FromStr;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// 256 bits, shown as 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Bytes or text that are not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 32 bytes, 64 lowercase hexadecimal digits; found {found} {unit}")]
pub struct DigestError {
    pub found: usize,
    /// Bytes or characters.
    pub unit: &'static str,
}

impl Digest {
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From a slice that must be 32 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, DigestError> {
        <[u8; 32]>::try_from(bytes)
            .map(Self)
            .map_err(|_| DigestError {
                found: bytes.len(),
                unit: "bytes",
            })
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Written in one piece, as this is done for the name of every blob.
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(&self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0xf)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = DigestError {
            found: text.len(),
            unit: "characters",
        };
        if text.len() != 64
            || !text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(error);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error.clone())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error.clone())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let digest = Digest::new([0x5a; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let mut bytes = [0; 32];
        bytes[..3].copy_from_slice(&[0x0f, 0xf0, 0x9a]);
        let text = Digest::new(bytes).to_string();
        assert_eq!(text, format!("0ff09a{}", "0".repeat(58)));
        assert_eq!(text.parse(), Ok(Digest::new(bytes)));
        assert!("5A".repeat(32).parse::<Digest>().is_err());
        assert!("5a".parse::<Digest>().is_err());
        assert!(Digest::from_slice(&[0; 31]).is_err());
    }
}
