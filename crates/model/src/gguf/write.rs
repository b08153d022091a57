//! A writer of GGUF files, version 3: for models that are made here, to measure and to test with.

use std::io::{self, Write};

/// Tensors begin at multiples of so many bytes where a file says nothing else.
const ALIGNMENT: u64 = 32;
/// Kinds of metadata values.
const U32: u32 = 4;
const F32: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;
const U64: u32 = 10;

/// What a GGUF file says of its model, and which tensors it has. What is in them is written with it
/// ([`GgufWriter::write`]): there need never be more than a piece of it in memory.
#[derive(Debug, Clone, Default)]
pub struct GgufWriter {
    /// By key: kind and value.
    values: Vec<(String, Vec<u8>)>,
    tensors: Vec<Declared>,
}

#[derive(Debug, Clone)]
struct Declared {
    name: String,
    shape: Vec<usize>,
    dtype: u32,
    bytes: u64,
}

impl GgufWriter {
    /// With a metadata value that is a size.
    #[must_use]
    pub fn size(self, key: &str, size: usize) -> Self {
        match u32::try_from(size) {
            Ok(size) => self.value(key, U32, &size.to_le_bytes()),
            Err(_) => self.value(key, U64, &(size as u64).to_le_bytes()),
        }
    }

    /// With one that is a number.
    #[must_use]
    pub fn float(self, key: &str, number: f32) -> Self {
        self.value(key, F32, &number.to_le_bytes())
    }

    /// With one that is a text.
    #[must_use]
    pub fn text(self, key: &str, text: &str) -> Self {
        let mut value = Vec::new();
        put_text(&mut value, text);
        self.value(key, TEXT, &value)
    }

    /// With one that is a list of numbers.
    #[must_use]
    pub fn floats(self, key: &str, numbers: &[f32]) -> Self {
        let mut value = F32.to_le_bytes().to_vec();
        value.extend((numbers.len() as u64).to_le_bytes());
        value.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        self.value(key, LIST, &value)
    }

    fn value(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let kind = kind.to_le_bytes();
        self.values
            .push((key.to_owned(), [kind.as_slice(), value].concat()));
        self
    }

    /// Declares a tensor of `shape` as it is given everywhere here, a matrix [out, in], and of the type to which ggml gives the
    /// number `dtype`; what is in it takes so many bytes.
    pub fn tensor(&mut self, name: &str, shape: &[usize], dtype: u32, bytes: u64) {
        self.tensors.push(Declared {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype,
            bytes,
        });
    }

    /// Writes the file. `data` writes what is in a tensor, by its place among the declared ones, and is asked in their order.
    ///
    /// # Errors
    /// The file's and those of `data`; a tensor that has another number of bytes than was declared.
    pub fn write(
        &self,
        file: &mut impl Write,
        mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        file.write_all(&self.head())?;
        for (at, tensor) in self.tensors.iter().enumerate() {
            let mut counted = Counted {
                file: &mut *file,
                bytes: 0,
            };
            data(at, &mut counted)?;
            let (expected, found) = (tensor.bytes, counted.bytes);
            if found != expected {
                return Err(io::Error::other(format!(
                    "tensor {} has {found} bytes, and was declared with {expected}",
                    tensor.name
                )));
            }
            let padding = expected.next_multiple_of(ALIGNMENT) - expected;
            file.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        Ok(())
    }

    /// All that comes before the first tensor.
    fn head(&self) -> Vec<u8> {
        let mut head = b"GGUF".to_vec();
        head.extend(3_u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            put_text(&mut head, key);
            head.extend(value);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            // ggml counts dimensions from the innermost on.
            let sizes = tensor.shape.iter().rev();
            head.extend(sizes.flat_map(|size| (*size as u64).to_le_bytes()));
            head.extend(tensor.dtype.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(ALIGNMENT);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        head
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Counts what goes through.
struct Counted<'a, W> {
    file: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
