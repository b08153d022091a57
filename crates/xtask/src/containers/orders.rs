//! The pods of one rendering, started in several orders: each time they must become ready, carry a job, and end in order.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::bundle::{self, Placed};
use super::cluster::{Cluster, hosts};
use super::images::Builder;
use super::node::{Node, Process};
use super::pod::{self, Probe, Spec, bytes};
use super::{probe, seccomp};
use crate::chart::objects::{self, pods};
use crate::fleet;

/// The pods that last: each of them is first once and last once.
const LASTING: [&str; 5] = ["nats", "ingest", "preprocess", "encode", "decode"];
/// Those that take work from a queue.
const WORKERS: [&str; 3] = ["preprocess", "encode", "decode"];
/// The pod of `helm test`.
const TEST: &str = "test";
/// The code of a service that cannot reach NATS.
const NO_QUEUE: i32 = 3;
/// How long anything may take here, on a machine that is busy.
const STEP_MAX: Duration = Duration::from_secs(180);
/// How much of a log is shown, from its end.
const LOG_LINES: usize = 20;

/// The pods with what of them runs.
struct Fleet<'a> {
    node: &'a Node,
    cluster: Cluster,
    pods: BTreeMap<String, Placed>,
    running: BTreeMap<String, Child>,
}

/// Tries every order, and says what was seen.
pub(super) fn run(node: &Node, objects: Vec<Value>) -> Result<String> {
    let start = Instant::now();
    let mut fleet = Fleet::place(node, Cluster::new(objects))?;
    let built = start.elapsed();
    for first in 0..LASTING.len() {
        let mut order = LASTING;
        order.rotate_left(first);
        let tried = fleet.in_turn(&order);
        tried.with_context(|| format!("started as {}", order.join(", ")))?;
    }
    fleet.at_once().context("started all at once")?;
    Ok(format!(
        "{} images in {:.1} s; ready, a job carried and drained in {} orders in {:.1} s",
        fleet.pods.len(),
        built.as_secs_f64(),
        LASTING.len() + 1,
        (start.elapsed() - built).as_secs_f64()
    ))
}

impl<'a> Fleet<'a> {
    /// Builds the images, and gives every pod its network, its hosts file and its configuration.
    fn place(node: &'a Node, cluster: Cluster) -> Result<Self> {
        let builder = Builder::open(&node.kit, node.folder.join("images"))?;
        let filter = seccomp::read(&node.kit.seccomp())?;
        let mut placed = BTreeMap::new();
        for (index, found) in pods(&cluster.objects).into_iter().enumerate() {
            let component = found.component();
            let (address, network) = node.join(component, index + 2)?;
            let pod = Placed {
                name: format!("{}-0", objects::name(found.owner)),
                address,
                folder: node.folder.join(component),
                network,
                cgroup: node.cgroup(component),
                spec: Spec::read(found)?,
                claims: pod::claims(found),
            };
            let twice = placed.insert(component.to_owned(), pod);
            ensure!(twice.is_none(), "two workloads of {component}");
        }
        ensure!(
            placed.len() == LASTING.len() + 1 && placed.contains_key(TEST),
            "there are {:?}; expected {LASTING:?} and {TEST}",
            placed.keys()
        );
        let mut names = Vec::new();
        for (name, component) in pod::names(&cluster.objects)? {
            let pod = placed.get(&component).context("a pod behind a Service")?;
            names.push((name, pod.address.clone()));
        }
        for (component, pod) in &placed {
            fs::create_dir_all(&pod.folder)?;
            fs::write(pod.folder.join("hosts"), hosts(&names))?;
            let image = builder.named(&pod.spec.container().image)?;
            ensure!(
                !["", "0", "root"].contains(&image.user.split(':').next().unwrap_or_default()),
                "the image of {component} would run as root"
            );
            let config = bundle::config(pod, &image, &cluster, &filter)
                .with_context(|| format!("the container of {component}"))?;
            fs::write(pod.folder.join("config.json"), config.to_string())?;
        }
        Ok(Self {
            node,
            cluster,
            pods: placed,
            running: BTreeMap::new(),
        })
    }

    /// Starts each when the one before is ready, or has ended since NATS was not there; starts those again afterwards.
    fn in_turn(&mut self, order: &[&str]) -> Result<()> {
        self.renew()?;
        let mut ended = Vec::new();
        for &component in order {
            let has_queue = self.running.contains_key("nats") || component == "nats";
            self.start(component)?;
            match self.settled(component)? {
                None if has_queue => {}
                None => bail!("{component} passes its start-up probe without NATS"),
                Some(NO_QUEUE) if !has_queue => ended.push(component),
                Some(code) => return Err(self.ended(component, code)),
            }
        }
        self.start_all(&ended)?;
        self.is_well_used()
    }

    /// Starts these at once, and waits until each has.
    fn start_all(&mut self, components: &[&str]) -> Result<()> {
        for component in components {
            self.start(component)?;
        }
        for component in components {
            if let Some(code) = self.settled(component)? {
                return Err(self.ended(component, code));
            }
        }
        Ok(())
    }

    /// Starts all without a wait, and again whoever ended since NATS was not there yet.
    fn at_once(&mut self) -> Result<()> {
        self.renew()?;
        for component in LASTING {
            self.start(component)?;
        }
        for component in LASTING {
            let start = Instant::now();
            while let Some(code) = self.settled(component)? {
                if code != NO_QUEUE || component == "nats" || start.elapsed() > STEP_MAX {
                    return Err(self.ended(component, code));
                }
                self.start(component)?;
            }
        }
        self.is_well_used()
    }

    /// All pods are healthy and run with least rights. A job completes; so does another one while the workers are stopped and
    /// started again, which is sent when only the first of them is left, so that it cannot end before they are back. All pods end
    /// in order.
    fn is_well_used(&mut self) -> Result<()> {
        for component in LASTING {
            self.is_well(component)?;
            self.is_least(component)?;
        }
        self.start(TEST)?;
        self.has_draft()?;
        self.drain(&["encode", "decode"])?;
        self.start(TEST)?;
        self.waits(TEST, STEP_MAX, "its job's acceptance", |fleet| {
            if let Some(code) = fleet.code(TEST)? {
                return Err(fleet.ended(TEST, code));
            }
            Ok(fleet.said(TEST)?.contains("ACCEPTED").then_some(()))
        })?;
        self.drain(&["preprocess"])?;
        self.start_all(&WORKERS)?;
        self.has_draft()
            .context("while the workers went and came")?;
        for component in WORKERS {
            self.is_well(component)?;
        }
        self.drain(&["ingest", "preprocess", "encode", "decode"])?;
        self.drain(&["nats"])
    }

    /// New volumes: nothing of an earlier order is there.
    fn renew(&mut self) -> Result<()> {
        for pod in self.pods.values() {
            self.cluster
                .volumes(&pod.spec, &pod.claims, &pod.volumes())?;
        }
        Ok(())
    }

    fn start(&mut self, component: &str) -> Result<()> {
        let folder = &self.pod(component)?.folder;
        let pid = folder.join("pid");
        if pid.exists() {
            fs::remove_file(&pid)?;
        }
        let child = self.node.run(component, folder)?;
        self.running.insert(component.to_owned(), child);
        Ok(())
    }

    /// Waits until the start-up probe passes; else the code with which the container ended.
    fn settled(&mut self, component: &str) -> Result<Option<i32>> {
        let pod = self.pod(component)?;
        let probe = pod.spec.container().startup_probe.as_ref();
        let probe = probe.with_context(|| format!("{component} has no start-up probe"))?;
        let wait = probe::patience(probe).min(STEP_MAX);
        self.waits(component, wait, "its start-up probe", |fleet| {
            if let Some(code) = fleet.code(component)? {
                return Ok(Some(Some(code)));
            }
            let pod = fleet.pod(component)?;
            let probe = pod.spec.container().startup_probe.as_ref();
            let passes = probe.map(|probe| probe::passes(pod, probe)).transpose()?;
            Ok((passes == Some(true)).then_some(None))
        })
    }

    /// Its other two probes pass. When the kubelet would act on one is not a wait here: what it allows is for a node that is not
    /// also building and testing.
    fn is_well(&mut self, component: &str) -> Result<()> {
        type Of = fn(&Spec) -> Option<&Probe>;
        let probes: [(&str, Of); 2] = [
            ("its readiness probe", |spec| {
                spec.container().readiness_probe.as_ref()
            }),
            ("its liveness probe", |spec| {
                spec.container().liveness_probe.as_ref()
            }),
        ];
        for (what, of) in probes {
            let probe = of(&self.pod(component)?.spec);
            let probe = probe.with_context(|| format!("{component} has not {what}"))?;
            let wait = probe::patience(probe).max(STEP_MAX);
            self.waits(component, wait, what, |fleet| {
                if let Some(code) = fleet.code(component)? {
                    return Err(fleet.ended(component, code));
                }
                let pod = fleet.pod(component)?;
                let passes = of(&pod.spec).map(|probe| probe::passes(pod, probe));
                Ok((passes.transpose()? == Some(true)).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The process is the user that its pod says, and may no more than that.
    fn is_least(&self, component: &str) -> Result<()> {
        let pod = self.pod(component)?;
        let who = &pod.spec.security_context;
        let memory = bytes(&pod.spec.container().resources.limits.memory)?;
        let process = Process::of(&pod.folder, &pod.cgroup)?;
        let least = process.is_least(who.run_as_user, who.run_as_group, memory);
        least.with_context(|| component.to_owned())
    }

    /// The pod of `helm test` ends well, and shows a draft.
    fn has_draft(&mut self) -> Result<()> {
        let code = self.waits(TEST, STEP_MAX, "the end of its job", |fleet| {
            fleet.code(TEST)
        })?;
        if code != 0 {
            return Err(self.ended(TEST, code));
        }
        let said = self.said(TEST)?;
        ensure!(
            said.contains("COMPLETED") && said.contains("DRAFT"),
            "{TEST} shows no draft: {said}"
        );
        // What the next one says is not to be taken for this one's.
        fs::write(self.pod(TEST)?.folder.join("log"), "")?;
        Ok(())
    }

    /// SIGTERM to all of these; each must end with 0 in what its grace period leaves after its pre-stop's wait, which is not
    /// waited for: nobody takes it out of a Service here.
    fn drain(&mut self, components: &[&str]) -> Result<()> {
        let asked = Instant::now();
        for component in components {
            self.node
                .terminate(component)
                .map_err(|error| error.context(self.shown(component)))?;
        }
        for &component in components {
            let spec = &self.pod(component)?.spec;
            let waits = spec.container().lifecycle.as_ref();
            let waits = waits.map_or(0, |lifecycle| lifecycle.pre_stop.sleep.seconds);
            let grace = spec.termination_grace_period_seconds.checked_sub(waits);
            let grace = grace.context("a grace period longer than its pre-stop")?;
            let left = Duration::from_secs(grace).saturating_sub(asked.elapsed());
            let code = self.waits(component, left, "its end", |fleet| fleet.code(component))?;
            if code != 0 {
                return Err(self.ended(component, code));
            }
        }
        Ok(())
    }

    /// The code with which it ended, once it has.
    fn code(&mut self, component: &str) -> Result<Option<i32>> {
        let child = self.running.get_mut(component);
        let child = child.with_context(|| format!("{component} was not started"))?;
        let Some(status) = child.try_wait()? else {
            return Ok(None);
        };
        self.running.remove(component);
        // runc ends like the container's process; by a signal it would end itself, and has no code.
        Ok(Some(status.code().unwrap_or(-1)))
    }

    /// Looks again and again; the error shows what the container said.
    fn waits<T>(
        &mut self,
        component: &str,
        wait: Duration,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if start.elapsed() > wait {
                let log = self.shown(component);
                bail!(
                    "{component}: {what} did not come in {} s; {log}",
                    wait.as_secs()
                );
            }
            fleet::pause();
        }
    }

    fn pod(&self, component: &str) -> Result<&Placed> {
        let pod = self.pods.get(component);
        pod.with_context(|| format!("no pod of {component} is rendered"))
    }

    fn ended(&self, component: &str, code: i32) -> anyhow::Error {
        anyhow!("{component} ended with {code}; {}", self.shown(component))
    }

    fn said(&self, component: &str) -> Result<String> {
        let path = self.pod(component)?.folder.join("log");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn shown(&self, component: &str) -> String {
        let said = self.said(component).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("it said:\n{}", last.join("\n"))
    }
}

impl Drop for Fleet<'_> {
    /// The processes end with the namespaces in any case; their control groups would stay.
    fn drop(&mut self) {
        for component in self.running.keys() {
            self.node.remove(component);
        }
    }
}
