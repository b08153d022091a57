//! Every figure against what the reference implementations gave: `vectors.json`, made by `tests/reference/make_score_vectors.py`.

use std::collections::BTreeMap;

use medfleet_score::metrics::auc::Ranked;
use medfleet_score::metrics::bleu::{self, Statistics, words_13a};
use medfleet_score::metrics::boxes::Rect;
use medfleet_score::metrics::multilabel::{Cell, Table, macro_f1, micro_f1};
use medfleet_score::metrics::radcliq::{SubScores, radcliq};
use medfleet_score::metrics::radgraph::{Graph, Rewards, radcliq_part, rewards};
use medfleet_score::metrics::rouge::{Words, rouge};
use medfleet_score::metrics::{answer, bootstrap};
use serde::Deserialize;

/// References compute in doubles too; only the order of sums differs.
const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Vectors {
    pairs: Vec<(String, String)>,
    bleu: Bleu,
    coco: Coco,
    rouge: Vec<BTreeMap<String, [f64; 3]>>,
    multilabel: Vec<Multilabel>,
    auc: Vec<Auc>,
    squad: Vec<Squad>,
    radgraph: Vec<Pair>,
    radcliq: Vec<Joined>,
    iou: Vec<Overlap>,
    quantile: Vec<Quantile>,
}

#[derive(Deserialize)]
struct Bleu {
    corpus: BTreeMap<String, [f64; 4]>,
    words: Vec<(Vec<String>, Vec<String>)>,
}

#[derive(Deserialize)]
struct Coco {
    five: [f64; 4],
    five_each_2: Vec<f64>,
    five_each_4: Vec<f64>,
    all_each_2: Vec<f64>,
}

#[derive(Deserialize)]
struct Multilabel {
    truth: Vec<Vec<u8>>,
    said: Vec<Vec<u8>>,
    precision: Vec<f64>,
    recall: Vec<f64>,
    f1: Vec<f64>,
    macro_f1: f64,
    micro_f1: f64,
    counts: Vec<[f64; 4]>,
}

#[derive(Deserialize)]
struct Auc {
    truth: Vec<u8>,
    scores: Vec<f64>,
    auc: f64,
    weights: Vec<f64>,
    weighted_auc: f64,
}

#[derive(Deserialize)]
struct Squad {
    said: String,
    truth: String,
    f1: f64,
}

#[derive(Deserialize)]
struct Pair {
    said: Graph,
    truth: Graph,
    rewards: Rewards,
    radcliq_part: f64,
}

#[derive(Deserialize)]
struct Joined {
    scores: SubScores,
    radcliq: f64,
}

#[derive(Deserialize)]
struct Overlap {
    boxes: [Rect; 2],
    iou: f64,
}

#[derive(Deserialize)]
struct Quantile {
    share: f64,
    value: f64,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../vectors.json"))
        .expect("the vectors are as their script wrote them")
}

#[track_caller]
fn close(found: f64, expected: f64, what: &str) {
    let difference = (found - expected).abs();
    assert!(
        difference <= TOLERANCE,
        "{what}: {found}, expected {expected}"
    );
}

fn summed<'a>(pairs: impl IntoIterator<Item = &'a (String, String)>) -> Statistics {
    let mut sum = Statistics::default();
    for (said, truth) in pairs {
        sum.add(&Statistics::of(said, truth), 1.0);
    }
    sum
}

#[test]
fn words_as_sacrebleu() {
    let vectors = vectors();
    for ((said, truth), expected) in vectors.pairs.iter().zip(&vectors.bleu.words) {
        assert_eq!(words_13a(said), expected.0, "{said}");
        assert_eq!(words_13a(truth), expected.1, "{truth}");
    }
}

#[test]
fn bleu_as_sacrebleu() {
    let vectors = vectors();
    let short = [("The".to_owned(), "The".to_owned())];
    let corpora = [
        ("all", summed(&vectors.pairs)),
        ("five", summed(&vectors.pairs[..5])),
        ("short", summed(&short)),
    ];
    for (name, statistics) in corpora {
        for order in 1..=4 {
            let expected = vectors.bleu.corpus[name][order - 1];
            close(
                bleu::corpus(&statistics, order),
                expected,
                &format!("BLEU-{order} of {name}"),
            );
        }
    }
}

#[test]
fn bleu_as_coco_caption() {
    let vectors = vectors();
    let each: Vec<Statistics> = vectors
        .pairs
        .iter()
        .map(|(said, truth)| Statistics::spaced(said, truth))
        .collect();
    let mut sum = Statistics::default();
    each[..5]
        .iter()
        .for_each(|statistics| sum.add(statistics, 1.0));
    for order in 1..=4 {
        close(
            bleu::coco(&sum, order),
            vectors.coco.five[order - 1],
            &format!("coco BLEU-{order}"),
        );
    }
    for (statistics, expected) in each.iter().zip(&vectors.coco.all_each_2) {
        close(bleu::coco(statistics, 2), *expected, "coco BLEU-2");
    }
    for (number, statistics) in each[..5].iter().enumerate() {
        close(
            bleu::coco(statistics, 2),
            vectors.coco.five_each_2[number],
            "coco BLEU-2",
        );
        close(
            bleu::coco(statistics, 4),
            vectors.coco.five_each_4[number],
            "coco BLEU-4",
        );
    }
}

/// `expected_scores_cpu.json` of RadEval: four digits.
#[test]
fn published_figures_of_radeval() {
    let pairs = &vectors().pairs[..5];
    let mut sum = Statistics::default();
    let mut rouges = [0.0; 3];
    for (said, truth) in pairs {
        sum.add(&Statistics::spaced(said, truth), 1.0);
        let rouge = rouge(said, truth, Words::Stemmed);
        for (total, value) in rouges.iter_mut().zip([rouge.one, rouge.two, rouge.longest]) {
            *total += value / 5.0;
        }
    }
    let bleus = [1, 2, 3, 4].map(|order| bleu::coco(&sum, order));
    let found = [
        bleus[0], bleus[1], bleus[2], bleus[3], rouges[0], rouges[1], rouges[2],
    ];
    let published = [0.1867, 0.1532, 0.1189, 0.0826, 0.3224, 0.26, 0.3224];
    for (found, published) in found.into_iter().zip(published) {
        assert!(
            (found - published).abs() < 5.1e-5,
            "{found}, published {published}"
        );
    }
}

#[test]
fn rouge_as_rouge_score() {
    let vectors = vectors();
    for ((said, truth), expected) in vectors.pairs.iter().zip(&vectors.rouge) {
        for (name, words) in [("whole", Words::Whole), ("stemmed", Words::Stemmed)] {
            let found = rouge(said, truth, words);
            let [one, two, longest] = expected[name];
            close(found.one, one, &format!("ROUGE-1 {name} of {said}"));
            close(found.two, two, &format!("ROUGE-2 {name} of {said}"));
            close(found.longest, longest, &format!("ROUGE-L {name} of {said}"));
        }
    }
}

#[test]
fn labels_as_scikit_learn() {
    for case in vectors().multilabel {
        let rows = case.truth.iter().zip(&case.said).map(|(truth, said)| {
            let cells = truth.iter().zip(said);
            cells
                .map(|(truth, said)| {
                    Some(Cell {
                        truth: *truth == 1,
                        said: *said == 1,
                    })
                })
                .collect()
        });
        let table = Table {
            labels: (0..case.f1.len()).map(|label| label.to_string()).collect(),
            rows: rows.collect(),
        };
        let counts = table.counts(&vec![1.0; case.truth.len()]);
        for (label, counts) in counts.iter().enumerate() {
            close(counts.precision(), case.precision[label], "precision");
            close(counts.recall(), case.recall[label], "recall");
            close(counts.f1(), case.f1[label], "F1");
            let found = [
                counts.true_negative,
                counts.false_positive,
                counts.false_negative,
                counts.true_positive,
            ];
            assert_eq!(found, case.counts[label]);
        }
        close(macro_f1(&counts).unwrap(), case.macro_f1, "macro F1");
        close(micro_f1(&counts).unwrap(), case.micro_f1, "micro F1");
    }
}

#[test]
fn areas_as_scikit_learn() {
    for case in vectors().auc {
        let scores = case.scores.iter().zip(&case.truth).enumerate();
        let ranked =
            Ranked::new(scores.map(|(record, (score, truth))| (record, *score, *truth == 1)));
        close(
            ranked.auc(&vec![1.0; case.truth.len()]).unwrap(),
            case.auc,
            "area",
        );
        close(
            ranked.auc(&case.weights).unwrap(),
            case.weighted_auc,
            "weighted area",
        );
    }
    let only = Ranked::new([(0, 0.5, true), (1, 0.6, true)]);
    assert_eq!(only.auc(&[1.0, 1.0]), None);
}

#[test]
fn token_f1_as_squad() {
    for case in vectors().squad {
        close(
            answer::token_f1(&case.said, &case.truth),
            case.f1,
            &case.said,
        );
    }
}

#[test]
fn rewards_as_radgraph() {
    for case in vectors().radgraph {
        let found = rewards(&case.said, &case.truth);
        close(found.simple, case.rewards.simple, "simple");
        close(found.partial, case.rewards.partial, "partial");
        close(found.complete, case.rewards.complete, "complete");
        close(
            radcliq_part(&case.said, &case.truth),
            case.radcliq_part,
            "RadCliQ's part",
        );
    }
}

#[test]
fn radcliq_as_its_formula() {
    for case in vectors().radcliq {
        close(radcliq(&case.scores), case.radcliq, "RadCliQ");
    }
}

#[test]
fn overlaps_as_counted_on_a_grid() {
    for case in vectors().iou {
        close(case.boxes[0].iou(&case.boxes[1]), case.iou, "IoU");
        close(case.boxes[1].iou(&case.boxes[0]), case.iou, "IoU");
    }
}

#[test]
fn quantiles_as_numpy() {
    for case in vectors().quantile {
        let found = bootstrap::quantile(&[0.0, 1.0, 4.0, 9.0, 16.0], case.share).unwrap();
        close(found, case.value, "quantile");
    }
}
