//! `medfleet up`: a whole fleet in one process tree. Prepares the data folder, starts nats-server and the roles, says
//! where they are, and stops everything in order: roles first, nats-server last.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use medfleet_core::PoolName;
use medfleet_model::Dtype;
use medfleet_runtime::config::Sources;
use medfleet_runtime::process::{self, Arguments, Process, Program};
use medfleet_runtime::{Random, Stop, SystemRandom};

use crate::client::AddressFile;
use crate::exit::{CommandResult, Exit, Fault};
use crate::fleet::config::FleetConfig;
use crate::fleet::data::Data;
use crate::fleet::nats::{self, Binary, Nats};
use crate::fleet::roles::Roles;
use crate::fleet::settings::{Given, quoted, quoted_path};
use crate::fleet::tenant::LocalToken;
use crate::show;

/// How often we look whether every role serves.
const POLL: Duration = Duration::from_millis(20);
/// Bytes of the fleet's key.
const KEY_BYTES: usize = 32;
/// Longest alias that still makes a pool name with [`SITE`].
const ALIAS_CHARS_MAX: usize = 24;
/// The site of a pool on one machine.
const SITE: &str = "local";

const PROGRAM: Program = Program {
    name: "medfleet",
    about: "A whole fleet in one process",
    version: env!("CARGO_PKG_VERSION"),
    threads_max: 4,
};

/// Flags of `up`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Data folder: jobs, blobs, keys; one fleet at a time
    #[arg(long, value_name = "DIR", default_value = crate::cli::DATA)]
    data: PathBuf,
    /// Model folder, or a GGUF file with the language model
    #[arg(long, value_name = "DIR|FILE.gguf", conflicts_with = "simulate")]
    model: Option<PathBuf>,
    /// With a GGUF file: the vision tower, an mmproj GGUF or a model folder
    #[arg(long, value_name = "FILE.gguf|DIR", requires = "model")]
    vision: Option<PathBuf>,
    /// Hold the language model quantised, on CPUs: a folder's becomes Q8_0, half of bf16's memory; a GGUF's stays as stored
    #[arg(long, requires = "model")]
    quantised: bool,
    /// A second, smaller Gemma 3 with the same tokens, which proposes what the model verifies: texts come sooner where that pays,
    /// and stay the same
    #[arg(long, value_name = "DIR|FILE.gguf", requires = "model")]
    draft: Option<PathBuf>,
    /// Folder of a MedSigLIP, for the tasks embed and zero-shot
    #[arg(long, value_name = "DIR")]
    embedder: Option<PathBuf>,
    /// No model: the text is a digest of the input, for trying the fleet itself
    #[arg(long)]
    simulate: bool,
    /// Where clients connect; port 0 takes a free one [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDR:PORT")]
    address: Option<SocketAddr>,
    /// Also write the address file here
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
    /// Use this nats-server instead of starting one
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    #[command(flatten)]
    process: Arguments,
}

/// What was prepared before the process began.
struct Prepared {
    data: Data,
    token: LocalToken,
    /// The server to start; none when another one is named.
    binary: Option<Binary>,
    address_file: Option<PathBuf>,
}

/// What lies in the data folder, as settings name it.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    /// Value of the setting: the key's file, or a key.
    key: String,
    tokens: PathBuf,
    blobs: PathBuf,
    digests: PathBuf,
}

impl Places {
    /// Each is there from now on.
    fn made(data: &Data, token: &LocalToken) -> Result<Self> {
        let (key, _, _) = data.secret("key", random_key)?;
        Ok(Self {
            key: format!("{{file={}}}", quoted_path(&key)?),
            tokens: token.hashes.clone(),
            blobs: data.folder("blobs")?,
            digests: data.folder("digests")?,
        })
    }

    /// Where each is or would be. Nothing is written; while the key's file does not exist yet, a throw-away key stands for it.
    fn named(data: &Path) -> Result<Self> {
        let root = std::path::absolute(data)
            .with_context(|| format!("cannot tell where {} is", data.display()))?;
        let key = root.join("key");
        Ok(Self {
            key: match key.is_file() {
                true => format!("{{file={}}}", quoted_path(&key)?),
                false => quoted(&random_key())?,
            },
            tokens: root.join("tokens.toml"),
            blobs: root.join("blobs"),
            digests: root.join("digests"),
        })
    }
}

/// Runs the command until a signal comes or something fails.
pub(crate) fn run(args: Args) -> CommandResult {
    if args.process.only_looks() {
        return look(&args);
    }
    let data = Data::open(&args.data).map_err(Fault::usage)?;
    let token = LocalToken::open(&data, &SystemRandom).map_err(Fault::usage)?;
    let given = given(&args);
    let external = args.nats.is_some() || given.has("queue.urls");
    let binary = match external {
        true => None,
        false => Some(nats::find(args.cache.as_deref()).map_err(Fault::usage)?),
    };
    let mut arguments = args.process.clone();
    let places = Places::made(&data, &token);
    let settings = places.and_then(|places| settings(&args, &given, &places));
    arguments.set = settings.map_err(Fault::usage)?;
    let prepared = Prepared {
        data,
        token,
        binary,
        address_file: args.address_file,
    };
    let body = |process: Process<FleetConfig>| fleet(process, prepared);
    let exit = process::run(PROGRAM, &arguments, body);
    Ok(Exit::Service(exit as u8))
}

/// Checks or shows the configuration. Nothing is written, and what only a fleet that runs needs, nats-server, need not be there.
fn look(args: &Args) -> CommandResult {
    let mut arguments = args.process.clone();
    // The schema is that of every configuration: neither a model nor anything else need be named for it.
    if !arguments.print_schema {
        let places = Places::named(&args.data);
        let settings = places.and_then(|places| settings(args, &given(args), &places));
        arguments.set = settings.map_err(Fault::usage)?;
    }
    // Whoever only looks has ended before there is anything to run.
    let exit = process::run(PROGRAM, &arguments, |_: Process<FleetConfig>| async {
        Ok(())
    });
    Ok(Exit::Service(exit as u8))
}

/// What the operator has set.
fn given(args: &Args) -> Given {
    let sources = Sources::of_process(args.process.config.clone(), args.process.set.clone());
    Given::new(&sources)
}

/// All settings that this command decides. Those of the data folder are weakest, those of flags strongest, and `--set` is in
/// between.
fn settings(args: &Args, given: &Given, places: &Places) -> Result<Vec<String>> {
    let alias = alias(args.model.as_deref(), args.quantised);
    let pool = quoted(pool(&alias)?.as_str())?;
    let weak = [
        ("process.telemetry.log_format", "text".to_owned()),
        (
            "store.backend",
            format!("{{kind=\"folder\", path={}}}", quoted_path(&places.blobs)?),
        ),
        ("store.key", places.key.clone()),
        ("ingest.tokens", quoted_path(&places.tokens)?),
        ("ingest.models", format!("{{\"{alias}\"={pool}}}")),
        ("ingest.default_model", quoted(&alias)?),
        ("preprocess.pool", pool.clone()),
        // None: the model says it once it is loaded.
        ("preprocess.frame_side", "0".to_owned()),
        ("encode.pool", pool.clone()),
        ("decode.pool", pool),
    ];
    let mut settings = given.missing(&weak);
    settings.extend(args.process.set.iter().cloned());
    settings.extend(model(args, given, places)?);
    if let Some(folder) = &args.embedder {
        let other = self::alias(Some(folder), false);
        if other == alias {
            return Err(anyhow!(
                "both model folders make the alias {alias}; rename one of them"
            ));
        }
        let folder = opened(folder)?;
        let pool = quoted(self::pool(&other)?.as_str())?;
        settings.push(format!("embedder.path={}", quoted_path(&folder)?));
        settings.push(format!("embedder.pool={pool}"));
        settings.push(format!("ingest.embedders={{\"{other}\"={pool}}}"));
    }
    if let Some(address) = args.address {
        settings.push(format!("ingest.listen={}", quoted(&address.to_string())?));
    }
    if let Some(url) = &args.nats {
        settings.push(format!("queue.urls=[{}]", quoted(url)?));
    }
    Ok(settings)
}

/// The settings of the model that the flags name.
fn model(args: &Args, given: &Given, places: &Places) -> Result<Vec<String>> {
    let Some(path) = &args.model else {
        return match (args.simulate, given.has("model")) {
            (true, _) => Ok(vec!["model.kind=simulated".to_owned()]),
            (false, true) => Ok(Vec::new()),
            (false, false) => Err(anyhow!(
                "no model: name its folder with --model DIR, or try the fleet without one with --simulate"
            )),
        };
    };
    let gguf = is_gguf(path);
    let mut settings = given.missing(&[
        ("model.dtype", dtype_of(path).to_string()),
        ("model.digest_cache", quoted_path(&places.digests)?),
    ]);
    let kind = if gguf { "gguf" } else { "folder" };
    settings.push(format!("model.kind={kind}"));
    settings.push(format!("model.path={}", quoted_path(&opened(path)?)?));
    match &args.vision {
        Some(_) if !gguf => {
            bail!("--vision goes with a .gguf file; a model folder has its own vision tower")
        }
        Some(vision) => settings.push(format!("model.vision={}", quoted_path(&opened(vision)?)?)),
        None if gguf && !given.has("model.vision") => bail!(
            "{} holds no vision tower: name its mmproj file, or a model folder, with --vision",
            path.display()
        ),
        None => {}
    }
    if let Some(draft) = &args.draft {
        settings.push("decode.speculation.mode=auto".to_owned());
        let draft = quoted_path(&opened(draft)?)?;
        settings.push(format!("decode.speculation.draft={draft}"));
    }
    if args.quantised {
        let form = if gguf { "stored" } else { "q8_0" };
        settings.push(format!("model.weights={form}"));
    }
    Ok(settings)
}

/// What a model is computed in where nobody has said it: what a folder's weights are in. A GGUF's matrices may be of types that are
/// multiplied in f32 alone, and a MedSigLIP runs in nothing else in a fleet.
pub(super) fn dtype_of(model: &Path) -> Dtype {
    // Whoever loads a folder that cannot be read says so.
    let stored = if is_gguf(model) || medfleet_model::is_siglip(model).unwrap_or(false) {
        None
    } else {
        medfleet_model::stored_dtype(model)
    };
    stored.unwrap_or(Dtype::F32)
}

fn is_gguf(model: &Path) -> bool {
    model.extension().is_some_and(|end| end == "gguf")
}

/// The whole path of a model's folder or file, which is there.
fn opened(model: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(model)
        .with_context(|| format!("cannot open the model {}", model.display()))
}

/// The body of the process: returns after the shutdown has begun and everything has stopped in order.
async fn fleet(process: Process<FleetConfig>, prepared: Prepared) -> Result<(), Stop> {
    let ready = process.health.part("roles");
    let mut config = process.config.clone();
    let nats = match &prepared.binary {
        Some(binary) => Some(start_nats(binary, &prepared.data, &process).await?),
        None => None,
    };
    if let Some(nats) = &nats {
        config.queue.urls = vec![nats.url.clone()];
        config.queue.token = Some(nats.token.clone());
    }
    let secure = config.ingest.tls.is_some();
    let roles = Roles::start(&process, config).await?;
    if all_ready(&roles, &process).await {
        ready.ready();
        announce(&roles, secure, &prepared)
            .map_err(|error| Stop::new(medfleet_runtime::Exit::Failed, error))?;
        process.shutdown.begun().await;
    }
    ready.unready();
    let ended = roles.join().await;
    let withdrawn = withdraw(&prepared);
    // Everyone who used it has gone.
    drop(nats);
    ended?;
    withdrawn.map_err(|error| Stop::new(medfleet_runtime::Exit::Failed, error))
}

async fn start_nats(
    binary: &Binary,
    data: &Data,
    process: &Process<FleetConfig>,
) -> Result<Nats, Stop> {
    let failed = |error: anyhow::Error| Stop::unreachable(error);
    let folder = data.folder("nats").map_err(failed)?;
    tracing::info!(version = binary.version, "starting nats-server");
    Nats::start(binary, &folder, &process.tasks, process.random.as_ref())
        .await
        .map_err(failed)
}

/// Waits until every role serves; false when the shutdown came first.
async fn all_ready(roles: &Roles, process: &Process<FleetConfig>) -> bool {
    while !roles.are_ready() {
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = process.shutdown.begun() => return false,
        }
    }
    true
}

/// Says where the fleet is: to people on stdout, to programs in the address files.
fn announce(roles: &Roles, secure: bool, prepared: &Prepared) -> Result<()> {
    let server = url(roles.api, secure);
    let address = AddressFile {
        server: server.clone(),
        token_file: prepared.token.file.clone(),
    };
    let mut lines = vec![
        format!("fleet        {server}"),
        format!("token        {}", prepared.token.file.display()),
    ];
    if let Some(token) = &prepared.token.generated {
        lines.push(format!("             {token}   (new; shown this once)"));
    }
    let ingest = roles.admin.iter().find(|(role, _)| *role == "ingest");
    lines.extend(ingest.map(|(_, admin)| format!("status       http://{admin}/status")));
    lines.extend(
        roles
            .admin
            .iter()
            .map(|(role, admin)| format!("{role:<12} http://{admin}/metrics")),
    );
    show::print(&lines.join("\n")).context("cannot write to stdout")?;
    for path in address_files(prepared) {
        prepared.data.write_address(&path, &address)?;
    }
    Ok(())
}

fn withdraw(prepared: &Prepared) -> Result<()> {
    address_files(prepared)
        .iter()
        .try_for_each(|path| prepared.data.remove_address(path))
}

fn address_files(prepared: &Prepared) -> Vec<PathBuf> {
    let mut files = vec![prepared.data.address_file()];
    files.extend(prepared.address_file.clone());
    files
}

/// Where a client on this machine connects.
fn url(api: SocketAddr, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    let host = match api.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    };
    format!("{scheme}://{}", SocketAddr::new(host, api.port()))
}

/// The model's alias: its folder's or file's name in the letters of a pool name, and the form that it is held in: jobs of
/// another form wait in another pool.
fn alias(model: Option<&Path>, quantised: bool) -> String {
    let Some(model) = model else {
        return "simulated".to_owned();
    };
    let (name, form) = if is_gguf(model) {
        (model.file_stem(), "-stored")
    } else {
        (model.file_name(), "-q8-0")
    };
    let form = if quantised { form } else { "" };
    let name = name.unwrap_or_default().to_string_lossy();
    let good = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            c
        } else {
            '-'
        }
    };
    let name = name.to_ascii_lowercase();
    let room = ALIAS_CHARS_MAX - form.len();
    let name: String = name.chars().map(good).take(room).collect();
    let name = match name.trim_matches('-') {
        "" => "model",
        name => name,
    };
    format!("{name}{form}")
}

fn pool(alias: &str) -> Result<PoolName> {
    PoolName::new(format!("{alias}-{SITE}")).context("the pool's name")
}

/// A new fleet key as text.
pub(crate) fn random_key() -> String {
    let mut bytes = [0_u8; KEY_BYTES];
    SystemRandom.fill(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests;
