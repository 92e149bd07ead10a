//! Tables as aligned text.

use std::fmt::Write;

use bm3_engine::records::Metrics;

/// One block of rows for each split, one row for each metric, one column for each list length.
///
/// Splits may be measured at different lengths; each has its own heading.
pub fn metrics_table(splits: &[(&str, &Metrics)]) -> String {
    let label_width = splits.iter().map(|(name, _)| name.len()).fold("precision".len(), usize::max);
    let mut text = String::new();
    for (position, (name, metrics)) in splits.iter().enumerate() {
        if position > 0 {
            text.push('\n');
        }
        let headings = metrics.top_k.iter().map(|k| format!("@{k}"));
        push_row(&mut text, label_width, name, headings);
        for (metric, values) in metrics.by_name() {
            let values = values.iter().map(|value| format!("{value:.4}"));
            push_row(&mut text, label_width, metric, values);
        }
    }
    text
}

/// Pads columns to their widest cell, the first `left` of them flush left; no line ends with
/// spaces.
pub fn aligned<R: AsRef<[String]>>(rows: &[R], left: usize) -> String {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| {
        rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .as_ref()
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column < left {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn push_row(
    text: &mut String,
    label_width: usize,
    label: &str,
    cells: impl Iterator<Item = String>,
) {
    // Writing to a string does not fail.
    let _ = write!(text, "{label:label_width$}");
    for cell in cells {
        let _ = write!(text, "  {cell:>6}");
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_metrics_and_columns_are_lengths() {
        let metrics = |scale: f64| Metrics {
            top_k: vec![5, 20],
            recall: vec![0.03125 * scale, 0.0625 * scale],
            ndcg: vec![0.02, 0.03],
            precision: vec![0.004, 0.002],
            map: vec![0.01, 0.0123],
        };
        let table = metrics_table(&[("valid", &metrics(1.0)), ("test", &metrics(16.0))]);
        let expected = "\
valid          @5     @20
recall     0.0312  0.0625
ndcg       0.0200  0.0300
precision  0.0040  0.0020
map        0.0100  0.0123

test           @5     @20
recall     0.5000  1.0000
ndcg       0.0200  0.0300
precision  0.0040  0.0020
map        0.0100  0.0123
";
        assert_eq!(table, expected);
    }

    #[test]
    fn no_split_is_no_text() {
        assert_eq!(metrics_table(&[]), "");
    }
}
