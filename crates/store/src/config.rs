//! Settings of the blob store, and opening the place they name. JetStream's object store is opened by the queue crate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use medfleet_core::setting::{ByteSize, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendError, Folder, Objects};
use crate::blob::Limits;
use crate::{BlobStore, FleetKey, KeyError};

/// What the owner of a folder is told by; a change of meaning needs a new purpose.
const OWNER: &str = "owner of a store v1";

/// The blob store. Which place and which key have no default: the operator decides.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Where blobs are.
    pub backend: BackendConfig,
    /// The fleet's key: 64 hexadecimal digits, the same in every process of a fleet. Who has it can guess contents by
    /// their names; who changes it makes every stored blob unfindable.
    pub key: Secret,
    /// Largest blob.
    #[serde(default = "default_blob_bytes_max")]
    pub blob_bytes_max: ByteSize,
    /// Most bytes in all; more is refused as "full". Without it only the place itself is the limit.
    #[serde(default)]
    pub capacity_bytes: Option<ByteSize>,
}

fn default_blob_bytes_max() -> ByteSize {
    ByteSize::from_mib(64)
}

/// A place for blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum BackendConfig {
    /// A folder on a local disk, for one machine.
    Folder {
        /// The folder; made when it is missing.
        path: PathBuf,
    },
    /// A bucket of JetStream's object store.
    Jetstream {
        /// The bucket's name.
        bucket: String,
        /// Copies of everything; an odd number.
        replicas: u8,
    },
    /// S3 or what is compatible with it.
    S3(S3Config),
}

/// A bucket of S3 or of what is compatible with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket's name; it must exist.
    pub bucket: String,
    /// Region, such as `eu-central-1`; compatible stores often take any.
    pub region: String,
    /// URL of a compatible store; without it Amazon's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Access key id; without keys the pod's role is used.
    #[serde(default)]
    pub access_key_id: Option<Secret>,
    /// Secret access key.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// File (PEM) with certificates that sign the endpoint's, besides those that the system trusts.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Allows an endpoint without TLS. Blobs hold patient data: for tests inside one machine only.
    #[serde(default)]
    pub allow_http: bool,
}

/// The blob store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store.key")]
    Key(#[from] KeyError),
    #[error("store.{key}: {reason}")]
    Setting { key: &'static str, reason: String },
    #[error("a jetstream blob store is opened over the queue's connection, not by path")]
    NeedsQueue,
    #[error("this build has no {0} blob store: take one that has, or set another store.backend")]
    NotBuilt(&'static str),
    #[error(
        "the blob store's folder {} belongs to another fleet: store.key is not the one it was made with, or another disk is mounted there",
        path.display()
    )]
    OtherFleet { path: PathBuf },
    #[error(
        "the blob store's folder {} is empty, but the queue has jobs: mount the disk that holds their blobs there, or put them back from a backup; if they are gone for good, make an empty file {} and start again, and jobs that need them fail",
        path.display(),
        path.join(".store").display()
    )]
    NotMounted { path: PathBuf },
    #[error("cannot open the blob store")]
    Backend(#[from] BackendError),
}

impl StoreConfig {
    /// Checks what can be checked without touching the place.
    pub fn check(&self) -> Result<(), OpenError> {
        FleetKey::from_secret(&self.key)?;
        if self.blob_bytes_max.get() == 0 {
            return wrong("blob_bytes_max", "at least 1B");
        }
        if self
            .capacity_bytes
            .is_some_and(|capacity| capacity < self.blob_bytes_max)
        {
            return wrong("capacity_bytes", "at least blob_bytes_max");
        }
        self.backend.check()
    }

    /// The limits among the settings.
    pub fn limits(&self) -> Limits {
        Limits {
            blob_bytes_max: self.blob_bytes_max.get(),
            capacity_bytes: self.capacity_bytes.map(ByteSize::get),
        }
    }

    /// Opens a store over a backend that was opened elsewhere, such as JetStream's.
    pub fn open_over(&self, backend: Arc<dyn Backend>) -> Result<BlobStore, OpenError> {
        self.check()?;
        let key = FleetKey::from_secret(&self.key)?;
        Ok(BlobStore::new(backend, key, self.limits()))
    }

    /// Opens the place that the settings name: a folder or S3.
    ///
    /// # Errors
    /// [`OpenError::NeedsQueue`] for JetStream; the queue crate has that backend, see [`StoreConfig::open_over`].
    /// [`OpenError::OtherFleet`] for a folder that was made with another key.
    pub fn open(&self) -> Result<BlobStore, OpenError> {
        self.open_over(self.open_backend()?)
    }

    /// Refuses a place without a trace of ever having been used: for a fleet that has jobs, whose blobs must be somewhere. Call
    /// it before [`StoreConfig::open`], which leaves such a trace. Only a folder can be told so.
    ///
    /// # Errors
    /// [`OpenError::NotMounted`], and when the folder cannot be looked at.
    pub fn check_used(&self) -> Result<(), OpenError> {
        match &self.backend {
            BackendConfig::Folder { path } if Folder::is_untouched(path)? => {
                Err(OpenError::NotMounted { path: path.clone() })
            }
            BackendConfig::Folder { .. }
            | BackendConfig::Jetstream { .. }
            | BackendConfig::S3(_) => Ok(()),
        }
    }

    /// As [`StoreConfig::open`], without what makes blobs of it: whole names, no keys, no references.
    pub fn open_backend(&self) -> Result<Arc<dyn Backend>, OpenError> {
        self.check()?;
        Ok(match &self.backend {
            BackendConfig::Folder { path } => Arc::new(self.open_folder(path)?),
            BackendConfig::Jetstream { .. } => return Err(OpenError::NeedsQueue),
            BackendConfig::S3(bucket) => Arc::new(Objects::over(s3::client(bucket)?)),
        })
    }

    /// Under a wrong key nothing would be found, and every job would fail: better not to start.
    fn open_folder(&self, path: &Path) -> Result<Folder, OpenError> {
        let folder = Folder::open(path)?;
        let owner = FleetKey::from_secret(&self.key)?.keyed_hash(OWNER, &[]);
        match folder.belongs_to(&owner.to_string()) {
            // A full disk without the note: whoever starts next, with room, writes it.
            Ok(true) | Err(BackendError::Full) => Ok(folder),
            Ok(false) => Err(OpenError::OtherFleet {
                path: path.to_owned(),
            }),
            Err(error) => Err(error.into()),
        }
    }
}

impl BackendConfig {
    /// Checks what can be checked without touching the place.
    pub fn check(&self) -> Result<(), OpenError> {
        match self {
            Self::Folder { path } if path.as_os_str().is_empty() => {
                wrong("backend.path", "a folder")
            }
            Self::Folder { .. } => Ok(()),
            Self::Jetstream { bucket, replicas } => {
                let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if bucket.is_empty() || !bucket.bytes().all(good) {
                    return wrong("backend.bucket", "a-z, A-Z, 0-9, '-' and '_'");
                }
                if ![1, 3, 5].contains(replicas) {
                    return wrong("backend.replicas", "1, 3 or 5");
                }
                Ok(())
            }
            Self::S3(s3) => s3.check(),
        }
    }
}

impl S3Config {
    /// As [`BackendConfig::check`].
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let bucket = &self.bucket;
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(good) {
            return wrong(
                "backend.bucket",
                "3 to 63 characters of a-z, 0-9, '-' and '.'",
            );
        }
        if self.region.is_empty() {
            return wrong(
                "backend.region",
                "a region; compatible stores often take us-east-1",
            );
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return wrong(
                "backend.access_key_id",
                "goes together with secret_access_key",
            );
        }
        match self.endpoint.as_deref() {
            Some(url)
                if url
                    .strip_prefix("https://")
                    .is_some_and(|host| !host.is_empty()) =>
            {
                Ok(())
            }
            Some(url)
                if url
                    .strip_prefix("http://")
                    .is_some_and(|host| !host.is_empty()) =>
            {
                if self.allow_http {
                    Ok(())
                } else {
                    wrong("backend.endpoint", "https://, unless allow_http is set")
                }
            }
            Some(_) => wrong("backend.endpoint", "a URL that begins with https://"),
            None => Ok(()),
        }
    }
}

fn wrong(key: &'static str, reason: &str) -> Result<(), OpenError> {
    Err(OpenError::Setting {
        key,
        reason: reason.to_owned(),
    })
}

#[cfg(not(feature = "s3"))]
pub(crate) mod s3 {
    //! In a build without S3.

    use object_store::ObjectStore;

    use super::{Arc, OpenError, S3Config};

    /// Refuses.
    pub(crate) fn client(_: &S3Config) -> Result<Arc<dyn ObjectStore>, OpenError> {
        Err(OpenError::NotBuilt("s3"))
    }
}

#[cfg(feature = "s3")]
pub(crate) mod s3 {
    //! The S3 client from settings.

    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
    use object_store::{Certificate, ClientOptions, ObjectStore};

    use super::{Arc, BackendError, OpenError, Path, S3Config, Secret};

    /// What a cloud tells a pod in place of keys: its role, and where it gets the keys of an hour.
    const IDENTITY: [AmazonS3ConfigKey; 7] = [
        AmazonS3ConfigKey::RoleArn,
        AmazonS3ConfigKey::RoleSessionName,
        AmazonS3ConfigKey::StsEndpoint,
        AmazonS3ConfigKey::WebIdentityTokenFile,
        AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
    ];

    /// Makes the client; nothing is sent yet.
    pub(crate) fn client(config: &S3Config) -> Result<Arc<dyn ObjectStore>, OpenError> {
        let S3Config {
            bucket,
            region,
            endpoint,
            access_key_id,
            secret_access_key,
            ca,
            allow_http,
        } = config;
        // The HTTP client takes its TLS from the process. Being the second to name it is fine: it is ring everywhere here.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut options = ClientOptions::new();
        for authority in ca.as_deref().map_or(Ok(Vec::new()), authorities)? {
            options = options.with_root_certificate(authority);
        }
        let mut builder = AmazonS3Builder::new()
            .with_client_options(options)
            .with_bucket_name(bucket)
            .with_region(region)
            .with_allow_http(*allow_http);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let exposed = |secret: &Option<Secret>| secret.as_ref().map(|s| s.expose().to_owned());
        builder = match (exposed(access_key_id), exposed(secret_access_key)) {
            (Some(id), Some(key)) => builder.with_access_key_id(id).with_secret_access_key(key),
            // The environment is the one place where a cloud says it. Without that the machine's own role is asked for.
            _ => with_identity(builder, &AmazonS3Builder::from_env()),
        };
        let store = builder
            .build()
            .map_err(|error| BackendError::failed("open", false, error))?;
        Ok(Arc::new(store))
    }

    /// Takes the role from what is `given`, and nothing else of it: which bucket is meant, and where, the settings say.
    pub(super) fn with_identity(
        builder: AmazonS3Builder,
        given: &AmazonS3Builder,
    ) -> AmazonS3Builder {
        IDENTITY
            .into_iter()
            .fold(builder, |builder, key| match given.get_config_value(&key) {
                Some(value) => builder.with_config(key, value),
                None => builder,
            })
    }

    /// The certificates of a PEM file: at least one.
    fn authorities(path: &Path) -> Result<Vec<Certificate>, OpenError> {
        let refused = |why: String| OpenError::Setting {
            key: "backend.ca",
            reason: format!(
                "a file with certificates in PEM, but {} {why}",
                path.display()
            ),
        };
        let pem =
            std::fs::read(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
        let found = Certificate::from_pem_bundle(&pem)
            .map_err(|error| refused(format!("is another: {error}")))?;
        match found.is_empty() {
            true => Err(refused("has none".to_owned())),
            false => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(backend: &str) -> StoreConfig {
        let text = format!("key = '{}'\n{backend}", "0f".repeat(32));
        toml::from_str(&text).expect("is well formed")
    }

    fn check(backend: &str, expected: Option<&str>) {
        let error = config(backend).check().err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), expected, "{backend}");
    }

    #[test]
    fn settings_are_checked_with_their_name() {
        check("backend = { kind = 'folder', path = '/x' }", None);
        check(
            "backend = { kind = 'folder', path = '' }",
            Some("store.backend.path: a folder"),
        );
        check(
            "capacity_bytes = '1MiB'\nbackend = { kind = 'folder', path = '/x' }",
            Some("store.capacity_bytes: at least blob_bytes_max"),
        );
        check(
            "backend = { kind = 'jetstream', bucket = 'blobs', replicas = 3 }",
            None,
        );
        check(
            "backend = { kind = 'jetstream', bucket = 'blobs', replicas = 2 }",
            Some("store.backend.replicas: 1, 3 or 5"),
        );
        check(
            "backend = { kind = 's3', bucket = 'blobs', region = 'eu' }",
            None,
        );
        check(
            "backend = { kind = 's3', bucket = 'B', region = 'eu' }",
            Some("store.backend.bucket: 3 to 63 characters of a-z, 0-9, '-' and '.'"),
        );
        check(
            "backend = { kind = 's3', bucket = 'blobs', region = 'eu', access_key_id = 'x' }",
            Some("store.backend.access_key_id: goes together with secret_access_key"),
        );
        check(
            "backend = { kind = 's3', bucket = 'blobs', region = 'eu', endpoint = 'http://x' }",
            Some("store.backend.endpoint: https://, unless allow_http is set"),
        );
        check(
            "backend = { kind = 's3', bucket = 'blobs', region = 'eu', endpoint = 'x:9000' }",
            Some("store.backend.endpoint: a URL that begins with https://"),
        );
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        let key = "0f".repeat(32);
        for text in [
            format!("key = '{key}'\nbackend = {{ kind = 'folder', path = '/x', size = 1 }}"),
            format!("key = '{key}'\nsize = 1\nbackend = {{ kind = 'folder', path = '/x' }}"),
            format!("key = '{key}'\nbackend = {{ kind = 'floppy', path = '/x' }}"),
            format!(
                "key = '{key}'\nbackend = {{ kind = 's3', bucket = 'blobs', region = 'eu', size = 1 }}"
            ),
            format!("key = '{key}'\nbackend = {{ kind = 's3', region = 'eu' }}"),
        ] {
            assert!(toml::from_str::<StoreConfig>(&text).is_err(), "{text}");
        }
    }

    /// What a file says is read, and written again, as it always was.
    #[test]
    fn the_settings_of_s3_lie_beside_its_kind() {
        let text = "kind = \"s3\"\nbucket = \"blobs\"\nregion = \"eu\"\n\
                    endpoint = \"https://s3.example\"\nca = \"/ca.crt\"\nallow_http = true\n";
        let backend: BackendConfig = toml::from_str(text).expect("is well formed");
        let expected = S3Config {
            bucket: "blobs".to_owned(),
            region: "eu".to_owned(),
            endpoint: Some("https://s3.example".to_owned()),
            access_key_id: None,
            secret_access_key: None,
            ca: Some("/ca.crt".into()),
            allow_http: true,
        };
        assert_eq!(backend, BackendConfig::S3(expected));
        assert_eq!(toml::to_string(&backend).expect("is written"), text);
    }

    #[test]
    fn a_folder_is_opened_only_with_the_key_it_was_made_with() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = |digits: &str| {
            let path = folder.path().display();
            let backend = format!("backend = {{ kind = 'folder', path = '{path}' }}");
            let text = format!("key = '{}'\n{backend}", digits.repeat(32));
            let config: StoreConfig = toml::from_str(&text).expect("is well formed");
            config.open().map(drop)
        };
        open("0f").expect("is new");
        open("0f").expect("is its own");
        let refused = open("0e").expect_err("is another's");
        assert!(matches!(refused, OpenError::OtherFleet { .. }));
        let path = folder.path().display().to_string();
        assert!(refused.to_string().contains(&path), "{refused}");
    }

    #[test]
    fn a_folder_that_nothing_was_ever_stored_in_is_no_old_fleets() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("blobs");
        let text = format!(
            "backend = {{ kind = 'folder', path = '{}' }}",
            path.display()
        );
        let config = config(&text);
        let refused = config.check_used().expect_err("nothing is there");
        assert!(matches!(refused, OpenError::NotMounted { .. }));
        let note = path.join(".store").display().to_string();
        assert!(refused.to_string().contains(&note), "{refused}");
        assert!(!path.exists(), "looking makes nothing");
        // A new fleet begins, and is known from then on.
        config.open().expect("is new");
        config.check_used().expect("is in use");
        // The disk is lost, and the operator says so.
        std::fs::remove_dir_all(&path).expect("removes");
        std::fs::create_dir(&path).expect("makes");
        config.check_used().expect_err("nothing is there");
        std::fs::write(path.join(".store"), "").expect("writes");
        config.check_used().expect("is meant");
        config.open().expect("is its own again");
    }

    #[test]
    fn opening_says_what_is_elsewhere() {
        let jetstream = config("backend = { kind = 'jetstream', bucket = 'blobs', replicas = 1 }");
        assert!(matches!(jetstream.open(), Err(OpenError::NeedsQueue)));
    }

    #[cfg(feature = "s3")]
    #[tokio::test]
    async fn an_s3_client_is_made_without_sending_anything() {
        let s3 = "backend = { kind = 's3', bucket = 'blobs', region = 'eu-central-1', \
                  endpoint = 'https://s3.example', access_key_id = 'a', secret_access_key = 'b' }";
        let store = config(s3).open().expect("the settings are right");
        assert!(!format!("{store:?}").contains("\"b\""));
    }

    #[cfg(feature = "s3")]
    #[test]
    fn without_keys_the_role_of_the_pod_is_taken_and_nothing_else_of_its_environment() {
        use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};
        let given = AmazonS3Builder::new()
            .with_config(Key::RoleArn, "arn:aws:iam::1:role/fleet")
            .with_config(Key::WebIdentityTokenFile, "/var/run/token")
            .with_config(Key::AccessKeyId, "another's")
            .with_config(Key::Endpoint, "https://elsewhere.example");
        let found = s3::with_identity(AmazonS3Builder::new(), &given);
        for key in [Key::RoleArn, Key::WebIdentityTokenFile] {
            let value = found.get_config_value(&key);
            assert!(value.is_some() && value == given.get_config_value(&key));
        }
        for key in [Key::AccessKeyId, Key::Endpoint] {
            assert_eq!(found.get_config_value(&key), None);
        }
    }

    #[cfg(feature = "s3")]
    #[tokio::test]
    async fn an_authority_that_is_none_is_refused_with_its_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("ca.crt");
        let open = || {
            let backend = format!(
                "backend = {{ kind = 's3', bucket = 'blobs', region = 'eu', ca = '{}' }}",
                path.display()
            );
            let refused = config(&backend).open().expect_err("is no authority");
            refused.to_string()
        };
        let named = format!(
            "store.backend.ca: a file with certificates in PEM, but {} ",
            path.display()
        );
        let absent = open();
        assert!(
            absent.starts_with(&format!("{named}cannot be read")),
            "{absent}"
        );
        std::fs::write(&path, "no certificate").expect("writes");
        assert_eq!(open(), format!("{named}has none"));
    }
}
