//! Words for shells that nobody knows beforehand: what bash, dash, zsh, fish and tcsh all read alike.

/// Returns `text` as one word for any login shell.
///
/// Inside single quotes fish knows `\\` and `\'`, and csh knows `!`; so these stand outside, behind a backslash.
/// A line break is the one thing that csh has no word for: [`remote`] takes care of it.
pub fn quote(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    let mut quoted = String::new();
    let mut inside = false;
    for letter in text.chars() {
        let bare = matches!(letter, '\'' | '\\' | '!');
        if bare == inside {
            quoted.push('\'');
            inside = !inside;
        }
        if bare {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    if inside {
        quoted.push('\'');
    }
    quoted
}

/// Returns a remote command that runs `script` with `/bin/sh`, whatever the login shell is.
pub fn remote(script: &str) -> String {
    if !script.contains('\n') {
        return format!("exec /bin/sh -c {}", quote(script));
    }
    let script = script.replace('\\', r"\\").replace('\n', r"\n");
    format!("exec /bin/sh -c {} tbshard {}", quote(r#"eval "$(printf %b "$1")""#), quote(&script))
}

/// Returns `path` as a word for `/bin/sh` in which a leading `~/` is the home there.
pub(super) fn path(path: &str) -> String {
    match path.strip_prefix("~/") {
        Some(rest) => format!("\"$HOME\"/{}", quote(rest)),
        None => quote(path),
    }
}

/// Returns `word` as a person types it: quoted only if it must be.
pub fn for_show(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=@%+,~".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { quote(word) }
}
