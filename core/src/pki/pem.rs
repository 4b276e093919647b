//! Blocks in PEM text (RFC 7468, and the older headers of RFC 1421).

use base64ct::{Base64, Encoding as _};
use zeroize::Zeroizing;

/// One block between BEGIN and END.
pub(crate) struct Block<'a> {
    /// What follows BEGIN, such as `CERTIFICATE`.
    pub(crate) label: &'a str,
    /// The algorithm and the initialization vector in hexadecimal digits of a `DEK-Info` header.
    pub(crate) encryption: Option<(&'a str, &'a str)>,
    /// The decoded octets; `None` when they are not Base64.
    pub(crate) octets: Option<Zeroizing<Vec<u8>>>,
}

/// Whether this looks like PEM rather than DER.
pub(crate) fn is_pem(octets: &[u8]) -> bool {
    octets
        .windows(BEGIN.len())
        .any(|window| window == BEGIN.as_bytes())
}

/// All complete blocks. Text around them, line lengths, line ends and indentation do not matter.
pub(crate) fn blocks(octets: &[u8]) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Open<'_>> = None;
    for line in octets.split(|&octet| octet == b'\n' || octet == b'\r') {
        // Text around the blocks may be in any encoding.
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let line = line.trim().trim_start_matches('\u{feff}');
        if let Some(label) = marked(line, BEGIN) {
            open = Some(Open {
                label,
                encryption: None,
                text: Zeroizing::new(String::with_capacity(octets.len())),
            });
        } else if let Some(label) = marked(line, END) {
            blocks.extend(open.take().filter(|block| block.label == label).map(Open::close));
        } else if let Some(block) = &mut open {
            match line.split_once(':') {
                Some(("DEK-Info", info)) => block.encryption = info.trim().split_once(','),
                Some(_) => {}
                None => block.text.extend(line.split_whitespace()),
            }
        }
    }
    blocks
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

/// The label in a line such as `-----BEGIN CERTIFICATE-----`.
fn marked<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.strip_prefix(start)?.strip_suffix("-----")
}

struct Open<'a> {
    label: &'a str,
    encryption: Option<(&'a str, &'a str)>,
    /// With room for all of it, so that growing leaves no copy behind.
    text: Zeroizing<String>,
}

impl<'a> Open<'a> {
    fn close(self) -> Block<'a> {
        let octets = Base64::decode_vec(&self.text).ok().map(Zeroizing::new);
        Block {
            label: self.label,
            encryption: self.encryption,
            octets,
        }
    }
}
