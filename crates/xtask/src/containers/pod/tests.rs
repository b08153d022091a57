//! What is read of a pod, and that nothing of it is passed over.

use serde_json::{Value, json};

use super::{Spec, bytes, claims, names};
use crate::chart::objects::pods;

/// A set of one pod that has every field which is translated.
pub(crate) fn set() -> Value {
    let least = json!({
        "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
        "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
    });
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": "admin"}, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2});
    let container = json!({
        "name": "one", "image": "medfleet/one:1", "imagePullPolicy": "IfNotPresent", "args": ["--name", "$(POD_NAME)"],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "medfleet-nats", "key": "token"}}},
            {"name": "ADDRESS", "value": "http://$(POD_IP):80/$(OTHER)"},
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        ],
        "ports": [{"name": "admin", "containerPort": 9464}],
        "startupProbe": probe("/a"), "readinessProbe": probe("/b"), "livenessProbe": probe("/c"),
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "1"}},
        "securityContext": least,
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/one", "readOnly": true},
            {"name": "data", "mountPath": "/data"},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    });
    let spec = json!({
        "serviceAccountName": "x", "automountServiceAccountToken": false, "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 45, "affinity": {"podAntiAffinity": {}},
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 7, "runAsGroup": 8, "fsGroup": 9, "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": "one"}},
            {"name": "key", "secret": {"secretName": "s", "defaultMode": 288, "items": [{"key": "k", "path": "k"}]}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    });
    let labels = json!({"app.kubernetes.io/component": "one"});
    json!({
        "kind": "StatefulSet", "metadata": {"name": "one"},
        "spec": {
            "replicas": 1,
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
        },
    })
}

fn read(set: &Value) -> anyhow::Result<Spec> {
    let objects = [set.clone()];
    Spec::read(pods(&objects)[0])
}

#[test]
fn every_field_that_is_rendered_is_read() {
    let set = set();
    let spec = read(&set).expect("a pod");
    assert_eq!(spec.container().port("admin").expect("a port"), 9464);
    spec.container().port("other").expect_err("no such port");
    assert_eq!(spec.termination_grace_period_seconds, 45);
    let objects = [set];
    assert_eq!(claims(pods(&objects)[0]), ["data"]);
}

/// A field of the set that gets this value is refused, and the error names it.
fn check_refused(place: &str, field: &str, value: Value, named: &str) {
    let mut set = set();
    let object = set.pointer_mut(place).expect("a place of the pod");
    object[field] = value;
    let error = read(&set).expect_err(field);
    let error = format!("{error:#}");
    assert!(error.contains(named), "{place} {field}: {error}");
}

/// The same below the pod's specification.
fn check_of_pod(place: &str, field: &str, value: Value, named: &str) {
    check_refused(&format!("/spec/template/spec{place}"), field, value, named);
}

/// The same below the container.
fn check_of_container(place: &str, field: &str, value: Value, named: &str) {
    check_of_pod(&format!("/containers/0{place}"), field, value, named);
}

#[test]
fn what_a_pod_says_and_is_not_translated_is_refused() {
    check_refused("/spec", "replicas", json!(2), "2 replicas");
    let off = "expected false";
    check_of_pod("", "automountServiceAccountToken", json!(true), off);
    check_of_pod("", "enableServiceLinks", Value::Null, "null");
    check_of_pod("", "containers", json!([]), "length 1");
    let volume = "/volumes/0";
    for (place, field) in [
        ("", "hostNetwork"),
        ("", "initContainers"),
        (volume, "projected"),
        ("/volumes/0/configMap", "items"),
        ("/volumes/2/emptyDir", "medium"),
        ("/securityContext", "sysctls"),
    ] {
        check_of_pod(place, field, json!([]), field);
    }
    let who = "/securityContext";
    check_of_pod(who, "runAsUser", json!(0), "user 0");
    let filter = "/securityContext/seccompProfile";
    check_of_pod(filter, "type", json!("Unconfined"), "Unconfined");
}

#[test]
fn what_a_container_says_and_is_not_translated_is_refused() {
    for (place, field) in [
        ("", "command"),
        ("", "envFrom"),
        ("", "terminationMessagePath"),
        ("/volumeMounts/0", "subPath"),
        ("/resources/limits", "cpu"),
        ("/startupProbe", "successThreshold"),
        ("/startupProbe", "exec"),
        ("/securityContext", "runAsUser"),
        ("/securityContext/capabilities", "add"),
    ] {
        check_of_container(place, field, json!([]), field);
    }
    let may = "/securityContext";
    check_of_container(may, "privileged", json!(true), "expected false");
    check_of_container(may, "runAsNonRoot", json!(false), "expected true");
    let dropped = "/securityContext/capabilities";
    check_of_container(dropped, "drop", json!(["NET_RAW"]), "NET_RAW");
    let two = "single key";
    check_of_container("/env/0/valueFrom", "configMapKeyRef", json!({}), two);
}

#[test]
fn a_name_leads_to_its_pod_by_the_same_port() {
    let service = |port: u16, component: &str| {
        json!({"kind": "Service", "metadata": {"name": "s"}, "spec": {
            "selector": {"app.kubernetes.io/component": component},
            "ports": [{"port": port, "targetPort": "admin"}],
        }})
    };
    let found = names(&[set(), service(9464, "one")]).expect("names");
    assert_eq!(found, [("s".to_owned(), "one".to_owned())]);
    names(&[set(), service(80, "one")]).expect_err("another port");
    names(&[set(), service(9464, "two")]).expect_err("no pod");
}

#[test]
fn quantities_are_bytes() {
    for (text, expected) in [
        ("64Ki", Some(65_536)),
        ("2Gi", Some(2 << 30)),
        ("1G", None),
        ("Mi", None),
    ] {
        assert_eq!(bytes(text).ok(), expected, "{text}");
    }
}
