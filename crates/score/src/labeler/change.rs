//! What a report says became of each finding since the picture before.
//!
//! By rules, as the rest of the labeler: words of change are found (a table), and each belongs to the findings of its clause
//! that it is said of ("the left effusion is larger") or that it describes ("larger left effusion"). Of several, what a verb
//! says of a finding wins over what describes it, and the nearer over the farther. The first statement on a finding counts. A
//! finding that the text negates has changed only if it is said to be gone; "no change" without a finding is of all findings.

use super::cues::{self, Cue, Makes, Reach};
use super::label::Label;
use super::pattern::match_at;
use super::phrases::{self, Found, Says};
use super::{Status, scope, side, text};
use crate::record::{Change, Side};

/// What a report says of one finding's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub label: Label,
    /// Its side, if any is named.
    pub side: Option<Side>,
    pub change: Change,
}

/// What a report says of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Of each finding, in order; none twice.
    pub statements: Vec<Statement>,
    /// Whether it says of the whole picture that nothing has changed.
    pub same: bool,
}

/// Words of change; nothing where the words only look so. The longest match at a word wins.
const TABLE: &[(Option<Change>, &[&str])] = &[
    (
        Some(Change::New),
        &[
            "new|newly",
            "developed|appeared",
            "development|appearance of new",
            "interval development of",
        ],
    ),
    (
        Some(Change::Worse),
        &[
            "worse|worsened|worsening of?",
            "larger|bigger|enlarging",
            "increased|increasing in? size|extent?",
            "increase in|of",
            "progressed|progressing|progression of?",
            "more extensive|prominent|severe|conspicuous",
        ],
    ),
    (
        Some(Change::Better),
        &[
            "better|improved|improving",
            "smaller",
            "decreased|decreasing|reduced in? size|extent?",
            "decrease|reduction|improvement in|of",
            "diminished|regressed|resolving|clearing",
            "less extensive|prominent|severe|conspicuous",
            "nearly|almost|partially|partly|incompletely|largely|mostly resolved|cleared",
            "near|nearly|almost complete|total? resolution of",
            "incomplete|partial resolution of",
        ],
    ),
    (
        Some(Change::Unchanged),
        &[
            "unchanged|stable|constant|persistent|persists",
            "similar|same in? size|extent?",
            "no|without any? significant|interval|appreciable|substantial|relevant|further|major|marked|short|important? interval|term? change|changes in|of?",
            "no|without any? significant|interval|appreciable|substantial|relevant|further|major|marked? interval? increase|decrease|progression|improvement|worsening|reduction in|of?",
            "not significantly|substantially|appreciably|much|markedly? changed|increased|decreased|improved|worsened|progressed|better|worse|larger|smaller",
            "not yet|fully|completely|entirely? resolved|cleared|removed",
            "no|without resolution of",
        ],
    ),
    (
        Some(Change::Resolved),
        &[
            "resolved|cleared|removed|disappeared|gone",
            "complete|interval? resolution|removal of",
            "no longer clearly? seen|identified|visualised|visualized|present|evident|appreciated|demonstrated|apparent|noted|detected|visible?",
        ],
    ),
    (None, &["no|not|without any? new|newly"]),
];

/// "No change", of whatever the clause is of.
const SAME: &str = "no|without any? significant|interval|appreciable|substantial|relevant|important|short? interval|term? change|changes";

/// Words between a verb and what it says.
const BETWEEN: &[&str] = &[
    "also",
    "be",
    "been",
    "being",
    "completely",
    "entirely",
    "essentially",
    "fully",
    "further",
    "markedly",
    "mildly",
    "minimally",
    "moderately",
    "much",
    "now",
    "significantly",
    "since",
    "slightly",
    "somewhat",
    "substantially",
];

/// Words of change at a place.
struct Word {
    change: Change,
    cue: Cue,
    before: Before,
}

/// How words stand to what goes before them.
#[derive(Clone, Copy)]
struct Before {
    /// Where they begin, with the words that belong to them: "slightly larger".
    start: usize,
    /// Whether they say something of it, rather than describe what follows.
    said: bool,
    /// Whether they do so with a verb.
    verb: bool,
}

/// Reads what a report says of changes.
pub fn compare(report: &str) -> Comparison {
    let mut comparison = Comparison::default();
    for sentence in text::sentences(report) {
        for clause in text::clauses(&sentence) {
            read_clause(clause, &mut comparison);
        }
    }
    comparison
}

fn read_clause(words: &[String], into: &mut Comparison) {
    let found = phrases::find(words);
    into.same |= found.is_empty() && says_same(words);
    let sides = side::sides(words, &found);
    let negations = cues::find(words);
    let changes = changes_of(words, &found);
    for ((phrase, side), change) in found.iter().zip(sides).zip(changes) {
        let Some(change) = change else { continue };
        let status = scope::status(words, &negations, phrase.start..phrase.end);
        let absent = status == Status::Negative && change != Change::Resolved;
        if absent || phrase.entry.says != Says::There {
            continue;
        }
        for label in phrase.entry.labels.iter().copied() {
            let mut before = into.statements.iter();
            if !before.any(|other| other.label == label && other.side == side) {
                into.statements.push(Statement {
                    label,
                    side,
                    change,
                });
            }
        }
    }
}

fn says_same(words: &[String]) -> bool {
    (0..words.len()).any(|start| {
        let end = match_at(SAME, words, start);
        end.is_some_and(|end| {
            let next = words.get(end).map(String::as_str);
            !matches!(next, Some("in" | "of" | "to"))
        })
    })
}

/// What is said of each phrase of a clause.
fn changes_of(words: &[String], found: &[Found]) -> Vec<Option<Change>> {
    // Rank: what a verb says first, then how far away.
    let mut best: Vec<Option<((bool, usize), Change)>> = vec![None; found.len()];
    for word in find(words, found) {
        let (start, end) = (word.cue.start, word.cue.end);
        for number in reached(&word, words, found) {
            let phrase = &found[number];
            let gap = phrase.start.saturating_sub(end) + start.saturating_sub(phrase.end);
            let rank = (!word.before.verb, gap);
            if best[number].is_none_or(|(other, _)| rank < other) {
                best[number] = Some((rank, word.change));
            }
        }
    }
    let changes = best.into_iter().map(|best| best.map(|(_, change)| change));
    changes.collect()
}

/// Which phrases some words are of: those on their own side; where there is none, those on the other.
fn reached(word: &Word, words: &[String], found: &[Found]) -> Vec<usize> {
    let of = |reach: Reach| -> Vec<usize> {
        let start = if reach == Reach::Before {
            word.before.start
        } else {
            word.cue.start
        };
        let cue = Cue {
            reach,
            start,
            ..word.cue
        };
        let on = |phrase: &Found| scope::reaches(words, &cue, &(phrase.start..phrase.end));
        (0..found.len())
            .filter(|number| on(&found[*number]))
            .collect()
    };
    let (own, other) = if word.before.said {
        (Reach::Before, Reach::After)
    } else {
        (Reach::After, Reach::Before)
    };
    let reached = of(own);
    if reached.is_empty() {
        of(other)
    } else {
        reached
    }
}

/// The words of change of a clause, from left to right, none over another.
fn find(words: &[String], found: &[Found]) -> Vec<Word> {
    let mut changes = Vec::new();
    let mut start = 0;
    while start < words.len() {
        let mut best: Option<(usize, Option<Change>)> = None;
        for (change, patterns) in TABLE {
            let ends = patterns
                .iter()
                .filter_map(|pattern| match_at(pattern, words, start));
            if let Some(end) = ends.max()
                && end > best.map_or(start, |(end, _)| end)
            {
                best = Some((end, *change));
            }
        }
        let Some((end, change)) = best else {
            start += 1;
            continue;
        };
        if let Some(change) = change {
            changes.push(Word {
                change,
                cue: Cue {
                    makes: Makes::Nothing,
                    reach: Reach::After,
                    start,
                    end,
                },
                before: before(words, found, start),
            });
        }
        start = end;
    }
    changes
}

/// How words at `start` stand to what goes before. They say something of it behind a verb ("is larger") that doesn't begin a
/// clause of its own ("there is new"), or right behind a finding ("effusion unchanged").
fn before(words: &[String], found: &[Found], start: usize) -> Before {
    let skipped = words[..start]
        .iter()
        .rev()
        .take_while(|word| BETWEEN.contains(&word.as_str()))
        .count();
    let start = start - skipped;
    let begins = start >= 2 && words[start - 2] == "there";
    let verb = start >= 1 && scope::is_verb(&words[start - 1]) && !begins;
    Before {
        start,
        said: verb || found.iter().any(|phrase| phrase.end == start),
        verb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected`: short names of labels, the side's letter, and the change; "same" where nothing has changed at all.
    #[track_caller]
    fn check(report: &str, expected: &str) {
        let comparison = compare(report);
        let mut said: Vec<String> = comparison
            .statements
            .iter()
            .map(|statement| {
                let side = match statement.side {
                    Some(Side::Left) => " L",
                    Some(Side::Right) => " R",
                    Some(Side::Bilateral) => " B",
                    Some(Side::Midline) => " M",
                    None => "",
                };
                let name = statement.label.phantom().unwrap_or("other");
                format!("{name}{side} {}", statement.change.name())
            })
            .collect();
        said.extend(comparison.same.then(|| "same".to_owned()));
        assert_eq!(said.join(", "), expected, "{report}");
    }

    #[test]
    fn what_phantoms_say() {
        check(
            "Compared with the prior: The right pleural effusion is worse. The left upper zone consolidation is new. The right lower zone nodule has resolved. The pulmonary oedema is larger.",
            "pleural_effusion R worse, consolidation L new, nodule R resolved, oedema worse",
        );
        check(
            "Compared with the prior: The endotracheal tube has been removed. The cardiomegaly is better. The left pneumothorax is smaller. The left mid zone rib fracture is unchanged.",
            "support_device resolved, cardiomegaly better, pneumothorax L better, fracture L unchanged",
        );
        check("Compared with the prior, there is no change.", "same");
        check("No change since the prior.", "same");
    }

    #[test]
    fn what_others_say() {
        check("Stable cardiomegaly.", "cardiomegaly unchanged");
        check(
            "Increased left effusion and unchanged cardiomegaly.",
            "pleural_effusion L worse, cardiomegaly unchanged",
        );
        check(
            "Left effusion unchanged, right effusion slightly smaller.",
            "pleural_effusion L unchanged, pleural_effusion R better",
        );
        check(
            "Right effusion is seen and there is new left atelectasis.",
            "atelectasis L new",
        );
        check(
            "The effusion and the atelectasis are unchanged.",
            "pleural_effusion unchanged, atelectasis unchanged",
        );
        check(
            "The left effusion has increased in size, but the oedema has improved.",
            "pleural_effusion L worse, oedema better",
        );
    }

    #[test]
    fn the_nearest_and_what_a_verb_says_count() {
        check(
            "The new left effusion is larger.",
            "pleural_effusion L worse",
        );
        check(
            "The left effusion is slightly larger. The oedema has now markedly improved.",
            "pleural_effusion L worse, oedema better",
        );
        check(
            "Resolved effusion, nodule unchanged.",
            "pleural_effusion resolved, nodule unchanged",
        );
        check(
            "The left effusion has resolved, the right effusion is larger.",
            "pleural_effusion L resolved, pleural_effusion R worse",
        );
        check(
            "Almost complete resolution of the effusion.",
            "pleural_effusion better",
        );
        check(
            "Small left effusion, unchanged.",
            "pleural_effusion L unchanged",
        );
        check(
            "Near complete resolution of the right pneumothorax.",
            "pneumothorax R better",
        );
        check("No significant interval change.", "same");
        check(
            "No significant change in the left effusion.",
            "pleural_effusion L unchanged",
        );
        check(
            "The left effusion has not changed.",
            "pleural_effusion L unchanged",
        );
        check(
            "No increase in the right effusion.",
            "pleural_effusion R unchanged",
        );
        check(
            "The previously seen nodule is no longer visible.",
            "nodule resolved",
        );
    }

    #[test]
    fn what_says_nothing_of_a_change() {
        check("No new effusion or pneumothorax.", "");
        check("No new or enlarging nodule.", "");
        check("Small left effusion.", "");
        check("No pneumothorax.", "");
        check("The mediastinal contours are stable.", "");
        check("No change in the mediastinal contours.", "");
        check("", "");
    }
}
