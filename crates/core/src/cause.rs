//! An error with its causes in one line: tracing writes only the error's own text where a field is given the error itself.

use std::error::Error;

/// An error and its causes in one line, separated by colons.
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
