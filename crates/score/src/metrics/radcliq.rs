//! RadCliQ-v1: four sub-scores of a report joined to one number; lower is better.
//!
//! Σ coefficient × (score − mean) / scale + intercept. Source: Yu et al., Patterns 4 (2023),
//! rajpurkarlab/CXR-Report-Metric@9c9ecad, with the numbers of its `radcliq-v1.pkl` as RadEval's `radcliq.py` spells them.
//! The weights of BLEU and of the intercept are nil but for rounding; they are kept.

use serde::{Deserialize, Serialize};

const MEANS: [f64; 4] = [0.537_923_12, 0.617_572_56, 0.764_794_21, 0.447_383_35];
const SCALES: [f64; 4] = [0.302_825_84, 0.224_309_38, 0.253_943_91, 0.298_927_17];
const COEFFICIENTS: [f64; 4] = [
    -0.377_083_683,
    -0.370_300_1,
    -0.252_616_218,
    4.315_048_41e-12,
];
const INTERCEPT: f64 = 2.466_552_56e-10;

/// What comes of models that this project doesn't ship: whoever runs them stores it beside the text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// BERTScore's F1 (distilroberta-base, rescaled, weighted by the references' word frequencies).
    pub bertscore: f64,
    /// Cosine of CheXbert's embeddings.
    pub chexbert: f64,
}

/// What RadCliQ is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SubScores {
    /// Mean of the F1 of RadGraph's entities and of its relations: [`super::radgraph::radcliq_part`].
    pub radgraph: f64,
    /// As [`Learned::bertscore`].
    pub bertscore: f64,
    /// As [`Learned::chexbert`].
    pub chexbert: f64,
    /// BLEU-2 of the sentence, as coco-caption: [`super::bleu::coco`].
    pub bleu2: f64,
}

/// The joined score of one report.
pub fn radcliq(scores: &SubScores) -> f64 {
    let given = [
        scores.radgraph,
        scores.bertscore,
        scores.chexbert,
        scores.bleu2,
    ];
    let terms = (0..4).map(|part| COEFFICIENTS[part] * (given[part] - MEANS[part]) / SCALES[part]);
    terms.sum::<f64>() + INTERCEPT
}
