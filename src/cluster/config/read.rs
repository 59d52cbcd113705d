//! YAML (and JSON, which is YAML) into typed values that know their line, with errors that name file, line and key.

use std::fmt::{self, Formatter};
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_path_to_error::Segment;
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{Options, Spanned};

use super::kind::Kind;
use crate::error::{Error, Result};

/// Bytes of the largest file that is read.
const LARGEST: u64 = 1 << 20;
/// Values of the largest file, aliases followed: this also bounds the time.
const VALUES: usize = 200_000;
/// How deep a file may be nested.
const DEPTH: usize = 16;
/// Characters of a file's text that an error shows.
const SHOWN: usize = 60;
/// Keys whose own keys are the user's words.
const TABLES_OF_NAMES: [&str; 2] = ["models", "env"];

/// What errors call a text: a file, or the flag that it was given by.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) is_flag: bool,
}

impl Source<'_> {
    /// An error about `line`, if it is a known one.
    pub(super) fn refuse(&self, line: u64, message: impl fmt::Display, hint: impl fmt::Display) -> Error {
        match (self.is_flag, line) {
            (true, _) => Error::usage(format!("{}: {message}", self.name)).hint(hint),
            (false, 0) => Error::msg(format!("{}: {message}", self.name)).hint(hint),
            (false, line) => Error::msg(format!("{}:{line}: {message}", self.name)).hint(hint),
        }
    }
}

/// Reads a file that may be anything.
pub(super) fn text(path: &Path) -> Result<String> {
    let hint = "give a cluster.yaml, an MLX hostfile, or host names with commas between them";
    let file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let mut bytes = Vec::new();
    let read = file.take(LARGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::io(path, error).hint(hint))?;
    // what never ends, as /dev/zero, is as long as its beginning
    if bytes.len() as u64 > LARGEST {
        let error = format!("{} is larger than {LARGEST} bytes: that is no cluster file", path.display());
        return Err(Error::msg(error).hint(hint));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::msg(format!("{}:{line}: byte {good} is not UTF-8", path.display())).hint(hint)
    })
}

/// Reads `text` as a `T`; `form` is what errors call that.
pub(super) fn parse<T: DeserializeOwned>(text: &str, source: Source<'_>, form: &str) -> Result<T> {
    let mut path = Place::default();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = Place::of(error.path());
            error.into_inner()
        })
    });
    read.map_err(|error| refusal(&error, &path, source, form))
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        // a host may be called `y` or `on`
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        budget: serde_saphyr::budget! {
            max_events: VALUES,
            max_depth: DEPTH,
            flow_nesting_limit: DEPTH,
            max_recorded_anchor_events: VALUES,
            max_recorded_anchor_bytes: 8 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: VALUES, max_replay_stack_depth: DEPTH },
    }
}

/// Where in a file: `hosts[1].rdma.mac2`.
#[derive(Default)]
struct Place {
    whole: String,
    parent: String,
}

impl Place {
    fn of(path: &serde_path_to_error::Path) -> Self {
        let mut place = Self::default();
        let mut last = "";
        for segment in path.iter() {
            let text = match segment {
                Segment::Seq { index } => format!("[{index}]"),
                // the wrapper that knows the line is no part of the file
                Segment::Map { key } if key == "value" && !TABLES_OF_NAMES.contains(&last) => continue,
                Segment::Map { key } | Segment::Enum { variant: key } => {
                    last = key;
                    let dot = if place.whole.is_empty() { "" } else { "." };
                    format!("{dot}{}", shown(key))
                }
                Segment::Unknown => continue,
            };
            place.parent.clone_from(&place.whole);
            place.whole.push_str(&text);
        }
        place
    }
}

/// The error of the YAML reader in our words.
fn refusal(error: &serde_saphyr::Error, path: &Place, source: Source<'_>, form: &str) -> Error {
    use serde_saphyr::Error as Yaml;
    let error = error.without_snippet();
    let line = error.location().map_or(0, |location| location.line());
    let at = if path.whole.is_empty() { "the file".to_owned() } else { format!("`{}`", path.whole) };
    let syntax = "the file is read as YAML; look at the indentation, brackets and quotes there";
    match error {
        Yaml::SerdeUnknownField { field, expected, .. } => {
            let field = shown(field);
            let inside = if path.parent.is_empty() { String::new() } else { format!(" in `{}`", path.parent) };
            source.refuse(line, format!("`{field}`{inside} is no key of {form}"), near(&field, expected))
        }
        Yaml::SerdeMissingField { field, .. } if path.whole.is_empty() => {
            source.refuse(line, format!("`{field}` is missing"), format!("{form} needs it"))
        }
        Yaml::SerdeMissingField { field, .. } => {
            source.refuse(line, format!("{at} has no `{field}`"), format!("{form} needs it"))
        }
        Yaml::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map_or("a key".to_owned(), |key| format!("the key `{}`", shown(key)));
            source.refuse(line, format!("{key} stands there a second time"), "remove one of the two")
        }
        Yaml::Eof { .. } => source.refuse(line, "the file ends before it says anything", "it needs `hosts`"),
        Yaml::MultipleDocuments { .. } => {
            source.refuse(line, "a second document begins", "a cluster is one document: remove the line `---`")
        }
        Yaml::NullIntoString { .. } => source.refuse(line, format!("{at} is empty"), "give it a value or remove it"),
        Yaml::Unexpected { expected, .. } => {
            let wanted = match *expected {
                "mapping start" => "a table of keys",
                "sequence start" => "a list",
                _ => "one value",
            };
            source.refuse(
                line,
                format!("{at} has to be {wanted}"),
                "`tbshard schema` and configs/ show how it is written",
            )
        }
        Yaml::SerdeInvalidType { unexpected, expected, .. } | Yaml::SerdeInvalidValue { unexpected, expected, .. } => {
            let found = if unexpected == "unit value" { "empty" } else { unexpected };
            let hint = "`tbshard schema` and configs/ show how it is written";
            source.refuse(line, format!("{at} is {}, not {expected}", shown(found)), hint)
        }
        // a kind's own words: the message, and the hint behind a line end
        Yaml::Message { msg, .. } => match msg.split_once('\n') {
            Some((message, hint)) => source.refuse(line, format!("{at} {message}"), hint),
            None => source.refuse(line, shown(msg), syntax),
        },
        Yaml::Budget { .. } | Yaml::AliasReplayLimitExceeded { .. } | Yaml::AliasReplayStackDepthExceeded { .. } => {
            let hint = format!("it has at most {VALUES} values, those behind aliases counted, and {DEPTH} levels");
            source.refuse(line, format!("the file is too large or too deep for {form}"), hint)
        }
        Yaml::AliasError { error, .. } => refusal(error, path, source, form),
        other => {
            let text = other.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
            source.refuse(line, shown(text), syntax)
        }
    }
}

/// `did you mean …` if a known word is like `word`, otherwise the list.
pub(super) fn near(word: &str, known: &[impl AsRef<str>]) -> String {
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&word.to_lowercase(), &known.to_lowercase());
    let best = known.iter().map(|known| (likeness(known.as_ref()), known.as_ref())).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, known)) if likeness >= 0.5 => format!("did you mean `{known}`?"),
        _ => {
            let known: Vec<String> = known.iter().map(|known| format!("`{}`", shown(known.as_ref()))).collect();
            format!("known here: {}", known.join(", "))
        }
    }
}

/// A file's own text in an error: one short line without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short.replace("\\'", "'").replace("\\\"", "\"")
}

/// A value of one kind, and the line it stands on.
pub(super) struct At<K: Kind> {
    pub(super) line: u64,
    pub(super) value: K::Value,
}

impl<K: Kind> At<K> {
    /// Reads `text`, which is to stand on `line`; the error is a message and a hint with a line end between them.
    pub(super) fn parse(line: u64, text: &str) -> std::result::Result<Self, String> {
        match K::parse(text) {
            Some(value) => Ok(Self { line, value }),
            None => Err(format!("is `{}`, not {}\n{}", shown(text), K::IS, K::HINT)),
        }
    }
}

impl<'de, K: Kind> Deserialize<'de> for At<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text: Spanned<String> = Spanned::deserialize(deserializer)?;
        Self::parse(text.defined.line(), &text.value).map_err(D::Error::custom)
    }
}

impl<K: Kind> JsonSchema for At<K> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        std::any::type_name::<K>().into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        K::schema()
    }
}

/// A list of values, or one value that stands for a list of one.
pub(super) struct Many<K: Kind> {
    pub(super) line: u64,
    pub(super) items: Vec<At<K>>,
}

enum OneOrList<K: Kind> {
    One(String),
    List(Vec<At<K>>),
}

impl<'de, K: Kind> Deserialize<'de> for OneOrList<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either<K>(PhantomData<K>);
        impl<'de, K: Kind> Visitor<'de> for Either<K> {
            type Value = OneOrList<K>;
            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                write!(f, "{} or a list of them", K::IS)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<OneOrList<K>, E> {
                Ok(OneOrList::One(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<OneOrList<K>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(OneOrList::List(items))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<'de, K: Kind> Deserialize<'de> for Many<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let read: Spanned<OneOrList<K>> = Spanned::deserialize(deserializer)?;
        let line = read.defined.line();
        let items = match read.value {
            OneOrList::List(items) => items,
            OneOrList::One(text) => vec![At::parse(line, &text).map_err(D::Error::custom)?],
        };
        Ok(Self { line, items })
    }
}

impl<K: Kind> JsonSchema for Many<K> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("list of {}", std::any::type_name::<K>()).into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "anyOf": [K::schema(), { "type": "array", "items": K::schema() }] })
    }
}
