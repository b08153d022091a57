//! The table's place in `docs/performance.md`: between two marks, so that what people wrote around it stays.

use anyhow::{Context, Result};

use super::results::Cell;
use super::{IMAGE_SIZE, Part, table};
use crate::derived::Section;
use crate::places;

const PAGE: &str = "docs/performance.md";

/// What stands between the marks.
pub(super) fn section(heading: &str, cells: &[&Cell], ours: &str) -> String {
    format!("{heading}\n\n{}", table::markdown(cells, ours))
}

/// Puts the section of one part of the measurements, with images of so many pixels, there; the others' stay.
pub(super) fn put(of: (Part, usize), section: &str) -> Result<()> {
    let page = place(of).page_with(section)?;
    std::fs::write(places::root().join(PAGE), page).with_context(|| format!("write {PAGE}"))
}

/// Where a part's section is.
fn place((part, image_size): (Part, usize)) -> Section {
    let images = match image_size {
        IMAGE_SIZE => String::new(),
        other => format!(" with images of {other}"),
    };
    Section {
        page: PAGE,
        name: format!("bench-peers {}{images}", part.name()),
        command: "bench-peers",
    }
}

#[cfg(test)]
mod tests {
    use super::super::IMAGE_SIZE_SMALL;
    use super::*;

    #[test]
    fn the_page_has_its_marks() {
        for of in [
            (Part::Models, IMAGE_SIZE),
            (Part::Models, IMAGE_SIZE_SMALL),
            (Part::Reports, IMAGE_SIZE),
        ] {
            assert!(place(of).page_with("| new |").is_ok());
        }
    }
}
