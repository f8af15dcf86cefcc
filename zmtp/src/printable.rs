//! Makes untrusted text safe to print.

use std::borrow::Cow;

/// Escapes characters that could end a line, control a terminal or change the direction of text:
/// control characters, line separators, and bidirectional embeddings, overrides and isolates.
/// They become Rust escapes such as `\n` or `\u{1b}`. All other characters stay, so people can
/// read text in their own script.
///
/// Call it on text from a peer, a server or a name before you log it or put it in an error.
/// Applying it twice changes nothing.
///
/// ```
/// assert_eq!(zmtp::printable("ok\u{1b}[31m"), r"ok\u{1b}[31m");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_forge_log_lines_or_control_terminals_are_escaped() {
        let controls = (0..0x20).chain(0x7f..0xa0);
        let marks = (0x2028..=0x202e).chain(0x2066..=0x2069);
        for code in controls.chain(marks) {
            let c = char::from_u32(code).unwrap();
            let text = format!("a{c}b");
            let escaped = printable(&text);
            assert_eq!(escaped, format!("a{}b", c.escape_default()), "U+{code:04X}");
            assert!(escaped.is_ascii(), "U+{code:04X}");
            assert_eq!(printable(&escaped), escaped, "escaping twice changes nothing");
        }
        assert_eq!(printable("no\r\n\u{1b}[31mINFO"), r"no\r\n\u{1b}[31mINFO");
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in [
            "",
            "it's \"no\" \\ way",
            "kein Zugriff: é ß",
            "アクセス拒否 🚫",
            "אין גישה",
            "n\u{303}",
        ] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
