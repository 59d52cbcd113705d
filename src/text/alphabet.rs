//! The byte-level alphabet: a printable character for every byte, so that any bytes can be written as text.

/// Returns the byte a character of the byte-level alphabet stands for: bytes that print as themselves in
/// Latin-1 are themselves, the other 68 are numbered from U+0100 on.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let byte = match u32::from(character) {
        code @ (33..=126 | 161..=172 | 174..=255) => code,
        code @ 256..=288 => code - 256,
        code @ 289..=322 => code - 289 + 127,
        323 => 173,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Returns the character of the byte-level alphabet that stands for `byte`.
pub(super) fn symbol_of(byte: u8) -> char {
    let code = match u32::from(byte) {
        code @ 0..=32 => code + 256,
        code @ 127..=160 => code - 127 + 289,
        173 => 323,
        code => code,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Returns the bytes of a byte-level token; one with a character outside that alphabet is plain text.
pub(super) fn bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Returns the bytes of a token that writes spaces as `▁` and lone bytes as `<0x0A>`.
pub(super) fn fallback(token: &str) -> Vec<u8> {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|digits| digits.len() == 2);
    match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_symbol_of_its_own() {
        for byte in 0..=255 {
            assert_eq!(byte_of(symbol_of(byte)), Some(byte));
        }
        let known = (0..0x3000).filter_map(char::from_u32).filter(|c| byte_of(*c).is_some()).count();
        assert_eq!((known, symbol_of(b' '), symbol_of(b'\n'), symbol_of(b'a')), (256, 'Ġ', 'Ċ', 'a'));
    }
}
