//! From no worker to several and back to none over a day, by the metric and the rules of the chart, and no job is lost.

use std::io::Write;

use anyhow::{Result, ensure};
use medfleet_tests::autoscale::day::{Shape, run};

#[tokio::test(flavor = "multi_thread")]
async fn over_a_day_workers_come_from_none_and_go_to_none_and_no_job_is_lost() -> Result<()> {
    let report = run(Shape::default()).await?;
    // Past the test runner's capture, so that every run of the gate shows its figures.
    let text = serde_json::to_string(&report)?;
    writeln!(std::io::stderr(), "autoscaled day: {text}")?;
    for pool in [report.encode, report.decode] {
        ensure!(pool.most >= 2, "it never grew: {report:?}");
    }
    ensure!(report.jobs > 50, "hardly a day: {report:?}");
    Ok(())
}
