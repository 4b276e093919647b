//! Distinguished names (RFC 5280, section 4.1.2.4) as text and back, and text that is safe to show.

use std::fmt::Write as _;

use super::der::{self, Der};

/// The longest text of one name in a message to the user, in characters.
const SHOWN: usize = 160;

/// Attribute types: the first name of an OID is the one shown. The OIDs are the contents of their DER encoding.
const ATTRIBUTES: &[(&str, &[u8])] = &[
    ("CN", &[0x55, 4, 3]),
    ("SN", &[0x55, 4, 4]),
    ("serialNumber", &[0x55, 4, 5]),
    ("C", &[0x55, 4, 6]),
    ("L", &[0x55, 4, 7]),
    ("ST", &[0x55, 4, 8]),
    ("S", &[0x55, 4, 8]),
    ("STREET", &[0x55, 4, 9]),
    ("O", &[0x55, 4, 10]),
    ("OU", &[0x55, 4, 11]),
    ("T", &[0x55, 4, 12]),
    ("GN", &[0x55, 4, 42]),
    ("G", &[0x55, 4, 42]),
    ("E", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]),
    ("emailAddress", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]),
    ("email", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]),
    ("DC", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25]),
    ("UID", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1]),
];

/// `text` without anything that could move a cursor, change a colour or turn the reading direction, cut to a
/// length that fits a message.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == SHOWN {
            out.push('…');
            break;
        }
        match character {
            '\'' | '"' | '\\' => out.push(character),
            _ => out.extend(character.escape_debug()),
        }
    }
    out
}

/// Octets as hexadecimal digits.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().fold(
        String::with_capacity(octets.len().saturating_mul(2)),
        |mut out, octet| {
            let _ = write!(out, "{octet:02x}");
            out
        },
    )
}

/// Hexadecimal digits as octets.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            let digits = std::str::from_utf8(pair).ok()?;
            digits
                .bytes()
                .all(|digit| digit.is_ascii_hexdigit())
                .then_some(())?;
            u8::from_str_radix(digits, 16).ok()
        })
        .collect()
}

/// An OID's content octets in dotted notation; arcs that do not fit 64 bits end it with an ellipsis.
pub(crate) fn dotted(oid: &[u8]) -> String {
    let mut out = String::new();
    let mut arc: u64 = 0;
    for &octet in oid {
        let Some(shifted) = arc.checked_mul(128) else {
            out.push('…');
            return out;
        };
        arc = shifted | u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            if out.is_empty() {
                let first = (arc / 40).min(2);
                let _ = write!(out, "{first}.{}", arc - first * 40);
            } else {
                let _ = write!(out, ".{arc}");
            }
            arc = 0;
        }
    }
    out
}

/// A dotted OID as content octets.
fn from_dotted(text: &str) -> Option<Vec<u8>> {
    let arcs = text
        .split('.')
        .map(|arc| arc.parse::<u32>().ok())
        .collect::<Option<Vec<u32>>>()?;
    let [first, second, rest @ ..] = arcs.as_slice() else {
        return None;
    };
    if *first > 2 || (*first < 2 && *second > 39) {
        return None;
    }
    let mut out = Vec::new();
    for arc in std::iter::once(u64::from(*first) * 40 + u64::from(*second))
        .chain(rest.iter().map(|&arc| u64::from(arc)))
    {
        let septets = (64 - arc.leading_zeros()).div_ceil(7).max(1);
        for septet in (0..septets).rev() {
            let bits = u8::try_from((arc >> (7 * septet)) & 0x7f).ok()?;
            out.push(if septet == 0 { bits } else { bits | 0x80 });
        }
    }
    Some(out)
}

/// An attribute: the content of its type's OID, and its value.
type Attribute<'a> = (&'a [u8], der::Value<'a>);

/// The attributes of a DER `Name`, one list for each relative distinguished name.
fn attributes(name: &[u8]) -> Option<Vec<Vec<Attribute<'_>>>> {
    let mut sets = Der::new(der::sole(name, der::SEQUENCE)?.body);
    let mut names = Vec::new();
    while !sets.is_empty() {
        let mut set = sets.enter(der::SET)?;
        let mut parts = Vec::new();
        while !set.is_empty() {
            let mut part = set.enter(der::SEQUENCE)?;
            let kind = part.expect(der::OID)?;
            let value = part.any()?;
            if !part.is_empty() {
                return None;
            }
            parts.push((kind.body, value));
        }
        names.push(parts);
    }
    Some(names)
}

/// Whether `name` is a well-formed DER `Name`.
pub(crate) fn is_well_formed(name: &[u8]) -> bool {
    attributes(name).is_some()
}

/// A string value of any of ASN.1's string types as text.
fn string(value: &der::Value<'_>) -> Option<String> {
    match value.tag {
        der::UTF8_STRING | der::PRINTABLE_STRING | der::IA5_STRING | der::NUMERIC_STRING => {
            String::from_utf8(value.body.to_vec()).ok()
        }
        // T.61 is used as if it were ISO 8859-1.
        der::T61_STRING => Some(value.body.iter().map(|&octet| char::from(octet)).collect()),
        der::BMP_STRING => {
            let (pairs, rest) = value.body.as_chunks::<2>();
            if !rest.is_empty() {
                return None;
            }
            String::from_utf16(
                &pairs
                    .iter()
                    .map(|&pair| u16::from_be_bytes(pair))
                    .collect::<Vec<_>>(),
            )
            .ok()
        }
        der::UNIVERSAL_STRING => {
            let (quads, rest) = value.body.as_chunks::<4>();
            if !rest.is_empty() {
                return None;
            }
            quads
                .iter()
                .map(|&quad| char::from_u32(u32::from_be_bytes(quad)))
                .collect()
        }
        _ => None,
    }
}

/// A DER `Name` as text, in the order of the encoding: `C=CH, O=Example, CN=gateway`.
///
/// Control and format characters are escaped, so that the text can be shown anywhere.
pub(crate) fn dn_text(name: &[u8]) -> String {
    let Some(names) = attributes(name) else {
        return format!("#{}", escape(&hex(name)));
    };
    let mut out = String::new();
    for (index, parts) in names.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { ", " });
        for (index, (kind, value)) in parts.iter().enumerate() {
            out.push_str(if index == 0 { "" } else { "+" });
            match ATTRIBUTES.iter().find(|(_, oid)| oid == kind) {
                Some((short, _)) => out.push_str(short),
                None => out.push_str(&dotted(kind)),
            }
            out.push('=');
            match string(value) {
                Some(text) => push_value(&mut out, &text),
                None => out.push_str(&format!("#{}", escape(&hex(value.whole)))),
            }
        }
    }
    out
}

/// Appends the value of an attribute, with the characters that RFC 4514 reserves behind a backslash.
fn push_value(out: &mut String, text: &str) {
    for (index, character) in text.chars().enumerate() {
        match character {
            _ if index == SHOWN => {
                out.push('…');
                return;
            }
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=' => out.extend(['\\', character]),
            '#' | ' ' if index == 0 => out.extend(['\\', character]),
            '\'' => out.push(character),
            _ => out.extend(character.escape_debug()),
        }
    }
}

/// Text such as `C=CH, O=Example, CN=gateway` as a DER `Name`, in the order written.
///
/// A comma separates names; a backslash takes the next character literally; values may stand in
/// double quotes. Values become PrintableString where they can, IA5String for e-mail addresses and domain
/// components, and UTF8String otherwise (RFC 5280, section 4.1.2.4). `None` when it is not such a text.
pub(crate) fn dn_from_text(text: &str) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    for part in split(text)? {
        let (kind, value) = part.split_once('=')?;
        let kind = kind.trim();
        let oid = match ATTRIBUTES
            .iter()
            .find(|(short, _)| short.eq_ignore_ascii_case(kind))
        {
            Some((_, oid)) => oid.to_vec(),
            None => from_dotted(kind)?,
        };
        let value = unquote(value)?;
        if value.is_empty() {
            return None;
        }
        let tag = if oid.starts_with(&[0x2a]) || oid.ends_with(&[0x64, 1, 25]) {
            if value.is_ascii() {
                der::IA5_STRING
            } else {
                der::UTF8_STRING
            }
        } else if value
            .bytes()
            .all(|octet| octet.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&octet))
        {
            der::PRINTABLE_STRING
        } else {
            der::UTF8_STRING
        };
        let attribute = [der::wrap(der::OID, &oid), der::wrap(tag, value.as_bytes())].concat();
        names.extend(der::wrap(der::SET, &der::wrap(der::SEQUENCE, &attribute)));
    }
    (!names.is_empty()).then(|| der::wrap(der::SEQUENCE, &names))
}

/// The parts of a name between commas that are neither quoted nor behind a backslash, still escaped.
fn split(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    let mut literal = false;
    for (index, character) in text.char_indices() {
        match character {
            _ if literal => literal = false,
            '\\' => literal = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(text.get(start..index)?);
                start = index + 1;
            }
            _ => {}
        }
    }
    if quoted || literal {
        return None;
    }
    parts.push(text.get(start..)?);
    Some(parts)
}

/// A value without its surrounding spaces, quotes and backslashes.
fn unquote(value: &str) -> Option<String> {
    let mut out = String::new();
    // What of `out` stays even if it ends in spaces.
    let mut kept = 0;
    let mut quoted = false;
    let mut characters = value.trim_start().chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                out.push(characters.next()?);
                kept = out.len();
            }
            '"' => quoted = !quoted,
            _ => {
                out.push(character);
                if quoted || character != ' ' {
                    kept = out.len();
                }
            }
        }
    }
    out.truncate(kept);
    Some(out)
}

/// Whether two DER `Name`s name the same: the same attributes in the same order, their values equal as octets or
/// as text without regard to the string type, ASCII case and repeated spaces (RFC 5280, section 7.1).
pub(crate) fn dn_matches(left: &[u8], right: &[u8]) -> bool {
    if left == right {
        return is_well_formed(left);
    }
    let (Some(left), Some(right)) = (attributes(left), attributes(right)) else {
        return false;
    };
    left.len() == right.len()
        && left.iter().zip(&right).all(|(left, right)| {
            left.len() == right.len()
                && left.iter().zip(right).all(|((left_kind, left), (right_kind, right))| {
                    left_kind == right_kind
                        && (left.whole == right.whole
                            || matches!((string(left), string(right)), (Some(left), Some(right)) if prepare(&left) == prepare(&right)))
                })
        })
}

/// Text as it is compared.
fn prepare(text: &str) -> String {
    text.split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_text() {
        for text in [
            "C=CH, O=Linux strongSwan, CN=moon.strongswan.org",
            "DC=org, DC=example, CN=Müller\\, Jörg",
            "CN=a\\+b\\=c, E=alice@example.org",
            "CN=\\ leading, 1.2.840.113549.1.9.2=x",
            "O=Zürich",
        ] {
            let name = dn_from_text(text).unwrap();
            assert!(is_well_formed(&name));
            assert_eq!(dn_text(&name), text);
        }
        assert_eq!(
            dn_text(&dn_from_text("cn = \"Doe, John\" ,o=x ").unwrap()),
            "CN=Doe\\, John, O=x"
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "", "CN", "CN=", "foo=bar", "CN=a,", "CN=\"a", "CN=a\\", "3.1=x", "1.40=x", ",CN=a",
        ] {
            assert!(dn_from_text(text).is_none(), "{text}");
        }
    }

    #[test]
    fn comparison_ignores_string_type_case_and_spaces() {
        let printable = dn_from_text("C=CH, CN=Big  Gateway").unwrap();
        let mut utf8 = dn_from_text("C=CH, CN=big gateway").unwrap();
        let at = utf8
            .windows(2)
            .rposition(|pair| pair == [der::PRINTABLE_STRING, 11])
            .unwrap();
        utf8[at] = der::UTF8_STRING;
        assert!(dn_matches(&printable, &utf8));
        assert!(!dn_matches(
            &printable,
            &dn_from_text("CN=Big Gateway, C=CH").unwrap()
        ));
        assert!(!dn_matches(
            &printable,
            &dn_from_text("C=CH, CN=Big Gateway, CN=x").unwrap()
        ));
        assert!(!dn_matches(
            &printable,
            &dn_from_text("C=CH, OU=Big Gateway").unwrap()
        ));
        assert!(!dn_matches(b"junk", b"junk"));
    }

    #[test]
    fn shown_text_is_harmless() {
        let hostile = "a\u{1b}[31m\r\nfake: ok\u{202e}\0\u{9b}";
        let shown = escape(hostile);
        assert!(
            shown
                .chars()
                .all(|character| !character.is_control() && character != '\u{202e}'),
            "{shown}"
        );
        let name = der::wrap(
            der::SEQUENCE,
            &der::wrap(
                der::SET,
                &der::wrap(
                    der::SEQUENCE,
                    &[
                        der::wrap(der::OID, &[0x55, 4, 3]),
                        der::wrap(der::UTF8_STRING, hostile.as_bytes()),
                    ]
                    .concat(),
                ),
            ),
        );
        let shown = dn_text(&name);
        assert!(
            shown
                .chars()
                .all(|character| !character.is_control() && character != '\u{202e}'),
            "{shown}"
        );
        assert!(escape(&"x".repeat(100_000)).len() < 1000);
    }

    #[test]
    fn oids_are_dotted() {
        assert_eq!(dotted(&[0x2b, 6, 1, 5, 5, 7, 3, 17]), "1.3.6.1.5.5.7.3.17");
        assert_eq!(
            dotted(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]),
            "1.2.840.113549.1.9.1"
        );
        assert_eq!(
            from_dotted("1.2.840.113549.1.9.1").unwrap(),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]
        );
        assert_eq!(from_dotted("2.999").unwrap(), [0x88, 0x37]);
        assert_eq!(dotted(&[0x88, 0x37]), "2.999");
        let _ = dotted(&[0xff; 40]);
    }
}
