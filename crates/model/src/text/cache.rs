//! Keys and values in blocks of a fixed number of positions, from one pool with a budget in bytes.
//! A sequence holds a [`BlockTable`]; block `i` holds its positions `i × block_tokens ..`, in every layer alike.
//! Local layers keep all blocks for now and only read their window. Who holds which block is kept by [`Blocks`].

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::config::TextConfig;
use crate::dtype::Dtype;
use crate::error::{BackendError, CacheError};
use crate::text::blocks::{BlockTable, Blocks};

/// How large the pool is and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvOptions {
    /// Positions per block; at least 1.
    pub block_tokens: usize,
    /// Bytes for keys and values of all layers together.
    pub budget_bytes: usize,
}

/// The pool: storage of all layers, and whose each block is.
pub struct KvPool {
    blocks: Blocks,
    block_bytes: usize,
    /// Per layer [blocks × block_tokens, kv heads, head dim].
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    device: Device,
}

impl std::fmt::Debug for KvPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (total, free) = (self.blocks.total(), self.blocks.available());
        f.debug_struct("KvPool")
            .field("blocks", &total)
            .field("free", &free)
            .finish_non_exhaustive()
    }
}

impl KvPool {
    pub(crate) fn new(
        config: &TextConfig,
        options: KvOptions,
        dtype: Dtype,
        device: &Device,
    ) -> Result<Self, CacheError> {
        let block_tokens = options.block_tokens.max(1);
        let block_bytes = position_bytes(config, dtype) * block_tokens;
        let blocks = options.budget_bytes / block_bytes;
        if blocks == 0 {
            return Err(CacheError::Budget {
                budget_bytes: options.budget_bytes,
                block_bytes,
            });
        }
        let total = u32::try_from(blocks).unwrap_or(u32::MAX);
        let shape = (
            total as usize * block_tokens,
            config.kv_heads,
            config.head_dim,
        );
        let zeros = || Tensor::zeros(shape, dtype.candle(), device);
        let layers = || {
            config
                .layers
                .iter()
                .map(|_| zeros())
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            blocks: Blocks::new(total, block_tokens),
            block_bytes,
            keys: layers().map_err(BackendError::from)?,
            values: layers().map_err(BackendError::from)?,
            device: device.clone(),
        })
    }

    /// Lets `table` reach `positions`, taking blocks as needed: all or none.
    ///
    /// # Errors
    /// [`CacheError::OutOfBlocks`]; the table is unchanged then.
    pub fn reserve(&mut self, table: &mut BlockTable, positions: usize) -> Result<(), CacheError> {
        self.blocks.reserve(table, positions)
    }

    /// Takes the table's blocks back.
    pub fn release(&mut self, table: BlockTable) {
        self.blocks.release(table);
    }

    /// Whose each block is.
    #[must_use]
    pub const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whose each block is, to hand them out.
    pub const fn blocks_mut(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    /// Positions per block.
    #[must_use]
    pub const fn block_tokens(&self) -> usize {
        self.blocks.block_tokens()
    }

    /// Bytes of one block over all layers.
    #[must_use]
    pub const fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Positions a table reaches; none where it names a block this pool does not have.
    pub(crate) fn capacity(&self, table: &BlockTable) -> usize {
        self.blocks.capacity(table)
    }

    fn slot(&self, table: &BlockTable, position: usize) -> usize {
        let block_tokens = self.block_tokens();
        table.blocks()[position / block_tokens] as usize * block_tokens + position % block_tokens
    }

    /// Stores keys and values [n, kv heads, head dim] of the positions from `start` on.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        table: &BlockTable,
        start: usize,
        kv: (&Tensor, &Tensor),
    ) -> Result<(), BackendError> {
        let n = kv.0.dim(0)?;
        let mut done = 0;
        while done < n {
            let position = start + done;
            let run = (self.block_tokens() - position % self.block_tokens()).min(n - done);
            let slot = self.slot(table, position);
            self.keys[layer].slice_set(&kv.0.narrow(0, done, run)?.contiguous()?, 0, slot)?;
            self.values[layer].slice_set(&kv.1.narrow(0, done, run)?.contiguous()?, 0, slot)?;
            done += run;
        }
        Ok(())
    }

    /// Keys and values of `positions`: each [kv heads, positions, head dim], contiguous.
    pub(crate) fn read(
        &self,
        layer: usize,
        table: &BlockTable,
        positions: Range<usize>,
    ) -> Result<(Tensor, Tensor), BackendError> {
        // Slots fit u32: block numbers are u32 and the storage of 2³² positions would not fit any memory.
        let slots: Vec<u32> = positions
            .map(|position| self.slot(table, position) as u32)
            .collect();
        let slots = Tensor::new(slots, &self.device)?;
        let gather = |storage: &Tensor| {
            storage
                .index_select(&slots, 0)?
                .transpose(0, 1)?
                .contiguous()
        };
        Ok((gather(&self.keys[layer])?, gather(&self.values[layer])?))
    }
}

/// Bytes of keys and values of one position over all layers.
pub(crate) fn position_bytes(config: &TextConfig, dtype: Dtype) -> usize {
    2 * config.layers.len() * config.kv_heads * config.head_dim * dtype.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LayerKind;

    fn pool(budget_blocks: usize) -> KvPool {
        let config = TextConfig {
            vocab: 1,
            hidden: 1,
            intermediate: 1,
            layers: vec![LayerKind::Local],
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            query_scalar: 1.0,
            window: 1,
            rope_local_theta: 1.0,
            rope_global_theta: 1.0,
            rope_global_factor: 1.0,
            norm_eps: 1e-6,
            positions_max: 100,
        };
        let budget_bytes = budget_blocks * 4 * position_bytes(&config, Dtype::F32);
        KvPool::new(
            &config,
            KvOptions {
                block_tokens: 4,
                budget_bytes,
            },
            Dtype::F32,
            &Device::Cpu,
        )
        .unwrap()
    }

    #[test]
    fn blocks_are_taken_all_or_none_and_given_back() {
        let mut pool = pool(3);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        pool.reserve(&mut a, 5).unwrap();
        assert_eq!(pool.capacity(&a), 8);
        let refused = pool.reserve(&mut b, 5);
        assert_eq!(
            refused,
            Err(CacheError::OutOfBlocks {
                needed: 2,
                free: 1,
                total: 3
            })
        );
        assert!(b.blocks().is_empty());
        pool.release(a);
        pool.reserve(&mut b, 12).unwrap();
        assert_eq!(pool.blocks().available(), 0);
    }

    #[test]
    fn what_is_written_across_blocks_is_read_in_order() {
        let mut pool = pool(4);
        let (mut other, mut table) = (BlockTable::default(), BlockTable::default());
        pool.reserve(&mut table, 3).unwrap();
        pool.reserve(&mut other, 3).unwrap();
        pool.reserve(&mut table, 9).unwrap();
        let rows = Tensor::arange(0f32, 14., &Device::Cpu)
            .unwrap()
            .reshape((7, 1, 2))
            .unwrap();
        pool.write(0, &table, 2, (&rows, &rows)).unwrap();
        let (keys, _) = pool.read(0, &table, 3..8).unwrap();
        assert_eq!(
            keys.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]
        );
    }

    #[test]
    fn a_budget_below_one_block_is_refused() {
        let config = crate::config::Config::parse(r#"{"model_type": "gemma3_text"}"#, None)
            .unwrap()
            .text;
        let options = KvOptions {
            block_tokens: 16,
            budget_bytes: 1000,
        };
        let error = KvPool::new(&config, options, Dtype::Bf16, &Device::Cpu).unwrap_err();
        assert!(matches!(
            error,
            CacheError::Budget {
                budget_bytes: 1000,
                ..
            }
        ));
    }
}
