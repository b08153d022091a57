//! Which settings go together, what a load makes of them, and what is said of a model that does not load.

use super::*;

fn read(text: &str) -> Result<ModelConfig, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

fn folder(rest: &str) -> String {
    format!("kind = 'folder'\npath = '/m'\ndtype = 'f32'\n{rest}")
}

fn gguf(rest: &str) -> String {
    format!("kind = 'gguf'\npath = '/m.gguf'\nvision = '/v'\ndtype = 'bf16'\n{rest}")
}

#[test]
fn a_form_that_is_not_known_is_refused_with_those_that_are() {
    for text in [
        folder(""),
        folder("weights = 'q8_0'"),
        gguf("weights = 'stored'"),
    ] {
        assert!(read(&text).expect("is known").check().is_ok(), "{text}");
    }
    for (text, allowed) in [
        (folder("weights = 'q5_0'"), "q8_0"),
        (folder("weights = 'stored'"), "q8_0"),
        (gguf("weights = 'q8_0'"), "stored"),
        (
            "kind = 'gguf'\npath = '/m.gguf'\ndtype = 'f32'".to_owned(),
            "vision",
        ),
    ] {
        let error = read(&text).expect_err("is not known");
        assert!(error.contains(allowed), "{error}");
    }
}

#[test]
fn a_second_model_is_loaded_as_the_first_one_is_where_it_can_be_of_use() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
    let tiny = |rest: &str| {
        let text = format!("kind = 'folder'\npath = '{root}/tiny'\ndtype = 'f32'\n{rest}");
        read(&text).expect("is known")
    };
    let load = |config: ModelConfig, draft: &str| {
        let loaded = config.load_with_draft(Half::Decode, Some(Path::new(draft)));
        loaded.map(|loaded| loaded.description().clone())
    };
    let (itself, nowhere) = (format!("{root}/tiny"), format!("{root}/nowhere"));
    let quantised = load(tiny("weights = 'q8_0'"), &itself).expect("both load");
    assert_eq!(quantised.weights, "q8_0");
    let EngineError::Model(reason) = load(tiny(""), &nowhere).expect_err("nothing is there") else {
        panic!("another error");
    };
    assert!(reason.to_string().contains(&nowhere), "{reason}");
    // Not even looked at where nothing is ever proposed.
    assert!(load(tiny("device = 'cpu:generic'"), &nowhere).is_ok());
    let simulated = read("kind = 'simulated'").expect("is known");
    let EngineError::Model(reason) = load(simulated, &itself).expect_err("no tokens") else {
        panic!("another error");
    };
    assert!(
        reason.to_string().contains("a model that writes text"),
        "{reason}"
    );
}

#[test]
fn threads_are_pinned_where_that_is_asked_for_and_a_start_says_where_they_cannot_be() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/tiny");
    // Of two sizes at most one is the number of cores.
    for threads in [1, 2] {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = builder.build().expect("threads can be started");
        let load = |rest: &str| {
            let text = format!("kind = 'folder'\npath = '{root}'\ndtype = 'f32'\n{rest}");
            let config = read(&text).expect("is known");
            pool.install(|| config.load(Half::Encode)).map(|_| ())
        };
        assert!(load("").is_ok());
        let asked = load("pin_threads = true");
        let possible = pool.install(medfleet_model::pin_threads);
        assert_eq!(asked.is_ok(), possible.is_ok(), "{asked:?}");
        if let Err(error) = asked {
            let said = medfleet_core::chain(&error);
            assert!(said.contains("model.pin_threads is set"), "{said}");
            assert!(said.contains("one core for each thread"), "{said}");
        }
    }
}

#[test]
fn threads_are_pinned_for_cpus() {
    let check = |text: String| read(&text).expect("is known").check();
    let pin = "pin_threads = true\n";
    for device in ["cpu", "cpu:generic"] {
        let rest = format!("{pin}device = '{device}'");
        assert_eq!(check(folder(&rest)), Ok(()));
        assert_eq!(check(gguf(&rest)), Ok(()));
    }
    for device in ["cuda:1", "metal:0"] {
        let rest = format!("{pin}device = '{device}'");
        for error in [check(folder(&rest)), check(gguf(&rest))] {
            let error = error.expect_err("no thread of ours computes").to_string();
            assert!(error.contains("model.pin_threads"), "{error}");
            assert!(error.contains(device), "{error}");
        }
    }
}

#[test]
fn a_model_that_does_not_load_is_named_by_its_place() {
    let nowhere = concat!(env!("CARGO_MANIFEST_DIR"), "/nowhere");
    let folder = format!("kind = 'folder'\npath = '{nowhere}'\ndtype = 'f32'");
    let file = format!("kind = 'gguf'\npath = '{nowhere}'\nvision = '{nowhere}'\ndtype = 'f32'");
    for text in [folder, file] {
        let loaded = read(&text).expect("is known").load(Half::Both);
        let EngineError::Model(reason) = loaded.expect_err("nothing is there") else {
            panic!("another error");
        };
        assert!(reason.to_string().contains(nowhere), "{reason}");
        assert!(reason.source().is_some(), "{reason} keeps its cause");
    }
}

#[test]
fn what_is_not_made_is_not_kept() {
    let keep = "quantised_cache = '/c'\n";
    let check = |text: String| read(&text).expect("is known").check();
    assert_eq!(check(folder(&format!("{keep}weights = 'q8_0'"))), Ok(()));
    let error = check(folder(keep)).expect_err("nothing is quantised");
    assert_eq!(error, ModelConfigError::NothingToKeep);
    assert!(read(&gguf(keep)).is_err(), "it is stored quantised");
}

#[test]
fn quantised_weights_are_for_cpus() {
    let check = |text: String, good: bool| {
        let checked = read(&text).expect("is known").check();
        assert_eq!(checked.is_ok(), good, "{text}");
        if let Err(error) = checked {
            let error = error.to_string();
            assert!(error.contains("model.weights is"), "{error}");
        }
    };
    for (device, good) in [
        ("cpu", true),
        ("cpu:portable", true),
        ("cpu:generic", false),
        ("cuda:1", false),
        ("metal", false),
    ] {
        let device = format!("device = '{device}'\n");
        check(folder(&format!("{device}weights = 'q8_0'")), good);
        check(gguf(&format!("{device}weights = 'stored'")), good);
        check(folder(&device), true);
        check(gguf(&device), true);
    }
}
