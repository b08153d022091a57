//! The node that the pods run on: new namespaces for networks, mounts and processes, with a bridge that connects the pods. All of
//! it ends with the first process in them, however that ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::images::{Builder, quietly};
use super::kit::Kit;
use super::seccomp;
use crate::process;

/// Starts a program as the first of namespaces of its own, where root may make them.
pub(super) const APART: [&str; 17] = [
    // All of it ends with this program, also on Ctrl-C or kill, and after a quarter of an hour at the latest (it takes about a
    // minute), because the programs that build and run containers have no time limit of their own.
    "setpriv",
    "--pdeathsig",
    "KILL",
    "timeout",
    "--kill-after",
    "10",
    "900",
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];
/// The first three numbers of every address, and who has the last number 1.
const NETWORK: &str = "10.88.0";
const BRIDGE: &str = "pods";
/// How the names of our control groups begin; the process whose run it is follows.
const CGROUP: &str = "medfleet-";
/// Memory of the container that is tried first.
const TRIED_BYTES: u64 = 64 << 20;

/// The programs, and a folder for everything.
pub(super) struct Node {
    pub(super) kit: Kit,
    pub(super) folder: PathBuf,
    /// Begins the names of its control groups, which all runs on this machine share.
    run: String,
}

impl Node {
    /// Makes a machine of the namespaces that this process is in, which must be new ones.
    pub(super) fn start(kit: Kit, folder: PathBuf, run: String) -> Result<Self> {
        let node = Self { kit, folder, run };
        // What the programs keep there is for this machine alone.
        quietly(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
        node.ip(&["link", "set", "lo", "up"])?;
        node.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        node.ip(&["addr", "add", &format!("{NETWORK}.1/24"), "dev", BRIDGE])?;
        node.ip(&["link", "set", BRIDGE, "up"])?;
        Ok(node)
    }

    /// Makes the network of a pod, and says its address and its file. Numbers begin with 2.
    pub(super) fn join(&self, pod: &str, number: usize) -> Result<(String, PathBuf)> {
        let (link, address) = (format!("pod{number}"), format!("{NETWORK}.{number}"));
        let prefixed = format!("{address}/24");
        self.ip(&["netns", "add", pod])?;
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", pod];
        self.ip(&[&["link", "add", &link][..], &peer].concat())?;
        self.ip(&["link", "set", &link, "master", BRIDGE, "up"])?;
        self.ip(&["-n", pod, "addr", "add", &prefixed, "dev", "eth0"])?;
        self.ip(&["-n", pod, "link", "set", "eth0", "up"])?;
        self.ip(&["-n", pod, "link", "set", "lo", "up"])?;
        Ok((address, Path::new("/run/netns").join(pod)))
    }

    /// The control group of a pod.
    pub(super) fn cgroup(&self, pod: &str) -> String {
        format!("/{CGROUP}{}-{pod}", self.run)
    }

    /// Starts a container; the child ends when it does, with its code. What it writes is added to `log` in its folder.
    pub(super) fn run(&self, name: &str, bundle: &Path) -> Result<Child> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(bundle.join("log"))?;
        let mut runc = self.runc("run");
        runc.arg("--bundle").arg(bundle);
        runc.arg("--pid-file").arg(bundle.join("pid")).arg(name);
        runc.stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        runc.spawn().context("start runc")
    }

    /// SIGTERM to a container.
    pub(super) fn terminate(&self, name: &str) -> Result<()> {
        quietly(self.runc("kill").args([name, "TERM"])).map(drop)
    }

    /// Ends a container, if it is there.
    pub(super) fn remove(&self, name: &str) {
        process::succeeds(self.runc("delete").args(["--force", name]));
    }

    fn runc(&self, command: &str) -> Command {
        let mut runc = self.kit.command("runc");
        runc.args(["--root", "/run/runc", command]);
        runc
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let said = quietly(self.kit.command("ip").args(arguments));
        said.map(drop).with_context(|| arguments.join(" "))
    }
}

/// Builds an image and runs a container that have nothing to do with ours, with what ours need: where this fails, the machine is
/// the reason.
pub(super) fn try_out(node: &Node) -> Result<()> {
    let content = node.folder.join("tried-content");
    fs::create_dir_all(&content)?;
    let file = content.join("Containerfile");
    fs::write(&file, "FROM scratch\nCOPY . /\n")?;
    let builder = Builder::open(&node.kit, node.folder.join("tried-images"))?;
    builder.build("tried", &content, &file)?;
    // The files of this machine: a program and its libraries that surely go together.
    let root = node.folder.join("tried-root");
    fs::create_dir_all(&root)?;
    quietly(Command::new("mount").args(["--bind", "/"]).arg(&root))?;
    let (_, network) = node.join("tried", 2)?;
    let bundle = node.folder.join("tried");
    fs::create_dir_all(&bundle)?;
    quietly(node.runc("spec").arg("--bundle").arg(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/true"]);
    config["process"]["user"] = json!({"uid": 65532, "gid": 65532});
    config["root"] = json!({"path": root, "readonly": true});
    config["linux"]["cgroupsPath"] = json!(node.cgroup("tried"));
    config["linux"]["resources"]["memory"] = json!({"limit": TRIED_BYTES});
    config["linux"]["seccomp"] = seccomp::of_nothing();
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten() {
        if namespace["type"] == "network" {
            namespace["path"] = json!(network);
        }
    }
    fs::write(&path, config.to_string())?;
    let status = node.run("tried", &bundle)?.wait()?;
    if !status.success() {
        let said = fs::read_to_string(bundle.join("log"))?;
        bail!("runc: {status}: {}", said.trim());
    }
    Ok(())
}

/// Removes the control groups of runs that were killed, which the kernel keeps. What cannot be listed or removed is in nobody's
/// way: another program's, or one that a run beside this one has just removed itself.
pub(super) fn sweep() {
    let below = |tree: PathBuf| {
        let entries = fs::read_dir(tree).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    // Of the second version they are below the root, of the first below each controller's tree.
    let trees = below(PathBuf::from("/sys/fs/cgroup"));
    let of_trees = trees.iter().cloned().flat_map(below);
    for group in of_trees.chain(trees.iter().cloned()) {
        let name = group.file_name().unwrap_or_default().to_string_lossy();
        let run = name
            .strip_prefix(CGROUP)
            .and_then(|rest| rest.split('-').next());
        if run.is_some_and(|run| !Path::new("/proc").join(run).exists()) {
            drop(fs::remove_dir(&group));
        }
    }
}

/// What a running container is, against what its pod says.
pub(super) struct Process {
    status: String,
    mounts: String,
    memory: u64,
}

impl Process {
    /// Looks at the container whose pid is in its folder.
    pub(super) fn of(bundle: &Path, cgroup: &str) -> Result<Self> {
        let pid = fs::read_to_string(bundle.join("pid"))?;
        let read = |name: &str| {
            let path = Path::new("/proc").join(pid.trim()).join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        // Of the first version of control groups, of the second, and of both side by side.
        let root = Path::new("/sys/fs/cgroup");
        let limits = [
            root.join("memory")
                .join(&cgroup[1..])
                .join("memory.limit_in_bytes"),
            root.join(&cgroup[1..]).join("memory.max"),
        ];
        let limit = limits.iter().find(|path| path.is_file());
        let limit = limit.with_context(|| format!("no memory limit of {cgroup} is to be seen"))?;
        Ok(Self {
            status: read("status")?,
            mounts: read("mountinfo")?,
            memory: fs::read_to_string(limit)?.trim().parse()?,
        })
    }

    /// An error unless it runs as this user and group without further rights, on a read-only root, with this memory limit.
    pub(super) fn is_least(&self, user: u32, group: u32, memory: u64) -> Result<()> {
        let same = |number: u32| [number.to_string(), number.to_string(), number.to_string()];
        let none = "0".repeat(16);
        let expected = [
            ("Uid:", same(user).join(" ")),
            ("Gid:", same(group).join(" ")),
            ("CapPrm:", none.clone()),
            ("CapEff:", none.clone()),
            ("CapBnd:", none.clone()),
            ("CapAmb:", none),
            ("NoNewPrivs:", "1".to_owned()),
            ("Seccomp:", "2".to_owned()),
        ];
        for (key, expected) in expected {
            let mut lines = self.status.lines();
            let line = lines.find_map(|line| line.strip_prefix(key));
            let found: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
            let found = found[..found.len().min(3)].join(" ");
            ensure!(found == expected, "{key} {found}, expected {expected}");
        }
        let mut mounts = self.mounts.lines().map(|line| line.split(' '));
        let root = mounts.find_map(|mut words| (words.nth(4) == Some("/")).then(|| words.next()));
        let root = root.flatten().unwrap_or_default();
        ensure!(
            root.split(',').any(|option| option == "ro"),
            "its root is mounted {root}, expected ro"
        );
        ensure!(
            self.memory == memory,
            "its memory limit is {}, expected {memory}",
            self.memory
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_more_is_seen() {
        let process = |old: &str, new: &str| {
            let status = "Uid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nCapInh:\t0\n\
                CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
                CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
            let mounts = "1 2 8:0 /images/x / ro,relatime - ext4 /dev/a rw\n\
                3 1 0:5 / /proc rw,nosuid - proc proc rw\n";
            Process {
                status: status.replace(old, new),
                mounts: mounts.replace(old, new),
                memory: if old == "memory" { 2 } else { 1 },
            }
        };
        process("-", "-").is_least(7, 8, 1).expect("least");
        for (old, new) in [
            ("Uid:\t7", "Uid:\t0"),
            ("Gid:\t8", "Gid:\t0"),
            ("CapBnd:\t0", "CapBnd:\t1"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("/ ro,", "/ rw,"),
            ("memory", "memory"),
        ] {
            let seen = process(old, new).is_least(7, 8, 1);
            seen.expect_err(new);
        }
    }
}
