//! Text in, text out, and what may not get in: with the tiny checkpoint's tokenizer.

use super::*;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/tiny");

fn tiny() -> Tokenizer {
    Tokenizer::load(Path::new(TINY), usize::MAX, true).unwrap()
}

fn check_round_trip(text: &str) {
    let tokenizer = tiny();
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
    assert_eq!(tokenizer.decode(&ids), text);
    let mut stream = Detokenizer::default();
    let pieces: Vec<String> = ids
        .iter()
        .map(|id| stream.push(&tokenizer, *id).unwrap())
        .collect();
    assert!(
        pieces
            .iter()
            .all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)),
        "{pieces:?}"
    );
    assert_eq!(pieces.concat() + &stream.finish().unwrap(), text);
}

#[test]
fn any_text_survives() {
    for text in [
        "",
        "The lungs are clear.",
        "  two  spaces ",
        "Ödem 37 °C, 🙂 肺炎\n\n\tx",
        "▂",
    ] {
        check_round_trip(text);
    }
}

#[test]
fn text_never_becomes_a_control_token() {
    for name in [
        "<end_of_turn>",
        "<start_of_turn>model\n",
        "<bos>",
        "<eos>",
        "<image_soft_token>",
        "<start_of_image>",
        "<end_of_image>",
        "<unused94>thought",
        "<unused95>",
        "<pad>",
        "<mask>",
        "<unk>",
        "a<end_of_turn>b",
        "<<end_of_turn>>",
        "<end_of_turn><end_of_turn>",
        " <bos> ",
    ] {
        check_round_trip(name);
    }
}

#[test]
fn broken_bytes_become_replacement_characters_once() {
    let tokenizer = tiny();
    let byte = |b: u8| tokenizer.id(&format!("<0x{b:02X}>")).unwrap();
    let a = tokenizer.encode("a").unwrap();
    let mut ids = vec![byte(0xF0), byte(0x9F), byte(0x99)];
    ids.extend(&a);
    assert_eq!(tokenizer.decode(&ids), "\u{fffd}a");
    assert_eq!(tokenizer.decode(&ids[..3]), "\u{fffd}");
    assert_eq!(
        tokenizer.decode(&[byte(0xFF), byte(0xC3), byte(0xA9)]),
        "\u{fffd}é"
    );
}

#[test]
fn thinking_is_no_part_of_the_answer() {
    let tokenizer = tiny();
    let word = |text: &str| tokenizer.encode(text).unwrap();
    let open = vec![tokenizer.id("<unused94>").unwrap()];
    let close = vec![tokenizer.id("<unused95>").unwrap()];
    let half = vec![tokenizer.id("<0xC3>").unwrap()];
    let rest = vec![tokenizer.id("<0xA9>").unwrap()];
    let check = |parts: &[&[u32]], expected: Result<&str, StillThinking>| {
        let ids = parts.concat();
        let mut stream = Detokenizer::default();
        let mut text = String::new();
        for id in &ids {
            text.push_str(&stream.push(&tokenizer, *id).unwrap_or_default());
        }
        let written = stream.finish().map(|end| text.clone() + &end);
        assert_eq!(written.as_deref().map_err(|error| *error), expected);
        assert_eq!(tokenizer.decode(&ids), expected.unwrap_or(&text));
    };
    let (mass, clear) = (&word("a mass?")[..], &word("clear")[..]);
    check(&[&open, mass, &close, clear], Ok("clear"));
    check(&[clear, &open, mass, &close, clear], Ok("clearclear"));
    check(&[&open, mass, &open, mass, &close, clear], Ok("clear"));
    check(&[&close, clear], Ok("clear"));
    check(&[&open, &half, &close, clear], Ok("clear"));
    check(&[&open, &half, &close, &rest], Ok("\u{fffd}"));
    check(&[&half, &open, mass, &close, clear], Ok("clear"));
    check(&[&open, mass, &close], Ok(""));
    check(&[&open, mass], Err(StillThinking));
    check(&[&open], Err(StillThinking));
    check(&[clear, &open, &half], Err(StillThinking));
}

#[test]
fn special_ids_are_those_of_the_file() {
    let tokenizer = tiny();
    let special = tokenizer.special();
    assert_eq!(Some(special.end_of_turn), tokenizer.id("<end_of_turn>"));
    assert_eq!(special.thinking_open, tokenizer.id("<unused94>"));
    assert!(special.image.is_some());
    assert_ne!(special.start_of_turn, 105);
}

#[test]
fn unusable_files_are_refused() {
    let refused = |json: &str| Tokenizer::parse(json, usize::MAX, true).unwrap_err();
    let text = std::fs::read_to_string(Path::new(TINY).join("tokenizer.json")).unwrap();
    assert!(matches!(refused("{"), LoadError::Tokenizer { .. }));
    assert!(matches!(
        refused(&text[..text.len() / 2]),
        LoadError::Tokenizer { .. }
    ));
    assert!(matches!(
        refused(&text.replace("\"byte_fallback\":true", "\"byte_fallback\":false")),
        LoadError::Tokenizer { .. }
    ));
    let renamed = text.replace("<end_of_turn>", "<end_of_torn>");
    assert!(matches!(
        refused(&renamed),
        LoadError::MissingToken {
            token: "<end_of_turn>"
        }
    ));
    let error = Tokenizer::parse(&text, 100, true).unwrap_err();
    assert!(
        matches!(error, LoadError::TokenizerTooLarge { rows: 100, .. }),
        "{error}"
    );
}
