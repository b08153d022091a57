//! Certificates in PEM files, given or named by a configuration: until when they are good.

use std::path::Path;

use medfleet_core::UnixMillis;
use medfleet_runtime::certificates::{Named, Validity, named, validities};

use super::Finding;

/// Warns from this many days before the end.
const DAYS_MIN: i64 = 21;
const DAY_SECONDS: i64 = 24 * 60 * 60;

/// The files with certificates that a service's configuration file names.
pub(super) fn configured(file: &Path) -> Vec<Named> {
    // A file that cannot be read counts as empty: the loader says what is wrong with it.
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    named(&table)
}

/// A file that somebody gives: the certificate in it that ends first.
pub(super) fn look(file: &Path, now: UnixMillis) -> Finding {
    look_by(file, now, |pem| validities(pem).into_iter().min())
}

/// A file that a configuration names: an authority that is over may stand beside one that is good.
pub(super) fn look_configured(named: &Named, now: UnixMillis) -> Finding {
    look_by(&named.file, now, |pem| named.last_good(pem))
}

fn look_by(
    file: &Path,
    now: UnixMillis,
    decides: impl FnOnce(&[u8]) -> Option<Validity>,
) -> Finding {
    let place = file.display();
    match std::fs::read(file) {
        Ok(pem) => look_at(&place.to_string(), decides(&pem), now.0 / 1000),
        Err(error) => Finding::fail(
            "certificate",
            format!("{place} cannot be read: {error}"),
            "name a PEM file that this user may read",
        ),
    }
}

fn look_at(place: &str, decides: Option<Validity>, now: i64) -> Finding {
    const CHECK: &str = "certificate";
    let Some(Validity { until, since }) = decides else {
        return Finding::fail(
            CHECK,
            format!("{place} holds no certificate"),
            "it must be PEM: -----BEGIN CERTIFICATE-----",
        );
    };
    let days = (until - now).div_euclid(DAY_SECONDS);
    if since > now {
        return Finding::fail(
            CHECK,
            format!("{place} is not good yet"),
            "compare this machine's clock with the issuer's",
        );
    }
    if until <= now {
        return Finding::fail(
            CHECK,
            format!("{place} ran out {} days ago", -days),
            "renew it and restart what uses it: clients refuse it",
        );
    }
    let found = format!("{place} is good for {days} days");
    if days < DAYS_MIN {
        return Finding::warn(CHECK, found, "renew it now");
    }
    Finding::ok(CHECK, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;

    /// New Year of 2026, in seconds since 1970.
    const NEW_YEAR: i64 = 1_767_225_600;

    /// A certificate that is good from New Year to the first day of this month, as PEM.
    fn certificate(month: u8) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters =
            rcgen::CertificateParams::new(vec!["fleet".to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, month, 1);
        let certificate = parameters.self_signed(&key).expect("a certificate");
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }

    #[test]
    fn what_runs_out_is_told_in_time() {
        let pem = certificate(3);
        let check = |days: i64, expected, part: &str| {
            let now = NEW_YEAR + days * DAY_SECONDS;
            let first = validities(pem.as_bytes()).into_iter().min();
            let finding = look_at("tls.crt", first, now);
            assert_eq!(finding.verdict, expected, "{finding}");
            assert!(finding.found.contains(part), "{finding}");
        };
        check(-1, Verdict::Fail, "not good yet");
        check(1, Verdict::Ok, "good for 58 days");
        check(45, Verdict::Warn, "good for 14 days");
        check(60, Verdict::Fail, "ran out 1 days ago");
    }

    #[test]
    fn those_that_a_configuration_names_are_looked_at() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("ingest.toml");
        let text = "[queue.tls]\nca = '/nats/ca.crt'\n[ingest]\ntokens = 'x'\n\
                    tls = { cert = '/tls.crt', key = '/tls.key', client_ca = '/ca.crt' }\n";
        std::fs::write(&file, text).expect("a file");
        let found = configured(&file);
        let mut found: Vec<_> = found.iter().map(|named| named.file.as_path()).collect();
        found.sort();
        assert_eq!(
            found,
            ["/ca.crt", "/nats/ca.crt", "/tls.crt"].map(Path::new)
        );
        assert!(configured(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn an_old_authority_may_stand_beside_a_new_one_and_nothing_old_beside_an_own_certificate() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("both.pem");
        std::fs::write(&file, certificate(2) + &certificate(12)).expect("a file");
        let now = UnixMillis((NEW_YEAR + 60 * DAY_SECONDS) * 1000);
        let check = |setting: &str, expected| {
            let (setting, file) = (setting.to_owned(), file.clone());
            let finding = look_configured(&Named { setting, file }, now);
            assert_eq!(finding.verdict, expected, "{finding}");
        };
        check("ingest.tls.client_ca", Verdict::Ok);
        check("ingest.tls.cert", Verdict::Fail);
        assert_eq!(look(&file, now).verdict, Verdict::Fail);
    }

    #[test]
    fn what_is_no_certificate_fails() {
        for pem in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let first = validities(pem.as_bytes()).into_iter().min();
            assert_eq!(look_at("x", first, 0).verdict, Verdict::Fail);
        }
    }
}
