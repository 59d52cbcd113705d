//! From the Metal Shading Language to C++: kernels get entries, threadgroup variables get a place in their group's memory.
//!
//! A pass over the text, after macros are expanded: it knows the ways in which this project writes kernels, and panics on
//! what it does not know.

use std::fmt::Write;

/// What a parameter of a kernel is bound to.
struct Binding {
    /// A template argument of `msl::Bound`.
    kind: String,
    /// For a buffer: its index, and whether the kernel may write it.
    buffer: Option<(usize, bool)>,
}

struct Kernel {
    name: String,
    bindings: Vec<Binding>,
    is_template: bool,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}

/// Where the word `word` stands in `text`, from `from` on.
fn find_word(text: &str, word: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    text[from..].match_indices(word).map(|(at, _)| from + at).find(|at| {
        let after = bytes.get(at + word.len());
        (*at == 0 || !is_word(bytes[at - 1])) && after.is_none_or(|c| !is_word(*c))
    })
}

/// Where the bracket that opens at `open` is closed, exclusively.
fn closing(text: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, c) in text[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + at + 1;
        }
    }
    panic!("an unclosed bracket: {}", &text[open..(open + 80).min(text.len())])
}

/// The parts between commas outside of brackets.
fn arguments(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn binding(parameter: &str) -> Binding {
    let attribute = parameter.split("[[").nth(1).and_then(|rest| rest.split("]]").next());
    let attribute = attribute.unwrap_or_else(|| panic!("a parameter is bound to nothing: {parameter}")).trim();
    if let Some(index) = attribute.strip_prefix("buffer(") {
        let index = index.trim_end_matches(')').trim().parse().expect("an index");
        let constant = ["const", "constant"].iter().any(|word| find_word(parameter, word, 0).is_some());
        return Binding { kind: format!("msl::Buffer<{index}>"), buffer: Some((index, !constant)) };
    }
    let known = [
        "thread_position_in_grid",
        "thread_position_in_threadgroup",
        "thread_index_in_threadgroup",
        "thread_index_in_simdgroup",
        "threadgroup_position_in_grid",
        "threadgroups_per_grid",
        "threads_per_threadgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
    ];
    assert!(known.contains(&attribute), "the attribute `{attribute}` is not known");
    Binding { kind: format!("msl::Position<&MslThread::{attribute}>"), buffer: None }
}

/// Takes the explicit instantiations out of `text`: the kernel's name for the host, and the function.
fn instantiations(text: &mut String) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some(at) = text.find("[[host_name(") {
        let start = text[..at].rfind("template").expect("an instantiation starts with `template`");
        let end = at + text[at..].find(';').expect("and ends") + 1;
        let name: String =
            text[at..at + text[at..].find("]]").expect("it is closed")].split('"').skip(1).step_by(2).collect();
        let of = text[at..end].find("decltype(").expect("it says what it instantiates") + at + "decltype".len();
        found.push((name, text[of + 1..closing(text, of) - 1].trim().to_owned()));
        let lines = text[start..end].matches('\n').count();
        text.replace_range(start..end, &"\n".repeat(lines));
    }
    found
}

fn kernels(text: &str) -> Vec<Kernel> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(at) = find_word(text, "kernel", from) {
        from = at + "kernel".len();
        let open = from + text[from..].find('(').expect("parameters");
        let head = text[from..open].trim();
        let name = head.strip_prefix("void ").unwrap_or_else(|| panic!("a kernel returns nothing: {head}")).trim();
        let close = closing(text, open);
        let bindings = arguments(&text[open + 1..close - 1]).into_iter().map(binding).collect();
        let is_template = text[..at].trim_end().ends_with('>');
        found.push(Kernel { name: name.to_owned(), bindings, is_template });
        from = close;
    }
    found
}

/// `threadgroup T name[N];` in a body becomes `MSL_SHARED(T, name, [N])`.
fn share(text: &mut String) {
    let mut from = 0;
    while let Some(at) = find_word(text, "threadgroup", from) {
        from = at + "threadgroup".len();
        let end = from + text[from..].find([';', '(', ')', '*', '&', '=']).expect("a declaration ends");
        let starts = text[..at].trim_end().ends_with([';', '{', '}']);
        if !starts || !text[end..].starts_with(';') {
            continue;
        }
        let declared = text[from..end].trim();
        let (head, dimensions) = declared.split_at(declared.find('[').unwrap_or(declared.len()));
        let (kind, name) = head.trim().rsplit_once(' ').expect("a type and a name");
        let shared = format!("MSL_SHARED({kind}, {name}, {dimensions});");
        text.replace_range(at..end + 1, &shared);
        from = at + shared.len();
    }
}

/// The C++ of preprocessed kernels, and a table `msl_<stem>` of their entries.
pub fn translate(source: &str, stem: &str) -> String {
    let mut text = source.to_owned();
    let instantiated = instantiations(&mut text);
    let kernels = kernels(&text);
    share(&mut text);
    let mut out = String::from("#include \"metal_stdlib.h\"\n#include \"entries.h\"\n#include \"keywords.h\"\n");
    out += &text;
    out.push('\n');
    for (_, function) in &instantiated {
        writeln!(out, "template decltype({function}) {function};").expect("fits");
    }
    out += "#ifndef MSL_ADDRESS_SPACES\n";
    let plain =
        kernels.iter().filter(|kernel| !kernel.is_template).map(|kernel| (kernel.name.clone(), kernel.name.clone()));
    let mut table = String::new();
    for (number, (name, function)) in plain.chain(instantiated).enumerate() {
        let base = function.split('<').next().unwrap_or_default().trim();
        let kernel = kernels.iter().find(|kernel| kernel.name == base).unwrap_or_else(|| panic!("no kernel {base}"));
        let kinds: Vec<&str> = kernel.bindings.iter().map(|binding| &*binding.kind).collect();
        let buffers = kernel.bindings.iter().filter_map(|binding| binding.buffer);
        let written: u32 = buffers.clone().filter(|(_, writes)| *writes).map(|(index, _)| 1 << index).sum();
        let count = buffers.map(|(index, _)| index + 1).max().unwrap_or(0);
        let kinds = kinds.join(", ");
        writeln!(out, "static void msl_entry_{number}(void **b) {{ msl::Call<{kinds}>::run(&{function}, b); }}")
            .expect("fits");
        writeln!(table, "    {{\"{name}\", &msl_entry_{number}, {count}, {written}u}},").expect("fits");
    }
    write!(out, "extern \"C\" const MslKernel msl_{stem}[] = {{\n{table}    {{nullptr, nullptr, 0, 0}}}};\n#endif\n")
        .expect("fits");
    out
}
