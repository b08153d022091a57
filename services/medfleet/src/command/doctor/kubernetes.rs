//! What a cluster's API says of KEDA, by which encode and decode follow their backlog where the chart is told so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Certificate, Client, ClientBuilder, StatusCode};
use serde_json::Value;

use super::Finding;

const CHECK: &str = "keda";
/// Where a pod finds the account that it runs as.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The API, as pods of every cluster know it.
const INSIDE: &str = "https://kubernetes.default.svc";
/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What the chart makes objects of.
const DEFINITION: &str =
    "apis/apiextensions.k8s.io/v1/customresourcedefinitions/scaledobjects.keda.sh";
/// KEDA's own program, in whichever namespace.
const OPERATORS: &str =
    "apis/apps/v1/deployments?labelSelector=app.kubernetes.io%2Fname%3Dkeda-operator";
/// In the chart's objects, and in no definition before KEDA 2.17: a server leaves out what it does not know.
const NEEDED: &str =
    "/schema/openAPIV3Schema/properties/spec/properties/fallback/properties/behavior";
const NEWER: &str = "install KEDA 2.17 or newer, with its definitions";

/// A cluster's API and the right to ask it.
struct Api {
    client: Client,
    base: String,
    token: Option<String>,
}

/// Whether KEDA is there, new enough and at work; asked at this address, or in the cluster that we run in.
pub(super) async fn look(address: Option<&str>) -> Finding {
    let api = match address {
        Some(address) => Some(Api::at(address)),
        None => Api::of_account(Path::new(ACCOUNT)),
    };
    match api {
        None => Finding::ok(
            CHECK,
            "no account of a cluster is here; from outside: `kubectl proxy`, and --kubernetes http://127.0.0.1:8001",
        ),
        Some(Ok(api)) => of(api.get(DEFINITION).await, api.get(OPERATORS).await),
        Some(Err(error)) => of(Err(error), Ok(None)),
    }
}

impl Api {
    /// One that asks for no token, such as that of `kubectl proxy`.
    fn at(address: &str) -> Result<Self> {
        let client = client();
        let client = match address.starts_with("http://") {
            // No certificate is looked at, so that none has to be here.
            true => client.tls_certs_only(std::iter::empty::<Certificate>()),
            false => client,
        };
        Ok(Self {
            client: client.build()?,
            base: address.trim_end_matches('/').to_owned(),
            token: None,
        })
    }

    /// With what Kubernetes mounts into a pod; `None` where that is not there.
    fn of_account(folder: &Path) -> Option<Result<Self>> {
        let token = folder.join("token");
        token.is_file().then(|| {
            let read = |name: &str| {
                let path = folder.join(name);
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
            };
            let authorities = Certificate::from_pem_bundle(&read("ca.crt")?)
                .context("the account's ca.crt holds no certificates")?;
            let token = String::from_utf8(read("token")?).context("the account's token")?;
            Ok(Self {
                client: client().tls_certs_only(authorities).build()?,
                base: INSIDE.to_owned(),
                token: Some(token.trim().to_owned()),
            })
        })
    }

    /// The object or list; `None` where there is none.
    async fn get(&self, path: &str) -> Result<Option<Value>> {
        let mut request = self.client.get(format!("{}/{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await?;
        match answer.status() {
            StatusCode::OK => {
                let text = answer.bytes().await?;
                let found = serde_json::from_slice(&text).context("the answer is not JSON")?;
                Ok(Some(found))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => bail!("the Kubernetes API answers {status}"),
        }
    }
}

/// Calls the API directly, never by a proxy that the environment names.
fn client() -> ClientBuilder {
    // The client takes its TLS from the process. Being the second to name it is fine: it is ring everywhere here.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder().no_proxy().timeout(ANSWER_MAX)
}

/// From the definition of a ScaledObject and the list of operators.
fn of(definition: Result<Option<Value>>, operators: Result<Option<Value>>) -> Finding {
    let definition = match definition {
        Ok(Some(definition)) => definition,
        Ok(None) => {
            let found = "not installed: encode and decode keep their replicas, or follow autoscaling.workers external";
            return Finding::ok(CHECK, found);
        }
        Err(error) => {
            return Finding::warn(
                CHECK,
                format!("not known: {error:#}"),
                "ask as somebody who may get customresourcedefinitions and list deployments: `kubectl proxy`, and --kubernetes http://127.0.0.1:8001",
            );
        }
    };
    let operators = operators.map(|list| list.unwrap_or_default());
    let operator = operators.as_ref().map(|list| list["items"].get(0));
    let version = match &operator {
        Ok(Some(operator)) => version(operator).or_else(|| version(&definition)),
        _ => version(&definition),
    };
    let version = version.unwrap_or("of a version that it does not tell");
    let mut served = definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten();
    let Some(served) = served.find(|one| one["name"] == "v1alpha1" && one["served"] == true) else {
        let found = format!("{version}, which does not serve keda.sh/v1alpha1");
        return Finding::fail(CHECK, found, NEWER);
    };
    if served.pointer(NEEDED).is_none() {
        let found = format!("{version}, which does not know fallback.behavior of a ScaledObject");
        return Finding::fail(CHECK, found, NEWER);
    }
    let Ok(operator) = operator else {
        return Finding::ok(
            CHECK,
            format!("{version}; whether its operator runs may not be read"),
        );
    };
    match operator {
        Some(operator) if operator["status"]["availableReplicas"].as_u64() > Some(0) => {
            Finding::ok(CHECK, format!("{version}, {} runs", place(operator)))
        }
        Some(operator) => Finding::fail(
            CHECK,
            format!("{version}, {} is not available", place(operator)),
            "no pool follows its backlog until it is: `kubectl describe` that deployment, and its pods' logs",
        ),
        None => Finding::fail(
            CHECK,
            format!("{version}: its definitions are there, its operator is not"),
            "no pool follows its backlog: install KEDA again, or set autoscaling.workers none",
        ),
    }
}

/// The version that the makers write on all that they install.
fn version(object: &Value) -> Option<&str> {
    object["metadata"]["labels"]["app.kubernetes.io/version"].as_str()
}

/// Namespace and name.
fn place(object: &Value) -> String {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", part("namespace"), part("name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;
    use serde_json::json;

    fn definition(version: &str, fallback: &[&str]) -> Value {
        let fields: serde_json::Map<String, Value> = fallback
            .iter()
            .map(|name| ((*name).to_owned(), json!({})))
            .collect();
        let spec = json!({"properties": {"fallback": {"properties": fields}}});
        json!({
            "metadata": {"labels": {"app.kubernetes.io/version": "2.20.2"}},
            "spec": {"versions": [{"name": version, "served": true,
                                   "schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}}]},
        })
    }

    fn operator(available: Value) -> Value {
        json!({"items": [{"metadata": {"namespace": "keda", "name": "keda-operator"},
                          "status": {"availableReplicas": available}}]})
    }

    #[test]
    fn keda_is_there_new_enough_and_at_work_or_it_is_told() {
        let check = |definition, operators, expected, part: &str| {
            let finding = of(definition, operators);
            assert_eq!(finding.verdict, expected, "{finding}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Ok);
            assert!(finding.to_string().contains(part), "{finding}");
        };
        let new = || definition("v1alpha1", &["replicas", "behavior"]);
        let here = |value| Ok(Some(value));
        let denied = || Err(anyhow::anyhow!("the Kubernetes API answers 403 Forbidden"));
        let runs = || here(operator(json!(1)));
        check(Ok(None), Ok(None), Verdict::Ok, "not installed");
        check(denied(), runs(), Verdict::Warn, "403 Forbidden");
        check(
            here(new()),
            runs(),
            Verdict::Ok,
            "2.20.2, keda/keda-operator runs",
        );
        check(here(new()), denied(), Verdict::Ok, "may not be read");
        check(
            here(new()),
            here(operator(Value::Null)),
            Verdict::Fail,
            "not available",
        );
        check(
            here(new()),
            here(json!({"items": []})),
            Verdict::Fail,
            "its operator is not",
        );
        let old = definition("v1alpha1", &["replicas"]);
        check(here(old), runs(), Verdict::Fail, "2.17 or newer");
        let other = definition("v2", &["behavior"]);
        check(here(other), runs(), Verdict::Fail, "does not serve");
    }

    #[test]
    fn the_account_of_a_pod_is_used_where_it_is_mounted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(Api::of_account(folder.path()).is_none());
        std::fs::write(folder.path().join("token"), "of the pod\n").expect("a file");
        let without = Api::of_account(folder.path()).expect("it is mounted");
        let error = without.err().expect("no authority").to_string();
        assert!(error.contains("ca.crt"), "{error}");
        let made = rcgen::generate_simple_self_signed(vec!["kubernetes".to_owned()]);
        let pem = made.expect("a certificate").cert.pem();
        std::fs::write(folder.path().join("ca.crt"), pem).expect("a file");
        let api = Api::of_account(folder.path()).expect("it is mounted");
        assert_eq!(api.expect("is read").token.as_deref(), Some("of the pod"));
    }

    #[tokio::test]
    async fn a_cluster_that_does_not_answer_is_told() {
        // Kept and never listened at: nobody else's server gets the port meanwhile.
        let kept = tokio::net::TcpSocket::new_v4().expect("a socket");
        let any = "127.0.0.1:0".parse().expect("an address");
        kept.bind(any).expect("binds");
        let nobody = format!("http://{}", kept.local_addr().expect("has an address"));
        assert_eq!(look(Some(&nobody)).await.verdict, Verdict::Warn);
    }
}
