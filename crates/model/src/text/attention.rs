//! Attention of one layer over a batch of chunks: projections and norms for all rows at once, the rest per chunk.

use candle_core::Tensor;

use crate::config::{LayerKind, TextConfig};
use crate::error::{BackendError, LoadError};
use crate::layers::{Linear, RmsNorm, attend};
use crate::text::Mutations;
use crate::text::batch::{Chunk, Plan};
use crate::text::cache::KvPool;
use crate::text::mask::Visible;
use crate::text::rope::Rope;
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
        let query = self
            .query_norm
            .forward(&split(self.query.forward(x)?, config.heads)?)?;
        let query = heads.rope.apply(&query, heads.kind)?;
        let key = self
            .key_norm
            .forward(&split(self.key.forward(x)?, config.kv_heads)?)?;
        let key = heads.rope.apply(&key, heads.kind)?;
        let value = split(self.value.forward(x)?, config.kv_heads)?;
        let mut mixed = Vec::with_capacity(heads.chunks.len());
        for (index, chunk) in heads.chunks.iter().enumerate() {
            let (first, n) = (heads.plan.rows[index], chunk.tokens.len());
            let of_chunk = (key.narrow(0, first, n)?, value.narrow(0, first, n)?);
            pool.write(layer, chunk.table, chunk.start, (&of_chunk.0, &of_chunk.1))?;
            let query = query.narrow(0, first, n)?.transpose(0, 1)?.contiguous()?;
            mixed.push(heads.mix(&query, index, layer, pool)?);
        }
        self.output.forward(&Tensor::cat(&mixed, 0)?)
    }
}

impl Heads<'_> {
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
        let (key, value) = pool.read(layer, chunk.table, positions.clone())?;
        let scalar = if self.mutations.head_dim_scale {
            self.config.head_dim as f64
        } else {
            self.config.query_scalar
        };
        attend(query, &key, &value, scalar.powf(-0.5), &|rows| {
            visible.mask(
                chunk.start + rows.start..chunk.start + rows.end,
                positions.clone(),
                query.device(),
            )
        })
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
