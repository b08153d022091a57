//! The proposals of one text: what probably comes next. They stay until a token that was written contradicts them, so that
//! each is measured once, verified or not.

use std::collections::VecDeque;

use super::Proposed;
use super::chances::{Chances, Source};
use super::memory::Tenant;

/// A stretch of the text that is longer than this counts as this long.
const LENGTH_MAX: usize = 32;
/// Shorter stretches come again everywhere.
const LENGTH_MIN: usize = 2;

/// Proposals that follow a text, in order.
#[derive(Debug, Default)]
pub(crate) struct Proposals(VecDeque<Proposal>);

#[derive(Debug, Clone, Copy)]
struct Proposal {
    token: u32,
    source: Source,
}

/// A place in the text whose continuation is proposed, and how long the stretch before it is that came again.
#[derive(Debug, Clone, Copy)]
struct Match {
    next: usize,
    length: usize,
}

impl Proposals {
    /// Proposes on until there are `most`, or nothing is known. `tokens` are prompt and text; a token that `never` names, or
    /// whose chance it names, is not proposed, and nothing behind it.
    pub(crate) fn extend(
        &mut self,
        tokens: &[u32],
        tenant: &Tenant,
        never: impl Fn(u32, f32) -> bool,
        most: usize,
    ) {
        if self.0.len() >= most {
            return;
        }
        let mut text = tokens.to_vec();
        text.extend(self.tokens());
        let mut own = longest_match(&text);
        while self.0.len() < most {
            let of_text = own.map(|found| Proposal {
                token: text[found.next],
                source: Source::own(found.length),
            });
            let of_tenant = tenant
                .after(&text)
                .map(|(token, source)| Proposal { token, source });
            let chance = |proposal: &Proposal| tenant.chances().of(proposal.source);
            let both = [of_text, of_tenant].into_iter().flatten();
            let best = both.reduce(|a, b| if chance(&b) > chance(&a) { b } else { a });
            let Some(best) = best.filter(|best| !never(best.token, chance(best))) else {
                return;
            };
            own = own
                .filter(|found| text[found.next] == best.token)
                .map(|found| Match {
                    next: found.next + 1,
                    length: (found.length + 1).min(LENGTH_MAX),
                });
            text.push(best.token);
            self.0.push_back(best);
        }
    }

    pub(crate) fn push(&mut self, token: u32, source: Source) {
        self.0.push_back(Proposal { token, source });
    }

    /// What each of the first `most` proposals is worth.
    pub(crate) fn worth(&self, measured: &Chances, most: usize) -> Vec<Proposed> {
        let first = self.0.iter().take(most);
        first
            .map(|proposal| Proposed {
                chance: measured.of(proposal.source),
                drafted: proposal.source.is_draft(),
            })
            .collect()
    }

    /// The chance that all of them are right.
    pub(crate) fn reach(&self, measured: &Chances) -> f32 {
        let each = self.0.iter().map(|proposal| measured.of(proposal.source));
        each.product()
    }

    /// The tokens, in order.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|proposal| proposal.token)
    }

    /// A token was written, or, with none, the text ended there: says whether it was the one proposed. What was proposed for
    /// another text is forgotten.
    pub(crate) fn written(&mut self, token: Option<u32>, measured: &mut Chances) -> bool {
        let Some(first) = self.0.pop_front() else {
            return false;
        };
        let right = token == Some(first.token);
        measured.measure(first.source, right);
        if !right {
            self.0.clear();
        }
        right
    }
}

/// Where the longest end of the text, at least [`LENGTH_MIN`], stood before; of equally long ones the last.
fn longest_match(text: &[u32]) -> Option<Match> {
    let (last, before) = text.split_last()?;
    let mut best: Option<Match> = None;
    for at in (0..before.len()).rev() {
        if text[at] != *last {
            continue;
        }
        let pairs = text[..at].iter().rev().zip(before.iter().rev());
        let longer = pairs.take(LENGTH_MAX - 1).take_while(|(a, b)| a == b);
        let length = 1 + longer.count();
        if length >= LENGTH_MIN && best.is_none_or(|best| length > best.length) {
            best = Some(Match {
                next: at + 1,
                length,
            });
            if length == LENGTH_MAX {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use medfleet_core::Digest;

    use super::super::memory::Memory;
    use super::*;

    fn matched(text: &[u32], expected: Option<(usize, usize)>) {
        let found = longest_match(text).map(|found| (found.next, found.length));
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn the_longest_stretch_that_came_before_is_found_and_of_equal_ones_the_last() {
        matched(&[], None);
        matched(&[1], None);
        matched(&[1, 1], None);
        matched(&[7, 1, 2, 3, 1], None);
        matched(&[1, 2, 3, 1, 2], Some((2, 2)));
        matched(&[9, 1, 2, 5, 1, 2, 6, 1, 2], Some((6, 2)));
        matched(&[9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2], Some((3, 3)));
        matched(&[4, 4, 4], Some((2, 2)));
        let long: Vec<u32> = (0..100).chain(0..100).collect();
        matched(&long, Some((100, LENGTH_MAX)));
    }

    /// A tenant that wrote `text`.
    fn wrote(text: &[u32]) -> Memory {
        let mut memory = Memory::new(1 << 20);
        let tenant = memory.tenant(Digest::new([0; 32]), Instant::now());
        tenant.learn(text, 0);
        memory
    }

    fn proposed(text: &[u32], known: &[u32], never: u32, most: usize) -> Vec<u32> {
        let mut memory = wrote(known);
        let tenant = memory.tenant(Digest::new([0; 32]), Instant::now());
        let mut proposals = Proposals::default();
        proposals.extend(text, tenant, |token, _| token == never, most);
        proposals.tokens().collect()
    }

    fn chances(proposals: &Proposals, tenant: &Tenant, most: usize) -> Vec<f32> {
        let worth = proposals.worth(tenant.chances(), most);
        worth.iter().map(|proposed| proposed.chance).collect()
    }

    #[test]
    fn proposals_come_from_the_text_itself_and_from_what_the_tenant_wrote() {
        assert_eq!(proposed(&[1, 2, 3, 4, 1, 2], &[], 0, 3), [3, 4, 1]);
        assert_eq!(proposed(&[1, 2], &[1, 2, 3, 4], 0, 9), [3, 4]);
        assert_eq!(proposed(&[5, 6], &[1, 2, 3, 4], 0, 9), [0; 0]);
        assert_eq!(proposed(&[1, 2, 1, 2], &[], 0, 5), [1, 2, 1, 2, 1]);
    }

    #[test]
    fn of_two_the_one_that_was_right_more_often_is_proposed() {
        let text = [1, 2, 3, 9, 1, 2];
        assert_eq!(proposed(&text, &[2, 3, 7, 8], 0, 3), [3, 9, 1]);
        let mut memory = wrote(&[2, 3, 7, 8]);
        let tenant = memory.tenant(Digest::new([0; 32]), Instant::now());
        tenant.chances_mut().measure(Source::own(3), false);
        let mut proposals = Proposals::default();
        proposals.extend(&text, tenant, |_, _| false, 3);
        let found: Vec<u32> = proposals.tokens().collect();
        assert_eq!(found, [3, 7, 8], "the tenant's phrase where both have one");
    }

    #[test]
    fn what_may_not_be_proposed_ends_the_proposals() {
        assert_eq!(proposed(&[1, 2, 3, 4, 1, 2], &[], 4, 3), [3]);
        assert_eq!(proposed(&[1, 2, 3, 4, 1, 2], &[], 3, 3), [0; 0]);
    }

    #[test]
    fn what_is_too_unlikely_is_left_to_a_second_model() {
        let mut memory = wrote(&[]);
        let tenant = memory.tenant(Digest::new([0; 32]), Instant::now());
        for _ in 0..9 {
            tenant.chances_mut().measure(Source::own(2), false);
        }
        let (text, mut proposals) = ([1, 2, 3, 4, 1, 2], Proposals::default());
        proposals.extend(&text, tenant, |_, chance| chance < 0.5, 3);
        assert_eq!(proposals.tokens().count(), 0);
        proposals.push(8, Source::draft(0.9));
        proposals.extend(&text, tenant, |_, _| false, 2);
        assert_eq!(proposals.tokens().collect::<Vec<_>>(), [8], "1 2 8 is new");
        let worth = proposals.worth(tenant.chances(), 5);
        assert!(worth.len() == 1 && worth[0].drafted);
        assert!((proposals.reach(tenant.chances()) - worth[0].chance).abs() < 1e-6);
    }

    #[test]
    fn proposals_live_until_one_is_contradicted_and_each_is_measured_once() {
        let mut memory = wrote(&[]);
        let tenant = memory.tenant(Digest::new([0; 32]), Instant::now());
        let mut proposals = Proposals::default();
        let text = [1, 2, 3, 4, 5, 1, 2];
        proposals.extend(&text, tenant, |_, _| false, 3);
        let believed = chances(&proposals, tenant, 2);
        assert_eq!(believed.len(), 2);
        assert!(proposals.written(Some(3), tenant.chances_mut()));
        assert_eq!(proposals.tokens().collect::<Vec<_>>(), [4, 5]);
        // It goes on where it was.
        proposals.extend(&[1, 2, 3, 4, 5, 1, 2, 3], tenant, |_, _| false, 4);
        assert_eq!(proposals.tokens().collect::<Vec<_>>(), [4, 5, 1, 2]);
        assert!(!proposals.written(Some(9), tenant.chances_mut()));
        assert_eq!(proposals.tokens().count(), 0);
        assert!(
            !proposals.written(Some(9), tenant.chances_mut()),
            "nothing was proposed"
        );
        let measured = tenant.chances();
        assert!(measured.of(Source::own(2)) > believed[0]);
        assert!(measured.of(Source::own(3)) < believed[1]);
    }

    #[test]
    fn what_was_proposed_where_the_text_ended_was_wrong() {
        let mut memory = wrote(&[]);
        let tenant = memory.tenant(Digest::new([0; 32]), Instant::now());
        let mut proposals = Proposals::default();
        proposals.extend(&[1, 2, 3, 4, 5, 1, 2], tenant, |_, _| false, 3);
        let believed = chances(&proposals, tenant, 1);
        assert!(!proposals.written(None, tenant.chances_mut()));
        assert_eq!(proposals.tokens().count(), 0);
        assert!(tenant.chances().of(Source::own(2)) < believed[0]);
    }
}
