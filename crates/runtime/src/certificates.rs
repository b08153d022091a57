//! The expiry of the certificates that a program reads at its start and serves until it ends, for its metrics. Without it, an
//! operator who renewed a file but restarted nothing would learn of that from clients.

use std::path::PathBuf;

use medfleet_core::UnixMillis;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

/// Settings that name a file with a certificate and its chain, which is good while all of them are. The second is the certificate
/// that an edge shows to its hub.
const OWN: [&str; 2] = ["cert", "client_cert"];
/// Settings that name a file with authorities, which is good while one of them is: an old and a new authority may stand side by
/// side.
const AUTHORITIES: [&str; 3] = ["ca", "client_ca", "ca_file"];

/// A file with certificates that a configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The setting, such as `ingest.tls.cert`.
    pub setting: String,
    pub file: PathBuf,
}

impl Named {
    /// The certificate in this file's text by whose end the file ends: the first of an own one and those that sign it, the last
    /// of authorities. None where it holds no certificate.
    pub fn last_good(&self, pem: &[u8]) -> Option<Validity> {
        let found = validities(pem).into_iter();
        let key = self.setting.rsplit('.').next().unwrap_or_default();
        match OWN.contains(&key) {
            true => found.min(),
            false => found.max(),
        }
    }
}

/// When a certificate is good, both ends in seconds since 1970. Compares by its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Validity {
    /// Until when.
    pub until: i64,
    /// From when on.
    pub since: i64,
}

/// The files with certificates that a configuration names, each under its setting.
pub fn named(table: &toml::Table) -> Vec<Named> {
    let mut files = Vec::new();
    collect("", table, &mut files);
    files
}

fn collect(path: &str, table: &toml::Table, files: &mut Vec<Named>) {
    for (key, value) in table {
        let setting = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match value {
            toml::Value::Table(inner) => collect(&setting, inner, files),
            toml::Value::String(file)
                if OWN.contains(&key.as_str()) || AUTHORITIES.contains(&key.as_str()) =>
            {
                let file = PathBuf::from(file);
                files.push(Named { setting, file });
            }
            _ => {}
        }
    }
}

/// Each certificate of a PEM file. What else is in it, such as a private key, is left out.
pub fn validities(pem: &[u8]) -> Vec<Validity> {
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    certificates.filter_map(|der| validity(&der)).collect()
}

/// Until when each file is good that the configuration names. One that cannot be read is left out: whoever uses it says so.
pub(crate) fn ends(config: &impl Serialize) -> Vec<(String, UnixMillis)> {
    // A configuration without a form in TOML names no files.
    let table = toml::Table::try_from(config).unwrap_or_default();
    let ends = named(&table).into_iter().filter_map(|named| {
        let pem = std::fs::read(&named.file).ok()?;
        let until = named.last_good(&pem)?.until;
        Some((named.setting, UnixMillis(until.saturating_mul(1000))))
    });
    ends.collect()
}

/// The time of a certificate. The fields before it in RFC 5280, 4.1: version (where there is one), serial number, algorithm,
/// issuer.
fn validity(der: &[u8]) -> Option<Validity> {
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
    let validity = Validity {
        until: time(end_kind, end)?,
        since: time(begin_kind, begin)?,
    };
    (kind == SEQUENCE).then_some(validity)
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

    /// A certificate that is good from this year on to the next, and its key, as PEM.
    fn certificate(year: i32) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters =
            rcgen::CertificateParams::new(vec!["fleet".to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(year, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year + 1, 1, 1);
        let certificate = parameters.self_signed(&key).expect("a certificate");
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }

    /// New Year of 2026 and of 2027, in seconds since 1970.
    const YEARS: [i64; 2] = [1_767_225_600, 1_798_761_600];

    #[test]
    fn a_certificate_says_when_it_is_good() {
        let found = validities(certificate(2026).as_bytes());
        let [since, until] = YEARS;
        assert_eq!(found, [Validity { until, since }]);
        for pem in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(validities(pem.as_bytes()).is_empty(), "{pem:?}");
        }
    }

    #[test]
    fn what_an_edge_shows_to_its_hub_is_its_own() {
        let text = "[ingest.edge]\nclient_cert = '/edge.crt'\nclient_key = '/edge.key'";
        let found = named(&text.parse().expect("a configuration"));
        let pem = certificate(2026) + &certificate(2025);
        let ends = found.iter().map(|named| {
            let last = named.last_good(pem.as_bytes()).expect("a certificate");
            (named.setting.as_str(), last.until)
        });
        let [early, _] = YEARS;
        assert_eq!(
            ends.collect::<Vec<_>>(),
            [("ingest.edge.client_cert", early)]
        );
    }

    #[derive(Serialize)]
    struct Service {
        tls: Tls,
        tokens: PathBuf,
    }

    #[derive(Serialize)]
    struct Tls {
        cert: PathBuf,
        key: PathBuf,
        client_ca: Option<PathBuf>,
        ca: Option<PathBuf>,
    }

    #[test]
    fn an_own_certificate_ends_with_its_chain_and_authorities_with_the_last() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let both = folder.path().join("both.pem");
        let text = certificate(2026) + &certificate(2025);
        std::fs::write(&both, text).expect("a file");
        let config = Service {
            tls: Tls {
                cert: both.clone(),
                key: both.clone(),
                client_ca: Some(both.clone()),
                ca: Some(folder.path().join("nowhere")),
            },
            tokens: both,
        };
        let mut found = ends(&config);
        found.sort();
        let [early, late] = YEARS.map(|seconds| UnixMillis(seconds * 1000));
        let expected = [("tls.cert", early), ("tls.client_ca", late)];
        assert_eq!(found, expected.map(|(key, end)| (key.to_owned(), end)));
    }
}
