//! An error with its causes in one line: a field of a log that is given an error itself has its own text alone.

use std::error::Error;

/// An error and its causes in one line, separated by colons.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
