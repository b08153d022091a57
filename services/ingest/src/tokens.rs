//! Who is calling: the bearer token of a call names a tenant. The file holds hashes only, and is read again when it changes.

use std::collections::HashMap;
use std::fmt;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use medfleet_core::TenantId;
use medfleet_core::setting::Secret;
use medfleet_runtime::{Random, Shutdown};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tonic::metadata::MetadataMap;

use crate::error::Refusal;

/// Every token begins with this, so that a leaked one can be recognised.
pub(crate) const TOKEN_PREFIX: &str = "mf_";
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Largest tokens file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name of a token: it is written to the audit stream.
const NAME_BYTES_MAX: usize = 64;

/// Why the tokens file cannot be used. Never shows a hash.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not a tokens file: expected [[token]] tables with name, tenant and sha256", path.display())]
    Syntax { path: PathBuf },
    #[error("{} is not a file of a hub's tokens: expected a table `tokens`, tenant to token", path.display())]
    HubSyntax { path: PathBuf },
    #[error("{}, token {position}: {reason}", path.display())]
    Entry {
        path: PathBuf,
        /// Which entry, counted from 1.
        position: usize,
        reason: String,
    },
}

/// The file: `[[token]]` tables.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensFile {
    #[serde(default, rename = "token")]
    pub tokens: Vec<TokenEntry>,
}

/// One entry of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// Name of the token, shown in the audit stream.
    pub name: String,
    /// The tenant it speaks for.
    pub tenant: String,
    /// SHA-256 of the token's text, 64 hexadecimal digits.
    pub sha256: String,
    /// Whether it may also do what operators do, such as holding other tenants' work back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub operator: bool,
}

/// A new random token for a tenant: the text for the client, and the entry for the file. The text is stored nowhere.
#[must_use]
pub fn create_token(name: &str, tenant: &TenantId, random: &dyn Random) -> (Secret, TokenEntry) {
    let mut bytes = [0; TOKEN_BYTES];
    random.fill(&mut bytes);
    let token = format!("{TOKEN_PREFIX}{}", hex::encode(bytes));
    let sha256 = hex::encode(Sha256::digest(token.as_bytes()));
    let entry = TokenEntry {
        name: name.to_owned(),
        tenant: tenant.to_string(),
        sha256,
        operator: false,
    };
    (Secret::new(token), entry)
}

impl TokensFile {
    /// The text of the file.
    ///
    /// # Errors
    /// Never for entries made by [`create_token`].
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    /// Name of the token, for the audit stream.
    pub(crate) actor: String,
    /// Whether the token is an operator's.
    pub(crate) is_operator: bool,
    /// Of the token.
    hash: Hash,
}

#[cfg(test)]
impl Caller {
    /// Somebody who calls for a tenant, with a token that no file has.
    pub(crate) fn of(tenant: &TenantId) -> Self {
        Self {
            tenant: tenant.clone(),
            actor: "somebody".to_owned(),
            is_operator: false,
            hash: Hash([0; 32]),
        }
    }
}

/// SHA-256 of a token. Shows nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hash([u8; 32]);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(hidden)")
    }
}

/// The known tokens. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    path: PathBuf,
    known: Arc<RwLock<Arc<Vec<Caller>>>>,
    /// The file's before it was loaded, so that a change while the service starts is a change.
    loaded: Option<Stamp>,
}

impl Tokens {
    pub(crate) async fn load(path: &Path) -> Result<Self, TokensError> {
        let loaded = stamp(path).await;
        let known = read(path).await?;
        Ok(Self {
            path: path.to_path_buf(),
            known: Arc::new(RwLock::new(Arc::new(known))),
            loaded,
        })
    }

    /// Who the metadata of a call names.
    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Refusal> {
        let value = metadata.get("authorization").ok_or(Refusal::NoToken)?;
        let value = value.to_str().map_err(|_| Refusal::NoToken)?;
        let (scheme, token) = value.split_once(' ').ok_or(Refusal::NoToken)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::NoToken);
        }
        let hash: [u8; 32] = Sha256::digest(token.trim().as_bytes()).into();
        let known = self.snapshot();
        // Every entry is compared in full, so that the time tells nothing about which one is near.
        let found = known.iter().fold(None, |found, entry| {
            if is_equal(&entry.hash.0, &hash) {
                Some(entry)
            } else {
                found
            }
        });
        found.cloned().ok_or(Refusal::WrongToken)
    }

    /// Whether the caller's token still speaks for its tenant: what outlasts the beginning of its call looks now and then.
    pub(crate) fn still_knows(&self, caller: &Caller) -> bool {
        let known = self.snapshot();
        let mut known = known.iter();
        known.any(|known| known.hash == caller.hash && known.tenant == caller.tenant)
    }

    /// Reads the file again whenever its time or length changes from what was loaded. A file that cannot be used changes nothing.
    pub(crate) async fn follow(self, every: Duration, shutdown: Shutdown) {
        let mut seen = self.loaded;
        let mut failed = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.begun() => return,
            }
            let now = stamp(&self.path).await;
            if now == seen {
                continue;
            }
            match read(&self.path).await {
                Ok(known) => {
                    (seen, failed) = (now, None);
                    tracing::info!(tokens = known.len(), "the tokens file was read again");
                    *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
                }
                // It is tried again: it may be half written, or only unreadable for a moment.
                Err(_) if failed == Some(now) => {}
                Err(error) => {
                    failed = Some(now);
                    let error = medfleet_core::chain(&error);
                    tracing::error!(
                        error,
                        "the changed tokens file cannot be used, the tokens read before stay valid"
                    );
                }
            }
        }
    }

    fn snapshot(&self) -> Arc<Vec<Caller>> {
        // One assignment under the lock: whole after a panic elsewhere.
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Compares without an early end.
fn is_equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a
        .iter()
        .zip(b)
        .fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    difference == 0
}

/// When the file was modified, and its length in bytes.
type Stamp = (SystemTime, u64);

/// Changes with the file; none while it cannot be looked at.
async fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

async fn read(path: &Path) -> Result<Vec<Caller>, TokensError> {
    let known = parse(&read_text(path).await?, path)?;
    if known.is_empty() {
        // A new fleet may begin so; more often a Secret was written empty.
        tracing::warn!(
            file = %path.display(),
            "the tokens file has no token: every call is refused"
        );
    }
    Ok(known)
}

/// The text of a file with tokens, if it is no larger than any real one.
pub(crate) async fn read_text(path: &Path) -> Result<String, TokensError> {
    let unreadable = |source| TokensError::Read {
        path: path.to_path_buf(),
        source,
    };
    if tokio::fs::metadata(path).await.map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(TokensError::TooLarge {
            path: path.to_path_buf(),
        });
    }
    tokio::fs::read_to_string(path).await.map_err(unreadable)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Caller>, TokensError> {
    // The parser's own error would show the line, which may hold a token put in the wrong place.
    let file: TokensFile = toml::from_str(text).map_err(|_| TokensError::Syntax {
        path: path.to_path_buf(),
    })?;
    let nothing: [u8; 32] = Sha256::digest(b"").into();
    // Which entry has a hash, and what may be done by it.
    let mut seen = HashMap::new();
    let entries = file.tokens.iter().enumerate().map(|(index, entry)| {
        let wrong = |reason| TokensError::Entry {
            path: path.to_path_buf(),
            position: index + 1,
            reason,
        };
        if !(1..=NAME_BYTES_MAX).contains(&entry.name.len()) {
            return Err(wrong(format!("name must be 1 to {NAME_BYTES_MAX} bytes")));
        }
        let tenant =
            TenantId::new(entry.tenant.as_str()).map_err(|error| wrong(error.to_string()))?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&entry.sha256, &mut sha256)
            .map_err(|_| wrong("sha256 must be 64 hexadecimal digits".to_owned()))?;
        // Whoever sends no token at all would be let in.
        if sha256 == nothing {
            let reason = "sha256 is that of an empty text; hash the token itself";
            return Err(wrong(reason.to_owned()));
        }
        // A token speaks for one tenant: for which of two nobody could tell, and one would get what the other sent.
        let may = (entry.tenant.as_str(), entry.operator);
        let (other, might) = *seen.entry(sha256).or_insert((index + 1, may));
        if might != may {
            let reason = format!(
                "sha256 is that of token {other}, whose tenant or rights are others; each needs a token of its own"
            );
            return Err(wrong(reason));
        }
        Ok(Caller {
            tenant,
            actor: entry.name.clone(),
            is_operator: entry.operator,
            hash: Hash(sha256),
        })
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::SeededRandom;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    fn tokens(entries: Vec<TokenEntry>) -> Tokens {
        let text = TokensFile { tokens: entries }.to_toml().expect("writes");
        let known = parse(&text, Path::new("tokens.toml")).expect("reads its own form");
        Tokens {
            path: PathBuf::new(),
            known: Arc::new(RwLock::new(Arc::new(known))),
            loaded: None,
        }
    }

    fn call(tokens: &Tokens, authorization: Option<&str>) -> Result<String, String> {
        let mut metadata = MetadataMap::new();
        if let Some(value) = authorization {
            metadata.insert("authorization", value.parse().expect("a header value"));
        }
        let caller = tokens
            .caller(&metadata)
            .map_err(|refusal| refusal.to_string())?;
        Ok(format!("{} {}", caller.tenant, caller.actor))
    }

    #[test]
    fn a_token_names_its_tenant() {
        let random = SeededRandom::new(1);
        let (mary, first) = create_token("viewer", &tenant("st-mary"), &random);
        let (john, second) = create_token("pacs", &tenant("st-john"), &random);
        assert!(mary.expose().starts_with(TOKEN_PREFIX) && mary.expose() != john.expose());
        let file = TokensFile {
            tokens: vec![first.clone(), second.clone()],
        }
        .to_toml()
        .expect("writes");
        assert!(!file.contains(mary.expose()), "only the hash is stored");
        let tokens = tokens(vec![first, second]);
        let bearer = |token: &Secret| format!("Bearer {}", token.expose());
        assert_eq!(
            call(&tokens, Some(&bearer(&mary))).as_deref(),
            Ok("st-mary viewer")
        );
        assert_eq!(
            call(&tokens, Some(&bearer(&john))).as_deref(),
            Ok("st-john pacs")
        );
        let wrong = Err(Refusal::WrongToken.to_string());
        assert_eq!(call(&tokens, Some("Bearer mf_00")), wrong);
        assert_eq!(call(&tokens, Some("Bearer ")), wrong);
        let none = Err(Refusal::NoToken.to_string());
        assert_eq!(call(&tokens, None), none);
        assert_eq!(call(&tokens, Some("Basic abc")), none);
    }

    #[tokio::test]
    async fn a_token_revoked_while_the_service_starts_becomes_invalid() {
        let random = SeededRandom::new(2);
        let (revoked, first) = create_token("viewer", &tenant("st-mary"), &random);
        let (kept, second) = create_token("pacs", &tenant("st-john"), &random);
        let write = |path: &Path, tokens| {
            let text = TokensFile { tokens }.to_toml().expect("writes");
            std::fs::write(path, text).expect("a writable folder");
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.toml");
        write(&path, vec![first, second.clone()]);
        let tokens = Tokens::load(&path).await.expect("it is good");
        let bearer = |token: &Secret| format!("Bearer {}", token.expose());
        assert!(call(&tokens, Some(&bearer(&revoked))).is_ok());

        write(&path, vec![second]);
        let shutdown = Shutdown::new(Duration::from_secs(1));
        let every = Duration::from_millis(1);
        let following = tokens.clone().follow(every, shutdown.clone());
        let gone = async {
            let gone = async {
                while call(&tokens, Some(&bearer(&revoked))).is_ok() {
                    tokio::task::yield_now().await;
                }
            };
            let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
            shutdown.begin();
            gone
        };
        let ((), gone) = tokio::join!(following, gone);
        gone.expect("the revoked token is refused");
        assert!(call(&tokens, Some(&bearer(&kept))).is_ok());
    }

    #[test]
    fn wrong_files_say_where_and_show_nothing() {
        let check = |text: &str, expected: &str| {
            let error = parse(text, Path::new("t"))
                .expect_err("is wrong")
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("mf_secret"), "{error}");
        };
        check("token = 'mf_secret'", "expected [[token]] tables");
        check(
            "[[token]]\nname='a'\ntenant='A'\nsha256=''",
            "token 1: tenant must be",
        );
        check(
            "[[token]]\nname='a'\ntenant='a'\nsha256='mf_secret'",
            "token 1: sha256 must be 64",
        );
        check(
            "[[token]]\nname=''\ntenant='a'\nsha256='00'",
            "token 1: name must be 1 to 64 bytes",
        );
        let entry = |tenant: &str, token: &str| {
            let sha256 = hex::encode(Sha256::digest(token.as_bytes()));
            format!("[[token]]\nname='a'\ntenant='{tenant}'\nsha256='{sha256}'\n")
        };
        check(&entry("a", ""), "token 1: sha256 is that of an empty text");
        let twice = ["a", "b"].map(|tenant| entry(tenant, "mf_secret"));
        check(&twice.concat(), "token 2: sha256 is that of token 1");
        let renamed = parse(&entry("a", "mf_secret").repeat(2), Path::new("t"));
        assert_eq!(renamed.map(|known| known.len()).ok(), Some(2));
        check(
            "[[token]]\nname='a'\ntenant='a'\ntoken='mf_secret'",
            "expected [[token]] tables",
        );
    }
}
