//! Names and labels that people read: which characters they may have, and how text that others wrote is shown.
//!
//! A terminal obeys control characters, and characters that change the direction of text make a line look like
//! another one. Whoever may name something must not be able to do either to its reader.

/// Whether a text has neither control characters nor ones that break lines or change the direction of text.
#[must_use]
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(is_hidden)
}

/// The text with such characters escaped: `\u{1b}` for an escape, `\n` for a new line.
#[must_use]
pub fn escape_hidden(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            escaped.extend(char.escape_default());
        } else {
            escaped.push(char);
        }
    }
    escaped
}

fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_not_printable() {
        for (text, escaped) in [
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("x\u{202e}y\u{2069}", "x\\u{202e}y\\u{2069}"),
            ("\u{7f}\0", "\\u{7f}\\u{0}"),
        ] {
            assert!(!is_printable(text), "{text:?}");
            assert_eq!(escape_hidden(text), escaped);
            assert!(is_printable(&escape_hidden(text)));
        }
        let plain = "zone=a, Zürich 東京 'x' \\n";
        assert!(is_printable(plain));
        assert_eq!(escape_hidden(plain), plain);
    }
}
