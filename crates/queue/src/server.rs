//! The configuration of a single nats-server as medfleet starts one, for `medfleet up` and for tests.

use std::path::PathBuf;

use medfleet_core::setting::ByteSize;

/// Settings of a single server with JetStream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Address to listen on.
    pub host: String,
    /// Port; -1 for a free one, which the server then writes into `ports_dir`.
    pub port: i32,
    /// Folder of the streams.
    pub store: PathBuf,
    /// Folder for the `*.ports` file.
    pub ports_dir: Option<PathBuf>,
    /// Port of the monitoring pages, loopback only.
    pub monitor_port: Option<u16>,
    /// Largest message.
    pub payload_bytes_max: ByteSize,
    /// Most disk the streams may use.
    pub store_bytes_max: ByteSize,
    /// Token that clients must present.
    pub token: Option<medfleet_core::setting::Secret>,
    /// When a write is on disk.
    pub sync: Sync,
}

/// When nats-server syncs its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// Before each write is confirmed: nothing that was confirmed is lost in a power cut.
    #[default]
    Always,
    /// Every two minutes, as the server does by itself: for figures, and for replicas in several power domains.
    ServersOwn,
}

impl ServerSettings {
    /// A server on loopback with a store folder.
    pub fn local(store: PathBuf, port: i32) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port,
            store,
            ports_dir: None,
            monitor_port: None,
            payload_bytes_max: ByteSize::from_mib(1),
            store_bytes_max: ByteSize::from_mib(16 * 1024),
            token: None,
            sync: Sync::Always,
        }
    }
}

/// The text of its configuration file. Unless told otherwise, a write is on disk before it is confirmed
/// (`sync_interval: always`): the server's own default would lose up to two minutes of accepted jobs in a power cut.
pub fn server_config(settings: &ServerSettings) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let mut lines = vec![
        format!(
            "listen: {}",
            quote(&format!("{}:{}", settings.host, settings.port))
        ),
        format!("max_payload: {}", settings.payload_bytes_max.get()),
        "jetstream {".to_owned(),
        format!("  store_dir: {}", quote(&settings.store.to_string_lossy())),
        format!("  max_file_store: {}", settings.store_bytes_max.get()),
    ];
    if settings.sync == Sync::Always {
        lines.push("  sync_interval: always".to_owned());
    }
    lines.push("}".to_owned());
    if let Some(folder) = &settings.ports_dir {
        lines.push(format!(
            "ports_file_dir: {}",
            quote(&folder.to_string_lossy())
        ));
    }
    if let Some(port) = settings.monitor_port {
        lines.push(format!("http: {}", quote(&format!("127.0.0.1:{port}"))));
    }
    if let Some(token) = &settings.token {
        lines.push(format!(
            "authorization {{ token: {} }}",
            quote(token.expose())
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Whether a version as `nats-server --version` prints it (`nats-server: v2.14.0`) is new enough for medfleet.
pub fn is_new_enough(version_line: &str) -> bool {
    version_line
        .split_whitespace()
        .last()
        .is_some_and(|version| crate::connect::is_at_least(version, crate::OLDEST_SERVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_durable_and_bounded() {
        let settings = ServerSettings {
            monitor_port: Some(8222),
            token: Some(medfleet_core::setting::Secret::new("a\"b")),
            ..ServerSettings::local("/data/nats".into(), 4222)
        };
        let text = server_config(&settings);
        for line in [
            "listen: \"127.0.0.1:4222\"",
            "  sync_interval: always",
            "  max_file_store: 17179869184",
            "max_payload: 1048576",
            "http: \"127.0.0.1:8222\"",
            "authorization { token: \"a\\\"b\" }",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let relaxed = ServerSettings {
            sync: Sync::ServersOwn,
            ..settings
        };
        assert!(!server_config(&relaxed).contains("sync_interval"));
    }

    #[test]
    fn versions_are_read_as_printed() {
        assert!(is_new_enough("nats-server: v2.14.0"));
        assert!(!is_new_enough("nats-server: v2.9.10"));
        assert!(!is_new_enough(""));
    }
}
