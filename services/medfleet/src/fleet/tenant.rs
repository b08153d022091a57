//! The tenant of a local fleet: one token, generated on the first start, its text in a private file beside the hashes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use medfleet_core::TenantId;
use medfleet_ingest::{TokenEntry, TokensFile, create_token};
use medfleet_runtime::Random;

use super::data::{Data, write_whole};

/// Name of the tenant and of its token.
const LOCAL: &str = "local";

/// The local tenant's token.
#[derive(Debug)]
pub(crate) struct LocalToken {
    /// The file with its text.
    pub(crate) file: PathBuf,
    /// The file with the hashes of all tokens.
    pub(crate) hashes: PathBuf,
    /// Its text, if it was generated just now.
    pub(crate) generated: Option<String>,
}

impl LocalToken {
    /// The token that is there, or a new one. Other tenants' hashes stay as they are.
    pub(crate) fn open(data: &Data, random: &dyn Random) -> Result<Self> {
        let (file, hashes) = (data.root().join("token"), data.root().join("tokens.toml"));
        if file.is_file() && hashes.is_file() {
            return Ok(Self {
                file,
                hashes,
                generated: None,
            });
        }
        let mut known = match std::fs::read_to_string(&hashes) {
            Ok(text) => toml::from_str::<TokensFile>(&text)
                .with_context(|| format!("{} is not a tokens file", hashes.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => TokensFile::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", hashes.display()));
            }
        };
        let tenant = TenantId::new(LOCAL).context("the local tenant's name")?;
        let (token, entry) = create_token(LOCAL, &tenant, random);
        // Whoever starts a local fleet is its operator.
        let entry = TokenEntry {
            operator: true,
            ..entry
        };
        // A start that broke between the two writes left an entry whose text nobody has.
        known.tokens.retain(|entry| entry.name != LOCAL);
        known.tokens.push(entry);
        let text = known.to_toml().context("cannot write the tokens as TOML")?;
        write_whole(&hashes, text.as_bytes())?;
        write_whole(&file, format!("{}\n", token.expose()).as_bytes())?;
        Ok(Self {
            file,
            hashes,
            generated: Some(token.expose().to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_runtime::SeededRandom;

    #[test]
    fn the_token_is_made_once_and_made_again_when_lost() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = Data::open(&folder.path().join("data")).expect("opens");
        let random = SeededRandom::new(7);
        let first = LocalToken::open(&data, &random).expect("is made");
        let text = std::fs::read_to_string(&first.file).expect("is there");
        assert_eq!(first.generated.as_deref(), Some(text.trim()));
        assert_eq!(
            LocalToken::open(&data, &random)
                .expect("is there")
                .generated,
            None
        );

        std::fs::remove_file(&first.file).expect("is removed");
        let second = LocalToken::open(&data, &random).expect("is made again");
        assert!(second.generated.is_some() && second.generated != first.generated);
        let known: TokensFile =
            toml::from_str(&std::fs::read_to_string(&second.hashes).expect("is there"))
                .expect("is TOML");
        assert_eq!(known.tokens.len(), 1);
        assert_eq!(known.tokens[0].tenant, LOCAL);
    }
}
