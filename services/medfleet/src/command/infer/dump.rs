//! Logits on disk, for comparing with another implementation.

use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// Writes `logits` [positions, vocab], f32 little endian, to a safetensors file.
pub(super) fn logits(path: &Path, rows: &[Vec<f32>]) -> Result<()> {
    let vocab = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|row| row.len() != vocab) {
        bail!("the model gave logits of different lengths");
    }
    let bytes: Vec<u8> = rows
        .iter()
        .flatten()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::F32, vec![rows.len(), vocab], &bytes)
        .context("cannot shape the logits")?;
    serialize_to_file([("logits", view)], None, path)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn the_file_reads_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("logits.safetensors");
        logits(&path, &[vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]]).expect("is written");
        let bytes = std::fs::read(&path).expect("is there");
        let file = SafeTensors::deserialize(&bytes).expect("is safetensors");
        let tensor = file.tensor("logits").expect("has logits");
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(tensor.data()[20..24], 6.0_f32.to_le_bytes());
        assert!(logits(&path, &[vec![1.0], vec![]]).is_err());
    }
}
