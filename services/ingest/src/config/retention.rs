//! How long ended jobs and what is stored for them are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use medfleet_core::setting::DurationText;
use medfleet_core::{Class, TenantId};
use medfleet_runtime::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long an ended job, its files and its result are kept. A job's request id is free again after that.
/// `queue.record_retention` is the longest; what nobody relies on goes with `ingest.limits.time_to_live_max`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Of a job whose tenant and class are not named below.
    pub keep: DurationText,
    /// Of the classes `stat`, `urgent`, `routine` and `bulk`, in place of `keep`.
    #[schemars(with = "BTreeMap<Class, DurationText>")]
    pub classes: BTreeMap<String, DurationText>,
    /// Of single tenants, in place of both.
    #[schemars(with = "BTreeMap<TenantId, DurationText>")]
    pub tenants: BTreeMap<String, DurationText>,
    /// How often the store is looked through for what may go.
    pub sweep_every: DurationText,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            keep: DurationText::from_secs(30 * 24 * 60 * 60),
            classes: BTreeMap::new(),
            tenants: BTreeMap::new(),
            sweep_every: DurationText::from_secs(60 * 60),
        }
    }
}

impl RetentionConfig {
    /// How long an ended job is kept.
    pub(crate) fn keep(&self, tenant: &TenantId, class: Class) -> Duration {
        let keep = self.tenants.get(tenant.as_str());
        let keep = keep.or_else(|| self.classes.get(class.as_str()));
        keep.unwrap_or(&self.keep).get()
    }

    /// `longest` is how long records live at all.
    pub(super) fn check(&self, longest: DurationText) -> Result<(), ConfigError> {
        for class in self.classes.keys() {
            class.parse::<Class>().map_err(|error| {
                ConfigError::relation(format!("ingest.retention.classes.{class}: {error}"))
            })?;
        }
        for tenant in self.tenants.keys() {
            TenantId::new(tenant.as_str()).map_err(|error| {
                ConfigError::relation(format!("ingest.retention.tenants.{tenant}: {error}"))
            })?;
        }
        let all = self.classes.values().chain(self.tenants.values());
        if all.chain([&self.keep]).any(|keep| *keep > longest) {
            return Err(ConfigError::relation(format!(
                "ingest.retention: nothing is kept longer than queue.record_retention, {longest}: a job whose record has \
                 expired cannot be found"
            )));
        }
        if self.sweep_every.get().is_zero() {
            return Err(ConfigError::relation(
                "ingest.retention.sweep_every must be at least 1ms",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::Settings;

    use super::*;
    use crate::config::sample;

    fn days(count: u64) -> DurationText {
        DurationText::from_secs(count * 24 * 60 * 60)
    }

    fn named(name: &str, count: u64) -> BTreeMap<String, DurationText> {
        BTreeMap::from([(name.to_owned(), days(count))])
    }

    #[test]
    fn a_class_is_kept_in_place_of_all_and_a_tenant_in_place_of_both() {
        let retention = RetentionConfig {
            keep: days(30),
            classes: named("bulk", 3),
            tenants: named("north", 7),
            ..RetentionConfig::default()
        };
        let check = |tenant: &str, class, expected: u64| {
            let name = TenantId::new(tenant).expect("a tenant");
            let found = retention.keep(&name, class);
            assert_eq!(found, days(expected).get(), "{tenant} {class}");
        };
        check("south", Class::Routine, 30);
        check("south", Class::Bulk, 3);
        check("north", Class::Bulk, 7);
        check("north", Class::Stat, 7);
    }

    #[test]
    fn what_cannot_be_kept_so_is_named() {
        let check = |change: &dyn Fn(&mut RetentionConfig), expected: Option<&str>| {
            let mut retention = RetentionConfig::default();
            change(&mut retention);
            let found = retention.check(days(30)).err();
            let found = found.map(|error| error.to_string());
            let begins = expected.is_some_and(|begin| {
                let text = found.as_deref();
                text.is_some_and(|text| text.starts_with(begin))
            });
            assert!(begins || expected.is_none() && found.is_none(), "{found:?}");
        };
        check(&|_| {}, None);
        check(&|retention| retention.classes = named("bulk", 30), None);
        let class = "ingest.retention.classes.slow: ";
        check(
            &|retention| retention.classes = named("slow", 3),
            Some(class),
        );
        let tenant = "ingest.retention.tenants.North: ";
        check(
            &|retention| retention.tenants = named("North", 3),
            Some(tenant),
        );
        let longest = "ingest.retention: nothing is kept longer than queue.record_retention";
        check(&|retention| retention.keep = days(31), Some(longest));
        check(
            &|retention| retention.classes = named("bulk", 31),
            Some(longest),
        );
        check(
            &|retention| retention.tenants = named("north", 31),
            Some(longest),
        );
        let often = "ingest.retention.sweep_every";
        let never = |retention: &mut RetentionConfig| retention.sweep_every = days(0);
        check(&never, Some(often));
    }

    #[test]
    fn nothing_of_an_open_job_goes_before_the_job() {
        let day = 24 * 60 * 60;
        let check = |records: u64, events: u64, expected: Option<&str>| {
            let mut config = sample::main();
            config.queue.record_retention = DurationText::from_secs(records * day);
            config.queue.event_retention = DurationText::from_secs(events * day);
            config.ingest.retention.keep = DurationText::from_secs(day);
            let found = config.check().err().map(|error| error.to_string());
            let begin = found.as_deref().and_then(|text| text.split(' ').next());
            assert_eq!(begin, expected, "{found:?}");
        };
        check(7, 7, None);
        check(6, 7, Some("queue.record_retention"));
        check(7, 6, Some("queue.event_retention"));
    }
}
