//! Keys and values in blocks of a fixed number of positions, from one pool with a budget in bytes.
//! A sequence holds a [`BlockTable`]; block `i` of a group of layers holds its positions `i × block_tokens ..`, in every
//! layer of the group alike. Global layers are one group, as many local layers each another: all blocks are of one size,
//! and what local layers give back is there for any. Who holds which block is kept by [`Blocks`].

use std::ops::Range;

use candle_core::{Device, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;

use crate::config::{LayerKind, TextConfig};
use crate::device;
use crate::dtype::Dtype;
use crate::error::{BackendError, CacheError};
use crate::fused::{self, Stored};
use crate::text::blocks::parts::BlockCopy;
use crate::text::blocks::{BlockLayout, BlockTable, Blocks};

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
    /// Group of each layer, and its place in the group.
    places: Vec<(usize, usize)>,
    /// Per place [blocks × block_tokens, kv heads, head dim].
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
        let groups = Groups::of(config);
        let layout = layout(config, options.block_tokens);
        let block_tokens = layout.block_tokens;
        let block_bytes = block_bytes(config, &layout, dtype);
        let blocks = options.budget_bytes / block_bytes;
        if blocks < layout.groups() {
            return Err(CacheError::Budget {
                budget_bytes: options.budget_bytes,
                block_bytes: block_bytes * layout.groups(),
            });
        }
        // candle's gather counts elements in 32 bits on GPUs: beyond, it would read another sequence's.
        let block_elements = block_tokens * config.kv_heads * config.head_dim;
        let countable = if device.is_cpu() {
            usize::MAX
        } else {
            u32::MAX as usize / block_elements
        };
        let total = u32::try_from(blocks.min(countable)).unwrap_or(u32::MAX);
        let shape = (
            total as usize * block_tokens,
            config.kv_heads,
            config.head_dim,
        );
        let zeros = || zeros(shape, dtype, device);
        let places = || {
            (0..groups.size)
                .map(|_| zeros())
                .collect::<Result<Vec<_>, _>>()
        };
        let (keys, values) = (
            places().map_err(BackendError::from)?,
            places().map_err(BackendError::from)?,
        );
        device::settle(device)?;
        Ok(Self {
            blocks: Blocks::new(total, layout),
            block_bytes,
            keys,
            values,
            places: groups.places,
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

    /// Says that no stretch longer than this is ever computed at once, so that a long sequence is known to fit.
    pub fn limit_stretches(&mut self, tokens: usize) {
        self.blocks.limit_stretches(tokens);
    }

    /// Takes the table's blocks back.
    pub fn release(&mut self, table: BlockTable) {
        self.blocks.release(table);
    }

    /// Whose each block is.
    pub const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whose each block is, to hand them out.
    pub const fn blocks_mut(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    /// Positions per block.
    pub const fn block_tokens(&self) -> usize {
        self.blocks.block_tokens()
    }

    /// Bytes of one block: keys and values of one group of layers.
    pub const fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Positions a table reaches when the next one is `start`; none where it names a block this pool does not have, or has
    /// given back what that position sees.
    pub(crate) fn capacity(&self, table: &BlockTable, start: usize) -> usize {
        self.blocks.capacity(table, start)
    }

    /// Where a position of a group is. The table was checked with [`KvPool::capacity`].
    fn slot(&self, table: &BlockTable, group: usize, position: usize) -> usize {
        let block_tokens = self.block_tokens();
        let block = table.block(group, position / block_tokens);
        let block = block.expect("what is read or written was checked to be held");
        block as usize * block_tokens + position % block_tokens
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
        let (group, place) = self.places[layer];
        let mut done = 0;
        while done < n {
            let position = start + done;
            let run = (self.block_tokens() - position % self.block_tokens()).min(n - done);
            let slot = self.slot(table, group, position);
            self.keys[place].slice_set(&kv.0.narrow(0, done, run)?.contiguous()?, 0, slot)?;
            self.values[place].slice_set(&kv.1.narrow(0, done, run)?.contiguous()?, 0, slot)?;
            done += run;
        }
        Ok(())
    }

    /// As [`KvPool::write`] for all rows of a batch at once, in one launch, whose places in the layer's group `slots` says;
    /// false where the device does that no faster, and nothing was written.
    pub(crate) fn scatter(
        &mut self,
        layer: usize,
        slots: &Tensor,
        (keys, values): (&Tensor, &Tensor),
    ) -> Result<bool, BackendError> {
        let (_, place) = self.places[layer];
        Ok(fused::scatter(keys, slots, &self.keys[place])?
            && fused::scatter(values, slots, &self.values[place])?)
    }

    /// Copies what [`crate::Progress::begin`] says.
    pub fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        let block_tokens = self.block_tokens();
        for copy in copies {
            let (from, to) = (copy.from as usize, copy.to as usize);
            let places = self.places.iter().filter(|(group, _)| *group == copy.group);
            for (_, place) in places {
                for storage in [&self.keys[*place], &self.values[*place]] {
                    // Not candle's `copy`, which copies all of the storage that a part lies in: here the whole pool.
                    let part = storage.narrow(0, from * block_tokens, copy.tokens)?;
                    storage.slice_set(&part.force_contiguous()?, 0, to * block_tokens)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// The group of a layer: its layers have the same block tables.
    pub(crate) fn group(&self, layer: usize) -> usize {
        self.places[layer].0
    }

    /// Where positions of a sequence lie, for the layers of a group.
    pub(crate) fn slots(
        &self,
        group: usize,
        table: &BlockTable,
        positions: Range<usize>,
    ) -> Vec<u32> {
        // Slots fit u32: block numbers are u32 and the storage of 2³² positions would not fit any memory.
        positions
            .map(|position| self.slot(table, group, position) as u32)
            .collect()
    }

    /// The blocks that hold these positions of a sequence, for the layers of a group.
    pub(crate) fn blocks_of(
        &self,
        group: usize,
        table: &BlockTable,
        positions: Range<usize>,
    ) -> Vec<u32> {
        let held = |index| table.block(group, index);
        (positions.start / self.block_tokens()..positions.end.div_ceil(self.block_tokens()))
            .map(|index| held(index).expect("what is read was checked to be held"))
            .collect()
    }

    /// A layer's keys and values as they lie.
    pub(crate) fn stored(&self, layer: usize) -> Stored<'_> {
        let (_, place) = self.places[layer];
        Stored {
            keys: &self.keys[place],
            values: &self.values[place],
        }
    }

    /// Keys and values at `slots` [positions] u32: each [kv heads, positions, head dim], contiguous.
    pub(crate) fn read(
        &self,
        layer: usize,
        slots: &Tensor,
    ) -> Result<(Tensor, Tensor), BackendError> {
        let Stored { keys, values } = self.stored(layer);
        let gather = |storage: &Tensor| {
            storage
                .index_select(slots, 0)?
                .transpose(0, 1)?
                .contiguous()
        };
        Ok((gather(keys)?, gather(values)?))
    }
}

/// Layers in groups of one size.
struct Groups {
    /// Layers of a group; the last one may have fewer.
    size: usize,
    /// Groups of local layers.
    local: usize,
    /// Group of each layer, and its place in the group.
    places: Vec<(usize, usize)>,
}

impl Groups {
    /// Global layers are group 0, and so many local layers at a time another. Where all layers are of one kind, they are
    /// one group that keeps everything.
    fn of(config: &TextConfig) -> Self {
        let globals = config.layers.iter();
        let globals = globals.filter(|kind| **kind == LayerKind::Global).count();
        let locals = config.layers.len() - globals;
        if globals == 0 || locals == 0 {
            return Self {
                size: config.layers.len(),
                local: 0,
                places: (0..config.layers.len()).map(|place| (0, place)).collect(),
            };
        }
        let (mut global, mut local) = (0, 0);
        let places = config.layers.iter().map(|kind| {
            let (count, first) = match kind {
                LayerKind::Global => (&mut global, 0),
                LayerKind::Local => (&mut local, 1),
            };
            let place = (first + *count / globals, *count % globals);
            *count += 1;
            place
        });
        Self {
            size: globals,
            places: places.collect(),
            local: locals.div_ceil(globals),
        }
    }
}

/// Blocks of so many positions, for whole prompts until the owner says otherwise.
fn layout(config: &TextConfig, block_tokens: usize) -> BlockLayout {
    BlockLayout {
        block_tokens: block_tokens.max(1),
        local_groups: Groups::of(config).local,
        window: config.window,
        stretch_tokens: config.positions_max,
    }
}

/// Bytes of one block: keys and values of one group of layers.
fn block_bytes(config: &TextConfig, layout: &BlockLayout, dtype: Dtype) -> usize {
    position_bytes(config, dtype) / layout.groups() * layout.block_tokens
}

/// On CPUs memory that is taken page by page as it is written: a small model never fills the budget of a large one.
fn zeros(
    shape: (usize, usize, usize),
    dtype: Dtype,
    device: &Device,
) -> candle_core::Result<Tensor> {
    match dtype {
        // candle would write each of its zeros.
        Dtype::Bf16 if device.is_cpu() => {
            let bits = vec![0_u16; shape.0 * shape.1 * shape.2];
            Tensor::from_vec(bits.reinterpret_into::<bf16>(), shape, device)
        }
        Dtype::Bf16 | Dtype::F32 => Tensor::zeros(shape, dtype.candle(), device),
    }
}

impl TextConfig {
    /// Bytes of the blocks that a sequence of so many positions takes at most, as a pool counts them: for whoever sets a budget
    /// before there is a model.
    pub fn kv_bytes_of(
        &self,
        positions: usize,
        (block_tokens, stretch_tokens): (usize, usize),
        dtype: Dtype,
    ) -> usize {
        let layout = BlockLayout {
            stretch_tokens,
            ..layout(self, block_tokens)
        };
        layout.blocks_of(positions) * block_bytes(self, &layout, dtype)
    }
}

/// Bytes of keys and values of one position in all groups of layers, where none has left a window.
pub(crate) fn position_bytes(config: &TextConfig, dtype: Dtype) -> usize {
    let groups = Groups::of(config);
    2 * (1 + groups.local) * groups.size * config.kv_heads * config.head_dim * dtype.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(pool.capacity(&a, 0), 8);
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
        let slots = Tensor::new(pool.slots(0, &table, 3..8), &Device::Cpu).unwrap();
        let (keys, _) = pool.read(0, &slots).unwrap();
        assert_eq!(
            keys.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]
        );
    }

    #[test]
    fn layers_come_in_groups_as_large_as_that_of_the_global_ones() {
        let config = |layers: usize| {
            let text = serde_json::json!({
                "model_type": "gemma3_text",
                "num_hidden_layers": layers,
                "sliding_window": 1024,
            });
            crate::config::Config::parse(&text.to_string(), None)
                .unwrap()
                .text
        };
        // As MedGemma 4B: every sixth of 34 layers is global.
        let of_4b = config(34);
        let groups = Groups::of(&of_4b);
        assert_eq!((groups.size, groups.local), (5, 6));
        assert_eq!(
            groups.places[..7],
            [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (0, 0), (2, 0)]
        );
        assert_eq!(groups.places[33], (6, 3));
        let mut all = groups.places.clone();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 34, "no two layers share a place");
        // Fewer than six layers are all local.
        assert_eq!(Groups::of(&config(5)).local, 0);
        // A CT volume of 85 slices: a block of each group to the end, or as far as the window reaches.
        let layout = BlockLayout {
            block_tokens: 16,
            local_groups: groups.local,
            window: 1024,
            stretch_tokens: 512,
        };
        let (all, kept) = (7 * 22_528 / 16, layout.blocks_of(22_528));
        assert_eq!((all, kept), (9_856, 1_408 + 6 * 97));
        let bytes = |dtype| of_4b.kv_bytes_of(22_528, (16, 512), dtype);
        // Keys and values of five layers, four heads and 256 values in each block.
        let block = 16 * 2 * 5 * 4 * 256;
        assert_eq!(bytes(Dtype::Bf16), kept * block * 2);
        assert_eq!(bytes(Dtype::F32), kept * block * 4);
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
