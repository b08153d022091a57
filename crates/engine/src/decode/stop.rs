//! Strings that end a text. What could still become one is held back, so that no part of a stop string is ever shown,
//! however tokens cut it.

/// The text of one sequence on its way out.
#[derive(Debug, Default)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text made certain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Text to show; may be empty.
    pub(super) text: String,
    /// A stop string was completed: nothing follows.
    pub(super) stopped: bool,
}

impl StopFilter {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece of the model's text.
    pub(super) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let at = self.held.find(stop)?;
            Some((at + stop.len(), at))
        });
        // The one that is complete first, which a shorter piece would have shown: of those, the longest.
        if let Some((_, at)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Passed {
                text,
                stopped: true,
            };
        }
        let rest = self.held.split_off(self.held.len() - self.could_stop());
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What is held back, when no text follows.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn could_stop(&self) -> usize {
        let of = |stop: &String| {
            let longest = (stop.len() - 1).min(self.held.len());
            let begins = |length: &usize| {
                let start = self.held.len() - length;
                self.held.is_char_boundary(start) && stop.starts_with(&self.held[start..])
            };
            (1..=longest).rev().find(begins).unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to cut a text in three gives the same text, and never shows more than it.
    fn check(stops: &[&str], text: &str, expected: &str, stopped: bool) {
        let cuts: Vec<usize> = (0..=text.len())
            .filter(|at| text.is_char_boundary(*at))
            .collect();
        for first in &cuts {
            for second in cuts.iter().filter(|second| *second >= first) {
                let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
                let mut filter = StopFilter::new(stops);
                let mut shown = String::new();
                let mut ended = false;
                for piece in [&text[..*first], &text[*first..*second], &text[*second..]] {
                    let passed = filter.push(piece);
                    shown.push_str(&passed.text);
                    assert!(expected.starts_with(&shown), "{shown:?} of {text:?}");
                    ended = passed.stopped;
                    if ended {
                        break;
                    }
                }
                if !ended {
                    shown.push_str(&filter.finish());
                }
                assert_eq!((shown.as_str(), ended), (expected, stopped), "{text:?}");
            }
        }
    }

    #[test]
    fn a_text_ends_before_its_first_stop_string_however_it_is_cut() {
        check(&[], "no stops", "no stops", false);
        check(&["END"], "a END b", "a ", true);
        check(&["END"], "an EN", "an EN", false);
        check(&["END", "\n\n"], "one\ntwo\n\nEND", "one\ntwo", true);
        check(&["aab"], "aaab", "a", true);
        check(&["abcd", "bc"], "abcd", "a", true);
        check(&["bc", "abc"], "abcd", "", true);
        check(&["END"], "END", "", true);
        check(&["ß!"], "Größe ß!", "Größe ", true);
    }

    #[test]
    fn only_what_could_become_a_stop_string_is_held_back() {
        let mut filter = StopFilter::new(vec!["STOP".to_owned()]);
        let passed = |text: &str, stopped| Passed {
            text: text.to_owned(),
            stopped,
        };
        assert_eq!(filter.push("abcST"), passed("abc", false));
        assert_eq!(filter.push("xS"), passed("STx", false));
        assert_eq!(filter.push("TOP and more"), passed("", true));
    }
}
