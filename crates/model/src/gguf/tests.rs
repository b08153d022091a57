//! What was written is read, and what a damaged file gets.

use std::io::Write;

use candle_core::quantized::GgmlDType;

use super::file::parse;
use super::value::Value;
use super::write::GgufWriter;
use crate::error::GgufError;

/// A GGUF in memory.
pub(crate) struct Writer {
    head: GgufWriter,
    data: Vec<Vec<u8>>,
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
    pub(crate) const fn new(head: GgufWriter) -> Self {
        Self {
            head,
            data: Vec::new(),
        }
    }

    /// A tensor with its shape in our order.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], dtype: GgmlDType, bytes: Vec<u8>) {
        self.numbered(name, shape, number(dtype), bytes);
    }

    fn numbered(&mut self, name: &str, shape: &[usize], dtype: u32, bytes: Vec<u8>) {
        self.head.tensor(name, shape, dtype, bytes.len() as u64);
        self.data.push(bytes);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let data = |at: usize, file: &mut dyn Write| file.write_all(&self.data[at]);
        self.head.write(&mut out, data).unwrap();
        out
    }
}

/// With more metadata than it needs.
fn small_with(more: impl FnOnce(GgufWriter) -> GgufWriter) -> Writer {
    let head = GgufWriter::default()
        .text("general.architecture", "gemma3")
        .size("gemma3.block_count", 3)
        .float("gemma3.rope.freq_base", 1e6)
        .floats("scores", &[0.5, 0.25]);
    let mut writer = Writer::new(more(head));
    writer.tensor("a.weight", &[2, 3], GgmlDType::F32, vec![1; 24]);
    writer.tensor("b.weight", &[1, 32], GgmlDType::Q8_0, vec![2; 34]);
    writer
}

fn small() -> Writer {
    small_with(|head| head)
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
    let large = small_with(|head| head.size("large", 1 << 40)).bytes();
    let (metadata, _) = parse(&large, "large.gguf").unwrap();
    assert_eq!(metadata.values["large"], Value::Integer(1 << 40));
}

#[test]
fn an_array_of_bytes_is_skipped_as_none_of_ours_is_one() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let array = |kind: u32, length: u64| {
        [
            &9_u32.to_le_bytes()[..],
            &kind.to_le_bytes(),
            &length.to_le_bytes(),
        ]
        .concat()
    };
    for kind in [0, 1, 7] {
        let bytes = [
            b"GGUF".to_vec(),
            3_u32.to_le_bytes().to_vec(),
            0_u64.to_le_bytes().to_vec(),
            2_u64.to_le_bytes().to_vec(),
            text("map"),
            array(kind, 5),
            vec![1; 5],
            text("next"),
            array(5, 1),
            7_i32.to_le_bytes().to_vec(),
        ];
        let (metadata, _) = parse(&bytes.concat(), "bytes.gguf").unwrap();
        assert_eq!(metadata.values["map"], Value::Other(5));
        assert_eq!(metadata.values["next"], Value::Integers(vec![7]));
    }
}

#[test]
fn a_tensor_of_another_length_than_declared_is_not_written_silently() {
    let mut head = GgufWriter::default();
    head.tensor("a.weight", &[2, 3], 0, 24);
    for length in [23, 25] {
        let data = |_: usize, file: &mut dyn Write| file.write_all(&vec![1; length]);
        let error = head
            .write(&mut std::io::sink(), data)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("a.weight has {length} bytes")),
            "{error}"
        );
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = small().bytes();
    // Behind the last tensor there is only what makes its length even.
    let (_, tensors) = parse(&bytes, "whole.gguf").unwrap();
    for length in 0..tensors["b.weight"].bytes.end {
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
        &small_with(|head| head.size("general.alignment", 3)).bytes(),
        "general.alignment is 3",
    );
    check(
        &small_with(|head| head.text("gemma3.block_count", "3")).bytes(),
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
    writer.numbered("c.weight", &[1, 1], 16, vec![0; 4]);
    check(&writer.bytes(), "c.weight has ggml type 16");
}
