//! Power cuts: everything dies at once, and what was not synced is gone. Jobs that were accepted are all there.
//! Where this machine does not let us mount an image, this cannot be tried, and the test says so.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use medfleet_tests::chaos::disk::{Disk, Kind};
use medfleet_tests::chaos::run::{Options, run};

const DISK: Kind = Kind::Image(256 << 20);

fn can_cut() -> Result<bool> {
    let made = Disk::can_make(DISK);
    if let Err(error) = &made {
        writeln!(
            std::io::stderr(),
            "power cuts: this machine does not let us mount an image: {error:#}"
        )?;
    }
    Ok(made.is_ok())
}

/// The means are checked first: synced bytes stay, others go.
#[test]
fn what_was_not_synced_is_lost() -> Result<()> {
    if !can_cut()? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = Disk::make(folder.path().join("disk"), DISK)?;
    let (synced, other) = (disk.blobs().join("synced"), disk.blobs().join("other"));
    let mut file = File::create(&synced)?;
    file.write_all(b"kept")?;
    file.sync_all()?;
    drop(file);
    File::open(disk.blobs())?.sync_all()?;
    let mut file = File::create(&other)?;
    file.write_all(b"lost")?;
    drop(file);
    disk.cut_power()?;
    ensure!(std::fs::read(&synced)? == b"kept");
    ensure!(!other.exists(), "a file that nobody synced survived");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_jobs_survive() -> Result<()> {
    if !can_cut()? {
        return Ok(());
    }
    let options = Options {
        jobs: 32,
        horizon: Duration::from_secs(6),
        nodes: 1,
        instances: 1,
        disk: DISK,
    };
    let report = run(201, &options).await?;
    ensure!(
        report.faults.values().any(|(cuts, _)| *cuts > 0),
        "{report:?}"
    );
    Ok(())
}
