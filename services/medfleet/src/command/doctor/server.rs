//! What a nats-server says of itself: its version, whether and how fast it takes writes, how much room its streams have, what
//! time it is there, and whether the settings of a service agree with what its fleet has agreed on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use medfleet_core::{UnixMillis, chain};
use medfleet_queue::{AgreedShards, OLDEST_SERVER, Queue, QueueConfig, StreamUsage};
use medfleet_runtime::config::{Sources, hold, load};
use medfleet_runtime::{Clock, SystemClock};

use super::Finding;
use crate::exit::Fault;
use crate::fleet::settings::Given;
use crate::show::bytes;

/// The check of the number that all processes of a fleet must have the same.
const SHARDS: &str = "shards";
/// The newest server that the end-to-end tests run on.
const NEWEST_TRIED: &str = "2.15.1";
/// A confirmed write that takes longer slows every job.
const WRITE_MILLIS_MAX: u128 = 250;
/// A clock that is further off makes times of jobs and of logs hard to compare, and certificates end early or late.
const CLOCK_OFF_MILLIS_MAX: i64 = 2_000;
/// How full a stream may be.
const FULL_PERCENT_MAX: u64 = 85;

/// The one table of a service's configuration that is needed here.
#[derive(Debug, serde::Deserialize)]
struct Configured {
    queue: QueueConfig,
}

/// A server to ask.
#[derive(Debug)]
pub(super) struct Asked {
    queue: QueueConfig,
    told: Told,
}

/// Who says in how many shards the job records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// A setting.
    Setting,
    /// Settings that leave it out.
    Default,
    /// Nobody: there are no settings.
    Nobody,
}

/// A server at an address, and no service's settings.
pub(super) fn at(url: &str) -> Asked {
    Asked {
        queue: QueueConfig::at(url),
        told: Told::Nobody,
    }
}

/// How a service with this configuration file reaches its server.
pub(super) fn configured(file: PathBuf) -> Result<Asked, Fault> {
    let sources = Sources::of_process(Some(file), Vec::new());
    let told = match Given::new(&sources).has("queue.record_shards") {
        true => Told::Setting,
        false => Told::Default,
    };
    let configured: Configured = load(&sources).map_err(Fault::usage)?;
    configured.queue.check().map_err(Fault::usage)?;
    hold(&configured.queue, "queue").map_err(Fault::usage)?;
    Ok(Asked {
        queue: configured.queue,
        told,
    })
}

/// Every check of one server.
pub(super) async fn look(asked: &Asked) -> Vec<Finding> {
    let now: medfleet_queue::Clock = Arc::new(|| SystemClock.now());
    let queue = match Queue::connect(&asked.queue, now).await {
        Ok(queue) => queue,
        Err(error) => {
            let advice = format!(
                "start one of {OLDEST_SERVER} or newer, or correct its address; one that asks for a token or TLS needs --config FILE"
            );
            return vec![Finding::fail("nats", chain(&error), advice)];
        }
    };
    let mut findings = vec![version(queue.server_version())];
    let usage = queue.usage().await;
    let has_fleet = usage.as_ref().is_ok_and(|usage| !usage.is_empty());
    findings.push(match usage {
        Ok(usage) => headroom(&usage),
        Err(error) => Finding::fail(
            "streams",
            chain(&error),
            "is JetStream on, and may this account use it?",
        ),
    });
    if has_fleet {
        findings.push(match queue.agreed_shards().await {
            Ok(agreed) => shards(agreed, asked.queue.record_shards, asked.told),
            Err(error) => Finding::fail(SHARDS, chain(&error), "see docs/runbook/queue-lost.md"),
        });
        let begun = Instant::now();
        findings.push(match queue.try_write(&queue.fresh_name()).await {
            // A write and taking it back.
            Ok(()) => writes(begun.elapsed().as_millis() / 2),
            Err(error) => Finding::fail(
                "writes",
                chain(&error),
                "see docs/runbook/queue-read-only.md",
            ),
        });
        let before = SystemClock.now();
        findings.push(match queue.time().await {
            Ok(theirs) => clocks(before, theirs, SystemClock.now()),
            Err(error) => Finding::warn("clocks", chain(&error), "ask again"),
        });
    }
    queue.drain().await;
    findings
}

/// Which server it is: an older one than works has been refused by now.
fn version(version: &str) -> Finding {
    const CHECK: &str = "nats";
    let found = format!("nats-server {version}, tried from {OLDEST_SERVER} to {NEWEST_TRIED}");
    if minor(version) > minor(NEWEST_TRIED) {
        let advice = "it is newer than any that was tried: see that jobs complete on one of its kind that is nobody's yet";
        return Finding::warn(CHECK, found, advice);
    }
    Finding::ok(CHECK, found)
}

/// The first two numbers of a version.
fn minor(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.split_once('.')?;
    let minor = rest.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether a service that counts so many shards finds the job records.
fn shards(agreed: Option<AgreedShards>, set: u8, told: Told) -> Finding {
    let (there, has_records) = match agreed {
        Some(AgreedShards::Kept(there)) => (there, true),
        Some(AgreedShards::Free(there)) => (there, false),
        Some(AgreedShards::Changing { from, to }) => {
            let found = format!(
                "the number of shards of the job records is being changed from {from} to {to}"
            );
            return Finding::warn(
                SHARDS,
                found,
                "start an ingest, which ends that; no worker starts before",
            );
        }
        None => return Finding::ok(SHARDS, "no fleet has said in how many its job records are"),
    };
    let found = format!("the fleet has its job records in {there}");
    match told {
        Told::Nobody => return Finding::ok(SHARDS, found),
        _ if there == set => {
            return Finding::ok(SHARDS, format!("{found}, and so has queue.record_shards"));
        }
        Told::Setting | Told::Default => {}
    }
    let found = format!("{found}, and queue.record_shards is {set}");
    if !has_records {
        let advice = format!(
            "no record is kept, so an ingest with {set} makes it {set} when it starts; who has another number does not start from \
             then on: set the same in every service"
        );
        return Finding::warn(SHARDS, found, advice);
    }
    let advice = format!(
        "a service with {set} does not start: set queue.record_shards = {there} in every service's settings"
    );
    match told {
        // A file that somebody wrote to ask a server has no more than its address.
        Told::Default => Finding::warn(SHARDS, format!("{found}, its default"), advice),
        _ => Finding::fail(SHARDS, found, advice),
    }
}

/// The server's time, which it read between two of ours.
fn clocks(asked: UnixMillis, theirs: UnixMillis, answered: UnixMillis) -> Finding {
    const CHECK: &str = "clocks";
    let off = match theirs.0 {
        early if early < asked.0 => early - asked.0,
        late if late > answered.0 => late - answered.0,
        _ => 0,
    };
    if off.abs() <= CLOCK_OFF_MILLIS_MAX {
        return Finding::ok(CHECK, "this machine's and that of NATS agree");
    }
    let side = if off < 0 { "behind" } else { "ahead of" };
    let found = format!(
        "that of NATS is {} s {side} this machine's",
        off.abs() / 1000
    );
    Finding::warn(
        CHECK,
        found,
        "let all machines take the time from one place (NTP)",
    )
}

/// How long a confirmed write takes.
fn writes(millis: u128) -> Finding {
    let found = format!("a confirmed write takes {millis} ms");
    if millis > WRITE_MILLIS_MAX {
        let advice =
            "a faster disk for NATS, or a shorter way to it: every step of a job waits for some";
        return Finding::warn("writes", found, advice);
    }
    Finding::ok("writes", found)
}

/// The fullest stream.
fn headroom(usage: &[StreamUsage]) -> Finding {
    const CHECK: &str = "streams";
    if usage.is_empty() {
        return Finding::ok(CHECK, "none yet: no fleet has used this server");
    }
    let fullest = usage.iter().max_by_key(|stream| stream.percent());
    let total: u64 = usage.iter().map(|stream| stream.bytes).sum();
    let Some((stream, full)) = fullest.and_then(|stream| Some((stream, stream.percent()?))) else {
        return Finding::ok(CHECK, format!("{} hold {}", usage.len(), bytes(total)));
    };
    let found = format!(
        "{} hold {}; {} is the fullest, {full} % of its limit",
        usage.len(),
        bytes(total),
        stream.stream
    );
    if full > FULL_PERCENT_MAX {
        return Finding::warn(CHECK, found, "see docs/runbook/stream-nearly-full.md");
    }
    Finding::ok(CHECK, found)
}

#[cfg(test)]
mod tests {
    use medfleet_testkit::{self as kit, NatsServer};

    use super::*;
    use crate::command::doctor::Verdict;

    fn stream(name: &str, bytes: u64, bytes_max: Option<u64>) -> StreamUsage {
        StreamUsage {
            stream: name.to_owned(),
            messages: 1,
            bytes,
            last_sequence: 1,
            bytes_max,
            messages_max: None,
        }
    }

    #[test]
    fn a_queue_that_no_service_would_take_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("ingest.toml");
        for key in ["in_flight_max", "intake_messages_max"] {
            let text = format!("[queue]\n{key} = 0\n");
            std::fs::write(&file, text).expect("a file");
            let refused = configured(file.clone()).expect_err(key);
            let said = refused.to_string();
            let expected = format!("queue.{key} must be at least 1, found 0");
            assert!(said.starts_with(&expected), "{said}");
        }
    }

    #[test]
    fn the_fullest_stream_counts() {
        let check = |usage: &[StreamUsage], expected, part: &str| {
            let finding = headroom(usage);
            assert_eq!(finding.verdict, expected, "{finding}");
            assert!(finding.found.contains(part), "{finding}");
        };
        check(&[], Verdict::Ok, "no fleet");
        let (free, full) = (stream("A", 10, Some(100)), stream("B", 86, Some(100)));
        check(
            &[free.clone(), full],
            Verdict::Warn,
            "B is the fullest, 86 %",
        );
        check(
            &[free, stream("C", 1 << 40, None)],
            Verdict::Ok,
            "A is the fullest",
        );
    }

    #[test]
    fn a_number_of_shards_that_is_not_the_fleets_is_told() {
        let check = |agreed, set, told, expected, part: &str| {
            let finding = shards(agreed, set, told);
            assert_eq!(finding.verdict, expected, "{finding}");
            assert!(finding.to_string().contains(part), "{finding}");
        };
        let (kept, free) = (Some(AgreedShards::Kept(8)), Some(AgreedShards::Free(8)));
        check(None, 1, Told::Default, Verdict::Ok, "no fleet has said");
        check(kept, 8, Told::Setting, Verdict::Ok, "and so has");
        check(kept, 1, Told::Nobody, Verdict::Ok, "in 8");
        check(kept, 1, Told::Default, Verdict::Warn, "1, its default");
        check(kept, 4, Told::Setting, Verdict::Fail, "record_shards = 8");
        check(free, 4, Told::Setting, Verdict::Warn, "makes it 4");
        let changing = Some(AgreedShards::Changing { from: 8, to: 1 });
        check(changing, 1, Told::Setting, Verdict::Warn, "from 8 to 1");
    }

    #[tokio::test]
    async fn a_services_file_is_compared_with_what_its_fleet_has_agreed_on() {
        let server = NatsServer::start().await.expect("starts");
        let config = QueueConfig {
            record_shards: 8,
            ..kit::config(&server.url())
        };
        let queue = kit::queue(&config).await.expect("connects");
        let (key, record) = kit::record(1, 1);
        queue.create_record(&key, &record).await.expect("stores");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("encode.toml");
        let urls = format!("[queue]\nurls = [\"{}\"]\n", server.url());
        for (more, expected) in [
            ("", Verdict::Warn),
            ("record_shards = 8\n", Verdict::Ok),
            ("record_shards = 1\n", Verdict::Fail),
        ] {
            std::fs::write(&file, format!("{urls}{more}")).expect("a file");
            let findings = look(&configured(file.clone()).expect("is right")).await;
            let mut of_shards = findings.iter().filter(|finding| finding.check == SHARDS);
            let found = of_shards.next().map(|finding| finding.verdict);
            assert_eq!(found, Some(expected), "{more}: {findings:?}");
        }
    }

    #[test]
    fn a_server_newer_than_those_that_were_tried_is_told() {
        assert_eq!(NEWEST_TRIED, medfleet_testkit::NATS_NEWEST);
        for known in [medfleet_testkit::NATS_OLDEST, NEWEST_TRIED, "2.15.9"] {
            assert_eq!(version(known).verdict, Verdict::Ok, "{known}");
        }
        for newer in ["2.16.0", "3.0.0-RC.1"] {
            assert_eq!(version(newer).verdict, Verdict::Warn, "{newer}");
        }
    }

    #[test]
    fn clocks_that_differ_are_told_and_a_slow_answer_is_no_difference() {
        let check = |(asked, theirs, answered), expected, part: &str| {
            let finding = clocks(UnixMillis(asked), UnixMillis(theirs), UnixMillis(answered));
            assert_eq!(finding.verdict, expected, "{finding}");
            assert!(finding.found.contains(part), "{finding}");
        };
        check((10_000, 10_100, 10_200), Verdict::Ok, "agree");
        check((10_000, 70_000, 90_000), Verdict::Ok, "agree");
        check((10_000, 8_500, 10_200), Verdict::Ok, "agree");
        check((10_000, 15_200, 10_200), Verdict::Warn, "5 s ahead of");
        check((10_000, 2_000, 10_200), Verdict::Warn, "8 s behind");
    }

    #[test]
    fn slow_writes_are_told() {
        assert_eq!(writes(20).verdict, Verdict::Ok);
        assert_eq!(writes(300).verdict, Verdict::Warn);
    }
}
