//! The table's place in `docs/performance.md`: between two marks, so that what people wrote around it stays.

use anyhow::{Context, Result};

use super::results::Cell;
use super::{Part, table};
use crate::derived::Section;
use crate::places;

const PAGE: &str = "docs/performance.md";

/// What stands between the marks.
pub(super) fn section(heading: &str, cells: &[&Cell], ours: &str) -> String {
    format!("{heading}\n\n{}", table::markdown(cells, ours))
}

/// Puts the section of one part of the measurements there; the others' stay.
pub(super) fn put(part: Part, section: &str) -> Result<()> {
    let page = place(part).page_with(section)?;
    std::fs::write(places::root().join(PAGE), page).with_context(|| format!("write {PAGE}"))
}

/// Where a part's section is.
fn place(part: Part) -> Section {
    Section {
        page: PAGE,
        name: format!("bench-peers {}", part.name()),
        command: "bench-peers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_its_marks() {
        for part in [Part::Models, Part::Reports] {
            assert!(place(part).page_with("| new |").is_ok());
        }
    }
}
