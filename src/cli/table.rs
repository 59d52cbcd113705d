//! Tables for people, and numbers with a unit.

use comfy_table::{CellAlignment, Table, presets};

/// Rows (the first is the heading) in columns two spaces apart; the columns `right` are aligned to the right.
pub(super) fn aligned(rows: &[impl AsRef<[String]>], right: &[usize]) -> String {
    rendered(presets::NOTHING, rows, right)
}

/// Rows (the first is the heading) as a Markdown table.
pub(super) fn markdown(rows: &[impl AsRef<[String]>], right: &[usize]) -> String {
    rendered(presets::ASCII_MARKDOWN, rows, right)
}

fn rendered(preset: &str, rows: &[impl AsRef<[String]>], right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_preset(preset);
    let mut rows = rows.iter().map(AsRef::as_ref);
    if let Some(heading) = rows.next() {
        table.set_header(heading);
    }
    table.add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if preset == presets::NOTHING {
            column.set_padding((0, 2));
        }
    }
    table.trim_fmt()
}

/// Three digits and the unit that fits.
pub(super) fn scaled(value: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value >= 99.95 || unit == 0 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{}", units[unit])
}
