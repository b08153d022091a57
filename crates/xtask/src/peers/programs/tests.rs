//! How programs are run and read, and what a round runs of them.

use super::*;

fn shell(script: &str, limit: Duration) -> Printed {
    within(Command::new("sh").args(["-c", script]), limit).unwrap()
}

#[test]
fn what_a_program_printed_before_it_was_stopped_counts() {
    // Where it was stopped before it came to print, it is given more time.
    let limits = [500, 5_000, 60_000].map(Duration::from_millis).into_iter();
    let mut tries = limits.map(|limit| shell("echo first; exec sleep 600", limit));
    let printed = tries.find(|printed| !printed.text.is_empty()).unwrap();
    assert_eq!(printed.text, "first\n");
    assert!(printed.late && printed.failed.is_some());
}

#[test]
fn a_program_that_fails_says_so_beside_what_it_printed() {
    let minute = Duration::from_secs(60);
    let printed = shell("echo first; exit 3", minute);
    assert_eq!(printed.text, "first\n");
    assert!(!printed.late && printed.failed.is_some());
    assert_eq!(shell("echo all", minute).failed, None);
}

#[test]
fn work_has_seconds_and_the_share_that_limits_it() {
    let time = serde_json::json!({"median_ms": 1500.0});
    let run = serde_json::json!({"work": [
        {"work": "step of 1", "clock": time, "processor": time, "share_of_peak": 0.1, "share_of_read": 0.8},
        {"work": "image encoded", "clock": time, "processor": time, "share_of_peak": 0.5, "share_of_read": null},
        {"work": "prompt read", "clock": time, "processor": time},
    ]});
    let works = works(&run).unwrap();
    let shares: Vec<Option<f64>> = works.iter().map(|work| work.share).collect();
    assert_eq!(shares, [Some(0.8), Some(0.5), None]);
    assert_eq!(works[0].seconds, [1.5, 1.5]);
}

#[test]
fn queued_work_says_how_many_reports_it_is() {
    let time = serde_json::json!({"median_ms": 60_000.0});
    let run = serde_json::json!({"work": [
        {"work": "report alone, 40 tokens", "jobs": null, "clock": time, "processor": time},
        {"work": "4 reports queued, 40 tokens", "jobs": 4, "clock": time, "processor": time},
    ]});
    let jobs = works(&run).unwrap().into_iter().map(|work| work.jobs);
    assert_eq!(jobs.collect::<Vec<_>>(), [None, Some(4)]);
}

#[test]
fn every_form_is_measured_through_a_fleet() {
    let options = ["--dtypes", "q8_0,bf16,f32", "--dir", "weights"];
    let programs = Programs {
        options: super::super::read(&options).unwrap(),
        python: PathBuf::new(),
    };
    let tasks = programs.tasks(Part::Reports);
    let of = |name: &str| -> Vec<&str> {
        let named = tasks.iter().filter(|task| task.program.name() == name);
        named.map(|task| task.dtype.as_str()).collect()
    };
    assert_eq!(of("medfleet"), ["q8_0", "bf16", "f32"]);
    assert_eq!(of("llama.cpp, as its server"), ["q8_0", "bf16"]);
    assert_eq!(of("transformers"), ["bf16", "f32"]);
}

#[test]
fn levels_take_turns_and_are_kept_apart() {
    let tasks = |part: Part, device: &str| {
        let options = [
            "--dtypes",
            "q8_0,bf16",
            "--device",
            device,
            "--dir",
            "weights",
        ];
        let programs = Programs {
            options: super::super::read(&options).unwrap(),
            python: PathBuf::new(),
        };
        let tasks = programs.tasks(part).into_iter();
        let ours = tasks.filter(|task| task.program.is_ours());
        // The device is the argument after its flag, or in a setting of the fleet.
        let of = |task: Task| {
            let command = programs.command(&task);
            let words: Vec<_> = command.get_args().map(|word| word.to_os_string()).collect();
            let setting = format!("model.device=\"{}\"", task.device);
            let told = words.iter().any(|word| *word == *task.device)
                || words.iter().any(|word| *word == *setting);
            assert!(told, "{task}: {words:?}");
            task.to_string()
        };
        ours.map(of).collect::<Vec<_>>()
    };
    // As they have always been called: what was measured before counts.
    let alone = ["medfleet q8_0", "medfleet bf16"];
    assert_eq!(tasks(Part::Models, "cpu"), alone);
    assert_eq!(
        tasks(Part::Models, "cpu,cpu:avx2"),
        [
            "medfleet q8_0",
            "medfleet, avx2 q8_0",
            "medfleet bf16",
            "medfleet, avx2 bf16"
        ]
    );
    let blocks = [
        "medfleet q8_0",
        "medfleet bf16",
        "medfleet, avx512-bfp bf16",
    ];
    assert_eq!(tasks(Part::Models, "cpu,cpu:avx512-bfp"), blocks);
    assert_eq!(tasks(Part::Reports, "cpu,cpu:avx512-bfp").len(), 4);
}

#[test]
fn small_images_are_measured_alone() {
    let options = [
        "--image-size",
        "448",
        "--what",
        "models",
        "--dir",
        "weights",
    ];
    let programs = Programs {
        options: super::super::read(&options).unwrap(),
        python: PathBuf::new(),
    };
    let tasks = programs.tasks(Part::Models).into_iter();
    let names: Vec<String> = tasks.map(|task| task.to_string()).collect();
    assert_eq!(
        names,
        [
            "medfleet bf16",
            "PyTorch bf16",
            "medfleet f32",
            "PyTorch f32",
            "llama.cpp images f16",
            "llama.cpp images q8_0"
        ]
    );
}

#[test]
fn reports_under_another_load_are_another_task() {
    let task = |jobs: usize| {
        let load = Load {
            jobs,
            tokens: 40,
            slots: 16,
        };
        let task = Task {
            program: Program::Fleet(load),
            dtype: "bf16".to_owned(),
            device: "cpu".to_owned(),
        };
        task.to_string()
    };
    assert_eq!(task(4), "medfleet 4 reports of 40 tokens in 16 slots bf16");
    assert_ne!(task(4), task(32));
}
