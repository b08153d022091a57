//! Reading rendered objects: kinds, names, pods and their containers.

use serde_json::Value;

/// The pod of a workload, or a pod itself.
#[derive(Clone, Copy)]
pub(crate) struct Pod<'a> {
    pub(crate) owner: &'a Value,
    pub(crate) labels: &'a Value,
    pub(crate) spec: &'a Value,
}

/// `Kind/name`, for messages.
pub(crate) fn label(object: &Value) -> String {
    format!("{}/{}", text(&object["kind"]), name(object))
}

pub(crate) fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list; nothing where there is none.
pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// Every pod that the objects describe.
pub(crate) fn pods(objects: &[Value]) -> Vec<Pod<'_>> {
    let pod = |owner: &'_ Value| match text(&owner["kind"]) {
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => Some("/spec/template"),
        "Pod" => Some(""),
        _ => None,
    };
    let found = objects.iter().filter_map(|owner| {
        let template = owner.pointer(pod(owner)?)?;
        Some(Pod {
            owner,
            labels: &template["metadata"]["labels"],
            spec: &template["spec"],
        })
    });
    found.collect()
}

impl<'a> Pod<'a> {
    pub(crate) fn containers(self) -> impl Iterator<Item = &'a Value> {
        list(&self.spec["containers"]).chain(list(&self.spec["initContainers"]))
    }

    /// Whether the container runs, and ends, before the others start.
    pub(crate) fn is_first(self, container: &Value) -> bool {
        list(&self.spec["initContainers"]).any(|first| first == container)
    }

    /// What it is: ingest, preprocess, encode, decode, nats or test.
    pub(crate) fn component(self) -> &'a str {
        text(&self.labels["app.kubernetes.io/component"])
    }

    /// Whether it keeps running.
    pub(crate) fn is_lasting(self) -> bool {
        self.owner["kind"] != "Pod"
    }

    /// Whether the labels that a selector demands are among the pod's; an empty selector takes every pod.
    pub(crate) fn is_selected(self, selector: &Value) -> bool {
        let demanded = selector["matchLabels"].as_object();
        demanded
            .into_iter()
            .flatten()
            .all(|(key, value)| self.labels[key] == *value)
    }
}
