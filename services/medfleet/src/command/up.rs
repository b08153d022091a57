//! `medfleet up`: a whole fleet in one process tree. Prepares the data folder, starts nats-server and the roles, says
//! where they are, and stops everything in order: roles first, nats-server last.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use medfleet_core::PoolName;
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

/// Runs the command until a signal comes or something fails.
pub(crate) fn run(args: Args) -> CommandResult {
    let sources = Sources::of_process(args.process.config.clone(), args.process.set.clone());
    let given = Given::new(&sources);
    let data = Data::open(&args.data).map_err(Fault::usage)?;
    let token = LocalToken::open(&data, &SystemRandom).map_err(Fault::usage)?;
    let external = args.nats.is_some() || given.has("queue.urls");
    let binary = match external {
        true => None,
        false => Some(nats::find(args.cache.as_deref()).map_err(Fault::usage)?),
    };
    let mut arguments = args.process.clone();
    arguments.set = settings(&args, &given, &data, &token).map_err(Fault::usage)?;
    let prepared = Prepared {
        data,
        token,
        binary,
        address_file: args.address_file,
    };
    let exit = process::run(PROGRAM, &arguments, |process| fleet(process, prepared));
    Ok(Exit::Service(exit as u8))
}

/// Everything that is decided here: weakly by the data folder, strongly by flags, `--set` in between.
fn settings(args: &Args, given: &Given, data: &Data, token: &LocalToken) -> Result<Vec<String>> {
    let (key, _, _) = data.secret("key", random_key)?;
    let alias = alias(args.model.as_deref(), args.quantised);
    let pool = quoted(pool(&alias)?.as_str())?;
    let weak = [
        ("process.telemetry.log_format", "text".to_owned()),
        (
            "store.backend",
            format!(
                "{{kind=\"folder\", path={}}}",
                quoted_path(&data.folder("blobs")?)?
            ),
        ),
        ("store.key", format!("{{file={}}}", quoted_path(&key)?)),
        ("ingest.tokens", quoted_path(&token.hashes)?),
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
    settings.extend(model(args, given, data)?);
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
fn model(args: &Args, given: &Given, data: &Data) -> Result<Vec<String>> {
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
        ("model.dtype", "f32".to_owned()),
        ("model.digest_cache", quoted_path(&data.folder("digests")?)?),
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
mod tests {
    use super::*;
    use clap::Parser;
    use medfleet_engine::{FolderWeights, GgufWeights, ModelConfig, ModelDtype};
    use medfleet_runtime::config;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::try_parse_from(std::iter::once(&"up").chain(words))
            .expect("the flags exist")
            .args
    }

    #[test]
    fn clients_on_this_machine_get_an_address_they_can_reach() {
        let check = |api: &str, secure, expected: &str| {
            assert_eq!(url(api.parse().expect("an address"), secure), expected);
        };
        check("127.0.0.1:8443", false, "http://127.0.0.1:8443");
        check("0.0.0.0:1", true, "https://127.0.0.1:1");
        check("[::]:1", false, "http://[::1]:1");
    }

    #[test]
    fn an_alias_is_made_of_the_folders_name() {
        let check = |folder: Option<&str>, expected: &str| {
            assert_eq!(alias(folder.map(Path::new), false), expected);
            assert!(pool(&alias(folder.map(Path::new), false)).is_ok());
        };
        check(None, "simulated");
        check(Some("deploy/tiny"), "tiny");
        check(Some("/models/MedGemma-1.5_4b it/"), "medgemma-1-5-4b-it");
        check(Some("/"), "model");
        check(
            Some("/models/a-very-long-name-of-a-model-folder"),
            "a-very-long-name-of-a-mo",
        );
        check(Some("/models/gemma-3.Q8_0.gguf"), "gemma-3-q8-0");
        let quantised = |model: &str, expected: &str| {
            assert_eq!(alias(Some(Path::new(model)), true), expected);
            assert!(pool(expected).is_ok());
        };
        quantised("deploy/tiny", "tiny-q8-0");
        quantised("/models/gemma-3.Q8_0.gguf", "gemma-3-q8-0-stored");
        quantised(
            "/models/a-very-long-name-of-a-model-folder",
            "a-very-long-name-of-q8-0",
        );
    }

    /// The settings of `up` with these flags, loaded and checked as the process does it.
    fn loaded(words: &[&str]) -> Result<FleetConfig> {
        use medfleet_runtime::Settings;
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let data = Data::open(&folder.path().join("data"))?;
        let token = LocalToken::open(&data, &SystemRandom)?;
        let args = args(words);
        let sources = Sources {
            overrides: args.process.set.clone(),
            ..Sources::default()
        };
        let overrides = settings(&args, &Given::new(&sources), &data, &token)?;
        let config: FleetConfig = config::load(&Sources {
            overrides,
            ..Sources::default()
        })?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn a_simulated_fleet_needs_no_configuration() {
        let config = loaded(&[
            "--simulate",
            "--address",
            "127.0.0.1:0",
            "--nats",
            "nats://n:4222",
        ])
        .expect("loads");
        assert_eq!(config.ingest.listen.port(), 0);
        assert_eq!(config.queue.urls, ["nats://n:4222"]);
        assert_eq!(config.decode.pool, "simulated-local");
    }

    #[test]
    fn an_embedder_has_an_alias_and_a_pool_of_its_own() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("MedSigLIP");
        std::fs::create_dir(&path).expect("a folder");
        let path = path.to_str().expect("Unicode");
        let config = loaded(&["--simulate", "--embedder", path]).expect("loads");
        let pool = config.ingest.embedders.get("medsiglip").expect("its alias");
        assert_eq!(pool, "medsiglip-local");
        assert_eq!(config.embedder.expect("it is set").pool, *pool);
        assert_eq!(config.decode.pool, "simulated-local");
        let same = loaded(&["--model", path, "--embedder", path]).expect_err("one alias for two");
        assert!(same.to_string().contains("medsiglip"), "{same}");
    }

    #[test]
    fn a_model_is_held_as_the_flags_say() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let of = |name: &str| folder.path().join(name).display().to_string();
        let (dir, file) = (of("Folder"), of("text.gguf"));
        std::fs::create_dir(&dir).expect("a folder");
        std::fs::write(&file, b"").expect("a file");
        let (dir, file) = (dir.as_str(), file.as_str());
        let config = loaded(&["--model", dir, "--quantised"]).expect("loads");
        let ModelConfig::Folder { weights, dtype, .. } = config.model else {
            panic!("{:?}", config.model);
        };
        assert_eq!((weights, dtype), (FolderWeights::Q8_0, ModelDtype::F32));
        assert_eq!(config.decode.pool, "folder-q8-0-local");
        let words = ["--model", file, "--vision", dir, "--quantised"];
        let config = loaded(&words).expect("loads");
        let ModelConfig::Gguf {
            weights, vision, ..
        } = &config.model
        else {
            panic!("{:?}", config.model);
        };
        assert_eq!(*weights, GgufWeights::Stored);
        assert!(vision.ends_with("Folder"), "{}", vision.display());
        assert_eq!(config.decode.pool, "text-stored-local");
        let set = format!("model.vision=\"{dir}\"");
        assert!(loaded(&["--model", file, "--set", &set]).is_ok());
        for (words, said) in [
            (vec!["--model", file], "with --vision"),
            (vec!["--model", dir, "--vision", dir], "goes with a .gguf"),
            (
                vec!["--model", dir, "--quantised", "--set", "model.device=cuda"],
                "multiplied on CPUs",
            ),
        ] {
            let error = loaded(&words).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_draft_model_switches_proposing_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_str().expect("Unicode");
        let without = loaded(&["--model", path]).expect("loads");
        assert!(without.decode.limits().speculation.is_none());
        let with = loaded(&["--model", path, "--draft", path]).expect("loads");
        assert!(with.decode.limits().speculation.is_some());
        let draft = with.decode.draft().expect("it is named");
        assert_eq!(draft, opened(folder.path()).expect("it is there"));
        let error = loaded(&["--model", path, "--draft", "/nowhere/draft"])
            .expect_err("there is no such folder")
            .to_string();
        assert!(error.contains("/nowhere/draft"), "{error}");
    }

    #[test]
    fn what_the_operator_sets_stays() {
        let words = [
            "--simulate",
            "--set",
            "decode.pool=other",
            "--set",
            "process.telemetry.log_format=json",
        ];
        let config = loaded(&words).expect("loads");
        assert_eq!(config.decode.pool, "other");
        assert_eq!(config.encode.pool, "simulated-local");
    }

    #[test]
    fn an_encoder_with_a_certificate_is_known_by_it() {
        let tls = "encode.tls={cert=\"tls.crt\",key=\"tls.key\"}";
        let known = "decode.fetch_tls={ca=\"ca.crt\"}";
        for alone in [tls, known] {
            let error = loaded(&["--simulate", "--set", alone]).expect_err("one without the other");
            assert!(error.to_string().contains("or neither"), "{error}");
        }
        assert!(loaded(&["--simulate", "--set", tls, "--set", known]).is_ok());
        let unasked = "decode.fetch_timeout=0ms";
        assert!(loaded(&["--simulate", "--set", tls, "--set", unasked]).is_ok());
    }

    #[test]
    fn no_model_is_said_with_what_to_do() {
        let error = loaded(&[]).expect_err("there is no model").to_string();
        assert!(
            error.contains("--model DIR") && error.contains("--simulate"),
            "{error}"
        );
        let error = loaded(&["--model", "/nowhere/model"])
            .expect_err("there is no such folder")
            .to_string();
        assert!(error.contains("/nowhere/model"), "{error}");
    }
}
