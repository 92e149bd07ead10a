//! Numbers and texts as the page shows them.

/// `value` to four significant places: `0.3315`, `31.25`, `1.235e-5`.
pub fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Round first, so that 0.99999 gets as many places as 1.
    let scientific = format!("{value:.3e}");
    let exponent = scientific.split_once('e').and_then(|(_, digits)| digits.parse().ok());
    match exponent {
        Some(exponent @ -4..=5) => {
            let places = usize::try_from(3 - exponent).unwrap_or(0);
            format!("{value:.places$}")
        }
        _ => scientific,
    }
}

/// A duration for people, as in `12 min 34 s`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        // Round first: never 60 s beside minutes, nor 60 min beside hours.
        3599.5.. => {
            let minutes = (seconds / 60.0).round();
            format!("{:.0} h {:02.0} min", (minutes / 60.0).floor(), minutes % 60.0)
        }
        59.995.. => {
            let seconds = seconds.round();
            format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
        }
        1.0.. => format!("{} s", significant(seconds)),
        1e-3.. => format!("{} ms", significant(1e3 * seconds)),
        0.0 => "0 s".to_owned(),
        _ => format!("{} µs", significant(1e6 * seconds)),
    }
}

/// Escapes `text` for use as HTML text or as a quoted attribute value.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML cannot express it; other control characters are merely invisible.
            '\0' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_four_places() {
        for (value, text) in [
            (0.0, "0"),
            (0.33154, "0.3315"),
            (0.099_999, "0.1000"),
            (0.099_994, "0.09999"),
            (31.245_27, "31.25"),
            (9_999.96, "10000"),
            (123_456.7, "123457"),
            (1_234_567.0, "1.235e6"),
            (1.2345e-5, "1.234e-5"),
            (-8.372_13, "-8.372"),
            (0.001, "0.001000"),
        ] {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.000_045, "45.00 µs"),
            (0.0123, "12.30 ms"),
            (2.0, "2.000 s"),
            (59.999, "1 min 00 s"),
            (754.4, "12 min 34 s"),
            (3599.9, "1 h 00 min"),
            (11_520.0, "3 h 12 min"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    proptest! {
        #[test]
        fn a_number_reads_back_as_it_was_to_four_places(value in proptest::num::f64::NORMAL) {
            let text = significant(value);
            let read: f64 = text.parse().unwrap();
            // Half a unit of the fourth place, plus the rounding error of parsing.
            prop_assert!((read / value - 1.0).abs() <= 5.001e-4, "{value:e}: {text}");
        }

        #[test]
        fn escaped_text_opens_and_closes_nothing(text in any::<String>()) {
            let safe = escaped(&text);
            prop_assert!(!safe.contains(['<', '>', '"', '\'', '\0']));
            let back = safe
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&");
            prop_assert_eq!(back, text.replace('\0', "\u{fffd}"));
        }
    }
}
