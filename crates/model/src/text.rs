//! Gemma 3's language model over paged keys and values.
//!
//! One forward takes a batch of chunks: each belongs to its own sequence, starts at its own position and brings its own
//! block table. All rows go through the linear layers together; attention is done per chunk. A decode step is a chunk
//! of one token. What a forward checks before it computes is in [`batch`].

pub(crate) mod attention;
pub(crate) mod batch;
pub(crate) mod blocks;
pub(crate) mod cache;
pub(crate) mod mask;
pub(crate) mod progress;
pub(crate) mod rope;
pub(crate) mod shared;

use candle_core::{DType, Device, Tensor};
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};

use crate::config::{LayerKind, TextConfig};
use crate::error::{BackendError, ForwardError, LoadError};
use crate::fused;
use crate::layers::{Linear, Matrix, RmsNorm, gelu_times};
use crate::projector::{ProjectError, Projector};
use crate::sampling::Choice;
use crate::weights::Scope;
use attention::{Attention, Heads};
use batch::{Chunk, ImageRule, LogitRows, Plan, Want};
use cache::KvPool;
use rope::Tables;
use shared::Shared;

/// Deliberate faults, so that tests can show that they would be noticed. All off outside tests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mutations {
    /// Images are read causally, as text is.
    pub(crate) no_image_mask: bool,
    /// Added to the window.
    pub(crate) window_delta: isize,
    /// Global layers count positions unscaled.
    pub(crate) no_rope_factor: bool,
    /// head_dim in place of the query scalar.
    pub(crate) head_dim_scale: bool,
    /// SiLU in place of GELU.
    pub(crate) silu: bool,
    /// Images get the embedding scale too.
    pub(crate) scaled_images: bool,
    /// Positions pass through bf16, which has no exact integers above 256.
    pub(crate) bf16_positions: bool,
}

/// The language model with the projector that images pass on their way in.
pub(crate) struct TextTower {
    config: TextConfig,
    device: Device,
    dtype: DType,
    embedding: Matrix,
    /// sqrt(hidden), rounded to the weights' dtype by the multiplication itself.
    embedding_scale: f64,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// Absent in text-only checkpoints, as the token is.
    images: Option<Projector>,
    /// Stands for a vector of an image, and is never chosen.
    soft_token: Option<u32>,
    rope: Tables,
    mutations: Mutations,
}

struct Layer {
    kind: LayerKind,
    before_attention: RmsNorm,
    attention: Attention,
    after_attention: RmsNorm,
    before_feed_forward: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    after_feed_forward: RmsNorm,
}

impl TextTower {
    /// Takes no image before [`TextTower::with_soft_token`].
    pub(crate) fn load(
        scope: &Scope,
        config: &TextConfig,
        images: Option<Projector>,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let embedding = scope
            .at("embed_tokens")
            .matrix("weight", [config.vocab, config.hidden])?;
        let layers = scope.at("layers");
        let layer = |(i, kind): (usize, &LayerKind)| Layer::load(&layers.at(i), config, *kind);
        // Copying out of the mapped files is most of the time: by as many threads as there are cores. The first layer with a
        // fault is the one that is named.
        let loaded: Vec<Result<Layer, LoadError>> =
            config.layers.par_iter().enumerate().map(layer).collect();
        Ok(Self {
            embedding,
            dtype: scope.dtype().candle(),
            embedding_scale: (config.hidden as f64).sqrt(),
            layers: loaded.into_iter().collect::<Result<_, _>>()?,
            norm: RmsNorm::load(&scope.at("norm"), config.hidden, config.norm_eps)?,
            images,
            soft_token: None,
            rope: Tables::new(config, scope.dtype(), Mutations::default(), device),
            config: config.clone(),
            device: device.clone(),
            mutations: Mutations::default(),
        })
    }

    /// With the id of the token that stands for images, which the tokenizer knows: that is parsed while weights are read.
    pub(crate) fn with_soft_token(self, soft_token: Option<u32>) -> Self {
        Self { soft_token, ..self }
    }

    /// Computes the chunks, stores their keys and values, and returns for each the logits it asked for.
    pub(crate) fn forward(
        &self,
        pool: &mut KvPool,
        chunks: &[Chunk],
    ) -> Result<Vec<LogitRows>, ForwardError> {
        let plan = Plan::check(chunks, &self.config, pool, self.image_rule())?;
        let x = self.embed(chunks)?;
        Ok(self.run(pool, chunks, &plan, x)?)
    }

    /// Whether all of it is done by kernels that work on each row by itself.
    pub(crate) fn rows_stand_alone(&self) -> bool {
        self.embedding.has_kernels()
            && self.norm.cpu().is_some()
            && self.layers.iter().all(Layer::has_kernels)
    }

    fn image_rule(&self) -> Option<ImageRule> {
        let tokens_per_image = self.images.as_ref()?.tokens_per_image();
        Some(ImageRule {
            soft_token: self.soft_token?,
            tokens_per_image,
        })
    }

    fn run(
        &self,
        pool: &mut KvPool,
        chunks: &[Chunk],
        plan: &Plan,
        x: Tensor,
    ) -> Result<Vec<LogitRows>, BackendError> {
        let rope = self.rope.of(&plan.positions)?;
        let shared = Shared::default();
        let mut x = x;
        for (index, layer) in self.layers.iter().enumerate() {
            let heads = Heads {
                config: &self.config,
                kind: layer.kind,
                rope: &rope,
                plan,
                chunks,
                shared: &shared,
                mutations: self.mutations,
            };
            let normal = layer.before_attention.forward(&x)?;
            let mixed = layer.attention.forward(&normal, index, pool, &heads)?;
            x = layer.after_attention.forward_onto(&x, &mixed)?;
            let wide = layer.feed_forward(&x, self.mutations.silu)?;
            x = layer.after_feed_forward.forward_onto(&x, &wide)?;
        }
        self.logits(&x, chunks, plan)
    }

    #[cfg(test)]
    pub(crate) fn mutate(&mut self, mutations: Mutations) {
        let dtype = self.rope.dtype();
        self.rope = Tables::new(&self.config, dtype, mutations, &self.device);
        self.mutations = mutations;
    }

    /// What an image looks like to the language model, for comparison with the reference.
    #[cfg(test)]
    pub(crate) fn project(&self, tokens: &crate::tokens::ImageTokens) -> Tensor {
        let projector = self.images.as_ref().unwrap();
        projector.forward(tokens).ok().unwrap()
    }

    /// Scaled embeddings of the tokens, with the projected images, unscaled, in place of their soft tokens.
    fn embed(&self, chunks: &[Chunk]) -> Result<Tensor, ForwardError> {
        let mut parts = Vec::new();
        for chunk in chunks {
            let mut next = 0;
            for image in chunk.images {
                self.embed_tokens(&chunk.tokens[next..image.offset], &mut parts)?;
                let projector = self.images.as_ref().ok_or(ForwardError::NotLoaded)?;
                let rows = projector
                    .forward(image.tokens)
                    .map_err(|error| match error {
                        ProjectError::Tokens(error) => ForwardError::Image(error),
                        ProjectError::Backend(error) => ForwardError::Backend(error),
                    })?;
                let scale = if self.mutations.scaled_images {
                    self.embedding_scale
                } else {
                    1.0
                };
                parts.push((rows * scale).map_err(BackendError::from)?);
                next = image.offset + projector.tokens_per_image();
            }
            self.embed_tokens(&chunk.tokens[next..], &mut parts)?;
        }
        Ok(Tensor::cat(&parts, 0).map_err(BackendError::from)?)
    }

    fn embed_tokens(&self, ids: &[u32], parts: &mut Vec<Tensor>) -> Result<(), BackendError> {
        if !ids.is_empty() {
            let ids = Tensor::new(ids, &self.device)?;
            let rows = self.embedding.rows(&ids, self.dtype)?;
            parts.push((rows * self.embedding_scale)?);
        }
        Ok(())
    }

    fn logits(
        &self,
        x: &Tensor,
        chunks: &[Chunk],
        plan: &Plan,
    ) -> Result<Vec<LogitRows>, BackendError> {
        if plan.wanted.is_empty() {
            return Ok(chunks.iter().map(|_| LogitRows::default()).collect());
        }
        let rows = x.index_select(&Tensor::new(plan.wanted.as_slice(), &self.device)?, 0)?;
        let logits = self.embedding.product(&self.norm.forward(&rows)?)?;
        let likeliest = self.likeliest(&logits, chunks)?;
        let whole = likeliest.iter().enumerate();
        let whole = whole.filter(|(_, found)| found.is_none());
        // As many as `wanted` has.
        let whole: Vec<u32> = whole.map(|(row, _)| row as u32).collect();
        let mut rows = values(&logits, &whole)?.into_iter();
        let mut likeliest = likeliest.into_iter();
        let of_chunk = |chunk: &Chunk| {
            let found: Vec<Option<Choice>> = likeliest.by_ref().take(wanted(chunk)).collect();
            let whole = found.iter().filter(|found| found.is_none()).count();
            LogitRows {
                rows: rows.by_ref().take(whole).collect(),
                likeliest: found.into_iter().flatten().next(),
            }
        };
        Ok(chunks.iter().map(of_chunk).collect())
    }

    /// For each row of logits [wanted, vocab] the likeliest token, where its chunk wants no more and where it is found beside them.
    fn likeliest(
        &self,
        logits: &Tensor,
        chunks: &[Chunk],
    ) -> Result<Vec<Option<Choice>>, BackendError> {
        let wants = chunks
            .iter()
            .flat_map(|chunk| std::iter::repeat_n(chunk.want, wanted(chunk)));
        let wants: Vec<Want> = wants.collect();
        if !wants.contains(&Want::Likeliest) {
            return Ok(vec![None; wants.len()]);
        }
        let never = self.soft_token.unwrap_or(u32::MAX);
        if logits.device().is_cpu() {
            let wanted: Vec<bool> = wants.iter().map(|want| *want == Want::Likeliest).collect();
            return fused::cpu::likeliest(logits, &wanted, never);
        }
        let Some(found) = fused::likeliest(logits, never)? else {
            return Ok(vec![None; wants.len()]);
        };
        let choice = |(want, found): (Want, Vec<u32>)| match found[..] {
            [token, logprob] if want == Want::Likeliest && token != u32::MAX => Some(Choice {
                token,
                logprob: f32::from_bits(logprob),
            }),
            // Without a finite number, `choose` says so of the row.
            _ => None,
        };
        let found = found.to_vec2::<u32>()?;
        Ok(wants.into_iter().zip(found).map(choice).collect())
    }
}

/// How many rows of logits a chunk asks for.
fn wanted(chunk: &Chunk) -> usize {
    match chunk.want {
        Want::Nothing => 0,
        Want::Last | Want::Likeliest => 1,
        Want::All => chunk.tokens.len(),
    }
}

/// These rows of logits [rows, vocab], in f32: only they leave the device.
fn values(logits: &Tensor, rows: &[u32]) -> Result<Vec<Vec<f32>>, BackendError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let logits = if rows.len() == logits.dim(0)? {
        logits.clone()
    } else {
        logits.index_select(&Tensor::new(rows, logits.device())?, 0)?
    };
    Ok(logits.to_dtype(DType::F32)?.to_vec2()?)
}

impl Layer {
    fn load(scope: &Scope, config: &TextConfig, kind: LayerKind) -> Result<Self, LoadError> {
        let norm = |name| RmsNorm::load(&scope.at(name), config.hidden, config.norm_eps);
        let mlp = scope.at("mlp");
        let (hidden, wide) = (config.hidden, config.intermediate);
        Ok(Self {
            kind,
            before_attention: norm("input_layernorm")?,
            attention: Attention::load(&scope.at("self_attn"), config)?,
            after_attention: norm("post_attention_layernorm")?,
            before_feed_forward: norm("pre_feedforward_layernorm")?,
            gate: Linear::load(&mlp.at("gate_proj"), hidden, wide, false)?,
            up: Linear::load(&mlp.at("up_proj"), hidden, wide, false)?,
            down: Linear::load(&mlp.at("down_proj"), wide, hidden, false)?,
            after_feed_forward: norm("post_feedforward_layernorm")?,
        })
    }

    fn has_kernels(&self) -> bool {
        let linears = [&self.gate, &self.up, &self.down];
        let linears = linears.into_iter().chain(self.attention.linears());
        let norms = [
            &self.before_attention,
            &self.after_attention,
            &self.before_feed_forward,
            &self.after_feed_forward,
        ];
        let norms = norms.into_iter().chain(self.attention.norms());
        linears.into_iter().all(|linear| linear.kernels().is_some())
            && norms.into_iter().all(|norm| norm.cpu().is_some())
    }

    /// x [rows, hidden] → [rows, hidden], before the norm that follows.
    fn feed_forward(&self, x: &Tensor, silu: bool) -> Result<Tensor, BackendError> {
        let normal = self.before_feed_forward.forward(x)?;
        let (gate, up) = (self.gate.forward(&normal)?, self.up.forward(&normal)?);
        let wide = if silu {
            (gate.silu()? * up)?
        } else {
            gelu_times(self.gate.kernels(), &gate, &up)?
        };
        self.down.forward(&wide)
    }
}
