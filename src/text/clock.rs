//! The date, for templates that tell the model what day it is.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The `strftime_now(format)` function of templates, in UTC so that every machine says the same.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(seconds, format)
}

/// Formats `seconds` since 1970 by the common directives of `strftime`; fails on any other.
fn strftime(seconds: u64, format: &str) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let month_name = MONTHS.get(month).copied().unwrap_or_default();
    let day_name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out += &match characters.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{:02}", month + 1),
            Some('B') => month_name.to_owned(),
            Some('b') => short(month_name),
            Some('d') => format!("{day:02}"),
            Some('A') => day_name.to_owned(),
            Some('a') => short(day_name),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".to_owned(),
            other => {
                let directive: String = other.into_iter().collect();
                let message = format!("`strftime_now` does not know `%{directive}`");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(out)
}

/// Returns year, month (from 0) and day (from 1) of a day counted from 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    let mut year = 1970;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_those_of_another_implementation() {
        let format = "%a %A %d %b %B %m %y %Y %H:%M:%S %%";
        for (seconds, expected) in [
            (0, "Thu Thursday 01 Jan January 01 70 1970 00:00:00 %"),
            (951782400, "Tue Tuesday 29 Feb February 02 00 2000 00:00:00 %"),
            (951868799, "Tue Tuesday 29 Feb February 02 00 2000 23:59:59 %"),
            (1709164800, "Thu Thursday 29 Feb February 02 24 2024 00:00:00 %"),
            (1709251199, "Thu Thursday 29 Feb February 02 24 2024 23:59:59 %"),
            (1735689599, "Tue Tuesday 31 Dec December 12 24 2024 23:59:59 %"),
            (1735689600, "Wed Wednesday 01 Jan January 01 25 2025 00:00:00 %"),
            (1795392000, "Mon Monday 23 Nov November 11 26 2026 00:00:00 %"),
            (4102444799, "Thu Thursday 31 Dec December 12 99 2099 23:59:59 %"),
            (4107542400, "Mon Monday 01 Mar March 03 00 2100 00:00:00 %"),
        ] {
            assert_eq!(strftime(seconds, format).ok().as_deref(), Some(expected));
        }
        assert!(strftime(0, "%Q").is_err() && strftime(0, "%").is_err());
    }
}
