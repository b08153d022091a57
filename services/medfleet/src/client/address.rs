//! Which fleet is meant: flags first, then the environment, then the fleet that `medfleet up` runs in the data folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::exit::Fault;

/// The flags that choose a fleet.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    /// The fleet: http://HOST:PORT or https://HOST:PORT [default: the fleet that `medfleet up` runs here]
    #[arg(
        long,
        value_name = "URL",
        env = "MEDFLEET_SERVER",
        hide_env_values = true
    )]
    server: Option<String>,
    /// The bearer token that names the tenant [default: the one `medfleet up` made]
    #[arg(
        long,
        value_name = "TOKEN",
        env = "MEDFLEET_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    #[command(flatten)]
    tls: TlsFiles,
    /// Data folder of the local fleet
    #[arg(long, value_name = "DIR", default_value = crate::cli::DATA)]
    data: PathBuf,
}

/// The PEM files of a connection with TLS.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    /// Certificate authorities to trust, a PEM file; https needs it, http takes none
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate to show to a fleet that demands one (ingest.tls.client_ca), a PEM file; for https
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The key of that certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
}

/// A fleet and the right to talk to it.
#[derive(Clone)]
pub(crate) struct Fleet {
    /// `http://…` or `https://…`.
    pub(crate) server: String,
    pub(crate) token: String,
    /// What it is trusted by, and what it is shown.
    pub(crate) tls: TlsFiles,
}

impl Fleet {
    /// One without any file of certificates.
    pub(crate) fn plain(server: impl Into<String>, token: &str) -> Self {
        Self {
            server: server.into(),
            token: token.to_owned(),
            tls: TlsFiles::default(),
        }
    }
}

/// What `medfleet up` writes when every role is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressFile {
    /// Where clients connect, as a URL.
    pub(crate) server: String,
    /// The file with the tenant's bearer token.
    pub(crate) token_file: PathBuf,
}

impl AddressFile {
    /// Its name inside a data folder.
    pub(crate) const NAME: &'static str = "address.json";

    /// Reads it; `None` if it is not there.
    pub(crate) fn read(data: &Path) -> Result<Option<Self>> {
        let path = data.join(Self::NAME);
        match fs::read(&path) {
            Ok(bytes) => {
                let file = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is not an address file", path.display()))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

impl ServerArgs {
    /// The fleet that is meant.
    ///
    /// # Errors
    /// No fleet is known (exit code 3), or no token for it (2).
    pub(crate) fn resolve(&self) -> Result<Fleet, Fault> {
        let given = self.given().map(server_url);
        if let (Some(server), Some(token)) = (&given, self.given_token()) {
            // The data folder is not read then: it may be somebody else's.
            return Ok(self.fleet(server.clone(), token.to_owned()));
        }
        let local = AddressFile::read(&self.data).map_err(Fault::usage)?;
        let server = match (&given, &local) {
            (Some(server), _) => server.clone(),
            (None, Some(local)) => local.server.clone(),
            (None, None) => {
                return Err(Fault::unreachable(anyhow!(
                    "no fleet is known: neither --server nor MEDFLEET_SERVER is given, and {} is not there; \
                     start a fleet with `medfleet up`, or name one with --server URL",
                    self.data.join(AddressFile::NAME).display()
                )));
            }
        };
        let token = self
            .token_for(&server, local.as_ref())
            .map_err(Fault::usage)?;
        Ok(self.fleet(server, token))
    }

    fn fleet(&self, server: String, token: String) -> Fleet {
        Fleet {
            server,
            token,
            tls: self.tls.clone(),
        }
    }

    /// Whether a fleet is named, by a flag or by the environment.
    pub(crate) fn is_given(&self) -> bool {
        self.given().is_some()
    }

    /// The server as it was given; an empty one is none.
    fn given(&self) -> Option<&str> {
        self.server.as_deref().filter(|server| !server.is_empty())
    }

    /// The token as it was given; an empty one is none.
    fn given_token(&self) -> Option<&str> {
        let token = self.token.as_deref().map(str::trim);
        token.filter(|token| !token.is_empty())
    }

    /// The data folder of the local fleet.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The token given, else the local fleet's; that one is never sent to another server.
    fn token_for(&self, server: &str, local: Option<&AddressFile>) -> Result<String> {
        if let Some(token) = self.given_token() {
            return Ok(token.to_owned());
        }
        let Some(local) = local.filter(|local| local.server == server) else {
            return Err(anyhow!(
                "no token for {server}: give one with MEDFLEET_TOKEN or --token TOKEN"
            ));
        };
        let token = fs::read_to_string(&local.token_file).with_context(|| {
            format!(
                "cannot read the token of {server} from {}",
                local.token_file.display()
            )
        })?;
        Ok(token.trim().to_owned())
    }
}

/// A server as a URL: `HOST:PORT` alone means plain text on this machine and TLS elsewhere.
fn server_url(server: &str) -> String {
    let server = server.trim_end_matches('/');
    if server.contains("://") {
        return server.to_owned();
    }
    let host = server.rsplit_once(':').map_or(server, |(host, _port)| host);
    let scheme = if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
        "http"
    } else {
        "https"
    };
    format!("{scheme}://{server}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    /// What flags give, and the fleet that the data folder names.
    struct Given<'a> {
        server: Option<&'a str>,
        token: Option<&'a str>,
        local: Option<&'a str>,
    }

    /// The one that runs here.
    const HERE: Given<'_> = Given {
        server: None,
        token: None,
        local: Some("http://127.0.0.1:7443"),
    };

    fn check(given: &Given<'_>, expected: Result<(&str, &str), (Exit, &str)>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().to_path_buf();
        if let Some(server) = given.local {
            let token_file = data.join("token");
            fs::write(&token_file, "local-token\n").expect("a token file");
            let file = AddressFile {
                server: server.to_owned(),
                token_file,
            };
            let json = serde_json::to_vec(&file).expect("an address file");
            fs::write(data.join(AddressFile::NAME), json).expect("an address file");
        }
        let args = ServerArgs {
            server: given.server.map(str::to_owned),
            token: given.token.map(str::to_owned),
            tls: TlsFiles::default(),
            data,
        };
        match (args.resolve(), expected) {
            (Ok(fleet), Ok((server, token))) => assert_eq!(
                (fleet.server.as_str(), fleet.token.as_str()),
                (server, token)
            ),
            (Err(fault), Err((exit, part))) => {
                assert_eq!(fault.exit, exit);
                assert!(fault.to_string().contains(part), "{fault}");
            }
            (Ok(fleet), Err(_)) => panic!("resolved to {}", fleet.server),
            (Err(fault), Ok(_)) => panic!("{fault}"),
        }
    }

    #[test]
    fn the_local_fleet_needs_no_flags() {
        check(&HERE, Ok(("http://127.0.0.1:7443", "local-token")));
        let token = Some("mine");
        check(
            &Given { token, ..HERE },
            Ok(("http://127.0.0.1:7443", "mine")),
        );
    }

    #[test]
    fn the_local_token_stays_local() {
        let check = |server, expected| {
            let server = Some(server);
            check(&Given { server, ..HERE }, expected);
        };
        check(
            "127.0.0.1:7443",
            Ok(("http://127.0.0.1:7443", "local-token")),
        );
        check(
            "https://fleet.example:443",
            Err((Exit::Usage, "no token for https://fleet.example:443")),
        );
    }

    #[test]
    fn without_a_fleet_it_says_what_to_do() {
        let none = Given {
            local: None,
            ..HERE
        };
        check(&none, Err((Exit::Unreachable, "medfleet up")));
    }

    /// The folder of another user of a shared machine.
    #[test]
    fn who_names_a_fleet_and_a_token_needs_no_data_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().to_path_buf();
        // No file can be read at its place.
        fs::create_dir(data.join(AddressFile::NAME)).expect("a folder");
        let args = |token: Option<&str>| ServerArgs {
            server: Some("http://127.0.0.1:7443".to_owned()),
            token: token.map(str::to_owned),
            tls: TlsFiles::default(),
            data: data.clone(),
        };
        let fleet = args(Some("mine")).resolve().expect("all is said");
        assert_eq!(fleet.token, "mine");
        assert!(args(None).resolve().is_err());
    }

    #[test]
    fn bare_hosts_get_a_scheme() {
        assert_eq!(server_url("localhost:1"), "http://localhost:1");
        assert_eq!(server_url("[::1]:1"), "http://[::1]:1");
        assert_eq!(server_url("fleet.example:443"), "https://fleet.example:443");
        assert_eq!(
            server_url("http://fleet.example:80/"),
            "http://fleet.example:80"
        );
    }
}
