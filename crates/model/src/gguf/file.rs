//! The GGUF container, versions 2 and 3, little endian: header, metadata, tensor descriptions, data.
//! Every length is checked against the bytes that are left before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use super::value::{Metadata, Value};
use crate::error::{GgufError, LoadError};

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_DEFAULT: usize = 32;
/// ggml's own limit.
const DIMENSIONS_MAX: u32 = 4;

/// An opened file: the map, the file to read from, and what lies where in it.
pub(crate) struct GgufFile {
    pub(crate) map: Mmap,
    pub(crate) file: File,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: BTreeMap<String, TensorPlace>,
}

/// A tensor in the file. The shape is in our order: rows first, the contiguous dimension last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorPlace {
    pub(crate) dtype: GgmlDType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Range<usize>,
}

impl GgufFile {
    /// Maps and describes the file at `path`; no tensor is read.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let name = file_name(path);
        let unreadable = LoadError::unreadable(&name);
        let file = File::open(path).map_err(&unreadable)?;
        // SAFETY: read-only and private to this value; model files are immutable while served, as with safetensors.
        let map = unsafe { Mmap::map(&file) }.map_err(&unreadable)?;
        let (metadata, tensors) = parse(&map, &name)?;
        Ok(Self {
            map,
            file,
            metadata,
            tensors,
        })
    }
}

/// The last part of a path, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

type Parsed = (Metadata, BTreeMap<String, TensorPlace>);

pub(crate) fn parse(bytes: &[u8], name: &str) -> Result<Parsed, GgufError> {
    let mut cursor = Cursor {
        bytes,
        at: 0,
        file: name,
    };
    if cursor.take(4, "the magic number")? != MAGIC {
        return Err(cursor.broken("it does not begin with GGUF"));
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(cursor.broken(&format!("version is {version}, allowed are 2 and 3")));
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let value_count = cursor.u64("the number of metadata values")?;
    let mut metadata = Metadata {
        file: name.to_owned(),
        values: BTreeMap::new(),
    };
    for _ in 0..value_count {
        let key = cursor.string("a metadata key")?;
        let kind = cursor.u32(&key)?;
        let value = cursor.value(kind, &key)?;
        if metadata.values.insert(key.clone(), value).is_some() {
            return Err(cursor.broken(&format!("the key {key} is there twice")));
        }
    }
    let alignment = metadata
        .size("general.alignment")?
        .unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment < 8 {
        return Err(metadata.error(
            "general.alignment",
            alignment.to_string(),
            "a power of two from 8",
        ));
    }
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(cursor.tensor()?);
    }
    let base = cursor.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for tensor in described {
        let (name, place) = tensor.place(base, alignment, &cursor)?;
        if tensors.insert(name.clone(), place).is_some() {
            return Err(cursor.broken(&format!("the tensor {name} is there twice")));
        }
    }
    Ok((metadata, tensors))
}

struct Described {
    name: String,
    shape: Vec<usize>,
    dtype: u32,
    offset: u64,
}

impl Described {
    fn place(
        self,
        base: usize,
        alignment: usize,
        cursor: &Cursor,
    ) -> Result<(String, TensorPlace), GgufError> {
        let Some(dtype) = dtype(self.dtype) else {
            return Err(GgufError::TensorDtype {
                file: cursor.file.to_owned(),
                name: self.name,
                found: self.dtype,
            });
        };
        let elements = self
            .shape
            .iter()
            .try_fold(1usize, |all, n| all.checked_mul(*n));
        let row = self.shape.last().copied().unwrap_or(0);
        let whole = row > 0 && row.is_multiple_of(dtype.block_size());
        let length = elements
            .filter(|_| whole)
            .and_then(|n| (n / dtype.block_size()).checked_mul(dtype.type_size()));
        let start = usize::try_from(self.offset)
            .ok()
            .filter(|offset| offset.is_multiple_of(alignment))
            .and_then(|offset| base.checked_add(offset));
        let (Some(length), Some(start)) = (length, start) else {
            let what = format!(
                "tensor {} {:?} ({dtype:?}) at offset {} has no whole blocks there",
                self.name, self.shape, self.offset
            );
            return Err(cursor.broken(&what));
        };
        let end = start.saturating_add(length);
        if end > cursor.bytes.len() {
            return Err(GgufError::Truncated {
                file: cursor.file.to_owned(),
                what: format!("tensor {}", self.name),
                expected: end,
                found: cursor.bytes.len(),
            });
        }
        let place = TensorPlace {
            dtype,
            shape: self.shape,
            bytes: start..end,
        };
        Ok((self.name, place))
    }
}

/// The types that are read, by ggml's numbers.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        6 => GgmlDType::Q5_0,
        8 => GgmlDType::Q8_0,
        12 => GgmlDType::Q4K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a str,
}

impl<'a> Cursor<'a> {
    fn broken(&self, reason: &str) -> GgufError {
        GgufError::Format {
            file: self.file.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], GgufError> {
        let end = self.at.saturating_add(length);
        let Some(taken) = self.bytes.get(self.at..end) else {
            return Err(GgufError::Truncated {
                file: self.file.to_owned(),
                what: what.to_owned(),
                expected: end,
                found: self.bytes.len(),
            });
        };
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let length = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.broken(&format!("{what} is not UTF-8"))),
        }
    }

    /// A value that is no array and no string, by GGUF's number of its type.
    fn number(&mut self, kind: u32, key: &str) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(i64::from(self.array::<1>(key)?[0])),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array(key)?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array(key)?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array(key)?))),
            4 => Value::Integer(i64::from(self.u32(key)?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(key)?))),
            7 => Value::Bool(self.array::<1>(key)?[0] != 0),
            10 => Value::Integer(i64::try_from(self.u64(key)?).unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(self.broken(&format!("{key} has the unknown type {kind}"))),
        })
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, GgufError> {
        match kind {
            8 => Ok(Value::Text(self.string(key)?)),
            9 => self.list(key),
            _ => self.number(kind, key),
        }
    }

    fn list(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32(key)?;
        let length = self.u64(key)?;
        // The shortest element is a byte (a string's length alone takes eight), so this bounds the allocations below.
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(GgufError::Truncated {
                file: self.file.to_owned(),
                what: key.to_owned(),
                expected: self
                    .at
                    .saturating_add(usize::try_from(length).unwrap_or(usize::MAX)),
                found: self.bytes.len(),
            });
        }
        match kind {
            8 => {
                let texts = (0..length).map(|_| self.string(key));
                Ok(Value::Texts(texts.collect::<Result<_, _>>()?))
            }
            6 | 12 => {
                let mut all = Vec::new();
                for _ in 0..length {
                    if let Value::Float(x) = self.number(kind, key)? {
                        all.push(x);
                    }
                }
                Ok(Value::Floats(all))
            }
            // Also single bytes, of which a number each would take eight times the file's memory.
            0 | 1 | 7 => {
                // Bounded by the check above.
                self.take(length as usize, key)?;
                Ok(Value::Other(length))
            }
            2..=5 | 10 | 11 => {
                let mut all = Vec::new();
                for _ in 0..length {
                    if let Value::Integer(n) = self.number(kind, key)? {
                        all.push(n);
                    }
                }
                Ok(Value::Integers(all))
            }
            _ => Err(self.broken(&format!("{key} is an array of the unknown type {kind}"))),
        }
    }

    fn tensor(&mut self) -> Result<Described, GgufError> {
        let name = self.string("a tensor's name")?;
        let dimensions = self.u32(&name)?;
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(self.broken(&format!(
                "tensor {name} has {dimensions} dimensions, allowed are 1 to {DIMENSIONS_MAX}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(usize::try_from(self.u64(&name)?).unwrap_or(usize::MAX));
        }
        // ggml counts the contiguous dimension first.
        shape.reverse();
        Ok(Described {
            dtype: self.u32(&name)?,
            offset: self.u64(&name)?,
            name,
            shape,
        })
    }
}
