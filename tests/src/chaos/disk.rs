//! The file system of a fleet, with faults: writes fail, the disk is full, the power is cut.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Where the folder store writes before it renames.
const TEMPORARY: &str = ".tmp";
const AWAY: &str = ".away";
const FILLER: &str = ".filler";

/// What a fleet's files lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The machine's own file system.
    Plain,
    /// Blobs on a file system of so many bytes in memory, which can be filled; streams on the machine's own, because a
    /// nats-server that once met a full disk refuses writes until it is started again.
    Memory(u64),
    /// A file system of so many bytes in an image file, whose power can be cut.
    Image(u64),
}

/// The place of a fleet's files.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    kind: Kind,
}

impl Disk {
    /// Makes it at a path that does not exist yet.
    /// Mounting needs the right to.
    pub fn make(root: PathBuf, kind: Kind) -> Result<Self> {
        fs::create_dir_all(&root)?;
        let disk = Self { root, kind };
        match kind {
            Kind::Plain => {}
            Kind::Memory(bytes) => {
                fs::create_dir_all(disk.blobs())?;
                let size = format!("size={bytes}");
                let mut mount = Command::new("mount");
                mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]);
                run(mount.arg(disk.blobs())).context("mount a small tmpfs")?;
            }
            Kind::Image(bytes) => {
                File::create(disk.image())?.set_len(bytes)?;
                let mut format = Command::new("mkfs.ext4");
                run(format.arg("-q").arg(disk.image())).context("make a file system")?;
                disk.mount_image()?;
            }
        }
        fs::create_dir_all(disk.blobs())?;
        fs::create_dir_all(disk.streams())?;
        Ok(disk)
    }

    /// Makes a disk of this kind and removes it again.
    /// The error says why this machine does not let us.
    pub fn can_make(kind: Kind) -> Result<()> {
        // In this order: the disk goes before the folder that it lies in.
        let folder = tempfile::tempdir()?;
        let disk = Self::make(folder.path().join("disk"), kind);
        disk.map(drop)
    }

    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub fn streams(&self) -> PathBuf {
        self.root.join("streams")
    }

    fn image(&self) -> PathBuf {
        self.root.with_extension("image")
    }

    /// The long commit time lets as little as possible reach the disk that nobody asked for.
    fn mount_image(&self) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,commit=300"]);
        run(mount.arg(self.image()).arg(&self.root)).context("mount an image")
    }

    /// Cuts the power: what was written and not synced is lost. Whoever wrote must be dead by now.
    ///
    /// The image is copied while the dirty pages are still in the kernel's cache, above the image; then the file system is
    /// taken down, and the copy is mounted in its place, as after a cold start.
    pub fn cut_power(&self) -> Result<()> {
        ensure!(matches!(self.kind, Kind::Image(_)), "the disk has no image");
        let kept = self.root.with_extension("kept");
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(self.image())
            .arg(&kept))?;
        run(Command::new("umount").arg(&self.root)).context("take the file system down")?;
        fs::rename(kept, self.image())?;
        self.mount_image()
    }

    /// From now on every write fails, for root too: a file stands where the folder for unfinished files was.
    pub fn forbid_writes(&self) -> Result<()> {
        fs::rename(self.blobs().join(TEMPORARY), self.blobs().join(AWAY))?;
        File::create(self.blobs().join(TEMPORARY))?;
        Ok(())
    }

    /// Undoes [`Disk::forbid_writes`].
    pub fn allow_writes(&self) -> Result<()> {
        fs::remove_file(self.blobs().join(TEMPORARY))?;
        // A service that starts just now makes its own; what lay in the old one was unfinished anyway.
        match fs::rename(self.blobs().join(AWAY), self.blobs().join(TEMPORARY)) {
            Ok(()) => Ok(()),
            Err(_) => {
                fs::remove_dir_all(self.blobs().join(AWAY)).context("remove unfinished files")
            }
        }
    }

    /// Takes every free byte.
    /// Only of a file system of its own: the machine's disk is not ours to fill.
    pub fn fill(&self) -> Result<()> {
        ensure!(
            matches!(self.kind, Kind::Memory(_)),
            "the store has no file system in memory"
        );
        let mut filler = File::create(self.blobs().join(FILLER))?;
        for block in [1 << 20, 4096] {
            let zeros = vec![0; block];
            // It ends when the disk is full, which is what we want.
            while filler.write_all(&zeros).is_ok() {}
        }
        Ok(())
    }

    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.blobs().join(FILLER)).context("give the disk back")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mounted = match self.kind {
            Kind::Plain => return,
            Kind::Memory(_) => self.blobs(),
            Kind::Image(_) => self.root.clone(),
        };
        // Lazily: a service of a broken run may still have a file open.
        let unmounted = run(Command::new("umount").arg("-l").arg(mounted));
        if let Err(error) = unmounted {
            eprintln!("a file system stays mounted: {error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
