//! Which cues reach a phrase.

use std::ops::Range;

use super::Status;
use super::cues::{Cue, Makes, Reach};

/// Words that begin something new after a comma or "and".
const OPENING: &[&str] = &[
    "a",
    "an",
    "another",
    "bibasilar",
    "extensive",
    "increased",
    "increasing",
    "large",
    "likely",
    "mild",
    "minimal",
    "moderate",
    "new",
    "persistent",
    "possible",
    "possibly",
    "probable",
    "probably",
    "severe",
    "slight",
    "small",
    "stable",
    "there",
    "tiny",
    "trace",
    "unchanged",
    "worsening",
];

/// What is said of the phrase at `place`: positive unless a cue reaches it, and negative if one that negates does.
pub(super) fn status(words: &[String], cues: &[Cue], place: Range<usize>) -> Status {
    let mut status = Status::Positive;
    for cue in cues {
        if !reaches(words, cue, &place) {
            continue;
        }
        match cue.makes {
            Makes::Negative => return Status::Negative,
            Makes::Uncertain => status = Status::Uncertain,
            Makes::Nothing => {}
        }
    }
    status
}

/// Whether a cue reaches the phrase at `place`.
pub(super) fn reaches(words: &[String], cue: &Cue, place: &Range<usize>) -> bool {
    match cue.reach {
        Reach::After | Reach::Either => reaches_after(words, cue, place, false),
        Reach::Near => reaches_after(words, cue, place, true),
        Reach::Before => reaches_before(words, cue, place),
        Reach::Around => {
            reaches_after(words, cue, place, true) || reaches_before(words, cue, place)
        }
    }
}

pub(super) fn is_verb(word: &str) -> bool {
    matches!(
        word,
        "is" | "are"
            | "was"
            | "were"
            | "has"
            | "have"
            | "had"
            | "appears"
            | "appear"
            | "remains"
            | "remain"
            | "shows"
            | "show"
            | "persists"
    )
}

fn reaches_after(words: &[String], cue: &Cue, place: &Range<usize>, near: bool) -> bool {
    // Inside the phrase: "the heart is not enlarged".
    if cue.start >= place.start {
        return cue.end <= place.end;
    }
    let (mut verb, mut joined) = (false, false);
    for between in cue.end..place.start {
        let word = words[between].as_str();
        let joins = matches!(word, "," | "and");
        if matches!(
            word,
            "with" | "there" | "which" | "showing" | "consistent" | "given" | "than"
        ) {
            return false;
        }
        if near && (joins || is_verb(word)) {
            return false;
        }
        if joins && (verb || opens(words, between)) {
            return false;
        }
        // "Free of nodules, the right has one": a clause of its own.
        if joined && is_verb(word) {
            return false;
        }
        joined |= joins;
        verb |= is_verb(word);
    }
    !(joined && has_own_verb(words, cue.end, place))
}

/// Whether a phrase behind a comma or "and" has a verb of its own, so that a clause begins with it: "no consolidation, and
/// the heart is enlarged". The last of a list with "or" has the list's: "no consolidation, effusion or nodule is seen".
fn has_own_verb(words: &[String], from: usize, place: &Range<usize>) -> bool {
    let inside = words[place.start..place.end]
        .iter()
        .any(|word| is_verb(word));
    let next = words.get(place.end).map_or("", String::as_str);
    let behind = matches!(
        next,
        "is" | "was" | "has" | "had" | "appears" | "remains" | "shows" | "persists"
    );
    let mut between = words[from..place.start].iter();
    inside || (behind && !between.any(|word| matches!(word.as_str(), "or" | "nor")))
}

/// Whether something new begins behind the comma or "and" at `joint`. A list that ends with "or" goes on: "no focal
/// consolidation, large effusion or pneumothorax".
fn opens(words: &[String], joint: usize) -> bool {
    let next = words.get(joint + 1).map_or("", String::as_str);
    // ", and a": the "and" is looked at by itself.
    if !OPENING.contains(&next) {
        return false;
    }
    let rest = words[joint..].iter().take_while(|word| !is_verb(word));
    words[joint] == "and"
        || !rest
            .into_iter()
            .any(|word| matches!(word.as_str(), "or" | "nor"))
}

/// Back from the cue over its own verbs, then to the verb before.
fn reaches_before(words: &[String], cue: &Cue, place: &Range<usize>) -> bool {
    if place.end > cue.start {
        return false;
    }
    let own = words[..cue.start]
        .iter()
        .rev()
        .take_while(|word| {
            is_verb(word) || matches!(word.as_str(), "been" | "be" | "now" | "which")
        })
        .count();
    let from = cue.start - own;
    place.end > from
        || !words[place.end..from]
            .iter()
            .any(|word| is_verb(word) || word == "with")
}
