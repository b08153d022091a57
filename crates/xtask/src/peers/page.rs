//! The table's place in `docs/performance.md`: between two marks, so that what people wrote around it stays.

use anyhow::{Context, Result, ensure};

use super::results::Results;
use super::table;
use crate::places;

const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- bench-peers: begin; what is between these marks is written by `cargo xtask bench-peers` -->";
const END: &str = "<!-- bench-peers: end -->";

/// What stands between the marks.
pub(super) fn section(heading: &str, results: &Results) -> String {
    format!("{heading}\n\n{}", table::markdown(results.cells()))
}

/// Puts it there.
pub(super) fn put(section: &str) -> Result<()> {
    let path = places::root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    let page = replaced(&page, section)?;
    std::fs::write(&path, page).with_context(|| format!("write {PAGE}"))
}

fn replaced(page: &str, section: &str) -> Result<String> {
    let marks = || format!("{PAGE} has lost one of its marks, {BEGIN} and {END}");
    let (before, rest) = page.split_once(BEGIN).with_context(marks)?;
    let (_, after) = rest.split_once(END).with_context(marks)?;
    ensure!(
        !after.contains(BEGIN),
        "{PAGE} has marks for more than one table"
    );
    Ok(format!(
        "{before}{BEGIN}\n\n{}\n\n{END}{after}",
        section.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = format!("before\n\n{BEGIN}\nold\n{END}\n\nafter\n");
        let once = replaced(&page, "| new |\n").unwrap();
        assert_eq!(
            once,
            format!("before\n\n{BEGIN}\n\n| new |\n\n{END}\n\nafter\n")
        );
        assert_eq!(replaced(&once, "| new |\n").unwrap(), once);
        assert!(replaced("no marks", "| new |").is_err());
        assert!(replaced(BEGIN, "| new |").is_err());
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = std::fs::read_to_string(places::root().join(PAGE)).unwrap();
        assert!(replaced(&page, "| new |").is_ok());
    }
}
