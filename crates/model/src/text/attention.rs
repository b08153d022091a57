//! Attention of one layer over a batch of chunks: projections and norms for all rows at once, the rest per chunk.

use candle_core::Tensor;
use medfleet_kernels::Kernels;

use crate::config::{LayerKind, TextConfig};
use crate::error::{BackendError, LoadError};
use crate::fused;
use crate::fused::cpu::{self, HeadSizes, Rows};
use crate::layers::{Linear, RmsNorm, attend};
use crate::text::Mutations;
use crate::text::batch::{Chunk, Plan};
use crate::text::cache::KvPool;
use crate::text::mask::Visible;
use crate::text::rope::Rope;
use crate::text::shared::Shared;
use crate::weights::Scope;

pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: RmsNorm,
    key_norm: RmsNorm,
}

/// What all layers of a forward share.
pub(crate) struct Heads<'a> {
    pub(crate) config: &'a TextConfig,
    pub(crate) kind: LayerKind,
    pub(crate) rope: &'a Rope,
    pub(crate) plan: &'a Plan,
    pub(crate) chunks: &'a [Chunk<'a>],
    pub(crate) shared: &'a Shared,
    pub(crate) mutations: Mutations,
}

impl Attention {
    pub(crate) fn load(scope: &Scope, config: &TextConfig) -> Result<Self, LoadError> {
        let (queries, keys) = (
            config.heads * config.head_dim,
            config.kv_heads * config.head_dim,
        );
        let linear = |name, input, output| Linear::load(&scope.at(name), input, output, false);
        let norm = |name| RmsNorm::load(&scope.at(name), config.head_dim, config.norm_eps);
        Ok(Self {
            query: linear("q_proj", config.hidden, queries)?,
            key: linear("k_proj", config.hidden, keys)?,
            value: linear("v_proj", config.hidden, keys)?,
            output: linear("o_proj", queries, config.hidden)?,
            query_norm: norm("q_norm")?,
            key_norm: norm("k_norm")?,
        })
    }

    pub(crate) fn linears(&self) -> [&Linear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }

    pub(crate) const fn norms(&self) -> [&RmsNorm; 2] {
        [&self.query_norm, &self.key_norm]
    }

    /// x [rows, hidden] → [rows, hidden]; keys and values of the rows are in the pool afterwards.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        pool: &mut KvPool,
        heads: &Heads,
    ) -> Result<Tensor, BackendError> {
        let (rows, config) = (x.dim(0)?, heads.config);
        let split = |t: Tensor, count: usize| t.reshape((rows, count, config.head_dim));
        let query = split(self.query.forward(x)?, config.heads)?;
        let query = heads
            .rope
            .apply_after(&self.query_norm, &query, heads.kind)?;
        let key = split(self.key.forward(x)?, config.kv_heads)?;
        let key = heads.rope.apply_after(&self.key_norm, &key, heads.kind)?;
        let value = split(self.value.forward(x)?, config.kv_heads)?;
        heads.store(layer, pool, (&key, &value))?;
        let mixed = match self.query.kernels() {
            Some(kernels) => heads.mix_in_place(kernels, &query, layer, pool)?,
            None => heads.mix_all(&query, layer, pool)?,
        };
        self.output.forward(&mixed)
    }
}

impl Heads<'_> {
    /// Puts keys and values of all rows into the pool.
    fn store(
        &self,
        layer: usize,
        pool: &mut KvPool,
        (key, value): (&Tensor, &Tensor),
    ) -> Result<(), BackendError> {
        if fused::attends_in_place(key) {
            let rows = self.shared.rows(pool.group(layer), self.chunks, pool)?;
            if pool.scatter(layer, &rows, (key, value))? {
                return Ok(());
            }
        }
        for (index, chunk) in self.chunks.iter().enumerate() {
            let (first, n) = (self.plan.rows[index], chunk.tokens.len());
            let of_chunk = (key.narrow(0, first, n)?, value.narrow(0, first, n)?);
            pool.write(layer, chunk.table, chunk.start, (&of_chunk.0, &of_chunk.1))?;
        }
        Ok(())
    }

    /// All chunks, over keys and values where they lie: query [rows, heads, head dim] → [rows, heads × head dim].
    fn mix_in_place(
        &self,
        kernels: Kernels,
        query: &Tensor,
        layer: usize,
        pool: &KvPool,
    ) -> Result<Tensor, BackendError> {
        let group = pool.group(layer);
        let rows = self.chunks.iter().enumerate().map(|(index, chunk)| {
            let visible = Visible {
                window: self.window(),
                runs: self.runs(index),
            };
            let (first, end) = (
                visible.first_key(chunk.start),
                chunk.start + chunk.tokens.len(),
            );
            Rows {
                seen: (chunk.start..end).map(|q| visible.range(q)).collect(),
                slots: Some(pool.slots(group, chunk.table, first..end)),
                first,
                sees_all: false,
            }
        });
        let sizes = HeadSizes {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            width: self.config.head_dim,
            scale: self.scale() as f32,
        };
        let batch: Vec<Rows> = rows.collect();
        cpu::attend(kernels, query, pool.stored(layer), (sizes, &batch))
    }

    /// All chunks: query [rows, heads, head dim] → [rows, heads × head dim].
    fn mix_all(&self, query: &Tensor, layer: usize, pool: &KvPool) -> Result<Tensor, BackendError> {
        let steps = self.mix_steps(query, layer, pool)?;
        let (mut mixed, mut step) = (Vec::with_capacity(self.chunks.len()), 0);
        for (index, chunk) in self.chunks.iter().enumerate() {
            let (first, n) = (self.plan.rows[index], chunk.tokens.len());
            if let Some(steps) = &steps
                && n == 1
            {
                if steps.dim(0)? == self.chunks.len() {
                    return Ok(steps.clone());
                }
                mixed.push(steps.narrow(0, step, 1)?);
                step += 1;
                continue;
            }
            let query = query.narrow(0, first, n)?.transpose(0, 1)?.contiguous()?;
            mixed.push(self.mix(&query, index, layer, pool)?);
        }
        Ok(Tensor::cat(&mixed, 0)?)
    }

    /// The chunks of one token, [steps, heads × head dim], where the device reads keys and values in place.
    fn mix_steps(
        &self,
        query: &Tensor,
        layer: usize,
        pool: &KvPool,
    ) -> Result<Option<Tensor>, BackendError> {
        if !fused::attends_in_place(query) {
            return Ok(None);
        }
        let batch = (self.plan, self.chunks);
        let group = pool.group(layer);
        match self.shared.steps(group, self.window(), batch, pool)? {
            Some(steps) => fused::attend(query, pool.stored(layer), &steps, self.scale() as f32),
            None => Ok(None),
        }
    }

    /// One chunk: query [heads, n, head dim] → [n, heads × head dim].
    fn mix(
        &self,
        query: &Tensor,
        index: usize,
        layer: usize,
        pool: &KvPool,
    ) -> Result<Tensor, BackendError> {
        let chunk = &self.chunks[index];
        let visible = Visible {
            window: self.window(),
            runs: self.runs(index),
        };
        let positions = visible.first_key(chunk.start)..chunk.start + chunk.tokens.len();
        let group = pool.group(layer);
        let slots = self.shared.slots((group, index), || {
            let slots = pool.slots(group, chunk.table, positions.clone());
            Ok(Tensor::new(slots, pool.device())?)
        })?;
        let (key, value) = pool.read(layer, &slots)?;
        attend(query, &key, &value, self.scale(), &|rows| {
            let of = (self.kind, index, rows.clone());
            self.shared.mask(of, || {
                visible.mask(
                    chunk.start + rows.start..chunk.start + rows.end,
                    positions.clone(),
                    query.device(),
                )
            })
        })
    }

    /// What products of queries and keys are multiplied with.
    fn scale(&self) -> f64 {
        let scalar = if self.mutations.head_dim_scale {
            self.config.head_dim as f64
        } else {
            self.config.query_scalar
        };
        scalar.powf(-0.5)
    }

    fn window(&self) -> Option<usize> {
        match self.kind {
            LayerKind::Local => Some(
                self.config
                    .window
                    .saturating_add_signed(self.mutations.window_delta),
            ),
            LayerKind::Global => None,
        }
    }

    fn runs(&self, index: usize) -> &[std::ops::Range<usize>] {
        if self.mutations.no_image_mask {
            &[]
        } else {
            &self.plan.runs[index]
        }
    }
}
