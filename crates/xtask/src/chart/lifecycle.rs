//! The real helm through the life of a release: install, upgrade, a refused upgrade, rollback, test, uninstall, and another
//! install over the claims that are left.
//! The server is a stand-in (`api.py`): it keeps and validates objects, and nothing more. No controller acts on them.
//! And what `medfleet doctor` reads from that server.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::objects::{label, list, name, text};
use super::{Chart, NAMESPACE, RELEASE, built, operators, python};

/// The version of Kubernetes that it claims and validates for.
const VERSION: &str = "1.34";
/// Longest wait for one of its answers.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The server, killed when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Result<Self> {
        let mut command = python("api.py")?;
        let mut child = command
            .arg(VERSION)
            .stdout(Stdio::piped())
            .spawn()
            .context("start api.py")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let mut server = Self { child, port: 0 };
        server.port = line
            .trim()
            .parse()
            .context("api.py did not print its port")?;
        Ok(server)
    }

    /// The objects of a kind in the release's namespace.
    fn list(&self, path: &str) -> Result<Vec<Value>> {
        let (group, plural) = path.rsplit_once('/').context("group and plural")?;
        let path = format!("{group}/namespaces/{NAMESPACE}/{plural}");
        let listing: Value =
            serde_json::from_str(&self.send("GET", &path, "")?).context("a list in JSON")?;
        Ok(list(&listing["items"]).cloned().collect())
    }

    /// Makes an object, as whoever installs it would.
    fn make(&self, path: &str, object: &Value) -> Result<()> {
        self.send("POST", path, &object.to_string()).map(drop)
    }

    /// What it answers.
    fn send(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(
            stream,
            "{method} /{path} HTTP/1.0\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        Ok(body.to_owned())
    }

    /// NATS's set: its name, and what Kubernetes would call the claim of one of its servers.
    fn nats(&self, ordinal: usize) -> Result<(String, String)> {
        let sets = self.list("apis/apps/v1/statefulsets")?;
        let [set] = sets.as_slice() else {
            bail!("{} sets, expected NATS's alone", sets.len());
        };
        let template = &set["spec"]["volumeClaimTemplates"][0];
        let claim = format!("{}-{}-{ordinal}", name(template), name(set));
        Ok((name(set).to_owned(), claim))
    }

    /// Every object but helm's own records.
    fn all(&self) -> Result<BTreeSet<String>> {
        let mut labels = BTreeSet::new();
        for path in [
            "api/v1/pods",
            "api/v1/services",
            "api/v1/secrets",
            "api/v1/configmaps",
            "api/v1/serviceaccounts",
            "apis/apps/v1/deployments",
            "apis/apps/v1/statefulsets",
            "apis/policy/v1/poddisruptionbudgets",
            "apis/networking.k8s.io/v1/networkpolicies",
        ] {
            let objects = self.list(path)?;
            let ours = objects
                .iter()
                .filter(|object| !text(&object["type"]).starts_with("helm.sh/release"));
            labels.extend(ours.map(label));
        }
        Ok(labels)
    }

    /// The log level in ingest's configuration.
    fn log_level(&self) -> Result<String> {
        let maps = self.list("api/v1/configmaps")?;
        let map = maps
            .iter()
            .find(|map| name(map).ends_with("-ingest"))
            .context("ingest's config map")?;
        let config: toml::Table = text(&map["data"]["config.toml"]).parse()?;
        Ok(config["process"]["telemetry"]["log"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is ours and keeps nothing: there is no better end for it.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("xtask: could not stop api.py: {error}");
        }
    }
}

/// What goes otherwise than it should.
pub(crate) fn check(chart: &Chart) -> Result<Vec<String>> {
    let server = Server::start()?;
    let helm = |arguments: &[&str]| helm(chart, &server, arguments, &[]);
    let with_chart = |command: &str, values: &[PathBuf]| {
        let folder = chart.folder.to_string_lossy().into_owned();
        self::helm(chart, &server, &[command, RELEASE, &folder], values)
    };
    let small = chart.folder.join("values-small.yaml");
    let louder = chart.values("lifecycle-louder", &json!({"process": {"log": "debug"}}))?;
    // Free-form for our schema, wrong for Kubernetes.
    let wrong = chart.values(
        "wrong",
        &json!({"ingest": {"affinity": {"nodeAfinity": {}}}}),
    )?;

    with_chart("install", std::slice::from_ref(&small))??;
    let installed = server.all()?;
    ensure!(
        installed.len() > 20,
        "only {} objects were installed",
        installed.len()
    );
    let mut violations = keda(chart, &server)?;
    let mut expect = |what: &str, found: &str, expected: &str| {
        if !found.contains(expected) {
            violations.push(format!("{what}: found {found}, expected {expected}"));
        }
    };
    with_chart("upgrade", &[small.clone(), louder])??;
    expect("after the upgrade", &server.log_level()?, "debug");
    let mut refused = vec![(wrong, "nodeAfinity")];
    for (path, values) in without_jobs() {
        refused.push((chart.values(path, &values)?, path));
    }
    for (values, path) in refused {
        let refused = with_chart("upgrade", &[small.clone(), values])?.err();
        let refused = refused.map(|error| error.to_string()).unwrap_or_default();
        expect("a wrong upgrade", &refused, path);
    }
    helm(&["rollback", RELEASE, "1"])??;
    expect("after the rollback", &server.log_level()?, "info");
    helm(&["test", RELEASE, "--timeout", "60s"])??;
    expect(
        "after the test",
        &format!("{:?}", server.list("api/v1/pods")?.first().map(label)),
        "-test",
    );
    helm(&["uninstall", RELEASE])??;
    // The test's pod stays until the next test: its log is there to be read.
    let pod = format!("Pod/{RELEASE}-medfleet-test");
    let left: Vec<String> = server
        .all()?
        .into_iter()
        .filter(|label| *label != pod)
        .collect();
    expect("left after uninstall", &format!("{left:?}"), "[]");
    violations.extend(claims(chart, &server)?);
    Ok(violations)
}

/// What goes wrong over claims that are left of another number of servers: of one, which are kept from three, then of three.
/// Nothing is installed when it begins, and no claim is there.
fn claims(chart: &Chart, server: &Server) -> Result<Vec<String>> {
    let folder = chart.folder.to_string_lossy().into_owned();
    let small = chart.folder.join("values-small.yaml");
    let helm_with = |command: &str, replicas: u32| {
        let values = json!({"nats": {"own": {"replicas": replicas}}});
        let values = chart.values(&format!("{replicas}-servers"), &values)?;
        let arguments = [command, RELEASE, folder.as_str()];
        helm(chart, server, &arguments, &[small.clone(), values])
    };
    let mut violations = Vec::new();
    for (servers, other, ordinal) in [(1, 3, 0), (3, 1, 2)] {
        // Allowed: the first time there are no claims, the second time those of one server.
        helm_with("install", other)??;
        let (set, claim) = server.nats(ordinal)?;
        let path = format!("apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{set}");
        helm(chart, server, &["uninstall", RELEASE], &[])??;
        server.make(
            &format!("api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"),
            &json!({"metadata": {"name": claim}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            }}),
        )?;
        let mut refused = |command: &str| -> Result<()> {
            let said = helm_with(command, other)?.err();
            let said = said.map(|error| error.to_string()).unwrap_or_default();
            let expected = format!("allowed is {servers}; or");
            if !(said.contains(&claim) && said.contains(&expected)) {
                violations.push(format!(
                    "{command} of {other} servers over {claim}: found {said:?}, expected {expected}"
                ));
            }
            Ok(())
        };
        refused("install")?;
        helm_with("install", servers)??;
        let none = json!({"spec": {"replicas": 0}});
        server.send("PATCH", &path, &none.to_string())?;
        refused("upgrade")?;
        helm_with("upgrade", servers)??;
        helm(chart, server, &["uninstall", RELEASE], &[])??;
    }
    Ok(violations)
}

/// Values that would leave the jobs of the small preset behind, which are on its one server and in one shard, with their blobs in a
/// bucket of it, and what is refused of them.
fn without_jobs() -> [(&'static str, Value); 6] {
    let external = json!({"mode": "external", "external": {"urls": ["nats://n:4222"], "auth": {"kind": "none"}}});
    let peers = json!({"natsPeers": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]});
    [
        (
            "nats.own.replicas",
            json!({"nats": {"own": {"replicas": 3}}}),
        ),
        (
            "nats.mode",
            json!({"nats": external, "networkPolicy": peers}),
        ),
        ("fullnameOverride", json!({"fullnameOverride": "other"})),
        (
            "queue.config.record_shards",
            json!({"queue": {"config": {"record_shards": 4}}}),
        ),
        (
            "store.kind",
            json!({"store": {"kind": "s3", "s3": {"region": "x"}}, "networkPolicy": {"storePeers": peers["natsPeers"]}}),
        ),
        ("store.bucket", json!({"store": {"bucket": "other"}})),
    ]
}

/// What `medfleet doctor` says of KEDA that is not so, while it comes piece by piece.
fn keda(chart: &Chart, server: &Server) -> Result<Vec<String>> {
    let labels =
        json!({"app.kubernetes.io/name": "keda-operator", "app.kubernetes.io/version": "2.20.2"});
    let mut definition = operators::definition("ScaledObject")?;
    definition["metadata"]["labels"] = labels.clone();
    let pods = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "keda", "image": "keda"}]}});
    let operator = json!({
        "metadata": {"name": "keda-operator", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": pods},
        "status": {"availableReplicas": 1},
    });
    let mut said = vec![(doctor(chart, server)?, "not installed")];
    server.make(
        "apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &definition,
    )?;
    said.push((doctor(chart, server)?, "its operator is not"));
    server.make("apis/apps/v1/namespaces/keda/deployments", &operator)?;
    said.push((doctor(chart, server)?, "2.20.2, keda/keda-operator runs"));
    let wrong = said
        .into_iter()
        .filter(|(line, expected)| !line.contains(expected));
    Ok(wrong
        .map(|(line, expected)| format!("medfleet doctor: {line}, expected {expected}"))
        .collect())
}

/// Its line about KEDA.
fn doctor(chart: &Chart, server: &Server) -> Result<String> {
    let mut doctor = Command::new(built("medfleet")?);
    doctor.args(["doctor", "--json", "--data"]);
    doctor.arg(chart.scratch.join("data")).arg("--kubernetes");
    doctor.arg(format!("http://127.0.0.1:{}", server.port));
    // What else it may find fault with here is not asked.
    let output = doctor.output().context("start medfleet doctor")?;
    let said = String::from_utf8(output.stdout)?;
    let line = said.lines().find(|line| line.contains("\"keda\""));
    Ok(line
        .context("medfleet doctor says nothing of KEDA")?
        .to_owned())
}

/// What helm wrote, or how it complained.
fn helm(
    chart: &Chart,
    server: &Server,
    arguments: &[&str],
    values: &[PathBuf],
) -> Result<Result<String>> {
    let mut command = Command::new(&chart.helm);
    command.args(arguments).args(["--namespace", NAMESPACE]);
    command
        .arg("--kube-apiserver")
        .arg(format!("http://127.0.0.1:{}", server.port));
    for file in values {
        command.arg("--values").arg(file);
    }
    // Nothing of the person who runs this: neither their cluster nor their cache.
    command.env("KUBECONFIG", "/dev/null");
    for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(home, chart.scratch.join("helm"));
    }
    let output = command.output().context("start helm")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(anyhow::anyhow!(
            "helm {}: {said}",
            arguments.first().unwrap_or(&"")
        )),
    })
}
