//! A writer for GGUF files, and what a damaged one gets.

use candle_core::quantized::GgmlDType;

use super::file::parse;
use super::value::Value;
use crate::error::GgufError;

/// A GGUF under construction, version 3.
#[derive(Default)]
pub(crate) struct Writer {
    values: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q8_0 => 8,
        GgmlDType::BF16 => 30,
        other => panic!("{other:?} is not needed here"),
    }
}

impl Writer {
    fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(bytes);
        self.values.push((key.to_owned(), value));
        self
    }

    pub(crate) fn size(self, key: &str, n: usize) -> Self {
        self.value(key, 4, &u32::try_from(n).unwrap().to_le_bytes())
    }

    pub(crate) fn float(self, key: &str, x: f32) -> Self {
        self.value(key, 6, &x.to_le_bytes())
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.value(key, 8, &text(value))
    }

    pub(crate) fn floats(self, key: &str, all: &[f32]) -> Self {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((all.len() as u64).to_le_bytes());
        bytes.extend(all.iter().flat_map(|x| x.to_le_bytes()));
        self.value(key, 9, &bytes)
    }

    /// A tensor with its shape in our order.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], dtype: GgmlDType, bytes: Vec<u8>) {
        let tensor = (name.to_owned(), shape.to_vec(), number(dtype), bytes);
        self.tensors.push(tensor);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            out.extend(text(key));
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, shape, dtype, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
            out.extend(dtype.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}

fn small() -> Writer {
    let mut writer = Writer::default()
        .text("general.architecture", "gemma3")
        .size("gemma3.block_count", 3)
        .float("gemma3.rope.freq_base", 1e6)
        .floats("scores", &[0.5, 0.25]);
    writer.tensor("a.weight", &[2, 3], GgmlDType::F32, vec![1; 24]);
    writer.tensor("b.weight", &[1, 32], GgmlDType::Q8_0, vec![2; 34]);
    writer
}

#[test]
fn what_was_written_is_read() {
    let bytes = small().bytes();
    let (metadata, tensors) = parse(&bytes, "small.gguf").unwrap();
    assert_eq!(metadata.values["scores"], Value::Floats(vec![0.5, 0.25]));
    assert_eq!(metadata.need_size("gemma3.block_count"), Ok(3));
    assert_eq!(tensors["a.weight"].shape, [2, 3]);
    assert_eq!(bytes[tensors["a.weight"].bytes.clone()], [1; 24]);
    assert_eq!(tensors["b.weight"].dtype, GgmlDType::Q8_0);
    assert_eq!(bytes[tensors["b.weight"].bytes.clone()], [2; 34]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = small().bytes();
    for length in 0..bytes.len() {
        let found = parse(&bytes[..length], "cut.gguf");
        assert!(
            matches!(found, Err(GgufError::Truncated { .. })),
            "{length}: {found:?}"
        );
    }
}

#[test]
fn damage_is_named() {
    let check = |bytes: &[u8], expected: &str| {
        let error = parse(bytes, "bad.gguf").unwrap_err().to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    };
    let mut bytes = small().bytes();
    bytes[0] = b'X';
    check(&bytes, "does not begin with GGUF");
    let mut bytes = small().bytes();
    bytes[4] = 1;
    check(&bytes, "version is 1");
    // A count that no file could hold.
    let mut bytes = small().bytes();
    bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(parse(&bytes, "bad.gguf").is_err());
    check(
        &small().size("general.alignment", 3).bytes(),
        "general.alignment is 3",
    );
    check(
        &small().text("gemma3.block_count", "3").bytes(),
        "gemma3.block_count is there twice",
    );
    let mut writer = small();
    writer.tensor("a.weight", &[1, 1], GgmlDType::F32, vec![0; 4]);
    check(&writer.bytes(), "a.weight is there twice");
    let mut writer = small();
    writer.tensor("c.weight", &[2, 16], GgmlDType::Q8_0, vec![0; 34]);
    check(&writer.bytes(), "c.weight [2, 16] (Q8_0)");
    let mut writer = small();
    writer.tensor("c.weight", &[usize::MAX, 32], GgmlDType::F32, vec![0; 4]);
    check(&writer.bytes(), "c.weight");
    let mut writer = small();
    writer.tensors[0].2 = 16;
    check(&writer.bytes(), "a.weight has ggml type 16");
}
