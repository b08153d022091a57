//! `medfleet weights`: a model's files and the list of their digests: made, put into a bucket, fetched from it, checked.

pub(super) mod sums;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Subcommand;
use futures::{TryStreamExt, stream};
use medfleet_core::setting::Secret;
use medfleet_store::{BackendError, Bucket, S3Config};
use sha2::{Digest as _, Sha256};

use self::sums::{LIST, LIST_BYTES_MAX, PIECE_BYTES, Sum, Sums};
use super::on_one_thread;
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// What to do with a model's files.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the list of a folder's files, SHA256SUMS, and print the list's own SHA-256
    List(ListArgs),
    /// Check a folder against its list
    Check(CheckArgs),
    /// Put a folder that has its list into a bucket
    Push(PushArgs),
    /// Fetch a folder from a bucket and check it against its list; files that are there already stay
    Fetch(FetchArgs),
}

/// Flags of `weights list`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    /// The model's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Flags of `weights check`.
#[derive(clap::Args, Debug)]
pub(crate) struct CheckArgs {
    /// The model's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The list's own SHA-256, as `weights list` printed it
    #[arg(long, value_name = "HEX")]
    sha256: Sum,
}

/// Flags of `weights push`.
#[derive(clap::Args, Debug)]
pub(crate) struct PushArgs {
    /// The model's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Flags of `weights fetch`.
#[derive(clap::Args, Debug)]
pub(crate) struct FetchArgs {
    /// The folder to write, which is made where it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The list's own SHA-256, as `weights list` printed it
    #[arg(long, value_name = "HEX")]
    sha256: Sum,
    #[command(flatten)]
    place: Place,
}

/// Where a model lies in S3, or in what is compatible with it.
#[derive(clap::Args, Debug)]
struct Place {
    /// The bucket
    #[arg(long, value_name = "NAME")]
    bucket: String,
    /// The model's folder in it
    #[arg(long, value_name = "FOLDER")]
    prefix: String,
    /// Region; compatible stores often take us-east-1
    #[arg(long, value_name = "NAME")]
    region: String,
    /// https://… of a compatible store [default: Amazon's]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// File with the access key id [default: the role of the machine or pod]
    #[arg(long, value_name = "FILE", requires = "secret_access_key_file")]
    access_key_id_file: Option<PathBuf>,
    /// File with the secret access key
    #[arg(long, value_name = "FILE", requires = "access_key_id_file")]
    secret_access_key_file: Option<PathBuf>,
    /// File with certificates in PEM that sign the endpoint's, besides those that the system trusts
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Allow an endpoint without TLS
    #[arg(long)]
    allow_http: bool,
}

pub(crate) fn run(command: Command) -> CommandResult {
    match command {
        Command::List(args) => list(&args.folder),
        Command::Check(args) => {
            let sums = Sums::read(&args.folder, Some(args.sha256))?;
            sums.check(&args.folder)?;
            tell(&sums, &args.folder)
        }
        Command::Push(args) => on_one_thread(async {
            let bucket = args.place.open()?;
            let sums = Sums::read(&args.folder, None)?;
            sums.check(&args.folder)?;
            push(&bucket, &args.place.prefix, &sums, &args.folder).await?;
            tell(&sums, &args.folder)
        }),
        Command::Fetch(args) => on_one_thread(async {
            let bucket = args.place.open()?;
            let sums = fetch(&bucket, &args.place.prefix, &args.folder, args.sha256).await?;
            tell(&sums, &args.folder)
        }),
    }
}

fn list(folder: &Path) -> CommandResult {
    let sums = Sums::of_folder(folder)?;
    let path = folder.join(LIST);
    fs::write(&path, sums.text()).with_context(|| format!("write {}", path.display()))?;
    show::print(&sums.sum().to_string())?;
    Ok(Exit::Done)
}

fn tell(sums: &Sums, folder: &Path) -> CommandResult {
    let (count, sum) = (sums.files().len(), sums.sum());
    show::print(&format!(
        "{}: {count} files are as {LIST} says, {sum}",
        folder.display()
    ))?;
    Ok(Exit::Done)
}

impl Place {
    fn open(&self) -> Result<Bucket, Fault> {
        let secret = |file: &Option<PathBuf>| -> Result<Option<Secret>, Fault> {
            let Some(file) = file else { return Ok(None) };
            let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
            Ok(Some(Secret::new(text.map_err(Fault::usage)?.trim())))
        };
        let config = S3Config {
            bucket: self.bucket.clone(),
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            access_key_id: secret(&self.access_key_id_file)?,
            secret_access_key: secret(&self.secret_access_key_file)?,
            ca: self.ca.clone(),
            allow_http: self.allow_http,
        };
        let opened = Bucket::open(&config).context("the bucket of these flags cannot be used");
        opened.map_err(Fault::usage)
    }
}

/// The list goes last: a folder without it is not whole.
async fn push(bucket: &Bucket, prefix: &str, sums: &Sums, folder: &Path) -> Result<(), Fault> {
    for (name, _) in sums.files() {
        let path = folder.join(name);
        let file = File::open(&path).with_context(|| format!("read {}", path.display()))?;
        let whole = key(prefix, name);
        let written = bucket.write(&whole, stream::iter(pieces(file)));
        written
            .await
            .map_err(|error| trouble(error, prefix, name))?;
    }
    let text = Bytes::copy_from_slice(sums.text().as_bytes());
    let whole = key(prefix, LIST);
    let written = bucket.write(&whole, stream::iter([Ok(text)]));
    written.await.map_err(|error| trouble(error, prefix, LIST))
}

/// A file's content, piece by piece.
fn pieces(mut file: File) -> impl Iterator<Item = Result<Bytes, BackendError>> {
    std::iter::from_fn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some(Ok(piece.into()))
            }
            Err(error) => Some(Err(BackendError::failed("read what is sent", false, error))),
        }
    })
}

/// The whole model, or an error; a file is under its name only when its digest is right.
async fn fetch(bucket: &Bucket, prefix: &str, folder: &Path, sha256: Sum) -> Result<Sums, Fault> {
    let sums = Sums::parse(fetch_list(bucket, prefix).await?, Some(sha256))
        .with_context(|| key(prefix, LIST))?;
    for (name, expected) in sums.files() {
        let path = folder.join(name);
        if Sum::of_file(&path).is_ok_and(|found| found == *expected) {
            continue;
        }
        let part = path.with_added_extension("part");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        let found = fetch_file(bucket, prefix, name.as_str(), &part).await?;
        if found != *expected {
            fs::remove_file(&part).with_context(|| format!("remove {}", part.display()))?;
            let whole = key(prefix, name);
            return Err(anyhow!(
                "{whole} has the SHA-256 {found}, {LIST} says {expected}: put the right file there"
            )
            .into());
        }
        fs::rename(&part, &path).with_context(|| format!("rename {}", part.display()))?;
    }
    let path = folder.join(LIST);
    fs::write(&path, sums.text()).with_context(|| format!("write {}", path.display()))?;
    sums.check_others(folder)?;
    Ok(sums)
}

async fn fetch_list(bucket: &Bucket, prefix: &str) -> Result<Vec<u8>, Fault> {
    let told = |error| trouble(error, prefix, LIST);
    let reading = bucket.read(&key(prefix, LIST)).await.map_err(told)?;
    let mut reading = reading.ok_or_else(|| absent(prefix, LIST))?;
    if reading.bytes > LIST_BYTES_MAX {
        let (whole, bytes) = (key(prefix, LIST), reading.bytes);
        return Err(anyhow!(
            "{whole} has {bytes} bytes, a list has at most {LIST_BYTES_MAX}: is it what `medfleet weights push` has put there?"
        )
        .into());
    }
    let mut list = Vec::new();
    while let Some(piece) = reading.pieces.try_next().await.map_err(told)? {
        list.extend_from_slice(&piece);
    }
    Ok(list)
}

async fn fetch_file(bucket: &Bucket, prefix: &str, name: &str, part: &Path) -> Result<Sum, Fault> {
    let told = |error| trouble(error, prefix, name);
    let reading = bucket.read(&key(prefix, name)).await.map_err(told)?;
    let mut reading = reading.ok_or_else(|| absent(prefix, name))?;
    let written = || format!("write {}", part.display());
    let mut file = File::create(part).with_context(written)?;
    let mut hasher = Sha256::new();
    while let Some(piece) = reading.pieces.try_next().await.map_err(told)? {
        hasher.update(&piece);
        file.write_all(&piece).with_context(written)?;
    }
    eprintln!("{name}: {}", show::bytes(reading.bytes));
    Ok(Sum::from_hasher(hasher))
}

fn key(prefix: &str, name: &str) -> String {
    format!("{}/{name}", prefix.trim_matches('/'))
}

fn absent(prefix: &str, name: &str) -> Fault {
    let whole = key(prefix, name);
    anyhow!("the bucket has no {whole}: `medfleet weights push` puts a model there, its list last")
        .into()
}

fn trouble(error: BackendError, prefix: &str, name: &str) -> Fault {
    let is_transient = error.is_transient();
    let error = anyhow::Error::new(error).context(key(prefix, name));
    match is_transient {
        true => Fault::unreachable(error),
        false => error.into(),
    }
}

#[cfg(test)]
mod tests;
