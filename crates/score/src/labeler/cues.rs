//! Words that negate or weaken, as data. In [`super::pattern`]'s writing; the longest match at a word wins, so that "no
//! change in" takes away the "no".

use super::pattern::match_at;

/// What a cue makes of the phrases that it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Makes {
    /// They aren't there.
    Negative,
    /// They may be there.
    Uncertain,
    /// What they were: a cue only by its looks.
    Nothing,
}

/// Where a cue reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    After,
    /// What follows, up to the next verb, comma or "and": "resolved effusion and new nodule". What goes before at a clause's
    /// end: "effusion resolved".
    Near,
    Before,
    /// What goes before at a clause's end behind "is", what follows elsewhere.
    Either,
    Around,
}

/// A cue at a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cue {
    pub(super) makes: Makes,
    pub(super) reach: Reach,
    pub(super) start: usize,
    pub(super) end: usize,
}

const TABLE: &[(Makes, Reach, &[&str])] = &[
    (
        Makes::Negative,
        Reach::After,
        &[
            "no",
            "not",
            "nor",
            "nor is|are|was|were there any?",
            "neither",
            "nothing",
            "without",
            "never",
            "denies",
            "free of",
            "clear of",
            "absence of",
            "lack of",
            "is|are|was|were? negative for|of",
            "no longer",
            "rather than",
            "instead of",
            "resolution of",
            "removal of",
            "cannot see",
        ],
    ),
    (
        Makes::Negative,
        Reach::Near,
        &["resolved", "removed", "cleared", "absent", "ruled out"],
    ),
    (
        Makes::Negative,
        Reach::Before,
        &[
            "not be? clearly|definitely? seen|identified|visualised|visualized|present|evident|appreciated|demonstrated|apparent|noted|detected|observed|found|visible",
            "cannot be clearly|definitely? seen|identified|visualised|visualized|appreciated|demonstrated|detected",
            "no longer clearly? seen|identified|visualised|visualized|present|evident|appreciated|demonstrated|apparent|noted|detected|visible",
            "is|are|was|were|be absent|negative",
            "is|are|was|were|been|be ruled out",
            "is|are|was|were|been|be excluded",
            "has|have|had since|now|completely|fully|entirely|also? resolved|cleared|disappeared|gone",
            "is|are|now|been completely|fully|entirely|now? resolved|cleared|removed|gone",
            "is|are|seems|appears|considered very|highly? unlikely",
        ],
    ),
    (
        Makes::Nothing,
        Reach::After,
        &[
            "no|without any? significant|interval|appreciable|substantial|relevant|further|major|marked|short|important? interval|term? change|changes|increase|decrease|progression|improvement|worsening|reduction",
            "not significantly|substantially|appreciably|much|markedly? changed|increased|decreased|improved|worsened|progressed",
            "not only",
            "no doubt",
            "not yet|fully|completely|entirely? resolved|cleared|removed",
            "nearly|almost|partially|partly|incompletely|largely|mostly resolved|cleared",
            "has|have nearly|almost|partially|partly|incompletely|largely|mostly resolved|cleared",
            "near|nearly|almost complete|total? resolution of",
            "not previously seen|present|visible|noted",
            "not seen|present|visible|noted|identified previously|before|earlier",
            "not seen|present|visible|noted|identified on|in the? prior|previous|earlier|comparison",
            "incomplete|partial resolution of",
            "no resolution of",
            "without resolution of",
        ],
    ),
    (
        Makes::Uncertain,
        Reach::After,
        &[
            "may|might|could",
            "possibly|probably|perhaps|presumably|potentially",
            "presumed|potential|questionable|question|questioned|equivocal|borderline|suspicion",
            "suspicious|concerning|worrisome|concern for|of",
            "possibility of",
            "suggest~",
            "cannot|can|could|not not? be? entirely|completely|reliably|definitively? exclude|excluding",
            "cannot|can|could not? be? entirely|completely? rule out",
            "difficult to exclude",
            "rule out",
            "exclude",
            "evaluate|evaluation|assess|assessment for",
        ],
    ),
    (
        Makes::Uncertain,
        Reach::Either,
        &["possible|probable|likely|suspected|doubtful|favored|favoured"],
    ),
    (
        Makes::Uncertain,
        Reach::Before,
        &[
            "cannot|can|could|not not? be? entirely|completely|reliably|definitively|fully? excluded",
            "cannot|can|could|not not? be? entirely|completely|reliably|definitively|fully? ruled out",
            "may|might|could also? be? present",
            "may|might|could be possible|considered",
            "is|are questioned|considered|uncertain|equivocal",
            "is a|one possibility|consideration",
            "is|are possibilities",
            "is|are|would also? be? in the differential",
            "is|are|would be? difficult|hard to exclude",
            "is|are|would be? less likely",
            "is|are not favored|favoured",
            "should|must be excluded",
            "should|must be ruled out",
            "if any",
        ],
    ),
    (Makes::Uncertain, Reach::Around, &["versus|vs"]),
];

/// The cues of a clause, from left to right, none over another.
pub(super) fn find(words: &[String]) -> Vec<Cue> {
    let mut cues = Vec::new();
    let mut start = 0;
    while start < words.len() {
        let mut best: Option<Cue> = None;
        for (makes, reach, patterns) in TABLE {
            for pattern in *patterns {
                let end = match_at(pattern, words, start).unwrap_or(start);
                if end > best.map_or(start, |best| best.end) {
                    let (makes, reach) = (*makes, *reach);
                    best = Some(Cue {
                        makes,
                        reach,
                        start,
                        end,
                    });
                }
            }
        }
        start = best.map_or(start + 1, |best| best.end);
        cues.extend(best.map(|cue| settled(cue, words)));
    }
    cues
}

/// "X is likely", but "X is likely Y"; "X resolved", but "resolved X".
fn settled(mut cue: Cue, words: &[String]) -> Cue {
    let last = words.get(cue.end).is_none_or(|word| word == ",");
    if cue.reach == Reach::Near && last && cue.start > 0 {
        cue.reach = Reach::Before;
    }
    if cue.reach == Reach::Either {
        let verb = cue
            .start
            .checked_sub(1)
            .is_some_and(|before| super::scope::is_verb(&words[before]));
        cue.reach = if verb && last {
            Reach::Before
        } else {
            Reach::After
        };
    }
    cue
}
