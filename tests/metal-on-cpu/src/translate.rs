//! Metal to C++: finds kernels and their parameters in preprocessed text, gives threadgroup memory a home, adds a table.

use std::fmt::Write;
use std::ops::Range;

/// What the text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be looked at with Metal's address spaces.
    Check,
    /// To run, without them.
    Code,
}

/// What comes before every translated text.
const PRELUDE: &str = r#"#pragma clang attribute push(__attribute__((no_sanitize("thread"))), apply_to = function)
#include "metal_stdlib.h"
#include "entry.h"
#ifdef RACES
#include "races.h"
#endif
#pragma clang attribute pop
#include "keywords.h"
"#;

/// Where a kernel's parameter comes from, by its attribute.
const ATTRIBUTES: [(&str, &str); 13] = [
    ("buffer", "Bound"),
    ("thread_position_in_grid", "PositionInGrid"),
    ("thread_position_in_threadgroup", "PositionInGroup"),
    ("threadgroup_position_in_grid", "GroupPosition"),
    ("threads_per_threadgroup", "ThreadsOfGroup"),
    ("threadgroups_per_grid", "Groups"),
    ("threads_per_grid", "ThreadsOfGrid"),
    ("thread_index_in_threadgroup", "Index"),
    ("thread_index_in_simdgroup", "Lane"),
    ("simdgroup_index_in_threadgroup", "Simdgroup"),
    ("simdgroups_per_threadgroup", "Simdgroups"),
    ("threads_per_simdgroup", "SimdgroupWidth"),
    ("thread_execution_width", "SimdgroupWidth"),
];

/// A kernel as it is written, perhaps a template.
struct Definition<'a> {
    name: &'a str,
    template: bool,
    parameters: Vec<String>,
    threads: &'a str,
}

/// A kernel as it is called.
struct Instance<'a> {
    name: String,
    function: &'a str,
}

/// Translates `text`, which the preprocessor has seen.
///
/// # Errors
/// If something in it is not understood.
pub fn translate(text: &str, purpose: Purpose) -> Result<String, String> {
    let tokens = Tokens::of(text);
    let mut definitions = Vec::new();
    let mut instances = Vec::new();
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens.text(at) {
            "host_name" => {
                let (instance, attributes, end) = instance(&tokens, at)?;
                instances.push(instance);
                // clang has no place for them here
                edits.push((attributes, String::new()));
                at = end;
            }
            "kernel" => {
                if let Some((definition, body)) = definition(&tokens, at)? {
                    definitions.push(definition);
                    memory(&tokens, body.clone(), purpose, &mut edits);
                    at = body.end;
                }
            }
            "threadgroup" if tokens.opens_statement(at) && is_memory(&tokens, at) => {
                return Err(format!("{}: threadgroup memory is declared in kernels", tokens.place(at)));
            }
            _ => {}
        }
        at += 1;
    }
    let mut out = PRELUDE.to_owned();
    let mut done = 0;
    for (range, new) in edits {
        out += &text[done..range.start];
        out += &new;
        // lines stay where they are
        out.extend(text[range.clone()].chars().filter(|c| *c == '\n'));
        done = range.end;
    }
    out += &text[done..];
    if purpose == Purpose::Code {
        out += &table(&definitions, &instances)?;
    }
    Ok(out)
}

/// `template [[host_name("name")]] [[kernel]] decltype(function) function;` from its `host_name` on; where its attributes are; its end.
fn instance<'a>(tokens: &Tokens<'a>, at: usize) -> Result<(Instance<'a>, Range<usize>, usize), String> {
    let open = at + 1;
    let close = tokens.closing(open)?;
    let name = (open + 1..close).map(|part| tokens.text(part).trim_matches('"')).collect();
    let end = (close..tokens.len()).find(|end| tokens.text(*end) == ";").ok_or("an instantiation has no end")?;
    let declared = (close..end).find(|at| tokens.text(*at) == "decltype");
    let declared = declared.ok_or_else(|| format!("{}: expected `decltype(kernel)`", tokens.place(at)))?;
    let function = tokens.range(tokens.closing(declared + 1)? + 1..end);
    let attributes = tokens.at[at - 2].start..tokens.at[declared].start;
    Ok((Instance { name, function }, attributes, end))
}

/// A kernel's definition from `kernel` on, and the tokens of its body.
fn definition<'a>(tokens: &Tokens<'a>, at: usize) -> Result<Option<(Definition<'a>, Range<usize>)>, String> {
    let head = (at + 1..tokens.len()).find(|at| ["void", ";", "{", "decltype"].contains(&tokens.text(*at)));
    let Some(void) = head.filter(|at| tokens.text(*at) == "void") else { return Ok(None) };
    let (name, open) = (tokens.text(void + 1), void + 2);
    let close = tokens.closing(open)?;
    if tokens.text(close + 1) != "{" {
        return Ok(None);
    }
    let mut from = at;
    while from > 0 && !["}", ";", ">"].contains(&tokens.text(from - 1)) {
        from -= 1;
    }
    let limit = (from..void).find(|at| tokens.text(*at) == "max_total_threads_per_threadgroup");
    let threads = match limit {
        Some(at) => tokens.range(at + 2..tokens.closing(at + 1)?),
        None => "1024",
    };
    let parameters = tokens.split(open + 1..close).into_iter().map(|range| parameter(tokens, range));
    let definition = Definition {
        name,
        template: from > 0 && tokens.text(from - 1) == ">",
        parameters: parameters
            .collect::<Result<_, _>>()
            .map_err(|problem| format!("{}: kernel `{name}`: {problem}", tokens.place(at)))?,
        threads,
    };
    Ok(Some((definition, close + 1..tokens.closing(close + 1)?)))
}

/// Where a parameter comes from: a type of `entry.h`.
fn parameter(tokens: &Tokens<'_>, range: Range<usize>) -> Result<String, String> {
    let text = tokens.range(range.clone());
    let attribute = range.clone().find(|at| tokens.text(*at) == "[" && tokens.text(at + 1) == "[");
    let at = attribute.ok_or_else(|| format!("`{text}` has no attribute"))? + 2;
    let known = ATTRIBUTES.iter().find(|(name, _)| *name == tokens.text(at));
    let (_, kind) = known.ok_or_else(|| format!("attribute of `{text}` is not known"))?;
    let index = if tokens.text(at + 1) == "(" { tokens.text(at + 2) } else { "0" };
    Ok(format!("emulator::From<emulator::{kind}, {index}>"))
}

/// Whether `threadgroup` at `at` declares memory, not a pointer to some.
fn is_memory(tokens: &Tokens<'_>, at: usize) -> bool {
    let declarator = (at + 1..tokens.len()).map(|at| tokens.text(at)).find(|text| "*&[;=(,".contains(*text));
    declarator.is_some_and(|text| "[;,".contains(text))
}

/// Declarations of threadgroup memory become references to memory that the emulator has for a threadgroup.
fn memory(tokens: &Tokens<'_>, body: Range<usize>, purpose: Purpose, edits: &mut Vec<(Range<usize>, String)>) {
    for at in body {
        if tokens.text(at) != "threadgroup" || !tokens.opens_statement(at) || !is_memory(tokens, at) {
            continue;
        }
        let start = tokens.at[at].start;
        let end = (at..tokens.len()).find(|end| tokens.text(*end) == ";").unwrap_or(at);
        let mut new = String::new();
        let mut kind = "";
        for declarator in tokens.split(at + 1..end) {
            let open = declarator.clone().find(|at| tokens.text(*at) == "[").unwrap_or(declarator.end);
            let name = tokens.text(open - 1);
            if kind.is_empty() {
                kind = tokens.range(declarator.start..open - 1);
            }
            let sizes = tokens.range(open..declarator.end);
            let home = match purpose {
                // clang cannot construct in an address space
                Purpose::Check => "0".to_owned(),
                Purpose::Code => format!(
                    "emulator_host.memory(&{name}_key, sizeof({name}_memory), alignof({name}_memory), \"{name}\")"
                ),
            };
            let _ = write!(
                new,
                "using {name}_memory = {kind} {sizes}; static char {name}_key; \
                 threadgroup {name}_memory &{name} = *(threadgroup {name}_memory *){home}; "
            );
        }
        edits.push((start..tokens.at[end].end, new));
    }
}

/// Functions that bind parameters, and the table of all kernels, ended by one without a name.
fn table(definitions: &[Definition<'_>], instances: &[Instance<'_>]) -> Result<String, String> {
    let plain = definitions.iter().filter(|kernel| !kernel.template);
    let mut rows: Vec<_> = plain.map(|kernel| (kernel.name.to_owned(), kernel.name, kernel)).collect();
    for Instance { name, function } in instances {
        let base = function.split('<').next().unwrap_or_default().trim();
        let definition = definitions.iter().find(|kernel| kernel.name == base);
        let definition = definition.ok_or_else(|| format!("`{name}` is of `{base}`, which is no kernel"))?;
        rows.push((name.clone(), *function, definition));
    }
    let mut out = "\nemulator::Host emulator_host;\n".to_owned();
    let mut entries = String::new();
    for (number, (name, function, definition)) in rows.iter().enumerate() {
        let parameters = format!("emulator::Parameters<{}>", definition.parameters.join(", "));
        let _ = write!(
            out,
            "static_assert({parameters}::agree(&{function}), \"positions and sizes in the grid differ in width: {name}\");\n\
             static void entry_{number}(const emulator::Thread *at) {{ {parameters}::call(&{function}, at); }}\n"
        );
        let (bound, written) =
            (format!("{parameters}::bound(&{function})"), format!("{parameters}::written(&{function})"));
        let _ = writeln!(entries, "    {{\"{name}\", entry_{number}, {bound}, {written}, {}}},", definition.threads);
    }
    let head = "extern \"C\" __attribute__((visibility(\"default\"))) const emulator::Entry emulator_entries[] = {\n";
    Ok(out + head + &entries + "    {nullptr, nullptr, 0, 0, 0}\n};\n")
}

/// Words, numbers, strings and signs of a text, without the preprocessor's lines.
struct Tokens<'a> {
    text: &'a str,
    at: Vec<Range<usize>>,
}

impl<'a> Tokens<'a> {
    fn of(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 128;
        let (mut at, mut start, mut fresh) = (Vec::new(), 0, true);
        while start < bytes.len() {
            let mut end = start + 1;
            match bytes[start] {
                b'\n' => fresh = true,
                byte if byte.is_ascii_whitespace() => {}
                b'#' if fresh => end = start + text[start..].find('\n').unwrap_or(text.len() - start),
                byte => {
                    fresh = false;
                    if word(byte) {
                        end = start + bytes[start..].iter().take_while(|byte| word(**byte)).count();
                    } else if byte == b'"' {
                        end += text[end..].find('"').map_or(0, |length| length + 1);
                    }
                    at.push(start..end);
                }
            }
            start = end;
        }
        Self { text, at }
    }

    fn len(&self) -> usize {
        self.at.len()
    }

    fn text(&self, at: usize) -> &'a str {
        self.at.get(at).map_or("", |range| &self.text[range.clone()])
    }

    fn range(&self, range: Range<usize>) -> &'a str {
        if range.is_empty() { "" } else { &self.text[self.at[range.start].start..self.at[range.end - 1].end] }
    }

    fn opens_statement(&self, at: usize) -> bool {
        at == 0 || ["{", "}", ";"].contains(&self.text(at - 1))
    }

    /// The token that closes the bracket at `open`.
    fn closing(&self, open: usize) -> Result<usize, String> {
        let mut depth = 0;
        for at in open..self.len() {
            match self.text(at) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(at);
            }
        }
        Err(format!("{}: `{}` has no end", self.place(open), self.text(open)))
    }

    /// The parts of `range` between commas outside of brackets.
    fn split(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let (mut parts, mut start, mut depth) = (Vec::new(), range.start, 0);
        for at in range.clone() {
            match self.text(at) {
                "(" | "[" | "{" | "<" => depth += 1,
                ")" | "]" | "}" | ">" => depth -= 1,
                "," if depth == 0 => {
                    parts.push(start..at);
                    start = at + 1;
                }
                _ => {}
            }
        }
        if start < range.end {
            parts.push(start..range.end);
        }
        parts
    }

    /// File and line, by the preprocessor's lines before.
    fn place(&self, at: usize) -> String {
        let before = &self.text[..self.at.get(at).map_or(0, |range| range.start)];
        let marker = before.lines().enumerate().filter(|(_, line)| line.starts_with("# ")).last();
        let Some((index, marker)) = marker else { return "?".to_owned() };
        let mut words = marker.split_whitespace().skip(1);
        let first: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let line = first + before.lines().count() - index - 2;
        format!("{}:{line}", words.next().unwrap_or("?").trim_matches('"'))
    }
}
