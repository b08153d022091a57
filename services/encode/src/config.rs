//! What an operator decides about encode, with every limit named.

use std::net::SocketAddr;
use std::path::PathBuf;

use medfleet_core::PoolName;
use medfleet_core::setting::ByteSize;
use medfleet_engine::ModelConfig;
use medfleet_queue::QueueConfig;
use medfleet_runtime::{ConfigError, ProcessConfig, Settings};
use medfleet_store::StoreConfig;
use medfleet_worker::WorkerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration of the `medfleet-encode` binary.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MainConfig {
    /// Admin port, drain time, telemetry.
    #[serde(default)]
    pub process: ProcessConfig,
    /// The queue.
    #[serde(default)]
    pub queue: QueueConfig,
    /// The blob store.
    pub store: StoreConfig,
    /// The model.
    pub model: ModelConfig,
    /// This service.
    pub encode: Config,
}

/// The configuration of encode itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The pool whose units it takes.
    pub pool: PoolName,
    /// Slots and retries.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Where the token service answers, for decode workers only. Port 0 takes a free one.
    #[serde(default = "listen_default")]
    pub listen: SocketAddr,
    /// The URL under which decode workers reach it; by default that of `listen`, and none when that is every address.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Certificate of the token service, which decode then verifies by `decode.fetch_tls`; plain HTTP/2 without.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Tokens kept in memory, for decode workers and for frames that come again, in bytes.
    #[serde(default = "cache_bytes_max_default")]
    pub cache_bytes_max: ByteSize,
    /// Has no effect: every encoder leaves a hospital's edge a note of which tokens it made, to hand them on. Those of before
    /// 2026-11-28 do so only with it, so that one configuration may still serve both.
    #[serde(default)]
    pub for_edge: bool,
}

/// PEM files of the token service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

fn listen_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const fn cache_bytes_max_default() -> ByteSize {
    ByteSize::from_mib(256)
}

impl Config {
    /// For a pool; everything else as by default.
    pub fn new(pool: &PoolName) -> Self {
        Self {
            pool: pool.clone(),
            worker: WorkerConfig::default(),
            listen: listen_default(),
            advertise: None,
            tls: None,
            cache_bytes_max: cache_bytes_max_default(),
            for_edge: false,
        }
    }

    /// Checks each field's form.
    pub fn check(&self) -> Result<(), ConfigError> {
        let scheme = self.scheme();
        match &self.advertise {
            Some(url) if !url.starts_with(scheme) => Err(ConfigError::relation(format!(
                "encode.advertise must begin with {scheme} where encode.tls is {}",
                if self.tls.is_some() { "set" } else { "not set" }
            ))),
            Some(_) | None => Ok(()),
        }
    }

    const fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https://",
            None => "http://",
        }
    }

    /// The URL that goes into manifests; empty when there is none.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(url) => url.clone(),
            None if bound.ip().is_unspecified() => String::new(),
            None => format!("{}{bound}", self.scheme()),
        }
    }
}

impl Settings for MainConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn check(&self) -> Result<(), ConfigError> {
        let worker = &self.encode.worker;
        worker.check("encode", &self.process, &self.queue, &self.store)?;
        self.model
            .check()
            .map_err(|error| ConfigError::relation(error.to_string()))?;
        self.encode.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_has_tls_where_the_service_has() {
        let bound = SocketAddr::from(([127, 0, 0, 1], 7444));
        let mut config = Config::new(&PoolName::new("m").expect("a pool"));
        let check = |config: &Config, url: Option<&str>, expected: Result<&str, &str>| {
            let advertise = url.map(str::to_owned);
            let config = Config {
                advertise,
                ..config.clone()
            };
            let found = config.check().map(|()| config.advertised(bound));
            let found = found.map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), expected);
        };
        let plain = "encode.advertise must begin with http:// where encode.tls is not set";
        check(&config, None, Ok("http://127.0.0.1:7444"));
        check(&config, Some("http://e:1"), Ok("http://e:1"));
        check(&config, Some("https://e:1"), Err(plain));
        check(&config, Some("e:1"), Err(plain));
        config.tls = Some(TlsConfig {
            cert: "tls.crt".into(),
            key: "tls.key".into(),
        });
        let secure = "encode.advertise must begin with https:// where encode.tls is set";
        check(&config, None, Ok("https://127.0.0.1:7444"));
        check(&config, Some("https://e:1"), Ok("https://e:1"));
        check(&config, Some("http://e:1"), Err(secure));
    }
}
