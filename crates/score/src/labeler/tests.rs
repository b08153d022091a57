//! Sentences with what they say. Most are traps for rules that are too simple.

use super::*;

/// `expected`: labels by their short names with `+` there, `-` not there, `?` uncertain, and the side's letter; in the order of
/// labels, those that aren't mentioned left out.
fn check(report: &str, expected: &str) {
    let reading = read(report);
    let mut said = Vec::new();
    for label in Label::all().filter(|label| *label != Label::NoFinding) {
        let status = match reading.status(label) {
            Status::NotMentioned => continue,
            Status::Negative => "-",
            Status::Uncertain => "?",
            Status::Positive => "+",
        };
        let sides: String = reading
            .sides(label)
            .into_iter()
            .map(|side| match side {
                Side::Left => 'L',
                Side::Right => 'R',
                Side::Bilateral => 'B',
                Side::Midline => 'M',
            })
            .collect();
        said.push(format!("{}{status}{sides}", short(label)));
    }
    assert_eq!(said.join(" "), expected, "{report}");
}

fn short(label: Label) -> &'static str {
    match label {
        Label::EnlargedCardiomediastinum => "mediastinum",
        Label::Cardiomegaly => "heart",
        Label::LungOpacity => "opacity",
        Label::LungLesion => "nodule",
        Label::Edema => "oedema",
        Label::Consolidation => "consolidation",
        Label::Pneumonia => "pneumonia",
        Label::Atelectasis => "atelectasis",
        Label::Pneumothorax => "pneumothorax",
        Label::PleuralEffusion => "effusion",
        Label::PleuralOther => "pleura",
        Label::Fracture => "fracture",
        Label::SupportDevices => "device",
        Label::NoFinding => "none",
    }
}

#[test]
fn what_phantoms_say() {
    check("There is a small left pleural effusion.", "effusion+L");
    check(
        "A moderate right upper zone consolidation is seen.",
        "consolidation+R",
    );
    check("The heart is enlarged.", "heart+");
    check("There is an enlarged heart.", "heart+");
    check("Mild cardiomegaly is seen.", "heart+");
    check(
        "The lungs show mild bilateral pulmonary oedema.",
        "oedema+B",
    );
    check("An endotracheal tube is in place.", "device+");
    check("A central venous catheter is seen.", "device+");
    check("There is a pacemaker.", "device+");
    check("A left mid zone rib fracture is present.", "fracture+L");
    check(
        "Small right lower zone atelectasis is present.",
        "atelectasis+R",
    );
    check("Large left pneumothorax.", "pneumothorax+L");
    check("The heart is of normal size.", "heart-");
    check("The heart is not enlarged.", "heart-");
    check("No cardiomegaly.", "heart-");
    check("No nodule is seen.", "nodule-");
    check("There is no rib fracture.", "fracture-");
    check("No acute finding.", "");
    check("Normal chest.", "");
    check(
        "Small left upper zone nodule, moderate right pleural effusion and pulmonary oedema.",
        "nodule+L oedema+ effusion+R",
    );
    check(
        "Findings: There is a small left pleural effusion. No pneumothorax. Impression: Small left pleural effusion.",
        "pneumothorax- effusion+L",
    );
    check(
        "Small left pleural effusion and small right pleural effusion.",
        "effusion+LR",
    );
    check(
        "Compared with the prior: The left pneumothorax has resolved. The cardiomegaly is unchanged. The endotracheal tube has been removed.",
        "heart+ pneumothorax- device-",
    );
}

#[test]
fn negation() {
    check(
        "No evidence of consolidation, effusion or pneumothorax.",
        "consolidation- pneumothorax- effusion-",
    );
    check(
        "No focal consolidation, large effusion, or pneumothorax.",
        "consolidation- pneumothorax- effusion-",
    );
    check("Pneumothorax has resolved.", "pneumothorax-");
    check("The left effusion has completely resolved.", "effusion-");
    check(
        "Interval resolution of the left pleural effusion.",
        "effusion-",
    );
    check(
        "Resolved right pneumothorax and new left nodule.",
        "nodule+L pneumothorax-",
    );
    check("The lungs are free of consolidation.", "consolidation-");
    check("The lungs are clear of consolidation.", "consolidation-");
    check("Negative for pneumonia.", "pneumonia-");
    check("Cardiomegaly without pleural effusion.", "heart+ effusion-");
    check("Pleural effusion is not seen.", "effusion-");
    check(
        "Effusion and pneumothorax are absent.",
        "pneumothorax- effusion-",
    );
    check(
        "Right effusion is seen and pneumothorax is absent.",
        "pneumothorax- effusion+R",
    );
    check(
        "The previously seen nodule is no longer visible.",
        "nodule-",
    );
    check("The heart is no longer enlarged.", "heart-");
    check(
        "Neither effusion nor pneumothorax.",
        "pneumothorax- effusion-",
    );
    check("Pneumonia has been ruled out.", "pneumonia-");
    check("Heart size is normal.", "heart-");
    check("The cardiac silhouette is within normal limits.", "heart-");
    check(
        "Cardiomediastinal silhouette is normal.",
        "mediastinum- heart-",
    );
    check("The bones are intact.", "fracture-");
    check("The endotracheal tube has been removed.", "device-");
    check("Pneumonia is unlikely.", "pneumonia-");
    check("No findings to suggest pneumonia.", "pneumonia-");
}

#[test]
fn scope_ends() {
    check(
        "No pneumothorax, but a small left effusion.",
        "pneumothorax- effusion+L",
    );
    check(
        "No pneumothorax, small left effusion.",
        "pneumothorax- effusion+L",
    );
    check(
        "No pneumothorax and there is a small right effusion.",
        "pneumothorax- effusion+R",
    );
    check(
        "No effusion is seen and the heart is enlarged.",
        "heart+ effusion-",
    );
    check(
        "No pneumothorax; large left effusion.",
        "pneumothorax- effusion+L",
    );
    check(
        "Although there is no effusion, there is atelectasis.",
        "atelectasis+ effusion-",
    );
    check(
        "Effusion is present, pneumothorax is not seen.",
        "pneumothorax- effusion+",
    );
    check(
        "The lungs are clear except for a right nodule.",
        "opacity- nodule+R oedema- consolidation- pneumonia- atelectasis-",
    );
}

#[test]
fn what_only_looks_like_negation() {
    check("No change in the left pleural effusion.", "effusion+L");
    check(
        "No significant interval change in bibasilar atelectasis.",
        "atelectasis+B",
    );
    check(
        "Right pneumothorax, not significantly changed.",
        "pneumothorax+R",
    );
    check("The effusion has not resolved.", "effusion+");
    check(
        "The consolidation has partially resolved.",
        "consolidation+",
    );
    check(
        "Near complete resolution of the right effusion.",
        "effusion+R",
    );
    check("The lungs are not clear.", "");
    check("No increase in the right effusion.", "effusion+R");
}

#[test]
fn uncertainty() {
    check("Possible left lower lobe pneumonia.", "pneumonia?L");
    check(
        "Opacity which may represent pneumonia or atelectasis.",
        "opacity+ pneumonia? atelectasis?",
    );
    check("Pneumonia cannot be excluded.", "pneumonia?");
    check("A small effusion cannot be entirely excluded.", "effusion?");
    check("Cannot exclude a small pneumothorax.", "pneumothorax?");
    check(
        "Right basilar opacity is likely atelectasis.",
        "opacity+R atelectasis?",
    );
    check(
        "Right basilar opacity likely represents atelectasis.",
        "opacity+R atelectasis?",
    );
    check("Pleural effusion is likely.", "effusion?");
    check("Findings suggestive of mild oedema.", "oedema?");
    check(
        "Atelectasis versus consolidation at the left base.",
        "consolidation?L atelectasis?",
    );
    check("Borderline cardiomegaly.", "heart?");
    check(
        "No pneumothorax, possible trace effusion.",
        "pneumothorax- effusion?",
    );
    check("A left effusion may be present.", "effusion?L");
    check("Suspicious for consolidation.", "consolidation?");
    check(
        "A left effusion would be difficult to exclude.",
        "effusion?L",
    );
    check("Raises the possibility of pneumonia.", "pneumonia?");
    check("Atelectasis is also in the differential.", "atelectasis?");
    check("Pleural effusion, if any, is small.", "effusion?");
}

#[test]
fn what_is_gone_or_was_never_there() {
    check("Effusion resolved.", "effusion-");
    check("Left effusion and nodule resolved.", "nodule- effusion-");
    check(
        "Chest tube removed, no pneumothorax.",
        "pneumothorax- device-",
    );
    check("Effusion absent, nodule present.", "nodule+ effusion-");
    check("Effusion ruled out.", "effusion-");
    check("Almost complete resolution of the effusion.", "effusion+");
    check("The examination is negative for effusion.", "effusion-");
    check("Nothing to suggest pneumonia.", "pneumonia-");
    check(
        "Neither effusion, nor is there pneumothorax.",
        "pneumothorax- effusion-",
    );
    check("Pleural effusion cannot be seen.", "effusion-");
    check("A nodule can be seen.", "nodule+");
    check(
        "The left effusion was not present on the prior study.",
        "effusion+L",
    );
    check("A nodule not seen previously is present.", "nodule+");
    check("No change in the left effusion.", "effusion+L");
    check("Without evidence of effusion.", "effusion-");
}

#[test]
fn a_denial_behind_a_heading() {
    check(
        "Pleural effusion: None. Pneumothorax: No\nNodule: small, left.",
        "nodule+ pneumothorax- effusion-",
    );
    check("Comparison: None. Findings: Left effusion.", "effusion+L");
    check("Findings: None. Impression: Left nodule.", "nodule+L");
    check("Effusion: no change.", "effusion+");
}

#[test]
fn a_clause_of_its_own_is_not_negated() {
    check(
        "No focal consolidation, and the heart is enlarged.",
        "heart+ consolidation-",
    );
    check(
        "No evidence of pneumothorax, the heart is enlarged.",
        "heart+ pneumothorax-",
    );
    check(
        "The left lung is free of nodules, the right has a nodule.",
        "nodule+",
    );
    check(
        "No effusion and the lungs show consolidation.",
        "consolidation+ effusion-",
    );
    check(
        "There is no pneumothorax and the effusion is unchanged.",
        "pneumothorax- effusion+",
    );
    check(
        "No pneumothorax, effusion or consolidation is seen.",
        "consolidation- pneumothorax- effusion-",
    );
    check(
        "No abnormality other than a small left effusion.",
        "effusion+L",
    );
}

#[test]
fn doubts() {
    check("Effusion is doubtful.", "effusion?");
    check("Doubtful effusion.", "effusion?");
    check("Exclude pneumothorax.", "pneumothorax?");
    check("Pneumothorax should be excluded.", "pneumothorax?");
    check("Pneumothorax is not favored.", "pneumothorax?");
}

#[test]
fn sides_of_findings() {
    check(
        "Effusion on the left and pneumothorax on the right.",
        "pneumothorax+R effusion+L",
    );
    check("Left and right pleural effusions.", "effusion+B");
    check("Right greater than left effusions.", "effusion+B");
    check(
        "At the left base there is consolidation.",
        "consolidation+L",
    );
    check("Left effusion and atelectasis.", "atelectasis+L effusion+L");
    check(
        "Nodule in the right upper lobe, left effusion.",
        "nodule+R effusion+L",
    );
    check(
        "Left-sided chest tube with left pneumothorax.",
        "pneumothorax+L device+L",
    );
    check("Small effusions bilaterally.", "effusion+B");
    check("No left effusion. Right effusion.", "effusion+R");
}

#[test]
fn other_words() {
    check("Small pericardial effusion.", "");
    check("No mass effect.", "");
    check(
        "Indication: rule out pneumonia. Comparison: effusion. Findings: No effusion.",
        "effusion-",
    );
    check("Cardiac silhouette has increased in size.", "heart+");
    check(
        "Right internal jugular line. Dual pacemaker leads.",
        "device+R",
    );
    check(
        "Oedema, likely cardiogenic given enlargement of the heart.",
        "heart+ oedema+",
    );
    check("Widened mediastinum.", "mediastinum+");
    check("Right hydropneumothorax.", "pneumothorax+R effusion+R");
    check("Pleural thickening on the right.", "pleura+R");
    check("3.5 cm mass in the left upper lobe.", "nodule+L");
    check("1. Cardiomegaly. 2. Edema.", "heart+ oedema+");
    check("", "");
    check("!!! ... ,,, ::", "");
}

/// RadEval@e0a3909 `tests/test_f1chexbert.py`: CheXbert's labels of these pairs, positive or uncertain.
#[test]
fn most_of_what_chexbert_finds() {
    check(
        "No pleural effusion. Normal heart size.",
        "heart- effusion-",
    );
    check("Enlarged heart.", "heart+");
    check(
        "No evidence of pneumonia. Stable cardiomegaly.",
        "heart+ pneumonia-",
    );
    check(
        "Increased mild pulmonary edema and left basal atelectasis.",
        "oedema+ atelectasis+L",
    );
    check(
        "Bilateral lower lobe bronchiectasis with improved right lower medial lung peribronchial consolidation.",
        "consolidation+R",
    );
    check(
        "Elevated left hemidiaphragm and blunting of the left costophrenic angle although no definite evidence of pleural effusion seen on the lateral view.",
        "effusion-",
    );
}

#[test]
fn no_finding_is_the_absence_of_others() {
    assert!(read("No acute finding.").has(Label::NoFinding));
    assert!(read("An endotracheal tube is seen. No effusion.").has(Label::NoFinding));
    assert!(!read("Possible effusion.").has(Label::NoFinding));
    assert!(read("").has(Label::NoFinding));
}

#[test]
fn labels_have_many_names() {
    assert_eq!(
        Label::named("Pleural Effusion"),
        Some(Label::PleuralEffusion)
    );
    assert_eq!(
        Label::named("pleural_effusion"),
        Some(Label::PleuralEffusion)
    );
    assert_eq!(Label::named("oedema"), Some(Label::Edema));
    assert_eq!(Label::named("Edema"), Some(Label::Edema));
    assert_eq!(Label::named("hernia"), None);
    assert_eq!(Label::all().count(), 14);
    assert_eq!(Label::all().filter_map(Label::phantom).count(), 10);
}
