//! Numbers in texts for people.

/// A whole number with thousands separators: `1,254,441`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let numbers = [0, 7, 999, 1_425, 1_000_000, 1_254_441];
        let expected = ["0", "7", "999", "1,425", "1,000,000", "1,254,441"];
        assert_eq!(numbers.map(grouped), expected);
    }
}
