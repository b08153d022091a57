//! Puts streamed text together for one watcher: pieces arrive late, twice, or not at all, and come out contiguous and once.
//! Pure: it says what to send, and that something is missing; reading the stored text is the caller's business.

/// One piece as it arrives: live, or the stored text so far (offset 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) attempt: u32,
    pub(crate) offset: u64,
    pub(crate) text: &'a str,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Out {
    /// Discard what was sent: a new attempt begins.
    Reset { attempt: u32 },
    /// The next text.
    Delta {
        attempt: u32,
        offset: u64,
        text: String,
    },
}

/// Where a watcher stands in the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stitch {
    attempt: u32,
    offset: u64,
    /// Text that arrived while the piece before it was missing: where it begins, and the text.
    ahead: Option<(u64, String)>,
    ahead_bytes_max: usize,
}

impl Stitch {
    /// At the position that the watcher says it has.
    pub(crate) fn at(attempt: u32, offset: u64, ahead_bytes_max: usize) -> Self {
        // Without an attempt there is no text to continue.
        let offset = if attempt == 0 { 0 } else { offset };
        Self {
            attempt,
            offset,
            ahead: None,
            ahead_bytes_max,
        }
    }

    /// Whether text is known to be missing before text that has arrived.
    pub(crate) const fn is_missing_text(&self) -> bool {
        self.ahead.is_some()
    }

    /// Takes a piece, live or stored.
    pub(crate) fn offer(&mut self, piece: Piece<'_>, out: &mut Vec<Out>) {
        if piece.attempt < self.attempt || piece.attempt == 0 {
            return;
        }
        if piece.attempt > self.attempt {
            self.begin(piece.attempt, out);
        }
        if piece.offset > self.offset {
            self.hold(piece);
            return;
        }
        self.extend(piece.offset, piece.text, out);
        self.release_held(out);
    }

    /// Takes the whole text of the attempt that ended the job; whatever is missing comes out, and nothing can follow.
    pub(crate) fn finish(&mut self, attempt: u32, text: &str, out: &mut Vec<Out>) {
        self.ahead = None;
        let fits = usize::try_from(self.offset).is_ok_and(|offset| text.is_char_boundary(offset));
        if attempt != self.attempt || !fits {
            // A position beyond the text or inside a character was never handed out here: start over.
            self.begin(attempt, out);
        }
        self.extend(0, text, out);
    }

    fn begin(&mut self, attempt: u32, out: &mut Vec<Out>) {
        if self.attempt != 0 {
            out.push(Out::Reset { attempt });
        }
        (self.attempt, self.offset, self.ahead) = (attempt, 0, None);
    }

    /// Adds what of the text lies behind the position. The text must begin at or before it.
    fn extend(&mut self, begins: u64, text: &str, out: &mut Vec<Out>) {
        let known = usize::try_from(self.offset - begins).unwrap_or(usize::MAX);
        // A cut inside a character can only come from a made-up position: nothing is sent until the text is complete.
        let Some(new) = text.get(known..).filter(|new| !new.is_empty()) else {
            return;
        };
        out.push(Out::Delta {
            attempt: self.attempt,
            offset: self.offset,
            text: new.to_owned(),
        });
        self.offset += new.len() as u64;
    }

    fn hold(&mut self, piece: Piece<'_>) {
        let room = self.ahead_bytes_max.saturating_sub(piece.text.len());
        match &mut self.ahead {
            Some((begins, text))
                if *begins + text.len() as u64 == piece.offset && text.len() <= room =>
            {
                text.push_str(piece.text);
            }
            // Seen already.
            Some((begins, text))
                if *begins <= piece.offset && piece.offset < *begins + text.len() as u64 => {}
            // A second hole, or too much: what is stored will reach the newer piece just as well.
            _ => self.ahead = Some((piece.offset, piece.text.to_owned())),
        }
    }

    fn release_held(&mut self, out: &mut Vec<Out>) {
        if self
            .ahead
            .as_ref()
            .is_none_or(|(begins, _)| *begins > self.offset)
        {
            return;
        }
        if let Some((begins, text)) = self.ahead.take() {
            self.extend(begins, &text, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Piece(u32, u64, &'static str),
        Finish(u32, &'static str),
    }
    use Step::{Finish, Piece as P};

    fn check(at: (u32, u64), steps: &[Step], expected: &[&str], missing: bool) {
        let mut stitch = Stitch::at(at.0, at.1, 16);
        let mut out = Vec::new();
        for step in steps {
            match *step {
                P(attempt, offset, text) => stitch.offer(
                    Piece {
                        attempt,
                        offset,
                        text,
                    },
                    &mut out,
                ),
                Finish(attempt, text) => stitch.finish(attempt, text, &mut out),
            }
        }
        let shown: Vec<_> = out
            .iter()
            .map(|out| match out {
                Out::Reset { attempt } => format!("reset {attempt}"),
                Out::Delta {
                    attempt,
                    offset,
                    text,
                } => format!("{attempt}@{offset}:{text}"),
            })
            .collect();
        assert_eq!(shown, expected);
        assert_eq!(stitch.is_missing_text(), missing);
    }

    #[test]
    fn pieces_in_order_pass_through_and_repeats_do_not() {
        check(
            (0, 0),
            &[P(1, 0, "The "), P(1, 4, "heart")],
            &["1@0:The ", "1@4:heart"],
            false,
        );
        check(
            (0, 0),
            &[P(1, 0, "The "), P(1, 0, "The "), P(1, 2, "e heart")],
            &["1@0:The ", "1@4:heart"],
            false,
        );
        check((1, 4), &[P(1, 0, "The heart")], &["1@4:heart"], false);
        check((1, 9), &[P(1, 0, "The heart")], &[], false);
    }

    #[test]
    fn a_gap_is_held_until_the_stored_text_reaches_it() {
        check((0, 0), &[P(1, 4, "heart")], &[], true);
        check(
            (0, 0),
            &[P(1, 4, "heart"), P(1, 9, " is"), P(1, 0, "The h")],
            &["1@0:The h", "1@5:eart is"],
            false,
        );
        check(
            (0, 0),
            &[P(1, 4, "heart"), P(1, 0, "Th")],
            &["1@0:Th"],
            true,
        );
        check(
            (0, 0),
            &[P(1, 4, "heart"), P(1, 4, "heart"), P(1, 0, "The ")],
            &["1@0:The ", "1@4:heart"],
            false,
        );
    }

    #[test]
    fn too_much_ahead_forgets_the_older_piece() {
        let steps = [P(1, 4, "0123456789"), P(1, 14, "abcdefgh"), P(1, 0, "The ")];
        check((0, 0), &steps, &["1@0:The "], true);
        let steps = [
            P(1, 4, "0123456789"),
            P(1, 14, "abcdefgh"),
            P(1, 0, "The 0123456789abcdefgh"),
        ];
        check((0, 0), &steps, &["1@0:The 0123456789abcdefgh"], false);
    }

    #[test]
    fn a_new_attempt_resets_once_and_the_old_one_is_ignored() {
        let steps = [P(1, 0, "a"), P(2, 0, "b"), P(1, 1, "x"), P(2, 1, "c")];
        check(
            (0, 0),
            &steps,
            &["1@0:a", "reset 2", "2@0:b", "2@1:c"],
            false,
        );
        check(
            (1, 7),
            &[P(2, 3, "late"), P(2, 0, "soo")],
            &["reset 2", "2@0:soo", "2@3:late"],
            false,
        );
        check((0, 0), &[P(0, 0, "no attempt")], &[], false);
    }

    #[test]
    fn the_end_brings_what_is_missing() {
        check((0, 0), &[Finish(1, "The heart")], &["1@0:The heart"], false);
        check(
            (0, 0),
            &[P(1, 0, "The "), P(1, 6, "art"), Finish(1, "The heart")],
            &["1@0:The ", "1@4:heart"],
            false,
        );
        check(
            (0, 0),
            &[P(1, 0, "The heart"), Finish(1, "The heart")],
            &["1@0:The heart"],
            false,
        );
        check(
            (0, 0),
            &[P(1, 0, "old"), Finish(2, "new")],
            &["1@0:old", "reset 2", "2@0:new"],
            false,
        );
        check(
            (1, 99),
            &[Finish(1, "short")],
            &["reset 1", "1@0:short"],
            false,
        );
        check(
            (1, 1),
            &[P(1, 0, "é"), Finish(1, "é")],
            &["reset 1", "1@0:é"],
            false,
        );
        check((0, 0), &[Finish(1, "")], &[], false);
    }
}
