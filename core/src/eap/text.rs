//! What servers want people to read.

/// `text` on one line of at most `limit` octets before escapes, without anything that steers a terminal or the
/// direction of writing.
pub(super) fn harmless(text: &str, limit: usize) -> String {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut shown = String::new();
    for c in text
        .get(..end)
        .unwrap_or_default()
        .trim_matches(|c: char| c.is_whitespace() || c == '\0')
        .chars()
    {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// The server's own words as the end of a sentence, if it has any.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(", in its words: “{text}”")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_escaped_and_the_rest_is_not() {
        assert_eq!(
            harmless("  Code für Bob's \"Büro\\1\": \n", 100),
            "Code für Bob's \"Büro\\1\":"
        );
        assert_eq!(harmless("a\x1b[2Jb\r\nc\0d", 100), "a\\u{1b}[2Jb\\r\\nc\\0d");
        // Marks, embeddings, overrides and isolates of direction; invisible characters; line separators.
        for c in "\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{feff}\u{e0001}\u{9b}".chars() {
            let shown = harmless(&format!("a{c}b"), 100);
            assert_eq!(shown, format!("a\\u{{{:x}}}b", u32::from(c)));
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(harmless(&"ü".repeat(100), 9), "üüüü");
        assert_eq!(harmless("abc", 0), "");
    }
}
