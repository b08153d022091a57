//! What the flags of `up` decide, and where clients find it.

use super::*;
use medfleet_engine::{FolderWeights, GgufWeights, ModelConfig, ModelDtype};
use medfleet_runtime::config;

use crate::command::parsed;

fn args(words: &[&str]) -> Args {
    parsed(words).expect("the flags exist")
}

#[test]
fn clients_on_this_machine_get_an_address_they_can_reach() {
    let check = |api: &str, secure, expected: &str| {
        assert_eq!(url(api.parse().expect("an address"), secure), expected);
    };
    check("127.0.0.1:8443", false, "http://127.0.0.1:8443");
    check("0.0.0.0:1", true, "https://127.0.0.1:1");
    check("[::]:1", false, "http://[::1]:1");
}

#[test]
fn an_alias_is_made_of_the_folders_name() {
    let check = |folder: Option<&str>, expected: &str| {
        assert_eq!(alias(folder.map(Path::new), false), expected);
        assert!(pool(&alias(folder.map(Path::new), false)).is_ok());
    };
    check(None, "simulated");
    check(Some("deploy/tiny"), "tiny");
    check(Some("/models/MedGemma-1.5_4b it/"), "medgemma-1-5-4b-it");
    check(Some("/"), "model");
    check(
        Some("/models/a-very-long-name-of-a-model-folder"),
        "a-very-long-name-of-a-mo",
    );
    check(Some("/models/gemma-3.Q8_0.gguf"), "gemma-3-q8-0");
    let quantised = |model: &str, expected: &str| {
        assert_eq!(alias(Some(Path::new(model)), true), expected);
        assert!(pool(expected).is_ok());
    };
    quantised("deploy/tiny", "tiny-q8-0");
    quantised("/models/gemma-3.Q8_0.gguf", "gemma-3-q8-0-stored");
    quantised(
        "/models/a-very-long-name-of-a-model-folder",
        "a-very-long-name-of-q8-0",
    );
}

/// The settings of `up` with these flags, loaded and checked as the process does it.
fn loaded(words: &[&str]) -> Result<FleetConfig> {
    use medfleet_runtime::Settings;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let data = Data::open(&folder.path().join("data"))?;
    let token = LocalToken::open(&data, &SystemRandom)?;
    let args = args(words);
    let sources = Sources {
        overrides: args.process.set.clone(),
        ..Sources::default()
    };
    let places = Places::made(&data, &token)?;
    let overrides = settings(&args, &Given::new(&sources), &places)?;
    let config: FleetConfig = config::load(&Sources {
        overrides,
        ..Sources::default()
    })?;
    config.check()?;
    Ok(config)
}

#[test]
fn a_simulated_fleet_needs_no_configuration() {
    let config = loaded(&[
        "--simulate",
        "--address",
        "127.0.0.1:0",
        "--nats",
        "nats://n:4222",
    ])
    .expect("loads");
    assert_eq!(config.ingest.listen.port(), 0);
    assert_eq!(config.queue.urls, ["nats://n:4222"]);
    assert_eq!(config.decode.pool.as_str(), "simulated-local");
}

#[test]
fn a_frame_side_is_refused_by_the_name_of_who_said_it() {
    for key in ["model.frame_side", "preprocess.frame_side"] {
        let large = format!("{key}=4097");
        let refused = loaded(&[
            "--simulate",
            "--nats",
            "nats://n:4222",
            "--set",
            large.as_str(),
        ]);
        let said = refused.expect_err("too large").to_string();
        assert!(said.starts_with(key) && said.contains("4097"), "{said}");
    }
}

#[test]
fn who_looks_at_the_configuration_writes_nothing_and_needs_no_server() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let parent = folder.path().join("parent");
    let path = |name: &str| parent.join(name).display().to_string();
    // Without a nats-server in it.
    let (data, cache) = (path("data"), path("cache"));
    let places = ["--data", data.as_str(), "--cache", cache.as_str()];
    let look = |more: &[&str]| {
        let words = [&places[..], more].concat();
        run(args(&words))
    };
    for flag in ["--check-config", "--print-config", "--print-schema"] {
        let looked = look(&["--simulate", flag]).expect(flag);
        assert_eq!(looked, Exit::Service(0), "{flag}");
    }
    // The schema is the same for every model.
    let shown = look(&["--print-schema"]).expect("it is shown");
    assert_eq!(shown, Exit::Service(0));
    look(&["--check-config"]).expect_err("there is no model");
    let look = |more: &[&str]| {
        let words = [&["--simulate"][..], more].concat();
        look(&words).expect("it is looked at")
    };
    let tls = "encode.tls={cert=\"tls.crt\",key=\"tls.key\"}";
    let wrong = ["--check-config", "--set", tls];
    assert_eq!(look(&wrong), Exit::Service(2));
    // Of the model's frames too, where it says how large they are.
    for key in ["model.frame_side", "preprocess.frame_side"] {
        let large = format!("{key}=4097");
        let wrong = ["--check-config", "--set", large.as_str()];
        assert_eq!(look(&wrong), Exit::Service(2), "{large}");
    }
    let left = std::fs::read_dir(folder.path()).expect("is listed").count();
    assert_eq!(left, 0, "nothing was made");
}

#[test]
fn what_is_looked_at_is_what_is_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = std::fs::canonicalize(folder.path()).expect("is there");
    let data = Data::open(&root.join("data")).expect("opens");
    let token = LocalToken::open(&data, &SystemRandom).expect("is made");
    let made = Places::made(&data, &token).expect("are made");
    // Also while the fleet runs.
    assert_eq!(Places::named(data.root()).expect("are named"), made);
}

#[test]
fn an_embedder_has_an_alias_and_a_pool_of_its_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("MedSigLIP");
    std::fs::create_dir(&path).expect("a folder");
    let path = path.to_str().expect("Unicode");
    let config = loaded(&["--simulate", "--embedder", path]).expect("loads");
    let pool = config.ingest.embedders.get("medsiglip").expect("its alias");
    assert_eq!(pool.as_str(), "medsiglip-local");
    assert_eq!(config.embedder.expect("it is set").pool, *pool);
    assert_eq!(config.decode.pool.as_str(), "simulated-local");
    let same = loaded(&["--model", path, "--embedder", path]).expect_err("one alias for two");
    assert!(same.to_string().contains("medsiglip"), "{same}");
}

#[test]
fn a_model_is_held_as_the_flags_say() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = |name: &str| folder.path().join(name).display().to_string();
    let (dir, file) = (of("Folder"), of("text.gguf"));
    std::fs::create_dir(&dir).expect("a folder");
    std::fs::write(&file, b"").expect("a file");
    let (dir, file) = (dir.as_str(), file.as_str());
    let config = loaded(&["--model", dir, "--quantised"]).expect("loads");
    let ModelConfig::Folder { weights, dtype, .. } = config.model else {
        panic!("{:?}", config.model);
    };
    assert_eq!((weights, dtype), (FolderWeights::Q8_0, ModelDtype::F32));
    assert_eq!(config.decode.pool.as_str(), "folder-q8-0-local");
    let words = ["--model", file, "--vision", dir, "--quantised"];
    let config = loaded(&words).expect("loads");
    let ModelConfig::Gguf {
        weights, vision, ..
    } = &config.model
    else {
        panic!("{:?}", config.model);
    };
    assert_eq!(*weights, GgufWeights::Stored);
    assert!(vision.ends_with("Folder"), "{}", vision.display());
    assert_eq!(config.decode.pool.as_str(), "text-stored-local");
    let set = format!("model.vision=\"{dir}\"");
    assert!(loaded(&["--model", file, "--set", &set]).is_ok());
    for (words, said) in [
        (vec!["--model", file], "with --vision"),
        (vec!["--model", dir, "--vision", dir], "goes with a .gguf"),
        (
            vec!["--model", dir, "--quantised", "--set", "model.device=cuda"],
            "multiplied by the kernels of CPUs",
        ),
    ] {
        let error = loaded(&words).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// The settings of `up` with a model's folder of this config.json.
fn of_model(config: &str) -> FleetConfig {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), config).expect("a file");
    let path = folder.path().to_str().expect("Unicode");
    loaded(&["--model", path]).expect("loads")
}

#[test]
fn a_model_is_computed_in_what_its_weights_are_in() {
    let check = |config: &str, expected: ModelDtype| {
        let ModelConfig::Folder { dtype, .. } = of_model(config).model else {
            panic!("{config}");
        };
        assert_eq!(dtype, expected, "{config}");
    };
    check(r#"{"torch_dtype": "bfloat16"}"#, ModelDtype::Bf16);
    check(r#"{"dtype": "bfloat16"}"#, ModelDtype::Bf16);
    check(r#"{"dtype": "float32"}"#, ModelDtype::F32);
    // Gemma 3 overflows it.
    check(r#"{"dtype": "float16"}"#, ModelDtype::F32);
    check("{}", ModelDtype::F32);
    // A fleet takes its embeddings in nothing else.
    let siglip = r#"{"model_type": "siglip", "dtype": "bfloat16"}"#;
    check(siglip, ModelDtype::F32);
}

/// MedGemma 4B's, as the hub has it: class defaults left out.
const MEDGEMMA_4B: &str = r#"{
  "model_type": "gemma3", "torch_dtype": "bfloat16", "mm_tokens_per_image": 256,
  "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false}
}"#;

#[test]
fn a_volume_and_a_slide_fit_beside_the_longest_text_by_default() {
    let config = of_model(MEDGEMMA_4B);
    let shape = medfleet_model::Config::parse(MEDGEMMA_4B, None).expect("is known");
    let (text, limits) = (config.ingest.limits.max_tokens_max, config.decode.limits());
    let kv_bytes_max = config.decode.kv_bytes_max.get();
    let check = |images: u32, dtype: Dtype| {
        let tokens = medfleet_engine::prompt_tokens(images, 256, text);
        let tokens = usize::try_from(tokens).expect("is small");
        let bytes = medfleet_engine::kv_bytes_of(&shape, tokens, limits.prefill_tokens_max, dtype);
        assert!(
            bytes as u64 <= kv_bytes_max,
            "{images} images in {dtype}: {bytes} bytes of {kv_bytes_max}"
        );
    };
    for dtype in [Dtype::Bf16, Dtype::F32] {
        check(85, dtype);
        check(126, dtype);
    }
    check(config.preprocess.frames_max, Dtype::Bf16);
}

#[test]
fn a_draft_model_switches_proposing_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("Unicode");
    let without = loaded(&["--model", path]).expect("loads");
    assert!(without.decode.limits().speculation.is_none());
    let with = loaded(&["--model", path, "--draft", path]).expect("loads");
    assert!(with.decode.limits().speculation.is_some());
    let draft = with.decode.draft().expect("it is named");
    assert_eq!(draft, opened(folder.path()).expect("it is there"));
    let error = loaded(&["--model", path, "--draft", "/nowhere/draft"])
        .expect_err("there is no such folder")
        .to_string();
    assert!(error.contains("/nowhere/draft"), "{error}");
}

#[test]
fn what_the_operator_sets_stays() {
    let words = [
        "--simulate",
        "--set",
        "decode.pool=other",
        "--set",
        "process.telemetry.log_format=json",
    ];
    let config = loaded(&words).expect("loads");
    assert_eq!(config.decode.pool.as_str(), "other");
    assert_eq!(config.encode.pool.as_str(), "simulated-local");
}

#[test]
fn an_encoder_with_a_certificate_is_known_by_it() {
    let tls = "encode.tls={cert=\"tls.crt\",key=\"tls.key\"}";
    let known = "decode.fetch_tls={ca=\"ca.crt\"}";
    for alone in [tls, known] {
        let error = loaded(&["--simulate", "--set", alone]).expect_err("one without the other");
        assert!(error.to_string().contains("or neither"), "{error}");
    }
    assert!(loaded(&["--simulate", "--set", tls, "--set", known]).is_ok());
    let unasked = "decode.fetch_timeout=0ms";
    assert!(loaded(&["--simulate", "--set", tls, "--set", unasked]).is_ok());
}

#[test]
fn no_model_is_said_with_what_to_do() {
    let error = loaded(&[]).expect_err("there is no model").to_string();
    assert!(
        error.contains("--model DIR") && error.contains("--simulate"),
        "{error}"
    );
    let error = loaded(&["--model", "/nowhere/model"])
        .expect_err("there is no such folder")
        .to_string();
    assert!(error.contains("/nowhere/model"), "{error}");
}
