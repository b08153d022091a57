//! What is refused before anything starts.

use super::*;

fn refused(setting: &str) -> String {
    let config = sample::with(&[setting]);
    let refused = config.check().expect_err(setting);
    refused.to_string()
}

#[test]
fn nothing_is_looked_at_without_a_pause() {
    sample::with(&[]).check().expect("the defaults are good");
    for key in [
        "tokens_reload",
        "accept.sweep_every",
        "watch.reread_every",
        "watch.checkpoint_every",
        "dispatcher.recount_every",
        "dispatcher.expire_every",
    ] {
        let said = refused(&format!("{key}=0s"));
        assert!(said.contains(&format!("ingest.{key} must be")), "{said}");
    }
}

#[test]
fn limits_that_let_nothing_in_are_refused() {
    for (key, nothing) in [
        ("uploads_max", "0"),
        ("watches_max", "0"),
        ("upload_idle_max", "0s"),
        ("upload_time_to_live", "0s"),
    ] {
        let said = refused(&format!("limits.{key}={nothing}"));
        assert!(said.contains(key) && said.contains("must be"), "{said}");
    }
}

#[test]
fn a_number_beyond_its_limits_is_refused_without_a_process_around_it() {
    for (setting, expected) in [
        (
            "watch.signals_max=1",
            "watch.signals_max must be 2 to 65536",
        ),
        (
            "limits.images_max=65537",
            "limits.images_max must be 1 to 65536",
        ),
        (
            "limits.text_bytes_max=513KiB",
            "limits.text_bytes_max must be at most 512KiB",
        ),
        (
            "dispatcher.releases_max=0",
            "dispatcher.releases_max must be at least 1",
        ),
        ("quotas.default.open_jobs_max=0", "a quota is at least 1"),
        (
            "quotas.default.stored_bytes_max=0B",
            "a quota is at least 1",
        ),
    ] {
        let said = refused(setting);
        assert!(
            said.starts_with("ingest.") && said.contains(expected),
            "{said}"
        );
    }
}

#[test]
fn what_is_taken_in_can_be_stored() {
    let with = |largest: &str| {
        let largest = format!("store.blob_bytes_max={largest}");
        let config: MainConfig = sample::of(&[
            "store.backend={kind=\"folder\", path=\"blobs\"}",
            "store.key=a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
            "ingest.tokens=tokens.toml",
            "ingest.default_model=tiny",
            "ingest.models.tiny=tiny-here",
            largest.as_str(),
        ]);
        Settings::check(&config)
    };
    with("4MiB").expect("a part fits");
    let refused = with("3MiB").expect_err("a part does not fit").to_string();
    assert!(
        refused.contains("store.blob_bytes_max must be"),
        "{refused}"
    );
}
