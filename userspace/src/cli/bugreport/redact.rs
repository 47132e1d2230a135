//! Takes out of a text what must not be given away.

use std::borrow::Cow;

use crate::identity::token;

/// Digits of a key for sealing, and of nothing else that is needed.
const KEY_DIGITS: usize = 64;

/// What begins and ends a private key in PEM.
const KEY_BEGIN: &str = "-----BEGIN ";
const KEY_END: &str = "-----END ";

/// Parts of the names of settings whose values are secret.
const SECRET_SETTINGS: [&str; 5] = ["join", "password", "passphrase", "secret", "token"];

/// The text without join tokens, private keys, keys for sealing, and values of settings that hold one.
pub fn redacted(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains(KEY_BEGIN) && line.contains("PRIVATE KEY") {
            in_key = !line.contains(KEY_END);
            clean.push_str("(a private key was here)\n");
        } else if in_key {
            in_key = !line.contains(KEY_END);
        } else {
            clean.push_str(&without_keys(&without_tokens(&without_setting(line))));
        }
    }
    clean
}

/// `join = "…"` keeps its name.
fn without_setting(line: &str) -> Cow<'_, str> {
    let Some((name, _)) = line.split_once('=') else { return line.into() };
    let name = name.trim_end();
    let word = name.trim_start_matches(|character: char| character.is_whitespace() || character == '#');
    let is_name = word.chars().all(|character| character.is_alphanumeric() || "-_".contains(character));
    // The names of files with secrets are none.
    let is_secret =
        SECRET_SETTINGS.iter().any(|secret| word.to_lowercase().contains(secret)) && !word.ends_with("-file");
    if is_name && is_secret { format!("{name} = (removed)\n").into() } else { line.into() }
}

fn without_tokens(line: &str) -> Cow<'_, str> {
    if !line.contains(token::PREFIX) {
        return line.into();
    }
    let is_part = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
    let mut parts = line.split(token::PREFIX);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("(a token)");
        clean.push_str(part.trim_start_matches(is_part));
    }
    clean.into()
}

fn without_keys(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(begin) = rest.find(|character: char| character.is_ascii_hexdigit()) {
        let (before, digits) = rest.split_at(begin);
        let end = digits.find(|character: char| !character.is_ascii_hexdigit()).unwrap_or(digits.len());
        clean.push_str(before);
        clean.push_str(if end >= KEY_DIGITS { "(many digits)" } else { &digits[..end] });
        rest = &digits[end..];
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        let key = "0123456789abcdef".repeat(4);
        let text = format!(
            "murmesh agent --join murmesh1.AbC-_9 --node fcs00\n\
             join = \"something\"\n#seal-key-file = \"/etc/murmesh/key\"\nseal-passphrase-file = \"/etc/x\"\n\
             sealed with {key}, id 0123abcd\n\
             -----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n\
             certificate = -----BEGIN CERTIFICATE-----\nrevision 7, ends=soon\n"
        );
        assert_eq!(
            redacted(&text),
            "murmesh agent --join (a token) --node fcs00\n\
             join = (removed)\n#seal-key-file = \"/etc/murmesh/key\"\nseal-passphrase-file = \"/etc/x\"\n\
             sealed with (many digits), id 0123abcd\n\
             (a private key was here)\n\
             certificate = -----BEGIN CERTIFICATE-----\nrevision 7, ends=soon\n"
        );
    }

    #[test]
    fn every_place_of_a_line_is_looked_at() {
        let key = "f".repeat(80);
        for (text, clean) in [
            ("MURMESH_JOIN=murmesh1.abc".to_owned(), "MURMESH_JOIN = (removed)\n".to_owned()),
            ("\"murmesh1.a\",\"murmesh1.b\"".to_owned(), "\"(a token)\",\"(a token)\"".to_owned()),
            (format!("{key}{key} {key}"), "(many digits) (many digits)".to_owned()),
            ("ein Wort mit Umlaut: für dich".to_owned(), "ein Wort mit Umlaut: für dich".to_owned()),
        ] {
            assert_eq!(redacted(&text), clean);
        }
    }
}
