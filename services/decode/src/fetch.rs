//! The fast path: image tokens from the encoder that made them, within a budget of time. Whatever goes wrong here is no
//! error: the store has the same bytes, and both are checked against their digest. Where encoders are known by certificates,
//! the fleet's token goes to no one else.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use medfleet_core::{Digest, TenantId};
use medfleet_proto::work::v1::FetchTokensRequest;
use medfleet_proto::work::v1::token_service_client::TokenServiceClient;
use medfleet_worker::PemFile;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::config::{Config, FetchTlsConfig};
use crate::error::StartError;

/// Encoders to which connections are kept.
const CHANNELS_MAX: usize = 64;

/// Fetches from any encoder of the fleet.
#[derive(Debug)]
pub(crate) struct Fetcher {
    budget: Duration,
    authorization: Option<MetadataValue<Ascii>>,
    tls: Option<ClientTlsConfig>,
    channels: Mutex<HashMap<String, Channel>>,
}

/// Why the fast path gave nothing; for a trace, never for a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("there is no encoder to ask")]
    Nowhere,
    #[error("the encoder's address cannot be used")]
    Address(#[source] tonic::transport::Error),
    #[error("the encoder has no TLS, but decode.fetch_tls is set")]
    Plain,
    #[error("the encoder has TLS, but decode.fetch_tls is not set")]
    Unknown,
    #[error("the encoder refused, is away, or cannot be trusted")]
    Refused(#[source] Box<tonic::Status>),
    #[error("the encoder took longer than the budget")]
    Late,
    #[error("the encoder sent other pieces than asked for")]
    Pieces,
}

impl Fetcher {
    /// As configured, with the fleet's internal token.
    ///
    /// # Errors
    /// When no encoder could ever pass verification with the certificates and the name that are configured.
    pub(crate) async fn of(config: &Config, token: &str) -> Result<Self, StartError> {
        let tls = match &config.fetch_tls {
            Some(FetchTlsConfig { ca, server_name }) => {
                let ca = PemFile::new("decode.fetch_tls.ca", ca)
                    .certificates()
                    .await?;
                let tls = known_by(ca, server_name.as_deref());
                Some(tls.map_err(StartError::FetchTls)?)
            }
            None => None,
        };
        Ok(Self::new(config.fetch_timeout.get(), token, tls))
    }

    /// A budget of zero asks nobody.
    pub(crate) fn new(budget: Duration, token: &str, tls: Option<ClientTlsConfig>) -> Self {
        Self {
            budget,
            // Hexadecimal is always a header value.
            authorization: format!("Bearer {token}").parse().ok(),
            tls,
            channels: Mutex::default(),
        }
    }

    /// The tensors asked for, in order; `length` bytes each at most.
    pub(crate) async fn fetch(
        &self,
        url: &str,
        tenant: &TenantId,
        digests: &[Digest],
        length: usize,
    ) -> Result<Vec<Bytes>, FetchError> {
        if url.is_empty() || self.budget.is_zero() {
            return Err(FetchError::Nowhere);
        }
        let fetching = self.ask(url, tenant, digests, length);
        tokio::time::timeout(self.budget, fetching)
            .await
            .map_err(|_| FetchError::Late)?
    }

    async fn ask(
        &self,
        url: &str,
        tenant: &TenantId,
        digests: &[Digest],
        length: usize,
    ) -> Result<Vec<Bytes>, FetchError> {
        let refused = |status: tonic::Status| FetchError::Refused(Box::new(status));
        let mut client = TokenServiceClient::new(self.channel(url)?);
        let digests = digests
            .iter()
            .map(|digest| Bytes::copy_from_slice(digest.as_bytes()));
        let message = FetchTokensRequest {
            tenant: tenant.to_string(),
            digests: digests.collect(),
        };
        let count = message.digests.len();
        let mut request = tonic::Request::new(message);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        let mut pieces = client
            .fetch_tokens(request)
            .await
            .map_err(refused)?
            .into_inner();
        let mut tensors = Vec::with_capacity(count);
        let mut current = BytesMut::new();
        while let Some(piece) = pieces.message().await.map_err(refused)? {
            if piece.index as usize != tensors.len() || current.len() + piece.data.len() > length {
                return Err(FetchError::Pieces);
            }
            if current.is_empty() && piece.last {
                tensors.push(piece.data);
                continue;
            }
            current.reserve(length.saturating_sub(current.len()));
            current.extend_from_slice(&piece.data);
            if piece.last {
                tensors.push(current.split().freeze());
            }
        }
        if tensors.len() == count {
            Ok(tensors)
        } else {
            Err(FetchError::Pieces)
        }
    }

    fn channel(&self, url: &str) -> Result<Channel, FetchError> {
        // Every change is one insertion or a clearing: whole even after a panic elsewhere.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(FetchError::Address)?;
        let endpoint = match (&self.tls, url.starts_with("https://")) {
            (Some(tls), true) => endpoint
                .tls_config(tls.clone())
                .map_err(FetchError::Address)?,
            (None, false) => endpoint,
            (Some(_), false) => return Err(FetchError::Plain),
            (None, true) => return Err(FetchError::Unknown),
        };
        let channel = endpoint
            .connect_timeout(self.budget)
            .tcp_nodelay(true)
            .connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(url.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// TLS settings that accept an encoder whose certificate one of the authorities has signed, for the configured name or, without
/// one, for the host that is called.
fn known_by(
    ca: Certificate,
    name: Option<&str>,
) -> Result<ClientTlsConfig, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(ca);
    if let Some(name) = name {
        tls = tls.domain_name(name);
    }
    // An error in the certificates shows at the start, and not at each job.
    Endpoint::from_static("https://encoder").tls_config(tls.clone())?;
    Ok(tls)
}

#[cfg(test)]
mod tests;
