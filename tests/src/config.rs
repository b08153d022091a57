//! The configuration files of a test fleet, as an operator would write them.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use medfleet_core::setting::{ByteSize, Secret};
use medfleet_core::{JobId, JobKey, TenantId};
use medfleet_ingest::tokens::{TokenEntry, TokensFile, create_token};
use medfleet_queue::{Queue, QueueConfig, Replicas};
use medfleet_runtime::SystemRandom;
use medfleet_store::{BackendConfig, BlobStore, StoreConfig};
use toml::{Table, Value, toml};

use crate::fleet::{API_PORT, Model, OPERATOR, Options, Pace, Role, TOKEN_PORT};

/// The one pool of a test fleet.
pub const POOL: &str = "test-pool";
/// The fleet's key: any 64 hexadecimal digits.
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Silence after which a unit is delivered again: short, so that tests of crashes are. A worker of a loaded machine may be silent
/// for so long.
pub const ACK_WAIT: &str = "2s";
/// Longest wait for an answer of NATS, which comes once all of it is on the disk: a loaded one takes seconds for that, and a test
/// calls once.
const REQUEST_TIMEOUT: &str = "8s";
/// Four times that.
const PENDING_AFTER: &str = "32s";
/// Frame side of the tiny checkpoint, in pixels.
const TINY_SIDE: i64 = 224;
/// Frame side of MedSigLIP, in pixels.
const EMBEDDER_SIDE: i64 = 448;
/// Frame side of the simulated model, in pixels.
const SIMULATED_SIDE: i64 = 64;

/// The users of NATS that are shipped, one for each service.
const ROLES: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/nats-roles.conf"
));
/// The password of each.
pub(crate) const NATS_PASSWORD: &str = "of-a-test";

/// These users for nats-server's configuration, with records in so many shards. Who shows none is the test itself, and may
/// everything.
pub(crate) fn users(shards: i64) -> String {
    let with_passwords = Role::ALL.iter().fold(ROLES.to_owned(), |users, role| {
        let variable = format!("$NATS_{}_PASSWORD", role.name().to_uppercase());
        users.replace(&variable, &format!("{NATS_PASSWORD:?}"))
    });
    let test = format!("users: [\n    {{ user: test, password: {NATS_PASSWORD:?} }}\n");
    let users = with_passwords.replacen("users: [\n", &test, 1);
    format!("no_auth_user: test\n{}", in_shards(&users, shards))
}

/// As the file's head says: each subject of the one shard of records once for each of several.
fn in_shards(users: &str, shards: i64) -> String {
    let parts = users.split('"').enumerate().map(|(index, part)| {
        let is_subject = index % 2 == 1;
        if shards == 1 || !is_subject || !part.contains("JOBS_0") {
            return part.to_owned();
        }
        let of = |shard| part.replace("JOBS_0", &format!("JOBS_{shard}_OF_{shards}"));
        (0..shards).map(of).collect::<Vec<_>>().join("\", \"")
    });
    parts.collect::<Vec<_>>().join("\"")
}

/// Where a fleet lives and what it runs.
#[derive(Debug)]
pub struct Setting<'a> {
    pub address: Ipv4Addr,
    pub nats_urls: Vec<String>,
    pub replicas: u8,
    pub folder: &'a Path,
    /// Where its blobs are, unless the test asked for another place.
    pub blobs: PathBuf,
    pub options: &'a Options,
    /// Which of several processes of the service; its ports follow from it.
    pub instance: u16,
}

impl Setting<'_> {
    fn listen(&self, port: u16) -> String {
        format!("{}:{}", self.address, port + PORTS * self.instance)
    }
}

/// Ports from one process of a service to the next.
pub const PORTS: u16 = 10;

/// Fresh tokens of tenants, whose hashes it writes into the tokens file of a folder.
pub(crate) fn tokens(
    folder: &Path,
    tenants: impl IntoIterator<Item = &'static str>,
) -> Result<BTreeMap<&'static str, String>> {
    let (mut secrets, mut tokens) = (BTreeMap::new(), Vec::new());
    for tenant in tenants {
        let (secret, entry) = create_token("reading-room", &TenantId::new(tenant)?, &SystemRandom);
        secrets.insert(tenant, secret.expose().to_owned());
        tokens.push(TokenEntry {
            operator: tenant == OPERATOR,
            ..entry
        });
    }
    let file = TokensFile { tokens }.to_toml();
    let file = file.context("write a tokens file")?;
    fs::write(folder.join("tokens.toml"), file)?;
    Ok(secrets)
}

pub fn of(role: Role, setting: &Setting<'_>) -> String {
    let mut file = shared(role, setting);
    let service = match role {
        Role::Ingest => ingest(setting),
        Role::Preprocess => preprocess(setting.options.model),
        Role::Encode => {
            let mut encode = toml! { pool = "test-pool" };
            encode.insert("listen".into(), setting.listen(TOKEN_PORT).into());
            if setting.options.tls.is_some() {
                encode.insert("tls".into(), tls(setting));
            }
            encode
        }
        Role::Decode => {
            let mut decode = toml! { pool = "test-pool" };
            if setting.options.tls.is_some() {
                decode.extend(fetch(setting));
            }
            decode
        }
    };
    file.insert(role.name().into(), Value::Table(service));
    if matches!(role, Role::Encode | Role::Decode) {
        file.insert("model".into(), Value::Table(model(setting.options.model)));
    }
    file.to_string()
}

/// What every role's file has: the process, the queue, the blob store.
fn shared(role: Role, setting: &Setting<'_>) -> Table {
    let options = setting.options;
    let mut telemetry = toml! {
        log = "info"
        log_format = "text"
    };
    if options.talkative {
        telemetry.insert("log".into(), "debug".into());
    }
    if let Some(endpoint) = &options.otlp_endpoint {
        telemetry.insert("otlp_endpoint".into(), endpoint.clone().into());
        telemetry.insert("otlp_protocol".into(), options.otlp_protocol.into());
    }
    let mut process = toml! { drain = "20s" };
    let admin = setting.listen(role.admin_port());
    process.insert("admin_listen".into(), admin.into());
    process.insert("telemetry".into(), Value::Table(telemetry));
    let mut queue = Table::new();
    queue.insert("urls".into(), Value::from(setting.nats_urls.clone()));
    queue.insert("replicas".into(), i64::from(setting.replicas).into());
    queue.insert("ack_wait".into(), ACK_WAIT.into());
    queue.insert("request_timeout".into(), REQUEST_TIMEOUT.into());
    if options.roles {
        queue.insert("user".into(), role.name().into());
        queue.insert("password".into(), NATS_PASSWORD.into());
    }
    queue.extend(options.queue.clone());
    let backend = options.store.clone().unwrap_or_else(|| {
        let path = setting.blobs.display().to_string();
        Table::from_iter([
            ("kind".into(), "folder".into()),
            ("path".into(), path.into()),
        ])
    });
    let mut store = Table::new();
    store.insert("key".into(), KEY.into());
    store.insert("backend".into(), Value::Table(backend));
    Table::from_iter([
        ("process".into(), Value::Table(process)),
        ("queue".into(), Value::Table(queue)),
        ("store".into(), Value::Table(store)),
    ])
}

fn preprocess(model: Model) -> Table {
    // So little memory that a test's file can want more.
    let mut preprocess = toml! {
        pool = "test-pool"
        codec_memory_bytes_max = "128 MiB"
    };
    let side = match model {
        Model::Tiny => TINY_SIDE,
        Model::Simulated(_) => SIMULATED_SIDE,
        Model::Embedder => {
            preprocess.insert("convention".into(), "medsiglip".into());
            EMBEDDER_SIDE
        }
    };
    preprocess.insert("frame_side".into(), Value::Integer(side));
    preprocess
}

fn ingest(setting: &Setting<'_>) -> Table {
    let mut ingest = toml! {
        default_model = "test"
        [models]
        test = "test-pool"
    };
    ingest.insert("accept".into(), Value::Table(accept(PENDING_AFTER)));
    if matches!(setting.options.model, Model::Embedder) {
        // Nobody serves the model that writes.
        let models = toml! { test = "nobody" };
        ingest.insert("models".into(), Value::Table(models));
        let embedders = toml! { embedder = "test-pool" };
        ingest.insert("embedders".into(), Value::Table(embedders));
    }
    if setting.options.tls.is_some() {
        ingest.insert("tls".into(), tls(setting));
    }
    ingest.insert("listen".into(), setting.listen(API_PORT).into());
    let tokens = setting.folder.join("tokens.toml").display().to_string();
    ingest.insert("tokens".into(), tokens.into());
    ingest.extend(setting.options.ingest.clone());
    ingest
}

/// A sweep of accepts that began so long ago.
pub(crate) fn accept(pending_after: &str) -> Table {
    let mut accept = toml! { sweep_every = "1s" };
    accept.insert("pending_after".into(), pending_after.into());
    accept
}

/// The fleet's certificate and its key.
fn tls(setting: &Setting<'_>) -> Value {
    let file = |name: &str| Value::from(setting.folder.join(name).display().to_string());
    Value::Table(Table::from_iter([
        ("cert".into(), file("tls.crt")),
        ("key".into(), file("tls.key")),
    ]))
}

/// Encoders known by the fleet's certificate, which signs itself, and with time enough to ask them.
fn fetch(setting: &Setting<'_>) -> Table {
    let mut tls = toml! { server_name = "localhost" };
    let ca = setting.folder.join("tls.crt").display().to_string();
    tls.insert("ca".into(), ca.into());
    let mut decode = toml! { fetch_timeout = "10s" };
    decode.insert("fetch_tls".into(), Value::Table(tls));
    decode
}

fn model(model: Model) -> Table {
    match model {
        Model::Tiny => folder(&crate::picture::tiny_model()),
        Model::Embedder => folder(&crate::picture::tiny_embedder()),
        Model::Simulated(Pace {
            encode_millis,
            prefill_millis,
            step_millis,
        }) => {
            let mut table = toml! {
                kind = "simulated"
                frame_side = 64
                tokens_per_image = 16
                token_width = 32
            };
            table.insert("encode_frame".into(), format!("{encode_millis}ms").into());
            table.insert("prefill".into(), format!("{prefill_millis}ms").into());
            table.insert("decode_step".into(), format!("{step_millis}ms").into());
            table
        }
    }
}

fn folder(path: &Path) -> Table {
    let mut table = toml! {
        kind = "folder"
        dtype = "f32"
    };
    table.insert("path".into(), path.display().to_string().into());
    table
}

/// A fleet's blobs in a folder, opened behind its back with its key.
pub fn store(folder: &Path) -> Result<BlobStore> {
    let config = StoreConfig {
        backend: BackendConfig::Folder {
            path: folder.to_owned(),
        },
        key: Secret::new(KEY),
        blob_bytes_max: ByteSize::from_mib(64),
        capacity_bytes: None,
    };
    Ok(config.open()?)
}

/// What a job's record is stored under, by the name that its tenant's clients know it by.
pub fn job_key(tenant: &str, job: &str) -> Result<JobKey> {
    Ok(JobKey::new(
        TenantId::new(tenant)?,
        JobId::new(job.trim_start_matches("jobs/"))?,
    ))
}

/// A connection to a fleet's queue, for looking at what no client sees.
pub async fn queue(url: &str) -> Result<Queue> {
    queue_at(&[url.to_owned()], 1).await
}

/// As [`queue`], at whichever of several servers answers, of a fleet with so many shards of records.
pub async fn queue_at(urls: &[String], record_shards: u8) -> Result<Queue> {
    let replicas = if urls.len() > 1 {
        Replicas::Three
    } else {
        Replicas::One
    };
    let config = QueueConfig {
        urls: urls.to_vec(),
        replicas,
        record_shards,
        ..QueueConfig::default()
    };
    Ok(Queue::connect(&config, medfleet_testkit::clock()).await?)
}
