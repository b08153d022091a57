//! The images: each put together by `deploy/images/assemble.sh` and built by buildah from `Prebuilt.Containerfile`, as its head
//! says. Nothing is pulled: what it starts from is empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::kit::Kit;
use crate::{chart, fetch, places, process};

/// The server that is fetched, and its version as the name of its image has it.
const NATS_SERVER: (&str, &str) = ("nats-server", "2.14.0");

/// Where buildah keeps whole layers for a moment, below its folder: of a build that is killed they would stay in /var/tmp.
const TEMPORARY: &str = "temporary";

/// An image that lies open.
pub(super) struct Image {
    pub(super) root: PathBuf,
    /// The program that its containers start, and its first arguments.
    pub(super) entrypoint: Vec<String>,
    /// `NAME=value`.
    pub(super) env: Vec<String>,
    /// Whom it runs as, if nobody says another.
    pub(super) user: String,
}

/// buildah with a store of its own.
pub(super) struct Builder<'a> {
    kit: &'a Kit,
    folder: PathBuf,
}

impl<'a> Builder<'a> {
    /// Its store and its settings, in a new folder.
    pub(super) fn open(kit: &'a Kit, folder: PathBuf) -> Result<Self> {
        let temporary = folder.join(TEMPORARY);
        fs::create_dir_all(&temporary)
            .with_context(|| format!("create {}", temporary.display()))?;
        let store = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/store\"\nrunroot = \"{0}/run\"\n",
            folder.display()
        );
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        for (file, text) in [
            ("storage.conf", &*store),
            ("policy.json", policy),
            ("empty", ""),
        ] {
            fs::write(folder.join(file), text).with_context(|| format!("write {file}"))?;
        }
        Ok(Self { kit, folder })
    }

    /// The image that a pod names, of the binary that it is for and what that needs to run.
    pub(super) fn named(&self, name: &str) -> Result<Image> {
        let content = self.folder.join("content");
        let mut assemble = process::in_root("sh");
        assemble.arg("deploy/images/assemble.sh").arg(binary(name)?);
        quietly(assemble.arg(&content)).with_context(|| format!("put {name} together"))?;
        let file = places::root().join("deploy/images/Prebuilt.Containerfile");
        let image = self.build(name, &content, &file)?;
        fs::remove_dir_all(&content).with_context(|| format!("remove {}", content.display()))?;
        Ok(image)
    }

    /// An image of a folder.
    pub(super) fn build(&self, name: &str, content: &Path, file: &Path) -> Result<Image> {
        let policy = self.folder.join("policy.json");
        let policy = ["--signature-policy".into(), policy.into_os_string()];
        let service = format!("SERVICE={}", service(name));
        let mut build = self.buildah("build");
        build.args(["--quiet", "--build-arg", &service, "--tag", name]);
        build.args(&policy).arg("--file").arg(file).arg(content);
        quietly(&mut build).with_context(|| format!("build {name}"))?;
        let mut from = self.buildah("from");
        let container = quietly(from.arg("--pull-never").args(&policy).arg(name))?;
        let root = quietly(self.buildah("mount").arg(container.trim()))?;
        let said = quietly(self.buildah("inspect").args(["--type", "image", name]))?;
        image(&said, PathBuf::from(root.trim())).with_context(|| format!("the image {name}"))
    }

    fn buildah(&self, command: &str) -> Command {
        let mut buildah = self.kit.command("buildah");
        buildah.env("CONTAINERS_CONF", self.folder.join("empty"));
        buildah.env("CONTAINERS_REGISTRIES_CONF", self.folder.join("empty"));
        buildah.env("CONTAINERS_STORAGE_CONF", self.folder.join("storage.conf"));
        // Stronger than that file, where somebody has set them.
        buildah
            .env_remove("STORAGE_DRIVER")
            .env_remove("STORAGE_OPTS");
        buildah.env("TMPDIR", self.folder.join(TEMPORARY));
        buildah.arg(command);
        buildah
    }
}

/// What it wrote to stdout; what it wrote to stderr is in the error.
pub(super) fn quietly(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program}: output is not UTF-8"))
}

/// What buildah says of an image.
fn image(said: &str, root: PathBuf) -> Result<Image> {
    let said: Value = serde_json::from_str(said).context("what buildah says, as JSON")?;
    let config = &said["OCIv1"]["config"];
    let words = |key: &str| -> Vec<String> {
        let list = chart::objects::list(&config[key]);
        list.map(|word| chart::objects::text(word).to_owned())
            .collect()
    };
    for other in ["Cmd", "Volumes", "WorkingDir", "ExposedPorts"] {
        // Some versions write down where a container is anyway.
        let is_usual = other == "WorkingDir" && config[other] == "/";
        ensure!(
            config[other].is_null() || is_usual,
            "{other} is {}, of which no container here is made",
            config[other]
        );
    }
    Ok(Image {
        root,
        entrypoint: words("Entrypoint"),
        env: words("Env"),
        user: chart::objects::text(&config["User"]).to_owned(),
    })
}

/// `ingest` of `medfleet/ingest:0.1.0`.
fn service(name: &str) -> &str {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split([':', '@']).next().unwrap_or(last)
}

/// The binary that an image is made for.
fn binary(name: &str) -> Result<PathBuf> {
    match service(name) {
        "medfleet" => chart::built("medfleet"),
        "nats" => {
            let (program, version) = NATS_SERVER;
            ensure!(
                name.ends_with(&format!(":{version}")),
                "{name} is to run, {program} {version} is what is fetched"
            );
            fetch::file(program)
        }
        service => chart::built(&format!("medfleet-{service}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_last_word() {
        for (name, expected) in [
            ("medfleet/ingest:0.1.0", "ingest"),
            ("registry:5000/medfleet/decode@sha256:00", "decode"),
            ("nats", "nats"),
        ] {
            assert_eq!(service(name), expected);
        }
        let error = binary("nats:2.13.0").expect_err("another version");
        assert!(error.to_string().contains("2.14.0"), "{error}");
    }

    #[test]
    fn what_an_image_says_and_is_not_translated_is_refused() {
        let said = |more: &str| {
            format!(
                r#"{{"OCIv1": {{"config": {{"User": "1:1", "Entrypoint": ["/a", "b"], "Env": ["C=d"]{more}}}}}}}"#
            )
        };
        let found = image(&said(""), PathBuf::new()).expect("an image");
        assert_eq!(found.entrypoint, ["/a", "b"]);
        assert_eq!((found.user.as_str(), found.env.len()), ("1:1", 1));
        image(&said(r#", "WorkingDir": "/""#), PathBuf::new()).expect("where it is anyway");
        for more in [r#", "Cmd": ["x"]"#, r#", "WorkingDir": "/x""#] {
            image(&said(more), PathBuf::new()).err().expect("refused");
        }
    }

    #[test]
    fn the_image_that_is_built_without_a_registry_ends_like_the_other() {
        let ends = |name: &str| {
            let path = places::root().join("deploy/images").join(name);
            let text = fs::read_to_string(path).expect("a Containerfile");
            let last = text.rfind("FROM scratch").expect("a stage on nothing");
            let kept = ["USER ", "ENTRYPOINT ", "COPY "];
            let lines = text[last..].lines();
            let lines = lines.filter(|line| kept.iter().any(|word| line.starts_with(word)));
            lines
                .map(|line| line.replace("--from=chosen /out/ /", ". /"))
                .collect::<Vec<_>>()
        };
        let expected = [
            "COPY . /",
            "USER 65532:65532",
            "ENTRYPOINT [\"/usr/bin/medfleet-service\"]",
        ];
        assert_eq!(ends("Prebuilt.Containerfile"), expected);
        assert_eq!(ends("Containerfile"), expected);
    }

    #[test]
    fn the_binaries_of_all_images_are_compiled_once() {
        let read = |name: &str| fs::read_to_string(places::root().join(name)).expect("is there");
        let text = read("deploy/images/Containerfile");
        let chosen = text.find(" AS chosen\n").expect("a stage for one image");
        let (built, chosen) = text.split_at(chosen);
        // Whatever a build is told makes it anew, and all that comes behind.
        let told = built.lines().any(|line| line.starts_with("ARG "));
        assert!(!told && built.contains("cargo build") && !chosen.contains("cargo build"));
        for name in ["ingest", "preprocess", "encode", "decode"] {
            assert!(built.contains(&format!("--bin medfleet-{name}")), "{name}");
        }
        assert!(built.contains("--bin medfleet "), "the command line");
        let left_out = read(".dockerignore");
        assert!(left_out.lines().any(|line| line == "docs"));
    }

    #[test]
    fn images_are_compiled_by_the_compiler_of_the_sources() {
        let read = |name: &str| fs::read_to_string(places::root().join(name)).expect("is there");
        let toolchain: toml::Table = read("rust-toolchain.toml").parse().expect("is TOML");
        let version = toolchain["toolchain"]["channel"].as_str().expect("a text");
        for (name, brought) in [
            ("Containerfile", format!("/rust:{version}-")),
            (
                "cuda.Containerfile",
                format!("--default-toolchain {version}\n"),
            ),
        ] {
            let text = read(&format!("deploy/images/{name}"));
            // Not asked for here: what rust-toolchain.toml has besides, which rustup would bring.
            let asked = format!("RUSTUP_TOOLCHAIN={version}\n");
            assert!(text.contains(&brought) && text.contains(&asked), "{name}");
        }
    }
}
