//! Where text goes: a terminal with a line that changes, or a pipe with plain lines.

use std::io::{IsTerminal as _, Write as _};

/// What a reader can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    /// Colours may be used, as decoration only.
    pub(crate) colour: bool,
    /// Characters beyond ASCII can be shown.
    pub(crate) unicode: bool,
    /// Columns of a line; none when nobody wraps it.
    pub(crate) width: Option<usize>,
}

impl Style {
    /// What the standard output can show; `error` for the standard error.
    pub(crate) fn of(error: bool) -> Self {
        let terminal = if error {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        let size = if error {
            terminal_size::terminal_size_of(std::io::stderr())
        } else {
            terminal_size::terminal_size()
        };
        Self {
            colour: terminal && colours(),
            unicode: utf8(),
            width: size
                .filter(|_| terminal)
                .map(|(columns, _)| usize::from(columns.0)),
        }
    }

    /// The text as this reader can see it.
    pub(crate) fn shown(self, text: &str) -> String {
        if self.unicode {
            return text.to_owned();
        }
        let mut shown = String::with_capacity(text.len());
        for character in text.chars() {
            match character {
                '✓' => shown.push_str("ok"),
                '✗' => shown.push_str("failed:"),
                '…' => shown.push_str("..."),
                '·' => shown.push('-'),
                '→' => shown.push_str("->"),
                '↓' => shown.push_str("in "),
                '↑' => shown.push_str("out "),
                '“' | '”' => shown.push('"'),
                character if character.is_ascii() => shown.push(character),
                _ => shown.push('?'),
            }
        }
        shown
    }

    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !code.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Whether nobody asked for no colours (<https://no-color.org>) and the terminal knows them.
pub(crate) fn colours() -> bool {
    let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !asked_not_to && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn utf8() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    // Where nothing says otherwise, as in services and pipes, text is UTF-8.
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// The standard output, with lines that stay and at most one that changes.
pub(crate) struct Screen {
    style: Style,
    /// There is a terminal where a line can change.
    live: bool,
    /// A changing line is on the screen.
    shown: bool,
}

impl Screen {
    /// `still` forbids the changing line.
    pub(crate) fn new(still: bool) -> Self {
        let style = Style::of(false);
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let live = std::io::stdout().is_terminal() && !dumb && !still;
        Self {
            style,
            live,
            shown: false,
        }
    }

    pub(crate) const fn style(&self) -> Style {
        self.style
    }

    pub(crate) const fn is_live(&self) -> bool {
        self.live
    }

    /// Adds lines that stay.
    pub(crate) fn lines(&mut self, lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        self.clear();
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        write(&text);
    }

    /// Shows the line that changes.
    pub(crate) fn live(&mut self, line: Option<String>) {
        if !self.live {
            return;
        }
        let Some(line) = line else { return self.clear() };
        let room = self.style.width.unwrap_or(80).saturating_sub(1);
        let line: String = line.chars().take(room).collect();
        write(&format!("\r\x1b[2K{line}"));
        self.shown = true;
    }

    /// Takes the changing line away.
    pub(crate) fn clear(&mut self) {
        if self.shown {
            write("\r\x1b[2K");
            self.shown = false;
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whoever closed the standard output does not want to know; the tunnel goes on.
pub(crate) fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _unheard = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The same for the standard error.
pub(crate) fn write_error(text: &str) {
    let _unheard = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_terminals_without_utf_8_loses_no_meaning() {
        let ascii = Style {
            colour: false,
            unicode: false,
            width: None,
        };
        assert_eq!(
            ascii.shown("✓ Phase 1 · IKE SA … ↓ 1 kB/s"),
            "ok Phase 1 - IKE SA ... in  1 kB/s"
        );
        assert_eq!(ascii.shown("Büro"), "B?ro");
        let full = Style {
            unicode: true,
            ..ascii
        };
        assert_eq!(full.shown("✓ Büro"), "✓ Büro");
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let plain = Style {
            colour: false,
            unicode: true,
            width: None,
        };
        assert_eq!(plain.paint("32", "ok"), "ok");
        assert_eq!(
            Style {
                colour: true,
                ..plain
            }
            .paint("32", "ok"),
            "\x1b[32mok\x1b[0m"
        );
    }
}
