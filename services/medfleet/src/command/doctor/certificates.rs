//! Certificates in PEM files, given or named by a configuration: until when they are good.

use std::path::{Path, PathBuf};

use medfleet_core::UnixMillis;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Finding;

/// Days before the end from which on it is told.
const DAYS_MIN: i64 = 21;
const DAY_SECONDS: i64 = 24 * 60 * 60;
/// Settings of services that name a file with certificates.
const SETTINGS: [&str; 4] = ["cert", "ca", "client_ca", "ca_file"];

/// The files with certificates that a service's configuration file names.
pub(super) fn configured(file: &Path) -> Vec<PathBuf> {
    // A file that cannot be read counts as empty: the loader says what is wrong with it.
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut files = Vec::new();
    named(&text.parse().unwrap_or_default(), &mut files);
    files
}

fn named(table: &toml::Table, files: &mut Vec<PathBuf>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => named(inner, files),
            toml::Value::String(path) if SETTINGS.contains(&key.as_str()) => {
                files.push(PathBuf::from(path));
            }
            _ => {}
        }
    }
}

/// The certificate of the file that ends first.
pub(super) fn look(file: &Path, now: UnixMillis) -> Finding {
    let place = file.display();
    match std::fs::read(file) {
        Ok(pem) => look_at(&place.to_string(), &pem, now.0 / 1000),
        Err(error) => Finding::fail(
            "certificate",
            format!("{place} cannot be read: {error}"),
            "name a PEM file that this user may read",
        ),
    }
}

fn look_at(place: &str, pem: &[u8], now: i64) -> Finding {
    const CHECK: &str = "certificate";
    // A private key beside the certificate is no certificate, and nothing of it is shown.
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    let first = certificates.filter_map(|der| validity(&der)).min();
    let Some((until, since)) = first else {
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

/// End and begin of a certificate's time, in seconds since 1970. The fields before it in RFC 5280, 4.1: version (where there
/// is one), serial number, algorithm, issuer.
fn validity(der: &[u8]) -> Option<(i64, i64)> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(der)?;
    let (_, mut fields, _) = element(certificate)?;
    let (first, _, rest) = element(fields)?;
    if first == VERSION {
        fields = rest;
    }
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (kind, times, _) = element(fields)?;
    let (begin_kind, begin, rest) = element(times)?;
    let (end_kind, end, _) = element(rest)?;
    let times = (time(end_kind, end)?, time(begin_kind, begin)?);
    (kind == SEQUENCE).then_some(times)
}

/// The first element of DER: its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        let bytes = (bytes.len() <= 4).then_some(bytes)?.iter();
        (
            bytes.fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
            rest,
        )
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// A time of DER: `YYMMDDhhmmssZ`, where the years from 50 on are of the last century, or with four digits of the year.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    const SHORT: u8 = 0x17;
    const LONG: u8 = 0x18;
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let year = match (tag, digits.get(..2)?) {
        (SHORT, year) if year >= "50" => format!("19{year}"),
        (SHORT, year) => format!("20{year}"),
        (LONG, _) => digits.get(..4)?.to_owned(),
        _ => return None,
    };
    let rest = digits.get(if tag == SHORT { 2.. } else { 4.. })?;
    let two = |place: usize| rest.get(place..place + 2);
    let (month, day) = (two(0)?, two(2)?);
    let (hour, minute, second) = (two(4)?, two(6)?, two(8)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    Some(text.parse::<prost_types::Timestamp>().ok()?.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;

    /// A certificate that is good from 2026-01-01 to 2026-03-01, as PEM.
    fn certificate() -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters =
            rcgen::CertificateParams::new(vec!["fleet".to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 3, 1);
        let certificate = parameters.self_signed(&key).expect("a certificate");
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }

    #[test]
    fn what_runs_out_is_told_in_time() {
        const NEW_YEAR: i64 = 1_767_225_600;
        let pem = certificate();
        let check = |days: i64, expected, part: &str| {
            let now = NEW_YEAR + days * DAY_SECONDS;
            let finding = look_at("tls.crt", pem.as_bytes(), now);
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
        let mut found = configured(&file);
        found.sort();
        assert_eq!(
            found,
            ["/ca.crt", "/nats/ca.crt", "/tls.crt"].map(PathBuf::from)
        );
        assert!(configured(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn what_is_no_certificate_fails() {
        for pem in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert_eq!(look_at("x", pem.as_bytes(), 0).verdict, Verdict::Fail);
        }
    }
}
