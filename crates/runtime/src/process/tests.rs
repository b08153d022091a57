//! The life of a process without its global parts: no installed subscriber, no signals sent.

use std::time::Duration;

use tokio::runtime::RuntimeFlavor;

use super::*;

const PROGRAM: Program = Program {
    name: "test",
    about: "a test",
    version: "0",
    threads_max: 1,
};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    process: ProcessConfig,
    #[schemars(range(max = 8))]
    slots: u32,
}

impl Settings for Sample {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }
}

fn prepared(overrides: &[&str], arguments: Arguments) -> Result<Option<Sample>, ConfigError> {
    let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
    prepare::<Sample>(
        &Sources {
            overrides,
            ..Sources::default()
        },
        &arguments,
    )
}

#[test]
fn help_says_what_the_program_does() {
    let help = command(PROGRAM).render_long_help().to_string();
    assert!(help.starts_with("a test\n"), "{help}");
    assert!(help.contains("4 not finished"), "{help}");
}

#[test]
fn a_program_has_no_more_threads_than_it_says_and_one_at_least() {
    let cores = std::thread::available_parallelism().expect("is known");
    let check = |threads_max, expected| {
        let program = Program {
            threads_max,
            ..PROGRAM
        };
        let runtime = runtime(program).expect("starts");
        assert_eq!(runtime.metrics().num_workers(), expected, "{threads_max}");
        let is_single = runtime.handle().runtime_flavor() == RuntimeFlavor::CurrentThread;
        assert_eq!(is_single, expected == 1, "{threads_max}");
    };
    check(1, 1);
    check(0, 1);
    check(2, cores.get().div_ceil(2).min(2));
    check(usize::MAX, cores.get().div_ceil(2));
}

#[test]
fn checking_and_printing_stop_before_anything_starts() {
    let checked = Arguments {
        check_config: true,
        ..Arguments::default()
    };
    assert!(prepared(&[], checked.clone()).expect("is right").is_none());
    let refused = prepared(&["slots=9"], checked).expect_err("is too many");
    assert_eq!(refused.to_string(), "slots must be 0 to 8, found 9");
    let shown = Arguments {
        print_schema: true,
        ..Arguments::default()
    };
    assert!(prepared(&["slots=9"], shown).expect("is right").is_none());
    let config = prepared(&["slots=3"], Arguments::default()).expect("is right");
    assert_eq!(config.expect("goes on").slots, 3);
}

async fn lived<F, Fut>(drain: Duration, body: F) -> Result<(), Stop>
where
    F: FnOnce(Process<Sample>) -> Fut,
    Fut: Future<Output = Result<(), Stop>>,
{
    let config = Sample::default();
    let common = config.process().clone();
    let body: Body<'_> = Box::new(|process| Box::pin(body(process.with(config))));
    serve(PROGRAM, &common, Vec::new(), &Shutdown::new(drain), body).await
}

#[tokio::test]
async fn a_body_that_returns_ends_the_process_in_order() {
    let mut seen = None;
    let ended = lived(Duration::from_secs(30), async |process| {
        assert!(!process.health.is_ready(), "before its first part is");
        process.health.part("work").ready();
        assert!(process.health.is_ready());
        tokio::net::TcpStream::connect(process.admin).await?;
        let kind = TaskKind {
            name: "work",
            on_failure: OnFailure::Shutdown,
            on_shutdown: OnShutdown::Wait,
        };
        let shutdown = process.shutdown.clone();
        process.tasks.start(kind, async move {
            shutdown.begun().await;
            Ok::<_, std::convert::Infallible>(())
        });
        seen = Some((process.health.clone(), process.tasks.clone()));
        Ok(())
    });
    ended.await.expect("nothing fails");
    let (health, tasks) = seen.expect("the body ran");
    assert_eq!(
        (health.missing(), tasks.running()),
        (vec!["draining".to_owned()], 0)
    );
}

#[tokio::test]
async fn the_bodys_error_decides_the_code() {
    let ended = lived(Duration::from_secs(30), async |_| {
        Err(Stop::unreachable(std::io::Error::other("no NATS")))
    });
    let stop = ended.await.expect_err("the body fails");
    assert_eq!(
        (stop.exit, stop.chain().as_str()),
        (Exit::Unreachable, "no NATS")
    );
}

#[tokio::test]
async fn a_body_that_ignores_the_shutdown_misses_the_deadline() {
    let ended = lived(Duration::from_millis(10), async |process| {
        process.shutdown.begin();
        std::future::pending::<()>().await;
        Ok(())
    });
    let stop = ended.await.expect_err("the body never returns");
    assert_eq!(stop.exit, Exit::DeadlineMissed);
}

#[tokio::test]
async fn a_taken_port_is_a_configuration_error() {
    let taken = bind("ingest.listen", SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("binds");
    let address = taken.local_addr().expect("has an address");
    let stop = bind("ingest.listen", address)
        .await
        .expect_err("the port is taken");
    assert_eq!(stop.exit, Exit::Usage);
    assert!(
        stop.chain()
            .starts_with(&format!("ingest.listen: cannot listen on {address}: ")),
        "{stop:?}"
    );
}
