//! What one tenant may have.

use std::collections::BTreeMap;

use medfleet_core::TenantId;
use medfleet_core::setting::ByteSize;
use medfleet_runtime::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::unit::InFlightMax;

/// What tenants may send in a minute, counted by each replica for itself, and what they may have. What is over it is refused, with
/// the time after which it may be taken.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuotasConfig {
    /// Of a tenant that is not named below.
    pub default: Quota,
    /// Of single tenants, in place of the default.
    #[schemars(with = "BTreeMap<TenantId, Quota>")]
    pub tenants: BTreeMap<String, Quota>,
}

/// One tenant's; what is not said has no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Requests for new jobs; one whose request id has a job already does not count.
    #[schemars(range(min = 1))]
    pub jobs_per_minute: Option<u32>,
    /// Bytes of new uploads, and of inputs within submit requests.
    pub bytes_per_minute: Option<ByteSize>,
    /// New jobs of class STAT; those beyond it are accepted as urgent, and say so. Where it is set, those within it are let in
    /// beyond `jobs_per_minute` and `open_jobs_max`.
    pub stat_per_minute: Option<u32>,
    /// Jobs that have not ended. Counted over all replicas: each knows every open job, but not the accepts under way
    /// on the others.
    #[schemars(range(min = 1))]
    pub open_jobs_max: Option<u32>,
    /// Jobs let in to the stages at a time; the others wait, and neighbours go ahead of them. A STAT job is let in beyond
    /// it: `stat_per_minute` bounds those.
    #[schemars(range(min = 1))]
    pub in_flight_max: Option<u32>,
    /// Bytes that the store holds of it, whatever wrote them. Where it has as many, uploads are refused, and new jobs but those
    /// whose files were all uploaded before, until some of it is erased or past its retention; what comes of the jobs that are
    /// accepted is stored all the same. Each replica counts about once a minute what the store holds, and adds what it took in
    /// itself since.
    pub stored_bytes_max: Option<ByteSize>,
}

impl QuotasConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for tenant in self.tenants.keys() {
            let place = format!("ingest.quotas.tenants.{tenant}");
            TenantId::new(tenant.as_str())
                .map_err(|error| ConfigError::relation(format!("{place}: {error}")))?;
        }
        if self.default.is_open() && self.tenants.values().all(Quota::is_open) {
            return Ok(());
        }
        Err(ConfigError::relation(
            "ingest.quotas: a quota is at least 1; take a tenant's tokens out of the tokens file to let nothing in",
        ))
    }

    /// How many jobs of each tenant may be in the stages.
    pub(super) fn in_flight_max(&self) -> InFlightMax {
        let of = |quota: &Quota| quota.in_flight_max.map(u64::from);
        let tenants = self.tenants.iter().filter_map(|(tenant, quota)| {
            // Names that are not a tenant's do not pass the check.
            Some((TenantId::new(tenant.as_str()).ok()?, of(quota)))
        });
        InFlightMax {
            default: of(&self.default),
            tenants: tenants.collect(),
        }
    }
}

impl Quota {
    /// Whether it lets anything through at all.
    fn is_open(&self) -> bool {
        self.jobs_per_minute != Some(0)
            && self.open_jobs_max != Some(0)
            && self.in_flight_max != Some(0)
            && self.bytes_per_minute.is_none_or(|size| size.get() > 0)
            && self.stored_bytes_max.is_none_or(|size| size.get() > 0)
    }
}
