//! Whether a failure is the machine's: only what a machine is known to refuse skips the step. A fault of ours in the trial would
//! be skipped as well, and nobody would see that no container was ever tried.

use anyhow::{Result, bail};

/// Set to `must` on a machine that is known to start containers: what would skip the step is an error there.
const SWITCH: &str = "MEDFLEET_CONTAINERS";

/// What the programs say, in lower case, where a machine lacks something: each by words that stand in one line.
/// Half of it was seen with runc 1.1.5, util-linux 2.38 and iproute2 6.1, of a root without one right or one mount; the rest is
/// what these programs and the kernel have in them.
const REFUSALS: &[&[&str]] = &[
    // Another kind of system, or a very small one.
    &["start setpriv", "no such file or directory"],
    &["setpriv: failed to execute", "no such file or directory"],
    // Namespaces: not for this user, more than are allowed, or not in this kernel.
    &["unshare", "operation not permitted"],
    &["unshare", "permission denied"],
    &["unshare failed: no space left on device"],
    &["unshare failed: invalid argument"],
    &["mount", "operation not permitted"],
    &["mount", "permission denied"],
    &["rtnetlink answers: operation not permitted"],
    &["rtnetlink answers: operation not supported"],
    &["unknown device type"],
    // Control groups: not for this user, not here at all, or not below that of this process.
    &["cgroup", "operation not permitted"],
    &["cgroup", "permission denied"],
    &["cgroup", "read-only file system"],
    &["no cgroup mount found"],
    &[
        "unable to apply cgroup configuration",
        "no such file or directory",
    ],
    &["cgroup", "it is in an invalid state"],
    &["cgroup", "device or resource busy"],
    &["unable to setup user", "operation not permitted"],
    &["error loading seccomp filter"],
];

/// Whether a skip is an error here.
#[expect(
    clippy::disallowed_methods,
    reason = "the automation is started by a person or by CI, and has no runtime"
)]
pub(super) fn must() -> Result<bool> {
    is_must(
        &std::env::var_os(SWITCH)
            .unwrap_or_default()
            .to_string_lossy(),
    )
}

fn is_must(set: &str) -> Result<bool> {
    match set {
        "" => Ok(false),
        "must" => Ok(true),
        other => bail!("{SWITCH} is {other:?}, expected must, or nothing"),
    }
}

/// The line by which a machine refuses, of what a failed trial wrote. None where it failed by something else.
pub(super) fn refusal(said: &str) -> Option<&str> {
    let is_refusal = |line: &&str| {
        let line = line.to_lowercase();
        // runc warns of what it cannot clean up after any failure.
        !line.contains("level=warning")
            && REFUSALS
                .iter()
                .any(|words| words.iter().all(|word| line.contains(word)))
    };
    said.lines().find(is_refusal).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_refuses_is_known() {
        for said in [
            "start setpriv: No such file or directory (os error 2)",
            "setpriv: exit status: 1: unshare: unshare failed: Operation not permitted",
            "mount: exit status: 32: mount: /run: permission denied.\n       dmesg(1) may have more information",
            "link set lo up: ip: exit status: 2: RTNETLINK answers: Operation not permitted",
            "mount --make-shared /run/netns failed: Operation not permitted",
            "level=error msg=\"runc run failed: unable to start container process: unable to apply cgroup configuration: mkdir /sys/fs/cgroup/cpuset/x: read-only file system\"",
            "level=error msg=\"runc run failed: no cgroup mount found in mountinfo\"",
            "level=fatal msg=\"nsexec-1[61]: failed to unshare remaining namespaces (except cgroupns): Operation not permitted\"",
            "level=error msg=\"runc run failed: unable to start container process: unable to setup user: operation not permitted\"",
        ] {
            assert!(refusal(said).is_some(), "{said}");
        }
        let first = "level=warning msg=x\nmount: /run: permission denied.\nmore";
        assert_eq!(refusal(first), Some("mount: /run: permission denied."));
    }

    /// Each of them was a skip once.
    #[test]
    fn a_fault_of_ours_is_none_of_the_machines() {
        for said in [
            // The time limit, and a kill.
            "setpriv: exit status: 124: ",
            "setpriv: signal: 9 (SIGKILL): ",
            "xtask: trial is no part of this step",
            "xtask: config.json: expected value at line 1 column 1",
            "buildah: exit status: 125: Error: reading \"Containerfile\": no such file or directory",
            "ip: exit status: 2: RTNETLINK answers: File exists",
            "unshare: unrecognized option '--kill-chid'",
            "level=error msg=\"runc run failed: unable to start container process: exec: \\\"/bin/tru\\\": stat /bin/tru: no such file or directory\"",
            "level=error msg=\"runc run failed: unable to start container process: exec: \\\"/bin/true\\\": permission denied\"",
            "level=warning msg=\"unable to get oom kill count\" error=\"openat2 /sys/fs/cgroup/memory/x/memory.oom_control: permission denied\"\nlevel=error msg=\"another failure\"",
        ] {
            assert_eq!(refusal(said), None, "{said}");
        }
    }

    #[test]
    fn only_must_makes_it_strict() {
        assert!(!is_must("").expect("not set"));
        assert!(is_must("must").expect("as it is documented"));
        is_must("yes").expect_err("another word");
    }
}
