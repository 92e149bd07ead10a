//! Times of interactions, as text.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// What is expected of a time.
pub const A_TIME: &str = "a number, or a date as in 2026-11-28 or 2026-11-28T09:30:00Z";

/// A time as a number: a number as it is, so also digits alone; or a date with or without a time (ISO
/// 8601, RFC 3339) in seconds since 1970, in UTC unless it has an offset. A zone by name is none of
/// these without an offset.
pub fn parse(text: &str) -> Option<f64> {
    if let Ok(number) = text.parse::<f64>() {
        return Some(number).filter(|number| number.is_finite());
    }
    let in_utc = || {
        let text = Some(text).filter(|text| !text.contains('['))?;
        Offset::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok()
    };
    let time = text.parse::<Timestamp>().ok().or_else(in_utc)?;
    Some(time.as_second() as f64 + f64::from(time.subsec_nanosecond()) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_dates_are_times() {
        for (text, seconds) in [
            ("5", 5.0),
            ("-1.5e3", -1500.0),
            ("1970-01-02", 86_400.0),
            ("1969-12-31 23:59:59.5", -0.5),
            ("2018-07-07 22:09:11", 1_531_001_351.0),
            ("2018-07-07T22:09:11Z", 1_531_001_351.0),
            ("2018-07-07T22:09:11+02:00", 1_530_994_151.0),
            ("2018-07-07 22:09", 1_531_001_340.0),
            ("2018-07-07T22:09:11.250000", 1_531_001_351.25),
            ("20180707T220911Z", 1_531_001_351.0),
            ("2018-07-07T22:09:11-04:00[America/New_York]", 1_531_015_751.0),
            ("20180707", 20_180_707.0),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "soon",
            "NaN",
            "inf",
            "2018-13-01",
            "07/07/2018",
            "09 13, 2009",
            "2018-07",
            "2018-07-07T22:09:11[America/New_York]",
            "2018-07-07[Asia/Tokyo]",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
