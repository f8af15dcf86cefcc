//! Text from outside, made printable.

use std::borrow::Cow;

/// Escapes what could end a line, steer a terminal or turn the direction of a text: control
/// characters, line separators, and the marks of bidirectional text that embed, isolate or
/// override. They are escaped as Rust has them, `\n` or `\u{1b}`. Everything else stays, so that
/// people can read it in their own script.
///
/// Pass text from a peer, a server or a name through this before it enters an error or a log.
/// Doing so twice changes nothing.
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
    fn what_could_forge_a_record_or_steer_a_terminal_is_escaped() {
        let controls = (0..0x20).chain(0x7f..0xa0);
        let marks = (0x2028..=0x202e).chain(0x2066..=0x2069);
        for code in controls.chain(marks) {
            let c = char::from_u32(code).unwrap();
            let text = format!("a{c}b");
            let escaped = printable(&text);
            assert_eq!(escaped, format!("a{}b", c.escape_default()), "U+{code:04X}");
            assert!(escaped.is_ascii(), "U+{code:04X}");
            assert_eq!(printable(&escaped), escaped, "it is escaped once");
        }
        assert_eq!(printable("no\r\n\u{1b}[31mINFO"), r"no\r\n\u{1b}[31mINFO");
    }

    #[test]
    fn ordinary_text_stays_as_it_is() {
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
