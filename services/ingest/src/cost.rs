//! What a job is expected to take, estimated at accept from what is known then: how many files, which task, how long a text.
//! Pure. The rates are settings: an operator takes them from the workers' own metrics.

use medfleet_core::setting::DurationText;
use medfleet_core::{Cost, PoolName, TaskKind};
use medfleet_proto::v1::DecodingParameters;

use crate::config::{CostConfig, Rates, Tokens};

/// The cost of a job of so many files.
pub(crate) fn estimate(
    config: &CostConfig,
    pool: &PoolName,
    task: TaskKind,
    files: u32,
    decoding: &DecodingParameters,
) -> Cost {
    let rates = config.pools.get(pool).unwrap_or(&config.rates);
    let tokens = if decoding.think {
        // What is thought before an answer has no usual length.
        decoding.max_tokens
    } else {
        usual(&config.tokens, task).min(decoding.max_tokens)
    };
    let Rates {
        preprocess_per_file,
        encode_per_frame,
        decode_per_frame,
        decode_per_token,
    } = rates;
    Cost {
        preprocess_millis: millis(*preprocess_per_file).saturating_mul(files),
        // Of a series a model is shown a part; preprocess says how many in the end.
        frames: files.min(config.frames_max),
        encode_millis_per_frame: millis(*encode_per_frame),
        decode_millis_per_frame: millis(*decode_per_frame),
        decode_millis: millis(*decode_per_token).saturating_mul(tokens),
    }
}

const fn usual(tokens: &Tokens, task: TaskKind) -> u32 {
    match task {
        TaskKind::Report => tokens.report,
        TaskKind::Answer => tokens.answer,
        TaskKind::Classify => tokens.classify,
        TaskKind::Localise => tokens.localise,
        TaskKind::Compare => tokens.compare,
        TaskKind::Extract => tokens.extract,
        TaskKind::Embed | TaskKind::ZeroShot => 0,
    }
}

fn millis(duration: DurationText) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use medfleet_core::Stage;

    use super::*;

    fn check(task: TaskKind, files: u32, decoding: DecodingParameters, expected: [u64; 3]) {
        let mut config = CostConfig::default();
        let rates = |encode| Rates {
            preprocess_per_file: DurationText::from_millis(10),
            encode_per_frame: DurationText::from_millis(encode),
            decode_per_frame: DurationText::from_millis(5),
            decode_per_token: DurationText::from_millis(2),
        };
        config.rates = rates(100);
        config.frames_max = 50;
        config.tokens.report = 300;
        let pool = |name: &str| PoolName::new(name).expect("a name");
        config.pools.insert(pool("slow"), rates(1_000));
        let of = |name: &str| {
            let pool = pool(name);
            let cost = estimate(&config, &pool, task, files, &decoding);
            [Stage::Preprocess, Stage::Encode, Stage::Decode].map(|stage| cost.at(stage))
        };
        assert_eq!(of("main"), expected);
        let [_, encode, _] = expected;
        assert_eq!(of("slow")[1], encode * 10);
    }

    #[test]
    fn files_task_and_tokens_make_the_cost() {
        let up_to = |max_tokens| DecodingParameters {
            max_tokens,
            ..DecodingParameters::default()
        };
        check(TaskKind::Report, 1, up_to(1024), [10, 100, 605]);
        check(TaskKind::Report, 1, up_to(100), [10, 100, 205]);
        // A series is cut to what a model is shown.
        check(TaskKind::Report, 400, up_to(100), [4_000, 5_000, 450]);
        check(TaskKind::Embed, 2, up_to(1024), [20, 200, 10]);
        let thinking = DecodingParameters {
            think: true,
            ..up_to(1024)
        };
        check(TaskKind::Report, 1, thinking, [10, 100, 2_053]);
    }
}
