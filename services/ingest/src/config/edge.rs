//! What makes an ingest a hospital's edge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use medfleet_core::TenantId;
use medfleet_core::setting::DurationText;
use medfleet_runtime::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

/// The hub, and how jobs are handed on to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// The hub's public API, such as `https://medfleet.example.org:8443`. `http://` only on this very machine.
    pub hub: String,
    /// Authorities that the hub's certificate must come from, PEM. Needed with `https://`.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The name that the hub's certificate must have, where it is not the one in `hub`.
    #[serde(default)]
    pub server_name: Option<String>,
    /// The certificate that is shown to a hub that demands one (`ingest.tls.client_ca` there), PEM; with `client_key`.
    #[serde(default)]
    pub client_cert: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// The file of the tokens that the hub knows the tenants by: a TOML table `tokens`, tenant to token.
    pub tokens_file: PathBuf,
    /// Jobs of one tenant that may be at the hub unfinished; the others wait here. Where images stay, also the jobs of one
    /// tenant that may wait for the hub encoded: with so many no more are let in to the stages of this site. STAT jobs go
    /// beyond both.
    #[serde(default = "in_flight_max_default")]
    #[schemars(range(min = 1))]
    pub in_flight_max: u32,
    /// Files of one job that are sent at a time.
    #[serde(default = "uploads_max_default")]
    #[schemars(range(min = 1, max = 64))]
    pub uploads_max: usize,
    /// The first pause after the hub did not take something, where the hub does not say how long.
    #[serde(default = "pause_least_default")]
    pub pause_least: DurationText,
    /// The longest one.
    #[serde(default = "pause_most_default")]
    pub pause_most: DurationText,
    /// How long the hub may take to answer a call, or to take a piece of a file, besides the time that what is on the line takes
    /// at 256 kbit/s: the bytes of a call, and of files the 4 MiB that the buffers of a connection hold.
    #[serde(default = "answer_max_default")]
    pub answer_max: DurationText,
    /// How often the hub is asked whether it is there and knows the tokens; the tokens file is read again as often.
    #[serde(default = "probe_every_default")]
    pub probe_every: DurationText,
    /// What of a tenant's jobs goes to the hub, where `tenants` does not say it. With `tokens`, workers of preprocess and encode
    /// must be at this site, in every pool of `ingest.models`, with the hub's vision weights.
    #[serde(default)]
    pub travels: Travels,
    /// What is otherwise for single tenants.
    #[serde(default)]
    #[schemars(with = "BTreeMap<TenantId, EdgeTenant>")]
    pub tenants: BTreeMap<String, EdgeTenant>,
}

/// What of a job goes to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Travels {
    /// Its files, as they were sent.
    #[default]
    Files,
    /// The image tokens that are made of them here, and never a pixel.
    Tokens,
}

/// What is otherwise for one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeTenant {
    /// What of its jobs goes to the hub.
    pub travels: Travels,
}

const fn in_flight_max_default() -> u32 {
    256
}

const fn uploads_max_default() -> usize {
    4
}

const fn pause_least_default() -> DurationText {
    DurationText::from_secs(1)
}

const fn pause_most_default() -> DurationText {
    DurationText::from_secs(60)
}

const fn answer_max_default() -> DurationText {
    DurationText::from_secs(30)
}

const fn probe_every_default() -> DurationText {
    DurationText::from_secs(10)
}

impl EdgeConfig {
    /// What of a tenant's jobs goes to the hub.
    pub(crate) fn travels(&self, tenant: &TenantId) -> Travels {
        let own = self.tenants.get(tenant.as_str());
        own.map_or(self.travels, |own| own.travels)
    }

    /// The tenants that have a rule and are none of these: names that may be misspelt, with the rule of nobody.
    pub(crate) fn rules_without(&self, known: &[TenantId]) -> Vec<&str> {
        let named = self.tenants.keys().map(String::as_str);
        let is_known = |name: &str| known.iter().any(|tenant| tenant.as_str() == name);
        named.filter(|name| !is_known(name)).collect()
    }

    /// Whether stages of this site have something to do by the rules.
    pub(crate) fn encodes(&self) -> bool {
        let mut rules = self.tenants.values().map(|own| own.travels);
        self.travels == Travels::Tokens || rules.any(|travels| travels == Travels::Tokens)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for tenant in self.tenants.keys() {
            TenantId::new(tenant.as_str()).map_err(|error| {
                ConfigError::relation(format!("ingest.edge.tenants.{tenant}: {error}"))
            })?;
        }
        let is_encrypted = self.hub.starts_with("https://");
        let relations = [
            (
                is_encrypted || is_this_machine(&self.hub),
                "ingest.edge.hub must be an https:// URL, or an http:// one of this very machine: images or what is made of them travel there",
            ),
            (
                !is_encrypted || self.ca_file.is_some(),
                "ingest.edge.ca_file is needed with an https:// hub: no other authority is trusted",
            ),
            (
                self.client_cert.is_some() == self.client_key.is_some()
                    && (is_encrypted || self.client_cert.is_none()),
                "ingest.edge.client_cert and client_key are needed together, and with an https:// hub",
            ),
            (
                !self.pause_least.get().is_zero() && self.pause_least <= self.pause_most,
                "ingest.edge.pause_least must be above zero and at most ingest.edge.pause_most",
            ),
            (
                !self.answer_max.get().is_zero() && !self.probe_every.get().is_zero(),
                "ingest.edge.answer_max and probe_every must be above zero",
            ),
        ];
        super::all_hold(&relations)
    }
}

/// Whether a plain URL names this machine, so that nothing leaves it.
fn is_this_machine(url: &str) -> bool {
    // As the connection reads it, so that both mean the same host.
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    uri.scheme_str() == Some("http") && is_here
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(hub: &str, ca: Option<&str>) -> EdgeConfig {
        EdgeConfig {
            hub: hub.to_owned(),
            ca_file: ca.map(PathBuf::from),
            server_name: None,
            client_cert: None,
            client_key: None,
            tokens_file: PathBuf::from("tokens.toml"),
            in_flight_max: in_flight_max_default(),
            uploads_max: uploads_max_default(),
            pause_least: pause_least_default(),
            pause_most: pause_most_default(),
            answer_max: answer_max_default(),
            probe_every: probe_every_default(),
            travels: Travels::Files,
            tenants: BTreeMap::new(),
        }
    }

    fn check(hub: &str, ca: Option<&str>, wrong: Option<&str>) {
        let config = config(hub, ca);
        let found = config.check().err().map(|error| error.to_string());
        match wrong {
            None => assert_eq!(found, None, "{hub}"),
            Some(wrong) => assert!(found.is_some_and(|found| found.contains(wrong)), "{hub}"),
        }
    }

    #[test]
    fn a_tenant_without_a_rule_has_the_general_one() {
        let [mary, john] = ["st-mary", "st-john"].map(|name| TenantId::new(name).expect("a name"));
        let mut config = config("http://127.0.0.1:1", None);
        assert!(!config.encodes());
        let own = |travels| EdgeTenant { travels };
        config
            .tenants
            .insert(mary.to_string(), own(Travels::Tokens));
        assert_eq!(config.travels(&mary), Travels::Tokens);
        assert_eq!(config.travels(&john), Travels::Files);
        assert!(config.encodes());
        config.travels = Travels::Tokens;
        config.tenants.insert(mary.to_string(), own(Travels::Files));
        assert_eq!(config.travels(&mary), Travels::Files);
        assert_eq!(config.travels(&john), Travels::Tokens);
        assert!(config.encodes());
        config.check().expect("names of tenants");
        assert_eq!(config.rules_without(&[john]), ["st-mary"]);
        assert!(config.rules_without(&[mary]).is_empty());
        config
            .tenants
            .insert("St. Mary".to_owned(), own(Travels::Files));
        let refused = config.check().expect_err("no name of a tenant");
        assert!(refused.to_string().contains("ingest.edge.tenants"));
    }

    #[test]
    fn images_travel_encrypted() {
        check("https://hub.example.org", Some("ca.pem"), None);
        check("https://hub.example.org", None, Some("ca_file"));
        check("http://127.3.4.5:8443", None, None);
        check("http://localhost:8443", None, None);
        check("http://[::1]:8443/", None, None);
        check(
            "http://hub.example.org:8443",
            Some("ca.pem"),
            Some("https://"),
        );
        check("http://localhost.example.org", None, Some("https://"));
        check(
            "http://localhost:8443@hub.example.org",
            None,
            Some("https://"),
        );
        check("http://10.0.0.1:8443", None, Some("https://"));
        check("hub.example.org", Some("ca.pem"), Some("https://"));
    }

    #[test]
    fn a_certificate_is_shown_with_its_key_and_encrypted() {
        let check = |hub: &str, shown: [Option<&str>; 2], expected: bool| {
            let [cert, key] = shown.map(|name| name.map(PathBuf::from));
            let config = EdgeConfig {
                client_cert: cert,
                client_key: key,
                ..config(hub, Some("ca.pem"))
            };
            assert_eq!(config.check().is_ok(), expected, "{hub} {shown:?}");
        };
        let hub = "https://hub.example.org";
        check(hub, [Some("site.pem"), Some("site.key")], true);
        check(hub, [Some("site.pem"), None], false);
        check(hub, [None, Some("site.key")], false);
        check(
            "http://127.0.0.1:8443",
            [Some("site.pem"), Some("site.key")],
            false,
        );
    }
}
