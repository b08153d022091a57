//! A report as sentences, clauses and words.

/// Sections that tell why and how, not what is seen.
const UNREAD: &[&str] = &[
    "clinical history",
    "clinical indication",
    "clinical information",
    "comparison",
    "comparisons",
    "exam",
    "examination",
    "history",
    "indication",
    "procedure",
    "reason for exam",
    "reason for examination",
    "technique",
];
/// Words of a heading, at most.
const HEADING_WORDS_MAX: usize = 4;
/// What stands behind a heading that is a finding's name, where it isn't there.
const DENIALS: &[&str] = &[
    "absent",
    "negative",
    "nil",
    "no",
    "none",
    "none seen",
    "not present",
    "not seen",
];
/// Words of a size, which may come between "and" and a side.
const SIZES: &[&str] = &[
    "large", "mild", "minimal", "moderate", "severe", "small", "tiny", "trace",
];
/// Words from a side to "than", at most: "right side worse than left".
const COMPARED_MAX: usize = 3;
/// Words that part clauses, which say different things.
const PARTING: &[&str] = &[
    "although",
    "apart",
    "aside",
    "but",
    "except",
    "however",
    "nevertheless",
    "though",
    "whereas",
    "while",
];

/// The sentences that tell what is seen, in lower-case words; commas and brackets are words of their own (","). Points
/// between digits don't end a sentence; a colon does, but for "effusion: none", which is "effusion is absent".
pub(super) fn sentences(report: &str) -> Vec<Vec<String>> {
    let letters: Vec<char> = report.to_lowercase().chars().collect();
    let mut sentences = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut read = true;
    // Up to where letters are dealt with already.
    let mut done = 0;
    for (place, &letter) in letters.iter().enumerate() {
        if place < done {
            continue;
        }
        let next = letters.get(place + 1).copied();
        if letter.is_alphanumeric() || inside_number(&letters, place) {
            word.push(letter);
            continue;
        }
        if matches!(letter, '\'' | '’') {
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        match letter {
            ':' if next.is_none_or(char::is_whitespace) => {
                if words.len() <= HEADING_WORDS_MAX {
                    read = !UNREAD.contains(&words.join(" ").as_str());
                }
                if let Some(behind) = denied(&letters, place + 1) {
                    words.extend(["is", "absent"].map(String::from));
                    done = behind;
                }
                end(&mut words, read, &mut sentences);
            }
            '.' if words.last().is_some_and(|word| word == "vs") => {}
            '.' | ';' | '!' | '?' => end(&mut words, read, &mut sentences),
            // A line may break anywhere; an empty one parts.
            '\n' if next == Some('\n') => end(&mut words, read, &mut sentences),
            ',' | '(' | ')' => words.push(",".into()),
            _ => {}
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    end(&mut words, read, &mut sentences);
    sentences
}

/// The end of a denial that stands alone from `start` to the end of its sentence or line, if one does.
fn denied(letters: &[char], start: usize) -> Option<usize> {
    let rest = letters.get(start..)?;
    let length = rest
        .iter()
        .take_while(|letter| !matches!(letter, '.' | ';' | ',' | '\n'))
        .count();
    let said: String = rest[..length].iter().collect();
    DENIALS.contains(&said.trim()).then_some(start + length)
}

fn inside_number(letters: &[char], place: usize) -> bool {
    let digit = |place: Option<usize>| {
        let letter = place.and_then(|place| letters.get(place));
        letter.is_some_and(char::is_ascii_digit)
    };
    letters[place] == '.' && digit(place.checked_sub(1)) && digit(Some(place + 1))
}

fn end(words: &mut Vec<String>, read: bool, sentences: &mut Vec<Vec<String>>) {
    let sentence = std::mem::take(words);
    if read && !sentence.is_empty() {
        sentences.push(sides_joined(sentence));
    }
}

/// "Left and right", "left and small right", "right greater than left" are one word for the rest of the labeler.
fn sides_joined(words: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(words.len());
    for word in words {
        match other_side(&out, &word) {
            Some(place) => {
                out.truncate(place);
                out.push("bilateral".into());
            }
            None => out.push(word),
        }
    }
    out
}

/// Where the other side is that `word` is joined to.
fn other_side(before: &[String], word: &str) -> Option<usize> {
    let other = match word {
        "left" => "right",
        "right" => "left",
        _ => return None,
    };
    let sized = before
        .last()
        .is_some_and(|word| SIZES.contains(&word.as_str()));
    let joint = before.len().checked_sub(1 + usize::from(sized))?;
    let reach = match before[joint].as_str() {
        "and" => 1,
        "than" => COMPARED_MAX,
        _ => return None,
    };
    let near = joint.saturating_sub(reach)..joint;
    near.rev().find(|place| before[*place] == other)
}

/// The parts of a sentence that say different things.
pub(super) fn clauses(sentence: &[String]) -> impl Iterator<Item = &[String]> {
    sentence
        .split(|word| PARTING.contains(&word.as_str()))
        .filter(|clause| !clause.is_empty())
}
