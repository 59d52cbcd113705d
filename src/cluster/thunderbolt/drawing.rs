//! The cabling as a drawing: in ASCII for a terminal, and for graphviz.

use std::fmt::Write as _;

use super::{Cabling, End, Mac};

/// Hosts that fit into a picture.
const PICTURE: usize = 4;
/// Lines between the corners of a picture.
const HEIGHT: usize = 5;

/// The interface, or else the socket, at an end.
fn port(macs: &[(String, Mac)], end: End) -> String {
    let port = &macs[end.host].1.ports[end.port];
    port.interface.clone().unwrap_or_else(|| port.label())
}

/// The speed, if a cable is known to have one, and what is between its ends.
fn notes(macs: &[(String, Mac)], cable: &super::Cable) -> Vec<String> {
    let speed = |end: End| macs[end.host].1.ports[end.port].speed.filter(|speed| !speed.is_limit);
    let slowest = cable.ends.into_iter().filter_map(speed).map(|speed| speed.gigabits).min();
    let mut notes: Vec<String> = slowest.map(|speed| format!("{speed} Gb/s")).into_iter().collect();
    notes.extend(cable.via.iter().map(|hub| format!("through {hub}")));
    if !cable.usable {
        notes.push("not for RDMA".to_owned());
    }
    notes
}

/// Returns the cabling in ASCII: a picture for up to four hosts, and a line for every cable and every one that is missing.
pub fn drawing(macs: &[(String, Mac)], cabling: &Cabling) -> String {
    let mut text = if (2..=PICTURE).contains(&macs.len()) { picture(macs, cabling) + "\n" } else { String::new() };
    let width = macs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let widest = cabling.cables.iter().flat_map(|cable| cable.ends).map(|end| port(macs, end).chars().count()).max();
    let widest = widest.unwrap_or(0);
    for cable in &cabling.cables {
        let [a, b] = cable.ends;
        let (one, two) = (&macs[a.host].0, &macs[b.host].0);
        let line = if cable.usable { "=====" } else { "-----" };
        let notes = notes(macs, cable).join(", ");
        let (left, right) = (port(macs, a), port(macs, b));
        let text_line = format!("{one:width$} {left:>widest$} {line} {right:widest$} {two:width$}  {notes}");
        let _ = writeln!(text, "{}", text_line.trim_end());
    }
    for (a, b) in cabling.missing() {
        let text_line =
            format!("{:width$} {:>widest$} ..... {:widest$} {:width$}  no cable", macs[a].0, "", "", macs[b].0);
        let _ = writeln!(text, "{}", text_line.trim_end());
    }
    text
}

/// Hosts in the corners of a square, cables as lines.
fn picture(macs: &[(String, Mac)], cabling: &Cabling) -> String {
    let name = |host: usize| macs.get(host).map_or("", |(name, _)| name.as_str());
    let left = [0, 2].map(|host| name(host).chars().count()).into_iter().max().unwrap_or(0);
    // clockwise from the top left, and where there are only three the bottom right stays empty
    let span = 2 * HEIGHT + 3;
    let right = left + 1 + span + name(1).chars().count() / 2;
    let mut lines = vec![vec![' '; right + 1]; HEIGHT];
    for (at, line) in lines.iter_mut().enumerate() {
        let (down, up) = (left + 3 + 2 * at, left + 1 + 2 * (HEIGHT - at));
        if macs.len() > 2 && cabling.linked(0, 2) {
            line[left / 2] = '|';
        }
        if macs.len() > 3 && cabling.linked(1, 3) {
            line[right] = '|';
        }
        if macs.len() > 3 && cabling.linked(0, 3) {
            line[down] = '\\';
        }
        if macs.len() > 2 && cabling.linked(1, 2) {
            line[up] = if line[up] == '\\' { 'X' } else { '/' };
        }
    }
    let row = |a: usize, b: usize| {
        let line = if b < macs.len() && cabling.linked(a, b) { "=" } else { " " };
        format!("{:left$} {} {}", name(a), line.repeat(span - 1), name(b)).trim_end().to_owned()
    };
    let mut text = row(0, 1) + "\n";
    if macs.len() > 2 {
        for line in lines {
            text += line.into_iter().collect::<String>().trim_end();
            text += "\n";
        }
        text += &(row(2, 3) + "\n");
    }
    text
}

/// Returns the cabling for graphviz: `tbshard doctor --hosts FILE --dot | dot -Tsvg`.
pub fn dot(macs: &[(String, Mac)], cabling: &Cabling) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = "graph tbshard {\n  node [shape=box]\n".to_owned();
    for (name, _) in macs {
        let _ = writeln!(text, "  {}", quoted(name));
    }
    for cable in &cabling.cables {
        let [a, b] = cable.ends;
        let (tail, head) = (quoted(&port(macs, a)), quoted(&port(macs, b)));
        let style = if cable.usable { "" } else { " style=dotted" };
        let label = quoted(&notes(macs, cable).join(", "));
        let (one, two) = (quoted(&macs[a.host].0), quoted(&macs[b.host].0));
        let _ = writeln!(text, "  {one} -- {two} [taillabel={tail} headlabel={head} label={label}{style}]");
    }
    for (a, b) in cabling.missing() {
        let (one, two) = (quoted(&macs[a].0), quoted(&macs[b].0));
        let _ = writeln!(text, "  {one} -- {two} [style=dashed color=red label=\"no cable\"]");
    }
    text + "}\n"
}
