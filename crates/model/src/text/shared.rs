//! What the layers of one forward share: the masks of a kind of layer, and where a group's keys and values lie. Each is made
//! when the first layer needs it, and its numbers travel to the device once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use candle_core::{Device, Tensor};

use crate::config::LayerKind;
use crate::error::BackendError;
use crate::fused::Steps;
use crate::text::batch::{Chunk, Plan};
use crate::text::cache::KvPool;
use crate::text::mask::Visible;

/// Mask values kept for a forward's other layers, over all masks: 2²⁴ f32 are 64 MiB. What is over is made again.
const MASK_VALUES_MAX: usize = 1 << 24;
/// The same on a GPU, whose tiles are larger: 512 MiB.
const MASK_VALUES_MAX_GPU: usize = 1 << 27;

/// A stretch of query rows of a chunk on a kind of layer.
type MaskOf = (LayerKind, usize, Range<usize>);

/// See the module.
#[derive(Default)]
pub(crate) struct Shared {
    masks: RefCell<HashMap<MaskOf, Option<Tensor>>>,
    mask_values: RefCell<usize>,
    /// By group and chunk.
    slots: RefCell<HashMap<(usize, usize), Tensor>>,
    /// By group.
    rows: RefCell<HashMap<usize, Tensor>>,
    steps: RefCell<HashMap<usize, Option<Rc<Steps>>>>,
}

impl Shared {
    /// The mask of rows `rows` of a chunk, as [`Visible::mask`] makes it.
    pub(crate) fn mask(
        &self,
        of: MaskOf,
        make: impl FnOnce() -> Result<Option<Tensor>, BackendError>,
    ) -> Result<Option<Tensor>, BackendError> {
        if let Some(mask) = self.masks.borrow().get(&of) {
            return Ok(mask.clone());
        }
        let mask = make()?;
        let values = mask.as_ref().map_or(0, Tensor::elem_count);
        let mut kept = self.mask_values.borrow_mut();
        let on_gpu = mask.as_ref().is_some_and(|mask| !mask.device().is_cpu());
        let most = if on_gpu {
            MASK_VALUES_MAX_GPU
        } else {
            MASK_VALUES_MAX
        };
        if *kept + values <= most {
            *kept += values;
            self.masks.borrow_mut().insert(of, mask.clone());
        }
        Ok(mask)
    }

    /// Where positions of a chunk lie for a layer of this group: [positions] u32. The positions are the same for all layers
    /// of a group, which are of one kind.
    pub(crate) fn slots(
        &self,
        (group, index): (usize, usize),
        make: impl FnOnce() -> Result<Tensor, BackendError>,
    ) -> Result<Tensor, BackendError> {
        cached(&self.slots, (group, index), make)
    }

    /// Where the rows of the batch lie for a layer of this group: [rows] u32.
    pub(crate) fn rows(
        &self,
        group: usize,
        chunks: &[Chunk],
        pool: &KvPool,
    ) -> Result<Tensor, BackendError> {
        cached(&self.rows, group, || {
            let mut slots = Vec::new();
            for chunk in chunks {
                let positions = chunk.start..chunk.start + chunk.tokens.len();
                slots.extend(pool.slots(group, chunk.table, positions));
            }
            Ok(Tensor::new(slots, pool.device())?)
        })
    }

    /// What the chunks of one token see, in the layers of this group; nothing where there is none.
    pub(crate) fn steps(
        &self,
        group: usize,
        window: Option<usize>,
        (plan, chunks): (&Plan, &[Chunk]),
        pool: &KvPool,
    ) -> Result<Option<Rc<Steps>>, BackendError> {
        cached(&self.steps, group, || {
            let single = chunks.iter().enumerate();
            let single = single.filter(|(_, chunk)| chunk.tokens.len() == 1);
            let (mut steps, mut blocks, mut seen_max) = (Vec::new(), Vec::new(), 0);
            for (index, chunk) in single {
                let visible = Visible { window, runs: &[] };
                let first = visible.first_key(chunk.start);
                let seen = chunk.start + 1 - first;
                seen_max = seen_max.max(seen);
                let of_step = [plan.rows[index], first, seen, blocks.len()];
                steps.extend(of_step.map(|number| number as u32));
                blocks.extend(pool.blocks_of(group, chunk.table, first..chunk.start + 1));
            }
            if steps.is_empty() {
                return Ok(None);
            }
            Ok(Some(Rc::new(Steps {
                count: steps.len() / 4,
                steps: on(steps, pool.device())?,
                blocks: on(blocks, pool.device())?,
                seen_max,
                block_tokens: pool.block_tokens(),
            })))
        })
    }
}

fn on(numbers: Vec<u32>, device: &Device) -> Result<Tensor, BackendError> {
    Ok(Tensor::new(numbers, device)?)
}

fn cached<K: std::hash::Hash + Eq, V: Clone>(
    kept: &RefCell<HashMap<K, V>>,
    key: K,
    make: impl FnOnce() -> Result<V, BackendError>,
) -> Result<V, BackendError> {
    if let Some(value) = kept.borrow().get(&key) {
        return Ok(value.clone());
    }
    let value = make()?;
    kept.borrow_mut().insert(key, value.clone());
    Ok(value)
}
