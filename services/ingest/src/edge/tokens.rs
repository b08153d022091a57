//! The tokens that the hub knows this edge's tenants by: a file with secrets, read again when it changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use medfleet_core::TenantId;
use medfleet_core::setting::Secret;
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataValue};

use crate::tokens::{TokensError, read_text};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tokens: BTreeMap<String, Secret>,
}

type Known = BTreeMap<TenantId, MetadataValue<Ascii>>;

/// The tokens. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct HubTokens {
    path: PathBuf,
    known: Arc<RwLock<Known>>,
}

impl HubTokens {
    pub(super) async fn load(path: &Path) -> Result<Self, TokensError> {
        Ok(Self {
            path: path.to_path_buf(),
            known: Arc::new(RwLock::new(read(path).await?)),
        })
    }

    /// Reads the file again. One that cannot be used changes nothing.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) async fn reload(&self) -> Result<(), TokensError> {
        let known = read(&self.path).await?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    /// The `authorization` of a tenant's calls.
    pub(super) fn of(&self, tenant: &TenantId) -> Option<MetadataValue<Ascii>> {
        // One assignment under the lock: whole after a panic elsewhere.
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(tenant).cloned()
    }

    /// The tenants that have one.
    pub(super) fn tenants(&self) -> Vec<TenantId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().cloned().collect()
    }
}

async fn read(path: &Path) -> Result<Known, TokensError> {
    parse(&read_text(path).await?, path)
}

fn parse(text: &str, path: &Path) -> Result<Known, TokensError> {
    // The parser's own error would show the line, which holds a token.
    let file: File = toml::from_str(text).map_err(|_| TokensError::HubSyntax {
        path: path.to_path_buf(),
    })?;
    let entries = file.tokens.iter().enumerate();
    let entries = entries.map(|(index, (tenant, token))| {
        let wrong = |reason: String| TokensError::Entry {
            path: path.to_path_buf(),
            position: index + 1,
            reason,
        };
        let tenant = TenantId::new(tenant.as_str()).map_err(|error| wrong(error.to_string()))?;
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.expose().trim())
                .parse()
                .map_err(|_| wrong("a token is printable ASCII".to_owned()))?;
        value.set_sensitive(true);
        Ok((tenant, value))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_file_shows_no_token() {
        let path = Path::new("hub.toml");
        let known = parse("[tokens]\nst-mary = \"mf_1\"\n", path).expect("a good file");
        let tenant = TenantId::new("st-mary").expect("a name");
        let value = known.get(&tenant).expect("it is there");
        assert_eq!(value.to_str().expect("text"), "Bearer mf_1");
        for wrong in [
            "st-mary = \"mf_secret\"",
            "[tokens]\nSt_Mary = \"mf_secret\"",
            "[tokens]\na = \"mf_secret\\u0007\"",
        ] {
            let error = parse(wrong, path).expect_err("not a good file");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("mf_secret"), "{shown}");
        }
    }
}
