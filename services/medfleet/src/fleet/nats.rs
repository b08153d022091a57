//! The nats-server below us: found, started on loopback with a token of its own, restarted when it dies, gone when we go.
//!
//! One thread owns the child for its whole life. The kernel is asked to kill the child when that thread ends, so that
//! not even our own kill -9 leaves a server behind.

mod binary;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use medfleet_queue::server::{ServerSettings, Sync, server_config};
use medfleet_runtime::{OnFailure, OnShutdown, Random, Secret, TaskKind, TaskSet};

pub(crate) use binary::{Binary, find};

use super::child::{self, POLL, free_address, pause};

/// How long the server may take until it answers; it reads its streams first.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Ports tried when the one chosen was taken meanwhile.
const PORTS_TRIED_MAX: u32 = 3;
/// Deaths within [`DEATHS_WINDOW`] after which we give up.
const DEATHS_MAX: usize = 6;
/// See [`DEATHS_MAX`].
const DEATHS_WINDOW: Duration = Duration::from_secs(60);

/// What the server writes to stderr, outside its own log.
const WORDS: &str = "stderr.log";
/// Where that file is moved once it is larger than [`WORDS_BYTES_MAX`].
const WORDS_BEFORE: &str = "stderr.old.log";
/// See [`WORDS_BEFORE`].
const WORDS_BYTES_MAX: u64 = 1 << 20;

const SUPERVISOR: TaskKind = TaskKind {
    name: "nats-server",
    on_failure: OnFailure::Shutdown,
    on_shutdown: OnShutdown::Wait,
};

/// A running, supervised server. Dropping it stops the server.
#[derive(Debug)]
pub(crate) struct Nats {
    /// `nats://127.0.0.1:PORT`.
    pub(crate) url: String,
    /// What clients must present.
    pub(crate) token: Secret,
    // Closing the channel tells the thread to stop the server.
    _stop: Sender<()>,
}

/// What the thread needs to start the server, again and again with the same port and token.
#[derive(Debug)]
struct Plan {
    binary: PathBuf,
    folder: PathBuf,
    port: u16,
    token: Secret,
    measured: Measured,
}

/// What figures need of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// When a write is on disk.
    pub(crate) sync: Sync,
    /// Port of the monitoring pages.
    pub(crate) monitor_port: Option<u16>,
}

impl Nats {
    /// Starts the server and waits until it answers. It stops when the returned value is dropped, which has to happen
    /// after everything that uses it has ended; `tasks` then waits for it.
    ///
    /// # Errors
    /// It does not start, or does not answer in time; the error names its log.
    pub(crate) async fn start(
        binary: &Binary,
        folder: &Path,
        tasks: &TaskSet,
        random: &dyn Random,
    ) -> Result<Self> {
        let measured = Measured {
            sync: Sync::Always,
            monitor_port: None,
        };
        Self::start_with(binary, folder, measured, tasks, random).await
    }

    /// As [`Nats::start`], with another rule of when writes are on disk, and with monitoring pages: for figures only.
    pub(crate) async fn start_with(
        binary: &Binary,
        folder: &Path,
        measured: Measured,
        tasks: &TaskSet,
        random: &dyn Random,
    ) -> Result<Self> {
        let mut bytes = [0_u8; 24];
        random.fill(&mut bytes);
        let mut plan = Plan {
            binary: binary.path.clone(),
            folder: folder.to_path_buf(),
            port: 0,
            token: Secret::new(hex::encode(bytes)),
            measured,
        };
        let (stop, stopped) = channel();
        let (tell, started) = tokio::sync::oneshot::channel();
        tasks.start_thread(SUPERVISOR, move || {
            let child = match plan.first_start(&stopped) {
                Ok(child) => child,
                Err(error) => {
                    // The starter reports it; if that is gone, so is the process.
                    let _unheard = tell.send(Err(error));
                    return Ok(());
                }
            };
            let (port, token) = (plan.port, plan.token.clone());
            // Without a listener the channel is closed too, and the loop below stops at once.
            let _unheard = tell.send(Ok((port, token)));
            plan.supervise(child, &stopped)
        })?;
        let (port, token) = started.await.context("the nats-server thread ended")??;
        let url = format!("nats://127.0.0.1:{port}");
        Ok(Self {
            url,
            token,
            _stop: stop,
        })
    }
}

impl Plan {
    /// Starts on a free port, on another one if somebody took it in between.
    fn first_start(&mut self, stopped: &Receiver<()>) -> Result<Child> {
        let mut last = None;
        for _ in 0..PORTS_TRIED_MAX {
            // Kept over restarts, so that everyone finds the server again.
            self.port = free_address()?.port();
            self.write_config()?;
            let mut child = self.spawn()?;
            match self.wait_until_it_answers(&mut child, stopped) {
                Ok(()) => return Ok(child),
                Err(error) => last = Some(error),
            }
            self.end(&mut child)?;
        }
        Err(last.unwrap_or_else(|| anyhow!("no port was tried")))
    }

    /// Until told to stop: when the server dies, start it again with what it had.
    fn supervise(&self, mut child: Child, stopped: &Receiver<()>) -> Result<()> {
        let mut deaths: Vec<Instant> = Vec::new();
        loop {
            if !pause(stopped, POLL) {
                return self.end(&mut child);
            }
            let Some(status) = child.try_wait().context("cannot look after nats-server")? else {
                continue;
            };
            deaths.retain(|death| death.elapsed() < DEATHS_WINDOW);
            deaths.push(Instant::now());
            tracing::warn!(status = %status, deaths = deaths.len(), "nats-server died, starting it again");
            if deaths.len() >= DEATHS_MAX {
                bail!(
                    "nats-server died {DEATHS_MAX} times within {} s; {}",
                    DEATHS_WINDOW.as_secs(),
                    self.hint()
                );
            }
            child = self.spawn()?;
        }
    }

    fn spawn(&self) -> Result<Child> {
        let log = words(&self.folder)
            .with_context(|| format!("cannot write {WORDS} in {}", self.folder.display()))?;
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.folder.join("nats.conf"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        child::tie_to_us(&mut command);
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))
    }

    fn wait_until_it_answers(&self, child: &mut Child, stopped: &Receiver<()>) -> Result<()> {
        let begun = Instant::now();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        while begun.elapsed() < START_MAX {
            if let Some(status) = child.try_wait().context("cannot look after nats-server")? {
                bail!("nats-server ended at once with {status}; {}", self.hint());
            }
            if greets(address) {
                return Ok(());
            }
            if !pause(stopped, POLL) {
                bail!("stopped while nats-server was starting");
            }
        }
        bail!(
            "nats-server did not answer on {address} within {} s; {}",
            START_MAX.as_secs(),
            self.hint()
        )
    }

    fn end(&self, child: &mut Child) -> Result<()> {
        if !child::end(child, STOP_MAX)? {
            tracing::warn!(
                seconds = STOP_MAX.as_secs(),
                "nats-server did not stop and was killed"
            );
        }
        Ok(())
    }

    fn hint(&self) -> String {
        format!("see nats.log and {WORDS} in {}", self.folder.display())
    }

    fn write_config(&self) -> Result<()> {
        super::data::write_whole(&self.folder.join("nats.conf"), self.config().as_bytes())
    }

    /// Loopback only, with a token of its own.
    fn config(&self) -> String {
        let mut settings = ServerSettings::local(self.folder.join("streams"), i32::from(self.port));
        settings.token = Some(self.token.clone());
        settings.sync = self.measured.sync;
        settings.monitor_port = self.measured.monitor_port;
        let folder = self.folder.display();
        format!(
            "# Written at every start by `medfleet up`.\n\
             {}\
             server_name: medfleet\n\
             pid_file: \"{folder}/nats.pid\"\n\
             log_file: \"{folder}/nats.log\"\n\
             log_size_limit: 16MB\n\
             log_max_num: 4\n",
            server_config(&settings)
        )
    }
}

/// The file for a starting server's stderr, opened to append: a restart must not erase the reason for it. A file that has grown
/// too large is moved aside, in place of the one that was moved before.
fn words(folder: &Path) -> std::io::Result<File> {
    let path = folder.join(WORDS);
    let open = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
    };
    let file = open()?;
    if file.metadata()?.len() <= WORDS_BYTES_MAX {
        return Ok(file);
    }
    fs::rename(&path, folder.join(WORDS_BEFORE))?;
    open()
}

/// Whether a NATS server says hello there.
fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    if stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .is_err()
    {
        return false;
    }
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO ")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_configuration_is_local_private_and_durable() {
        let token = Secret::new("p");
        let plan = Plan {
            binary: "n".into(),
            folder: "/data/nats".into(),
            port: 4333,
            token,
            measured: Measured {
                sync: Sync::Always,
                monitor_port: None,
            },
        };
        let config = plan.config();
        for part in [
            "\"127.0.0.1:4333\"",
            "token: \"p\"",
            "sync_interval: always",
            "\"/data/nats/streams\"",
        ] {
            assert!(config.contains(part), "{part} is missing in\n{config}");
        }
    }

    #[test]
    fn last_words_outlive_a_restart_and_have_an_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let say = |what: &[u8]| {
            let mut words = words(folder.path()).expect("opens");
            words.write_all(what).expect("is written");
        };
        let heard = |name: &str| fs::read(folder.path().join(name)).expect("is there");
        say(b"panic: one\n");
        say(b"panic: two\n");
        assert_eq!(heard(WORDS), b"panic: one\npanic: two\n");
        let most = usize::try_from(WORDS_BYTES_MAX).expect("fits");
        say(&vec![b'x'; most]);
        say(b"panic: three\n");
        assert_eq!(heard(WORDS), b"panic: three\n");
        assert!(heard(WORDS_BEFORE).starts_with(b"panic: one\n"));
    }

    #[test]
    fn nobody_greets_on_a_free_port() {
        assert!(!greets(free_address().expect("there is one")));
    }
}
