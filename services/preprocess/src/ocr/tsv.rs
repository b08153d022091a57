//! Tesseract's answer: a table of pages, blocks, paragraphs, lines and words, each with its place, the words with their text.

use medfleet_imaging::{Area, Word};

const HEAD: &str =
    "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext";
const LINE: u32 = 4;
const WORD: u32 = 5;

/// The words of the table; `None` if it is no such table.
pub(super) fn words(table: &str) -> Option<Vec<Word>> {
    let mut rows = table.lines();
    if rows.next()? != HEAD {
        return None;
    }
    let (mut words, mut line) = (Vec::new(), None);
    for row in rows.filter(|row| !row.is_empty()) {
        // The text comes last, and is empty where there is none.
        let cells: Vec<&str> = row.splitn(12, '\t').collect();
        let [
            level,
            _,
            _,
            _,
            _,
            _,
            left,
            top,
            width,
            height,
            confidence,
            text,
        ] = cells[..]
        else {
            return None;
        };
        let area = Area {
            left: left.parse().ok()?,
            top: top.parse().ok()?,
            width: width.parse().ok()?,
            height: height.parse().ok()?,
        };
        match level.parse::<u32>().ok()? {
            LINE => line = Some(area),
            WORD => words.push(Word {
                text: text.to_owned(),
                // What is no number would be less than any that is asked for, and the word would count for nothing.
                confidence: confidence
                    .parse()
                    .ok()
                    .filter(|one: &f32| one.is_finite())?,
                area,
                line: line.unwrap_or(area),
            }),
            _ => {}
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(left: u32, top: u32, width: u32, height: u32) -> Area {
        Area {
            left,
            top,
            width,
            height,
        }
    }

    #[test]
    fn words_come_with_their_lines() {
        let table = format!(
            "{HEAD}\n1\t1\t0\t0\t0\t0\t0\t0\t640\t480\t-1\t\n4\t1\t1\t1\t1\t0\t20\t12\t180\t20\t-1\t\n\
             5\t1\t1\t1\t1\t1\t20\t12\t80\t18\t91.5\tDOE^JANE\n5\t1\t1\t1\t1\t2\t110\t12\t90\t20\t7\t\n"
        );
        let found = words(&table).unwrap();
        let line = area(20, 12, 180, 20);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].text.as_str(), found[0].confidence),
            ("DOE^JANE", 91.5)
        );
        assert_eq!((found[0].area, found[0].line), (area(20, 12, 80, 18), line));
        assert_eq!((found[1].text.as_str(), found[1].line), ("", line));
    }

    #[test]
    fn a_page_without_words_has_none() {
        assert_eq!(words(&format!("{HEAD}\n")), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_table_says_nothing() {
        for table in [
            "",
            "Tesseract couldn't load any languages!",
            &format!("{HEAD}\n5\t1\t1"),
            &format!("{HEAD}\n5\t1\t1\t1\t1\t1\t-20\t12\t80\t18\t91\tx"),
            &format!("{HEAD}\n5\t1\t1\t1\t1\t1\t20\t12\t80\t18\tnan\tx"),
            &format!("{HEAD}\nx\t1\t1\t1\t1\t1\t20\t12\t80\t18\t91\tx"),
        ] {
            assert_eq!(words(table), None, "{table}");
        }
    }
}
