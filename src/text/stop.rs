//! Stop strings in a stream of text: what is surely before one comes out at once, what may begin one is held back.

/// Watches a stream for any of several strings.
#[derive(Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds `piece`; returns the text that can be shown, and whether a stop string was completed (it is not shown).
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text that was held back, when nothing follows it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_is_found_wherever_the_pieces_are_cut() {
        let text = "one twö\n\nthree END four";
        for stop in ["END", "\n\n", "wö\n", "ENDE", "one twö"] {
            let expected = text.find(stop).map_or(text, |at| &text[..at]);
            for cut in text.char_indices().map(|(at, _)| at) {
                let mut stops = StopStrings::new(&[stop.to_owned(), "ENDLESS".to_owned()]);
                let (mut shown, mut stopped) = stops.push(&text[..cut]);
                if !stopped {
                    let (more, now) = stops.push(&text[cut..]);
                    shown += &more;
                    stopped = now;
                }
                if !stopped {
                    shown += &stops.finish();
                }
                assert_eq!((shown.as_str(), stopped), (expected, text.contains(stop)), "{stop:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn text_that_begins_no_stop_string_is_shown_at_once() {
        let mut stops = StopStrings::new(&["###".to_owned()]);
        assert_eq!(stops.push("a#b"), ("a#b".to_owned(), false));
        assert_eq!(stops.push("c##"), ("c".to_owned(), false));
        assert_eq!(stops.push("d"), ("##d".to_owned(), false));
    }
}
