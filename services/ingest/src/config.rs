//! What an operator decides about ingest, with every limit named. Keys that hide a decision have no default.

mod edge;
mod limits;
mod quotas;
mod retention;
#[cfg(test)]
pub(crate) mod sample;
mod uploads;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use medfleet_core::setting::{ByteSize, DurationText, Within};
use medfleet_core::{Class, PoolName, TaskKind, TenantId};
use medfleet_queue::QueueConfig;
use medfleet_runtime::{ConfigError, ProcessConfig, Settings, config};
use medfleet_store::StoreConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::unit::{Reserved, Rules, Weights};

pub use edge::{EdgeConfig, EdgeTenant, Travels};
pub use limits::Limits;
pub use quotas::{Quota, QuotasConfig};
pub use retention::RetentionConfig;
pub use uploads::UPLOADS_RENEWED_EVERY;

/// The configuration of the `medfleet-ingest` binary.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MainConfig {
    /// Admin port, drain time, telemetry.
    #[serde(default)]
    pub process: ProcessConfig,
    /// The queue.
    #[serde(default)]
    pub queue: QueueConfig,
    /// The blob store.
    pub store: StoreConfig,
    /// This service.
    pub ingest: Config,
}

impl Settings for MainConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.queue
            .check()
            .map_err(|error| ConfigError::of_part(&error))?;
        self.store
            .check()
            .map_err(|error| ConfigError::of_part(&error))?;
        self.ingest.check()?;
        let sweep = self.ingest.accept.pending_after.get();
        if sweep < self.queue.request_timeout.get() * 4 {
            return Err(ConfigError::relation(
                "ingest.accept.pending_after must be at least four times queue.request_timeout, \
                 so that an accept under way is never taken for an abandoned one",
            ));
        }
        let limits = &self.ingest.limits;
        if self.store.blob_bytes_max < limits.upload_part_bytes.max(limits.inline_bytes_max) {
            return Err(ConfigError::relation(
                "store.blob_bytes_max must be at least ingest.limits.upload_part_bytes and ingest.limits.inline_bytes_max, so \
                 that what is taken in can be stored",
            ));
        }
        limits.check_uploads(self.queue.upload_ttl)?;
        if self.queue.record_retention.get() < self.ingest.limits.time_to_live_max.get() {
            return Err(ConfigError::relation(
                "queue.record_retention must be at least ingest.limits.time_to_live_max, so that no job outlives its record",
            ));
        }
        if self.queue.event_retention.get() < self.ingest.limits.time_to_live_max.get() {
            return Err(ConfigError::relation(
                "queue.event_retention must be at least ingest.limits.time_to_live_max, so that an open job whose record is lost \
                 has an event that tells its epoch",
            ));
        }
        self.ingest.retention.check(self.queue.record_retention)
    }
}

/// The configuration of ingest itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the public API answers. Port 0 takes a free one, which the log names.
    #[serde(default = "listen_default")]
    pub listen: SocketAddr,
    /// Certificates of the public API; plain HTTP/2 without.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// The file of token hashes.
    pub tokens: PathBuf,
    /// How often the file of token hashes is looked at for changes.
    #[serde(default = "tokens_reload_default")]
    pub tokens_reload: DurationText,
    /// Model alias to pool: `{ "medgemma-4b" = "medgemma-4b-main" }`.
    pub models: BTreeMap<String, PoolName>,
    /// The alias used when a job names none.
    pub default_model: String,
    /// Alias to pool of the MedSigLIP models, which do `embed` and `zero-shot`; without one these tasks are refused.
    #[serde(default)]
    pub embedders: BTreeMap<String, PoolName>,
    /// The alias used when such a job names none; needed where there are several.
    #[serde(default)]
    pub default_embedder: Option<String>,
    /// Sizes, counts and durations of requests.
    #[serde(default)]
    pub limits: Limits,
    /// What one tenant may send in a minute, and what it may have.
    #[serde(default)]
    pub quotas: QuotasConfig,
    /// How long jobs and what is stored for them are kept.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// The sweep of unfinished accepts.
    #[serde(default)]
    pub accept: AcceptConfig,
    /// Watching.
    #[serde(default)]
    pub watch: WatchConfig,
    /// What jobs are expected to take.
    #[serde(default)]
    pub cost: CostConfig,
    /// Releasing.
    #[serde(default)]
    pub dispatcher: DispatcherConfig,
    /// Makes this ingest a hospital's edge: it hands its jobs on to a hub, and releases none itself but those whose images
    /// stay. A hub without.
    #[serde(default)]
    pub edge: Option<EdgeConfig>,
}

fn listen_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8443))
}

fn tokens_reload_default() -> DurationText {
    DurationText::from_secs(2)
}

/// PEM files of the public API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of client certificates; when set, clients must show one, besides their token.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// The sweep that finishes accepts whose process died in between.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AcceptConfig {
    /// An accept older than this without its intake message is finished by the sweep.
    pub pending_after: DurationText,
    /// How often the sweep looks.
    pub sweep_every: DurationText,
}

impl Default for AcceptConfig {
    fn default() -> Self {
        Self {
            pending_after: DurationText::from_secs(30),
            sweep_every: DurationText::from_secs(10),
        }
    }
}

/// Watching.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// A quiet watch re-reads the job this often, so that no lost event can hang it.
    pub reread_every: DurationText,
    /// While text is missing, how often the stored text is read.
    pub checkpoint_every: DurationText,
    /// Text held back while the piece before it is missing, per watch.
    pub ahead_bytes_max: ByteSize,
    /// Signals that a slow watch may lag behind before it starts over from durable state, per job; a power of two.
    #[schemars(range(min = 2, max = 1 << 16))]
    pub signals_max: usize,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            reread_every: DurationText::from_secs(20),
            checkpoint_every: DurationText::from_millis(500),
            ahead_bytes_max: ByteSize::from_bytes(64 << 10),
            signals_max: 64,
        }
    }
}

/// What jobs are expected to take: for taking turns by cost, for releasing no more than is done soon, and for the backlog.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CostConfig {
    /// Slot time by stage, of a pool that is not named below.
    pub rates: Rates,
    /// Of single pools, in place of those.
    pub pools: BTreeMap<PoolName, Rates>,
    /// Frames that a job of many files is expected to be cut to, until preprocess says how many there are.
    #[schemars(range(min = 1))]
    pub frames_max: u32,
    /// Tokens that a text is expected to have, where the job allows so many.
    pub tokens: Tokens,
}

/// Slot time of one of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Of preprocess for a file.
    pub preprocess_per_file: DurationText,
    /// Of encode for a frame.
    pub encode_per_frame: DurationText,
    /// Of decode for reading a frame's image tokens.
    pub decode_per_frame: DurationText,
    /// Of decode for writing a token.
    pub decode_per_token: DurationText,
}

/// Tokens of a text by task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "one number for each task of the same name")]
pub struct Tokens {
    pub report: u32,
    pub answer: u32,
    pub classify: u32,
    pub localise: u32,
    pub compare: u32,
    pub extract: u32,
}

impl Default for CostConfig {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            pools: BTreeMap::new(),
            frames_max: 85,
            tokens: Tokens::default(),
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            preprocess_per_file: DurationText::from_millis(100),
            encode_per_frame: DurationText::from_millis(200),
            decode_per_frame: DurationText::from_millis(50),
            decode_per_token: DurationText::from_millis(20),
        }
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            report: 300,
            answer: 150,
            classify: 10,
            localise: 100,
            compare: 300,
            extract: 200,
        }
    }
}

/// The dispatcher.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DispatcherConfig {
    /// How far ahead of its live slots the work of a (stage, pool) is released, by what it is expected to take. Each slot
    /// may have one unit in any case, and each class one unit even where there is no slot.
    pub release_ahead: DurationText,
    /// Units of one (stage, pool) that may be released and unfinished, whatever they take; the floor of one unit per class
    /// comes on top.
    #[schemars(range(min = 1))]
    pub released_units_max: u64,
    /// A unit that has waited so long for its release is aged: while a class has such units, one of `aged_every` releases is
    /// of that class, by turn of its tenants, so that no class starves. A single STAT unit still goes first.
    pub age_after: DurationText,
    /// See `age_after`.
    #[schemars(range(min = 2))]
    pub aged_every: u32,
    /// Decode slots of each pool that are kept free for a class (`stat`, `urgent` or `routine`) from the classes below it. One
    /// slot of a pool is open to all in any case. For pools whose every slot would otherwise hold a text of minutes.
    #[schemars(extend(
        "patternProperties" = {"^(stat|urgent|routine)$": {"type": "integer", "minimum": 0}},
        "additionalProperties" = false
    ))]
    pub decode_reserved: BTreeMap<String, u32>,
    /// What a tenant's turn is worth where tenants compete within a class; 1 for a tenant that is not named.
    #[schemars(with = "BTreeMap<TenantId, Within<1, 1000>>")]
    pub tenant_weights: BTreeMap<String, u32>,
    /// How often the released units are counted anew and what failed is tried again.
    pub recount_every: DurationText,
    /// Shortest time between two counts of a full pool.
    pub recount_least: DurationText,
    /// How often jobs past their time to live are looked for.
    pub expire_every: DurationText,
    /// Releases in flight at a time.
    #[schemars(range(min = 1))]
    pub releases_max: usize,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self {
            release_ahead: DurationText::from_secs(2),
            released_units_max: 1024,
            age_after: DurationText::from_secs(10 * 60),
            aged_every: 8,
            decode_reserved: BTreeMap::new(),
            tenant_weights: BTreeMap::new(),
            recount_every: DurationText::from_secs(1),
            recount_least: DurationText::from_millis(20),
            expire_every: DurationText::from_secs(5),
            releases_max: 64,
        }
    }
}

impl Config {
    /// The pools that the aliases name, each once.
    pub(crate) fn pools(&self) -> Vec<PoolName> {
        let mut pools = Vec::new();
        for pool in self.models.values().chain(self.embedders.values()) {
            if !pools.contains(pool) {
                pools.push(pool.clone());
            }
        }
        pools
    }

    /// The models that do a task: alias to pool, and the alias of a job that names none.
    pub(crate) fn models_for(&self, task: TaskKind) -> (&BTreeMap<String, PoolName>, Option<&str>) {
        if task.compares() {
            let only = match self.embedders.len() {
                1 => self.embedders.keys().next(),
                _ => None,
            };
            let default = self.default_embedder.as_ref().or(only);
            (&self.embedders, default.map(String::as_str))
        } else {
            (&self.models, Some(self.default_model.as_str()))
        }
    }

    /// What the dispatcher goes by.
    ///
    /// # Errors
    /// As for the weights.
    pub(crate) fn rules(&self) -> Result<Rules, ConfigError> {
        let dispatcher = &self.dispatcher;
        Ok(Rules {
            weights: self.weights()?,
            ahead_millis: dispatcher.release_ahead.as_millis(),
            released_units_max: dispatcher.released_units_max,
            age_millis: i64::try_from(dispatcher.age_after.as_millis()).unwrap_or(i64::MAX),
            aged_every: dispatcher.aged_every,
            decode_reserved: self.decode_reserved()?,
            in_flight_max: self.quotas.in_flight_max(),
        })
    }

    /// Slots of decode that are kept for each class and those above it.
    ///
    /// # Errors
    /// When a key is not a class, or is the lowest one, for which there is nobody to keep a slot from.
    fn decode_reserved(&self) -> Result<Reserved, ConfigError> {
        let mut reserved = Reserved::default();
        for (name, slots) in &self.dispatcher.decode_reserved {
            let place = format!("ingest.dispatcher.decode_reserved.{name}");
            let class: Class = name
                .parse()
                .map_err(|error| ConfigError::relation(format!("{place}: {error}")))?;
            let kept = reserved.get_mut(class as usize).ok_or_else(|| {
                ConfigError::relation(format!("{place}: no class is below this one"))
            })?;
            *kept = u64::from(*slots);
        }
        Ok(reserved)
    }

    /// The weights of the tenants that have one.
    ///
    /// # Errors
    /// When a key is not a tenant's name or a weight is outside 1 to 1000.
    fn weights(&self) -> Result<Weights, ConfigError> {
        let weights = self.dispatcher.tenant_weights.iter();
        let weights = weights.map(|(tenant, weight)| {
            let place = format!("ingest.dispatcher.tenant_weights.{tenant}");
            let tenant = TenantId::new(tenant.as_str())
                .map_err(|error| ConfigError::relation(format!("{place}: {error}")))?;
            match weight {
                1..=1000 => Ok((tenant, *weight)),
                _ => Err(ConfigError::relation(format!(
                    "{place} must be 1 to 1000, found {weight}"
                ))),
            }
        });
        weights.collect()
    }

    /// Checks what one field cannot know of another, and each number.
    ///
    /// # Errors
    /// [`ConfigError::Relation`] with the reason.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.quotas.check()?;
        self.limits.check()?;
        self.check_waits()?;
        all_hold(&[
            (
                self.models.contains_key(&self.default_model),
                "ingest.default_model must be one of ingest.models",
            ),
            (
                !self
                    .models
                    .values()
                    .any(|pool| self.embedders.values().any(|other| other == pool)),
                "a pool of ingest.embedders must not be one of ingest.models: its workers run one model",
            ),
            (
                self.default_embedder
                    .as_ref()
                    .map_or(self.embedders.len() < 2, |default| {
                        self.embedders.contains_key(default)
                    }),
                "ingest.default_embedder must be one of ingest.embedders, and be there where there are several",
            ),
            (
                self.models
                    .keys()
                    .chain(self.embedders.keys())
                    .all(|alias| (1..=64).contains(&alias.len())),
                "a model alias is 1 to 64 bytes long",
            ),
            (
                self.dispatcher.aged_every >= 2,
                "ingest.dispatcher.aged_every must be at least 2, so that what waits longest is not all that is released",
            ),
            (
                self.cost.pools.keys().all(|pool| {
                    self.models
                        .values()
                        .chain(self.embedders.values())
                        .any(|known| known == pool)
                }),
                "ingest.cost.pools must name pools of ingest.models or ingest.embedders",
            ),
        ])?;
        if let Some(edge) = &self.edge {
            edge.check()?;
        }
        self.rules()?;
        // Also for who starts ingest with a configuration that nobody loaded.
        config::hold(self, "ingest")
    }

    /// What is done again and again has a pause before it.
    fn check_waits(&self) -> Result<(), ConfigError> {
        let Self {
            tokens_reload,
            accept,
            watch,
            dispatcher,
            ..
        } = self;
        let waits = [
            ("tokens_reload", tokens_reload),
            ("accept.sweep_every", &accept.sweep_every),
            ("watch.reread_every", &watch.reread_every),
            ("watch.checkpoint_every", &watch.checkpoint_every),
            ("dispatcher.recount_every", &dispatcher.recount_every),
            ("dispatcher.expire_every", &dispatcher.expire_every),
        ];
        match waits.iter().find(|(_, wait)| wait.get().is_zero()) {
            Some((key, _)) => Err(ConfigError::relation(format!(
                "ingest.{key} must be above zero: it is the pause between two looks"
            ))),
            None => Ok(()),
        }
    }
}

/// The reason of the first that does not hold.
fn all_hold(relations: &[(bool, &'static str)]) -> Result<(), ConfigError> {
    match relations.iter().find(|(holds, _)| !holds) {
        Some((_, reason)) => Err(ConfigError::relation(*reason)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
