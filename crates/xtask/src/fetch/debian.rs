//! Programs that only the distribution has: the system's if installed, else its package, unpacked into the cache without
//! installing it. Packages are checked by the distribution's own signatures, so the version is the distribution's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{fetch, places, process};

/// A program of the package prometheus: `prometheus`, the server, or `promtool`, which reads rules and asks a server.
pub(crate) fn of_prometheus(name: &str) -> Result<PathBuf> {
    if process::succeeds(Command::new(name).arg("--version")) {
        return Ok(PathBuf::from(name));
    }
    let cache = places::cache()?;
    let _lock = fetch::lock(&cache)?;
    let unpacked = cache.join("debian-prometheus");
    let program = unpacked.join("usr/bin").join(name);
    if !program.is_file() {
        unpack(&cache, &|_| Ok(vec!["prometheus".to_owned()]), &unpacked)
            .with_context(|| format!("no {name} here: install the package prometheus"))?;
    }
    Ok(program)
}

/// Which packages, said with these options of apt.
pub(crate) type Packages<'a> = &'a dyn Fn(&[OsString]) -> Result<Vec<String>>;

/// Downloads packages and unpacks them; needs no rights, installs nothing.
pub(crate) fn unpack(cache: &Path, packages: Packages<'_>, target: &Path) -> Result<()> {
    let work = cache.join(format!(".debian-{}", std::process::id()));
    let tree = work.join("tree");
    fs::create_dir_all(&tree)?;
    let outcome = download(&work, packages).and_then(|()| {
        for entry in fs::read_dir(&work)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let mut dpkg = Command::new("dpkg-deb");
                process::run(dpkg.arg("--extract").arg(path).arg(&tree))?;
            }
        }
        fs::rename(&tree, target).context("put the packages in place")
    });
    let removed = fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()));
    outcome.and(removed)
}

fn download(work: &Path, packages: Packages<'_>) -> Result<()> {
    let take = |options: &[OsString]| {
        let packages = packages(options)?;
        let mut apt = Command::new("apt-get");
        let apt = apt.current_dir(work).args(options);
        process::run(apt.args(["-qq", "download"]).args(packages))
    };
    if take(&[]).is_ok() {
        return Ok(());
    }
    // A fresh image has no package lists: fetch our own, beside the system's.
    let state = work.join("state");
    fs::create_dir_all(state.join("lists/partial"))?;
    let mut lists = OsString::from("Dir::State::lists=");
    lists.push(state.join("lists"));
    let options = ["-o".into(), lists];
    let mut update = Command::new("apt-get");
    process::run(update.args(&options).args(["-qq", "update"]))?;
    take(&options)
}

/// These packages and what they need, as far as it is not installed.
pub(crate) fn missing(options: &[OsString], packages: &[&str]) -> Result<Vec<String>> {
    let mut apt = Command::new("apt-get");
    apt.args(options)
        .args([
            "install",
            "--yes",
            "--no-install-recommends",
            "--print-uris",
        ])
        .args(packages);
    Ok(packages_of(&process::capture(&mut apt)?))
}

/// Package names in apt's list of `'address' name_version_architecture.deb size digest`.
fn packages_of(listing: &str) -> Vec<String> {
    let files = listing
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split_whitespace().nth(1));
    files
        .filter_map(|file| file.split('_').next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_what_apt_would_download() {
        let listing = "Reading package lists...\n\
                       'https://host/pool/libgrpc++-dev_1.51.1-3%2bb1_amd64.deb' libgrpc++-dev_1.51.1-3+b1_amd64.deb 617632 SHA256:ae6e\n\
                       'https://host/pool/x_1_all.deb' x_1_all.deb 1 SHA256:00\n";
        assert_eq!(packages_of(listing), ["libgrpc++-dev", "x"]);
        assert_eq!(packages_of("nothing to do\n"), [] as [String; 0]);
    }
}
