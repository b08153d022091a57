//! The loader: order of the sources, unknown keys, secrets, and errors that name the key and show no value.

use std::net::SocketAddr;

use medfleet_core::chain;
use medfleet_core::setting::{ByteSize, DurationText, Secret};
use serde::Deserialize;

use super::*;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sample {
    name: String,
    #[serde(default = "ten_seconds")]
    wait: DurationText,
    listen: Option<SocketAddr>,
    store: Option<Store>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Store {
    blob_bytes_max: ByteSize,
    slots: Option<u32>,
    key: Option<Secret>,
    backend: Option<Backend>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Backend {
    Folder { path: PathBuf },
}

fn ten_seconds() -> DurationText {
    DurationText::from_secs(10)
}

struct Case {
    folder: tempfile::TempDir,
    sources: Sources,
}

fn case(file: &str, environment: &[(&str, &str)], overrides: &[&str]) -> Case {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("medfleet.toml");
    std::fs::write(&path, file).expect("writes the file");
    let environment = environment
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
    let sources = Sources {
        file: Some(path),
        environment: environment.collect(),
        overrides,
    };
    Case { folder, sources }
}

fn error(file: &str, environment: &[(&str, &str)], overrides: &[&str]) -> String {
    let case = case(file, environment, overrides);
    let error = load::<Sample>(&case.sources).expect_err("the configuration is wrong");
    chain(&error).replace(&case.folder.path().display().to_string(), "")
}

#[test]
fn flags_beat_environment_beats_file() {
    let file = "name = 'a'\nwait = '1s'\n[store]\nblob_bytes_max = '1MiB'\nslots = 1\n";
    let environment = [
        ("MEDFLEET_STORE__SLOTS", "2"),
        ("MEDFLEET_NAME", "b"),
        ("HOME", "x"),
    ];
    let case = case(
        file,
        &environment,
        &[
            "name=c",
            "store.backend.kind=folder",
            "store.backend.path=/x",
        ],
    );
    let sample = load::<Sample>(&case.sources).expect("loads");
    assert_eq!(sample.name, "c");
    assert_eq!(sample.wait, DurationText::from_secs(1));
    let store = sample.store.expect("has a store");
    assert_eq!(
        (store.slots, store.blob_bytes_max),
        (Some(2), ByteSize::from_mib(1))
    );
    assert_eq!(store.backend, Some(Backend::Folder { path: "/x".into() }));
}

#[test]
fn defaults_apply_and_other_variables_are_left_alone() {
    let environment = [
        ("MEDFLEET_TOKEN", "t"),
        ("MEDFLEET_CONTAINERS", "must"),
        ("MEDFLEET_TEST_NATS", "x"),
        ("MEDFLEET_NAME", "a"),
    ];
    let case = case("", &environment, &[]);
    let sample = load::<Sample>(&case.sources).expect("loads");
    assert_eq!((sample.name.as_str(), sample.wait), ("a", ten_seconds()));
}

#[test]
fn errors_name_the_key_and_its_origin() {
    let good = "name = 'a'\n";
    assert_eq!(
        error("name = 'a'\nnmae = 'b'\n", &[], &[]),
        "/medfleet.toml: unknown key nmae; allowed here: name, wait, listen, store"
    );
    assert_eq!(
        error(
            good,
            &[("MEDFLEET_STORE__SLOT", "1")],
            &["store.blob_bytes_max=1MiB"]
        ),
        "variable MEDFLEET_STORE__SLOT: unknown key store.slot; allowed here: blob_bytes_max, slots, key, backend"
    );
    assert_eq!(
        error("", &[], &[]),
        "missing key name: set it in the file of --config, or by --set name=…"
    );
    assert_eq!(
        error(good, &[("MEDFLEET_STORE__SLOTS", "1")], &[]),
        "missing key store.blob_bytes_max: set it in the file of --config, or by --set store.blob_bytes_max=…"
    );
    assert_eq!(
        error(good, &[], &["wait=ten"]),
        "flag wait: wait: a duration is a whole number with one of the units ms, s, m, h, d, such as 30s"
    );
    assert_eq!(error(good, &[], &["name"]), "override 1 is not KEY=VALUE");
    assert_eq!(
        error(good, &[], &["name=b", "a..b=c"]),
        "override 2 is not KEY=VALUE"
    );
    assert!(error("name = 'a'\nwait = = 1\n", &[], &[]).starts_with("/medfleet.toml, line 2: "));
}

#[test]
fn what_is_expected_is_told_in_the_words_of_a_configuration() {
    let check = |setting: &str, expected: &str| {
        let text = error("name = 'a'\n", &[], &["store.blob_bytes_max=1MiB", setting]);
        assert!(text.contains(&format!(": expected {expected}")), "{text}");
    };
    check("wait=10", "a duration such as 30s, found a whole number");
    check(
        "store.blob_bytes_max=64",
        "a size such as 512MiB, found a whole number",
    );
    check("name=1", "a text, found a whole number");
    check("store=1", "a table, found a whole number");
    check("store.backend=x", "a table, found a text");
    check(
        "store.slots=many",
        "a whole number from 0 to 4294967295, found a text",
    );
    check("store.slots=-1", "a whole number from 0 to 4294967295");
    check(
        "listen=localhost:8443",
        "an IP address with its port, such as 127.0.0.1:8443",
    );
    check(
        "listen=8443",
        "an IP address with its port, such as 127.0.0.1:8443, found a whole number",
    );
}

#[test]
fn a_missing_file_is_named() {
    let sources = Sources {
        file: Some("nowhere/medfleet.toml".into()),
        ..Sources::default()
    };
    let error = load::<Sample>(&sources).expect_err("there is no file");
    assert!(error.to_string().contains("nowhere/medfleet.toml"));
}

#[test]
fn secrets_come_from_text_or_file_and_never_show() {
    let base = "name = 'a'\n[store]\nblob_bytes_max = '1MiB'\n";
    let mut case = case(base, &[], &[]);
    let file = case.folder.path().join("key");
    std::fs::write(&file, "from-a-file\n").expect("writes the secret");
    let variable = "MEDFLEET_STORE__KEY__FILE".to_owned();
    case.sources
        .environment
        .insert(variable, file.display().to_string());
    let sample = load::<Sample>(&case.sources).expect("loads");
    let printed = print(&sample).expect("prints");
    assert!(printed.contains("key = \"[hidden]\""), "{printed}");
    assert!(!format!("{sample:?}").contains("from-a-file"));
    let key = sample.store.and_then(|store| store.key).expect("has a key");
    assert_eq!(key.expose(), "from-a-file");
}

#[test]
fn no_error_shows_a_value() {
    let base = "name = 'a'\n[store]\nblob_bytes_max = '1MiB'\n";
    let check = |file: &str, overrides: &[&str]| {
        let text = error(file, &[], overrides);
        assert!(!text.contains("31337"), "{text}");
    };
    check(base, &["store.key=31337"]);
    check(base, &["store.slots=\"31337\""]);
    check(base, &["store.slots=31337.5"]);
    check(base, &["store.key=[31337]"]);
    check(base, &["store.blob_bytes_max=31337"]);
    check(base, &["31337"]);
    check(&format!("{base}key = \"31337\nslots = 1\n"), &[]);
    check(base, &["store.backend.kind=31337x"]);
}

#[test]
fn the_secret_file_must_be_there() {
    let base = "name = 'a'\n[store]\nblob_bytes_max = '1MiB'\nkey = { file = 'nowhere' }\n";
    let text = error(base, &[], &[]);
    assert!(
        text.starts_with("store.key: cannot read the file it names: "),
        "{text}"
    );
}

#[test]
fn the_schema_lists_the_settings() {
    let schema = schema::<Sample>();
    assert_eq!(schema["additionalProperties"], false);
    let settings = &schema["properties"];
    assert_eq!(settings["name"]["type"], "string");
    assert_eq!(settings["wait"]["default"], "10s");
    let store = &settings["store"];
    assert_eq!(store["type"], "object", "{schema}");
    assert_eq!(store["properties"]["slots"]["type"], "integer", "{schema}");
    assert!(!schema.to_string().contains("null"), "{schema}");
}
