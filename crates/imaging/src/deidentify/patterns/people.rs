//! Names of people, by what stands before them: a title, or a label such as those of forms. A name goes on through words with a
//! capital, initials and particles, and ends with a word of the clinic: what was found has to be left.

use std::ops::Range;

use dicom_dictionary_std::tags;

use super::super::terms::is_term;
use super::tokens::{Kind, Tokens, has, has_small};

/// Parts of a name at most.
const PARTS_MAX: usize = 8;
/// Words without a capital that are taken for names, behind a title besides the first and behind a label with a colon.
const SMALL_BEHIND_TITLE: usize = 1;
const SMALL_BEHIND_LABEL: usize = 3;

const TITLES: &str =
    "dr drs dra prof profs mrs herr herrn frau mme mlle doctor doktor sra srta dott";
/// Titles that are something else where they are written otherwise: magnetic resonance, milliseconds, a structured report.
const TITLES_WITH_CAPITAL: &str = "mr ms sr miss";
/// The same that have a point at their end, besides.
const TITLES_WITH_POINT: &str = "fr hr";
/// That are written without a blank before a name.
const GLUED_TITLES: [&str; 8] = ["Dr", "Prof", "Mr", "Mrs", "Ms", "Mme", "Herr", "Frau"];
/// What stands between a title and a name.
const DEGREES: &str = "med dent phil rer nat habil univ priv doz hc h c vet";
const LABELS: &str = "name names vorname nachname surname patientenname nom prénom nombre apellido apellidos cognome nome \
    patient patients patientin paciente paziente pat referring physician physicians radiologist radiologists technologist \
    operator operators technician surgeon arzt ärztin überweiser radiologe radiologin radiologue médecin médico medico md";
/// Labels that name things, too.
const NAMES: &str = "name names nom nome nombre";
const THINGS: &str = "protocol series study sequence file station device exam procedure scan coil kernel product model \
    institution department program";
/// What a label without a colon stands before, other than a name.
const BEHIND_LABELS: &str = "id ids age sex weight height size position positioning positioned orientation motion moved moving \
    movement table supine prone upright sitting data information history number refused unable comfort dose class care console \
    department hospital clinic diagnosis unit group has had";
const PARTICLES: &str = "von van der den dem des de da di do dos das del della du la le los las al el bin ibn ben bint abu ter \
    ten zu zum zur af av vom";
/// Between two names.
const JOINTS: &str = "and und et y e";
/// That have a point at their end.
const ABBREVIATED: &str = "jr sr st chr";
/// With a capital in the middle of a description, and hardly the name of anybody. "Hand", "Back" and "Foot" are names.
const CLINICAL: &str = "ct mr mrt mri mra us pet spect xr cxr rx cr dx dr nm mg xa irm tac tc rm rmn tdm tep angio sono \
    ultrasound röntgen thorax chest abdomen pelvis pelvic brain skull spine cspine tspine lspine knee liver lung lungs kidney \
    kidneys shoulder ankle elbow wrist hip femur humerus prostate breast colon aorta thyroid spleen pancreas uterus bladder \
    schädel becken lunge leber niere nieren wirbelsäule bws hws lws schulter knie hüfte mamma crâne poumon bassin genou rachis \
    flair dwi adc tse fse gre stir tof axial ax coronal cor sagittal sag tra mpr mip ap pa lateral lat native nativ contrast km \
    iv series serie study image images view views slice slices scan exam examination untersuchung befund frage verlauf \
    verlaufskontrolle kontrolle findings impression tel fax phone email dob id mrn am pm no not non none nil kein keine ohne \
    sans sin with without mit nach bei for on in at the of to from is was has had and or but oder normal abnormal negative \
    positive stable unchanged new old left right links rechts mass nodule lesion fracture effusion pneumonia tumor edema \
    stenosis said agreed saw asked requested reports reported wants suspects";

/// Where names are, without the titles and labels.
pub(super) fn people(tokens: &Tokens<'_>) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let name = if is_glued(tokens, at) {
            name(tokens, at, true, 0)
        } else {
            titled(tokens, at).or_else(|| labelled(tokens, at))
        };
        at = name.as_ref().map_or(at + 1, |name| name.end);
        found.extend(name);
    }
    found
}

/// Whether it is a word of the clinic, which ends a name or a place.
pub(super) fn is_clinical(tokens: &Tokens<'_>, at: usize) -> bool {
    tokens.is_word(at, CLINICAL)
}

/// Whether it is a title with its name in one word.
fn is_glued(tokens: &Tokens<'_>, at: usize) -> bool {
    let word = tokens.text(at);
    let names = |title: &&'static str| {
        let name = word.strip_prefix(*title);
        name.is_some_and(|name| name.starts_with(char::is_uppercase))
    };
    tokens.is(at, Kind::Word) && GLUED_TITLES.iter().any(names)
}

/// The place behind a title; `None` where there is none.
fn behind_title(tokens: &Tokens<'_>, at: usize) -> Option<usize> {
    // "30 ms" may be written without a blank.
    if !tokens.is(at, Kind::Word) || tokens.kind_before(at) == Some(Kind::Number) {
        return None;
    }
    let word = tokens.text(at);
    let point = tokens.is_mark(at + 1, ".");
    let next = tokens.behind_mark(tokens.behind_mark(at + 1, "."), ":");
    let next = tokens.behind_space(next);
    let is_title = if tokens.is_word(at, TITLES) {
        // Digital radiography.
        let part = is_term(tags::BODY_PART_EXAMINED, &tokens.text(next).to_uppercase());
        has_small(word) || point || !part && !is_clinical(tokens, next)
    } else {
        let capital = word.starts_with(char::is_uppercase);
        let as_title = capital && (point || has_small(word) || word == "MISS");
        tokens.is_word(at, TITLES_WITH_CAPITAL) && (as_title || point && word == "mr")
            || tokens.is_word(at, TITLES_WITH_POINT) && capital && point
    };
    is_title.then_some(next)
}

fn titled(tokens: &Tokens<'_>, at: usize) -> Option<Range<usize>> {
    let mut next = behind_title(tokens, at)?;
    while tokens.is_word(next, DEGREES) && !tokens.is_large(next) {
        next = tokens.behind_space(tokens.behind_mark(next + 1, "."));
    }
    // The next title has its own name.
    if behind_title(tokens, next).is_some() || is_joint(tokens, next) {
        return None;
    }
    let is_small = tokens.is(next, Kind::Word) && !tokens.is_large(next);
    let small = if is_small { SMALL_BEHIND_TITLE } else { 0 };
    name(tokens, next, true, small)
}

fn labelled(tokens: &Tokens<'_>, at: usize) -> Option<Range<usize>> {
    if !tokens.is(at, Kind::Word) {
        return None;
    }
    let word = tokens.text(at).to_lowercase();
    let word = word.trim_end_matches("'s").trim_end_matches("’s");
    if !has(LABELS, word) {
        return None;
    }
    let point = tokens.is_mark(at + 1, ".");
    let colon_at = tokens.behind_blank(tokens.behind_mark(at + 1, "."));
    let colon = tokens.is_mark(colon_at, ":=：");
    let next = if colon {
        tokens.behind_space(colon_at + 1)
    } else {
        colon_at
    };
    let of_thing = || {
        let blank = usize::from(tokens.kind_before(at) == Some(Kind::Blank));
        let before = at.checked_sub(1 + blank);
        has(NAMES, word) && before.is_some_and(|before| tokens.is_word(before, THINGS))
    };
    // "Pat" alone is a name itself, and a point behind another label ends its sentence; "MD" stands behind a name, too.
    let is_label = colon || word != "md" && point == (word == "pat");
    // A field of a form that nobody filled in.
    let is_empty =
        tokens.kind_before(next) == Some(Kind::Break) && tokens.is_mark(next + 1, ":=：");
    if !is_label
        || is_empty
        || of_thing()
        || is_clinical(tokens, next)
        || begins_another(tokens, next)
    {
        return None;
    }
    let large = tokens.is_large(next) || tokens.is(next, Kind::Mask);
    if colon {
        let small = if large { 0 } else { SMALL_BEHIND_LABEL };
        return name(tokens, next, false, small);
    }
    (large && !tokens.is_word(next, BEHIND_LABELS))
        .then(|| name(tokens, next, false, 0))
        .flatten()
}

/// The name that begins here. `any`: whether its first word is taken for a part in any case; `small`: as many others without a
/// capital.
fn name(tokens: &Tokens<'_>, from: usize, any: bool, small: usize) -> Option<Range<usize>> {
    let mut name = Name {
        tokens,
        at: from,
        any,
        small,
        end: None,
        parts: 0,
        whole: 0,
        comma: false,
        hyphen: false,
    };
    while name.parts < PARTS_MAX && name.step() {}
    let range = from..name.end?;
    let is_masked = range.clone().all(|at| tokens.is(at, Kind::Mask));
    (!is_masked).then_some(range)
}

/// A name as far as it was read.
struct Name<'a> {
    tokens: &'a Tokens<'a>,
    at: usize,
    any: bool,
    small: usize,
    end: Option<usize>,
    parts: usize,
    /// Parts that are neither initials nor particles.
    whole: usize,
    /// Whether there was one: "Smith, Anna".
    comma: bool,
    /// Whether one stands right before the next part.
    hyphen: bool,
}

impl Name<'_> {
    /// Reads a part and what is between it and the next; whether there may be a next.
    fn step(&mut self) -> bool {
        let (tokens, at) = (self.tokens, self.at);
        match tokens.kind(at) {
            Some(Kind::Mask) => {
                self.end = Some(at + 1);
                self.whole += 1;
            }
            Some(Kind::Word) => {
                // "T2", "L4".
                let is_numbered = tokens.is(at + 1, Kind::Number);
                if is_numbered || self.parts > 0 && begins_another(tokens, at) {
                    return false;
                }
                if self.whole > 0
                    && let Some(next) = behind_joint(tokens, at)
                {
                    self.at = next;
                    return true;
                }
                if self.whole > 0 && is_clinical(tokens, at) || !self.word() {
                    return false;
                }
            }
            _ => return false,
        }
        self.parts += 1;
        self.separator()
    }

    /// Whether the word here is a part.
    fn word(&mut self) -> bool {
        let (tokens, at) = (self.tokens, self.at);
        let (large, particle) = (tokens.is_large(at), tokens.is_word(at, PARTICLES));
        let is_first = self.any && self.parts == 0;
        if !large && !particle && !is_first && !self.hyphen {
            if self.small == 0 {
                return false;
            }
            self.small -= 1;
        }
        // A particle is part of a name where another part follows.
        if large || is_first || !particle {
            self.end = Some(at + 1);
        }
        self.whole += usize::from(!particle && !is_initial(tokens, at));
        true
    }

    fn separator(&mut self) -> bool {
        let (tokens, mut next) = (self.tokens, self.at + 1);
        if tokens.is_mark(next, ".") {
            let goes_on = matches!(tokens.kind(next + 1), Some(Kind::Word | Kind::Mark(_)));
            let short = is_initial(tokens, self.at) || tokens.is_word(self.at, ABBREVIATED);
            if !goes_on && !short {
                return false;
            }
            next += 1;
        }
        self.hyphen = tokens.is_mark(next, "-‐‑");
        if self.hyphen || tokens.is_mark(next, "'’/^=") {
            next += 1;
        } else {
            next = tokens.behind_blank(next);
            let comma = tokens.is_mark(next, ",") && !self.comma && self.whole <= 1;
            self.comma |= comma;
            if comma || tokens.is_mark(next, "&") {
                next = tokens.behind_blank(next + 1);
            }
        }
        self.at = next;
        true
    }
}

fn is_initial(tokens: &Tokens<'_>, at: usize) -> bool {
    tokens.text(at).chars().nth(1).is_none()
}

/// Whether a title or a label is here, which has a name of its own.
fn begins_another(tokens: &Tokens<'_>, at: usize) -> bool {
    let is_name = tokens.is_word(at, "pat") && !tokens.is_mark(at + 1, ".");
    tokens.is_word(at, LABELS) && !is_name || behind_title(tokens, at).is_some()
}

/// The name behind an "and".
fn behind_joint(tokens: &Tokens<'_>, at: usize) -> Option<usize> {
    let next = tokens.behind_blank(at + 1);
    let names = is_joint(tokens, at) && tokens.is_large(next) && !is_clinical(tokens, next);
    names.then_some(next)
}

/// "E." is an initial.
fn is_joint(tokens: &Tokens<'_>, at: usize) -> bool {
    tokens.is_word(at, JOINTS) && !tokens.is_large(at)
}
