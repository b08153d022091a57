//! The programs that make containers: the system's, or the distribution's packages unpacked into the cache.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{fetch, places, process};

/// What they are in, by the names of Debian and its descendants: what runs containers, what builds images, and what connects
/// networks.
const PACKAGES: &[&str] = &["runc", "buildah", "iproute2"];
/// The programs, and with what each of them ends at once.
const PROGRAMS: [(&str, &str); 3] = [
    ("runc", "--version"),
    ("buildah", "--version"),
    ("ip", "-V"),
];
/// Where a system has them, below its root.
const FOLDERS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];
/// Which system calls a container may make, where its pod says `RuntimeDefault`; it comes with buildah.
const SECCOMP: &str = "usr/share/containers/seccomp.json";

/// Where they are.
pub(super) struct Kit {
    unpacked: Option<PathBuf>,
}

impl Kit {
    /// Finds them, and fetches what is not there.
    pub(super) fn find() -> Result<Self> {
        let installed = Self { unpacked: None };
        if installed.works() {
            return Ok(installed);
        }
        let cache = places::cache()?;
        let _lock = fetch::lock(&cache)?;
        let target = cache.join("debian-containers");
        let unpacked = Self {
            unpacked: Some(target.clone()),
        };
        if !unpacked.works() {
            if target.exists() {
                // Of a time when other packages were installed.
                fs::remove_dir_all(&target)
                    .with_context(|| format!("remove {}", target.display()))?;
            }
            let packages = |options: &[OsString]| fetch::debian::missing(options, PACKAGES);
            fetch::debian::unpack(&cache, &packages, &target)
                .with_context(|| format!("no containers here: install {}", PACKAGES.join(" ")))?;
            anyhow::ensure!(
                unpacked.works(),
                "{} were unpacked and do not start: install them",
                PACKAGES.join(", ")
            );
        }
        Ok(unpacked)
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let Some(root) = &self.unpacked else {
            return Command::new(program);
        };
        let places = FOLDERS.iter().map(|folder| root.join(folder).join(program));
        let found = places.into_iter().find(|place| place.is_file());
        let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(program)));
        let libraries = ["usr/lib", "lib"].map(|folder| {
            let folder = format!("{folder}/{}-linux-gnu", std::env::consts::ARCH);
            root.join(folder).display().to_string()
        });
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        command
    }

    /// The default profile of system calls.
    pub(super) fn seccomp(&self) -> PathBuf {
        let unpacked = self.unpacked.iter().map(|root| root.join(SECCOMP));
        let found = unpacked.into_iter().find(|path| path.is_file());
        found.unwrap_or_else(|| Path::new("/").join(SECCOMP))
    }

    fn works(&self) -> bool {
        let starts =
            |&(program, asked): &(&str, &str)| process::succeeds(self.command(program).arg(asked));
        PROGRAMS.iter().all(starts) && self.seccomp().is_file()
    }
}
