//! A pod and the configuration that is made of it.

use super::*;
use crate::chart::objects::pods;
use crate::containers::pod;

fn placed(change: impl FnOnce(&mut Value)) -> Placed {
    let mut set = pod::tests::set();
    change(&mut set["spec"]["template"]["spec"]);
    let objects = [set];
    let found = pods(&objects)[0];
    Placed {
        name: "one-0".to_owned(),
        address: "10.0.0.2".to_owned(),
        folder: PathBuf::from("/pods/one"),
        network: PathBuf::from("/run/netns/one"),
        cgroup: "/medfleet-1-one".to_owned(),
        spec: Spec::read(found).expect("a pod"),
        claims: pod::claims(found),
    }
}

fn config_of(pod: &Placed) -> Result<Value> {
    let image = Image {
        root: PathBuf::from("/images/one"),
        entrypoint: vec!["/usr/bin/one".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        user: "1".to_owned(),
    };
    config(
        pod,
        &image,
        &Cluster::new(Vec::new()),
        &json!({"filter": 1}),
    )
}

#[test]
fn a_pod_becomes_what_the_runtime_reads() {
    let config = config_of(&placed(|_| {})).expect("a configuration");
    assert_eq!(
        config["root"],
        json!({"path": "/images/one", "readonly": true})
    );
    let process = &config["process"];
    assert_eq!(
        process["user"],
        json!({"uid": 7, "gid": 8, "additionalGids": [9]})
    );
    assert_eq!(process["args"], json!(["/usr/bin/one", "--name", "one-0"]));
    assert_eq!(process["capabilities"], json!({}));
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(process["cwd"], "/");
    let env = process["env"].as_array().expect("an environment");
    for pair in [
        "PATH=/bin",
        "HOSTNAME=one-0",
        "POD_NAME=one-0",
        "POD_IP=10.0.0.2",
        "LIMIT=536870912",
        // What is no variable stays as it is.
        "ADDRESS=http://10.0.0.2:80/$(OTHER)",
    ] {
        assert!(env.contains(&json!(pair)), "{pair} in {env:?}");
    }
    let token = env.iter().filter_map(Value::as_str);
    assert!(token.into_iter().any(|pair| pair.starts_with("TOKEN=nt_")));
    let linux = &config["linux"];
    assert_eq!(linux["resources"]["memory"]["limit"], 512 << 20);
    assert_eq!(linux["cgroupsPath"], "/medfleet-1-one");
    assert_eq!(linux["seccomp"], json!({"filter": 1}));
    let network = json!({"type": "network", "path": "/run/netns/one"});
    let namespaces = linux["namespaces"].as_array().expect("namespaces");
    assert!(namespaces.contains(&network) && namespaces.len() == 6);
    let mounts = config["mounts"].as_array().expect("mounts");
    let of = |place: &str| {
        let mut found = mounts.iter().filter(|mount| mount["destination"] == place);
        let mount = found.next().expect("a mount");
        (mount["source"].clone(), mount["options"][2].clone())
    };
    assert_eq!(
        of("/etc/one"),
        (json!("/pods/one/volumes/config"), json!("ro"))
    );
    assert_eq!(of("/data"), (json!("/pods/one/volumes/data"), json!("rw")));
    let room = mounts.iter().find(|mount| mount["destination"] == "/tmp");
    let room = room.expect("a mount");
    assert_eq!(room["type"], "tmpfs");
    assert_eq!(
        room["options"],
        json!([
            "nosuid",
            "nodev",
            "mode=2777",
            "size=67108864",
            "gid=9",
            "rw"
        ])
    );
    assert_eq!(of("/etc/hosts"), (json!("/pods/one/hosts"), json!("ro")));
}

#[test]
fn what_the_pod_allows_is_not_taken_away() {
    let pod = placed(|spec| {
        let container = &mut spec["containers"][0];
        container["securityContext"]["readOnlyRootFilesystem"] = json!(false);
        container["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        container["workingDir"] = json!("/tmp");
    });
    let config = config_of(&pod).expect("a configuration");
    assert_eq!(config["root"]["readonly"], false);
    assert_eq!(config["process"]["noNewPrivileges"], false);
    assert_eq!(config["process"]["cwd"], "/tmp");
}

#[test]
fn what_cannot_be_had_is_refused() {
    let refused = |change: fn(&mut Value), expected: &str| {
        let pod = placed(|spec| change(&mut spec["containers"][0]));
        let error = config_of(&pod).expect_err(expected);
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    };
    refused(
        |one| one["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] = json!("spec.nodeName"),
        "spec.nodeName",
    );
    refused(
        |one| one["env"][4]["valueFrom"]["resourceFieldRef"]["resource"] = json!("limits.cpu"),
        "limits.cpu",
    );
    refused(
        |one| one["env"][2]["valueFrom"]["secretKeyRef"]["key"] = json!("other"),
        "medfleet-nats",
    );
    refused(
        |one| one["env"][3]["valueFrom"] = one["env"][0]["valueFrom"].clone(),
        "ADDRESS",
    );
    refused(
        |one| one["volumeMounts"][0]["name"] = json!("other"),
        "other",
    );
    refused(
        |one| one["resources"]["limits"]["memory"] = json!("1G"),
        "1G",
    );
}
