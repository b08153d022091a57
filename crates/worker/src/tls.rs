//! The PEM files of TLS, read when a service starts: renewed ones are taken up by the next start.

use std::io;
use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, Identity};

/// How a certificate begins in a PEM file.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// A PEM file that a setting names.
#[derive(Debug, Clone, Copy)]
pub struct PemFile<'a> {
    setting: &'static str,
    path: &'a Path,
}

/// A PEM file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file does not exist, or this process may not read it.
    #[error("{setting}: {} cannot be read", path.display())]
    Unreadable {
        setting: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// There is something else in the file. As a list of authorities it would silently trust nobody.
    #[error("{setting}: {} holds no certificate in PEM", path.display())]
    NoCertificate {
        setting: &'static str,
        path: PathBuf,
    },
}

impl<'a> PemFile<'a> {
    /// The file at `path`, named by `setting`, such as `ingest.tls.cert`.
    pub const fn new(setting: &'static str, path: &'a Path) -> Self {
        Self { setting, path }
    }

    /// The certificates in the file: a chain, or authorities.
    pub async fn certificates(self) -> Result<Certificate, PemError> {
        let pem = self.read().await?;
        let has_any = pem
            .windows(CERTIFICATE.len())
            .any(|bytes| bytes == CERTIFICATE);
        if !has_any {
            return Err(PemError::NoCertificate {
                setting: self.setting,
                path: self.path.to_owned(),
            });
        }
        Ok(Certificate::from_pem(pem))
    }

    async fn read(self) -> Result<Vec<u8>, PemError> {
        let read = tokio::fs::read(self.path).await;
        read.map_err(|source| PemError::Unreadable {
            setting: self.setting,
            path: self.path.to_owned(),
            source,
        })
    }
}

/// Who a server, or a client, says it is: its certificate chain, and the key to it. Whether they can be used, and belong
/// together, shows when it takes them.
pub async fn identity(cert: PemFile<'_>, key: PemFile<'_>) -> Result<Identity, PemError> {
    let cert = cert.certificates().await?;
    Ok(Identity::from_pem(cert, key.read().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_a_certificate_is_refused_by_its_setting() {
        let refused = async |path: &str| {
            let file = PemFile::new("ingest.tls.cert", Path::new(path));
            let certificates = file.certificates().await;
            certificates.expect_err("no certificate").to_string()
        };
        assert_eq!(
            refused("Cargo.toml").await,
            "ingest.tls.cert: Cargo.toml holds no certificate in PEM"
        );
        assert_eq!(
            refused("not-there.pem").await,
            "ingest.tls.cert: not-there.pem cannot be read"
        );
    }
}
