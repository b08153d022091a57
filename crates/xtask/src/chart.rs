//! The Helm chart, checked without a cluster: linted, rendered for every preset and a pairwise sample of values, compared
//! strictly with the schemas of three Kubernetes versions, held against our own rules, and its configuration files given
//! to the programs that will read them.
//!
//! Reading order: `cases` (what is rendered), `objects` (reading it), `rules` and `edges` (what must hold), `operators` (other
//! projects' definitions), `scaling` (how pools follow their backlog), `settings` (the files inside), `memory` (of keys and values, and of pods), `schema` (of its values, from
//! the services' settings), `weights` (how models come into pods), `placement` (where pods run), `users` (who each service is to NATS), `notes` (the Secrets that an
//! operator is told of), `refusals` (what bad values get), `lifecycle` (install to uninstall, against a stand-in for a server),
//! `scanner` (what a scanner of policies says), `compose` (the same services on one machine).

mod cases;
mod compose;
mod edges;
mod lifecycle;
mod memory;
mod notes;
pub(crate) mod objects;
mod operators;
mod placement;
mod refusals;
mod rules;
mod scaling;
mod scanner;
mod schema;
mod settings;
mod users;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::derived::Mode;
use crate::{fetch, interpreters, places, process, violations};

/// Kubernetes versions whose schemas every object must meet: an old, a usual and a new one.
const VERSIONS: &str = "1.31,1.34,1.37";
/// The release's name: YAML 1.1 reads it as `true` where it is not quoted, so a template that forgets to quote it is found.
const RELEASE: &str = "y";
/// Where it would be installed.
const NAMESPACE: &str = "reading";
/// Helm, the chart, and the place for what comes out.
pub(crate) struct Chart {
    helm: PathBuf,
    folder: PathBuf,
    scratch: PathBuf,
}

/// What `validate.py` says of a rendered chart.
#[derive(Debug, Deserialize)]
struct Validated {
    objects: Vec<Value>,
    violations: Vec<String>,
    without_schema: Vec<String>,
}

/// Every check; prints all violations before failing. The schema comes first: everything else is rendered with it.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let mut violations = schema::check(mode)?;
    let chart = Chart::open()?;
    let cases = cases::all(&chart)?;
    for case in cases.iter().filter(|case| case.is_preset) {
        chart.lint(&case.values)?;
    }
    let rendered = chart.render_all(&cases)?;
    let mut files = settings::Files::open(&chart)?;
    let tried = scaling::Tried::read()?;
    let kv_bytes_max = memory::by_default()?;
    for (case, validated) in cases.iter().zip(&rendered) {
        let mut found = validated.violations.clone();
        let unknown = validated.without_schema.iter();
        found.extend(
            unknown
                .filter(|kind| !operators::has(kind))
                .map(|kind| format!("{kind}: no schema in one of {VERSIONS}")),
        );
        found.extend(rules::check(&validated.objects));
        if case.is_preset {
            found.extend(memory::check(&validated.objects, kv_bytes_max));
            found.extend(memory::cramped(&validated.objects)?);
            found.extend(placement::devices(&validated.objects));
        }
        found.extend(tried.check(&validated.objects));
        found.extend(edges::check(&validated.objects, case.edges));
        found.extend(files.check(&validated.objects)?);
        found.extend(notes::check(&chart, &case.values, &validated.objects)?);
        violations.extend(found.iter().map(|text| format!("{}: {text}", case.name)));
    }
    let objects = rendered.iter().flat_map(|one| &one.objects);
    violations.extend(operators::check(objects)?);
    let scan = thread::scope(|scope| {
        let scan = scope.spawn(|| scanner::check(&chart, mode, &cases));
        let lifecycle = scope.spawn(|| lifecycle::check(&chart));
        for check in [
            refusals::check,
            rolls,
            links,
            weights::check,
            placement::check,
            users::check,
            memory::of_a_model,
            edges::outside,
            scaling::merged,
            scaling::chosen,
            compose::check,
        ] {
            violations.extend(check(&chart)?);
        }
        violations.extend(joined(lifecycle)?);
        joined(scan)
    })?;
    violations.extend(scan.violations);
    violations::none("chart", &violations)?;
    let objects: usize = rendered.iter().map(|one| one.objects.len()).sum();
    println!(
        "chart: {} renders, {objects} objects against Kubernetes {VERSIONS}, {} different configuration files, {} refusals; of checkov's checks of the presets {} passed and {} were allowed to fail",
        rendered.len(),
        files.checked(),
        refusals::count(),
        scan.passed,
        scan.allowed,
    );
    Ok(())
}

/// The violations of a check that ran on a thread of its own, as checks mostly wait for other programs.
fn joined<T>(check: thread::ScopedJoinHandle<Result<T>>) -> Result<T> {
    match check.join() {
        Ok(found) => found,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Every object of a preset, as an installation would have it.
pub(crate) fn preset(name: &str) -> Result<Vec<Value>> {
    let chart = Chart::open()?;
    let values = chart.folder.join(format!("values-{name}.yaml"));
    chart.objects(RELEASE, name, &[values])
}

impl Chart {
    fn open() -> Result<Self> {
        let scratch = places::scratch("chart")?;
        fs::remove_dir_all(&scratch)?;
        Ok(Self {
            helm: fetch::file("helm")?,
            folder: places::root().join("helm/medfleet"),
            scratch: places::scratch("chart")?,
        })
    }

    /// `helm template` with these value files, as text; the error is what helm says.
    pub(crate) fn template(&self, values: &[PathBuf]) -> Result<String> {
        self.template_as(RELEASE, values)
    }

    /// The same under another release's name.
    fn template_as(&self, release: &str, values: &[PathBuf]) -> Result<String> {
        let mut helm = Command::new(&self.helm);
        helm.args(["template", release, "--namespace", NAMESPACE])
            .arg(&self.folder);
        for file in values {
            helm.arg("--values").arg(file);
        }
        let output = helm.output().context("start helm")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("helm's output is UTF-8")
    }

    /// The objects of a release with these value files, under a name for the rendering.
    fn objects(&self, release: &str, name: &str, values: &[PathBuf]) -> Result<Vec<Value>> {
        let path = self.rendered(name);
        fs::write(&path, self.template_as(release, values)?)?;
        let validated = self.validate(&[path])?.into_iter().next();
        let validated = validated.context("one rendering")?;
        let wrong = &validated.violations;
        ensure!(wrong.is_empty(), "{name}: {wrong:?}");
        Ok(validated.objects)
    }

    /// A file of values in the scratch folder.
    pub(crate) fn values(&self, name: &str, values: &Value) -> Result<PathBuf> {
        let path = self.scratch.join(format!("values-{name}.json"));
        fs::write(&path, values.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn lint(&self, values: &[PathBuf]) -> Result<()> {
        let mut helm = Command::new(&self.helm);
        helm.args(["lint", "--strict", "--quiet"]).arg(&self.folder);
        for file in values {
            helm.arg("--values").arg(file);
        }
        process::run(&mut helm)
    }

    fn render_all(&self, cases: &[cases::Case]) -> Result<Vec<Validated>> {
        let mut files = Vec::new();
        for case in cases {
            let text = self
                .template(&case.values)
                .with_context(|| format!("render {}", case.name))?;
            let path = self.rendered(&case.name);
            fs::write(&path, text)?;
            files.push(path);
        }
        self.validate(&files)
    }

    /// Where the rendering of a case is.
    fn rendered(&self, case: &str) -> PathBuf {
        self.scratch.join(format!("{case}.yaml"))
    }

    fn validate(&self, files: &[PathBuf]) -> Result<Vec<Validated>> {
        let mut command = python("validate.py")?;
        command.arg(VERSIONS);
        let lines = process::capture(command.args(files))?;
        let each = lines
            .lines()
            .map(|line| serde_json::from_str(line).context("a line of validate.py"));
        each.collect()
    }
}

/// A changed setting must roll the pods that read it: their template has to change.
fn rolls(chart: &Chart) -> Result<Vec<String>> {
    let small = chart.folder.join("values-small.yaml");
    let louder = chart.values("louder", &serde_json::json!({"process": {"log": "debug"}}))?;
    let mut sums = Vec::new();
    for (name, values) in [
        ("quiet", vec![small.clone()]),
        ("louder", vec![small, louder]),
    ] {
        let objects = chart.objects(RELEASE, name, &values)?;
        let sum = |object: Value| {
            let annotations = &object["spec"]["template"]["metadata"]["annotations"];
            (object["kind"] == "Deployment").then(|| annotations["checksum/config"].clone())
        };
        sums.push(objects.into_iter().filter_map(sum).collect::<Vec<_>>());
    }
    let same = sums[0].iter().zip(&sums[1]).filter(|(a, b)| a == b).count();
    let good = sums[0].len() == 4 && same == 0;
    Ok(match good {
        true => Vec::new(),
        false => vec![format!(
            "a changed log level leaves {same} of {} workloads as they are",
            sums[0].len()
        )],
    })
}

/// Each alert carries the path of its runbook page and, where `prometheusRule.runbookBaseUrl` is set, the same as a link.
fn links(chart: &Chart) -> Result<Vec<String>> {
    let rule = serde_json::json!({"enabled": true, "runbookBaseUrl": "https://pages.example/of/"});
    let linked = chart.values("linked", &serde_json::json!({"prometheusRule": rule}))?;
    let text = chart.template(&[chart.folder.join("values-small.yaml"), linked])?;
    let alerts = text.matches("- alert: ").count();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_linked = |pair: &&[&str]| {
        let page = pair[0].strip_prefix("runbook: docs/runbook/");
        let wanted = page.map(|page| format!("runbook_url: \"https://pages.example/of/{page}\""));
        wanted.as_deref() == Some(pair[1])
    };
    let linked = lines.windows(2).filter(is_linked).count();
    Ok(match alerts > 0 && linked == alerts {
        true => Vec::new(),
        false => vec![format!(
            "prometheusRule.runbookBaseUrl: {linked} of {alerts} alerts have their page as a link"
        )],
    })
}

/// One of our Python programs, with the packages it needs.
fn python(program: &str) -> Result<Command> {
    let sources = places::root().join("crates/xtask/src/chart");
    let python = interpreters::python("chart", &sources.join("requirements.txt"))?;
    let mut command = Command::new(python);
    command.arg(sources.join(program));
    Ok(command)
}

/// A file that is there, or an error that says how to make it.
pub(crate) fn built(binary: &str) -> Result<PathBuf> {
    let path = places::built(binary);
    if !Path::new(&path).is_file() {
        bail!(
            "{} is not built: run `cargo build --workspace`",
            path.display()
        );
    }
    Ok(path)
}
