//! The colours of `style.css` stand out from each other and from the page, for colour-blind readers
//! too.

const STYLE: &str = include_str!("style.css");

/// Linear RGB as seen without long, medium or short cones: Machado, Oliveira and Fernandes, IEEE
/// TVCG 15 (2009), severity 1.
const SIGHTS: [(&str, [[f64; 3]; 3]); 4] = [
    ("all cones", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    (
        "no long cones",
        [
            [0.152_286, 1.052_583, -0.204_868],
            [0.114_503, 0.786_281, 0.099_216],
            [-0.003_882, -0.048_116, 1.051_998],
        ],
    ),
    (
        "no medium cones",
        [
            [0.367_322, 0.860_646, -0.227_968],
            [0.280_085, 0.672_501, 0.047_413],
            [-0.011_820, 0.042_940, 0.968_881],
        ],
    ),
    (
        "no short cones",
        [
            [1.255_528, -0.076_749, -0.178_779],
            [-0.078_411, 0.930_809, 0.147_602],
            [0.004_733, 0.691_367, 0.303_900],
        ],
    ),
];

/// The colour called `name` in the light (0) or the dark (1) theme, as linear RGB.
fn colour(theme: usize, name: &str) -> [f64; 3] {
    let key = format!("--{name}: #");
    let digits = STYLE.split(&key).nth(theme + 1).unwrap();
    [0, 2, 4].map(|at| {
        let part = f64::from(u8::from_str_radix(&digits[at..at + 2], 16).unwrap()) / 255.0;
        if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    })
}

fn luminance([red, green, blue]: [f64; 3]) -> f64 {
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// WCAG's contrast ratio, 1 to 21.
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
    a.max(b) / a.min(b)
}

/// CIELAB coordinates of linear RGB.
fn lab(rgb: [f64; 3]) -> [f64; 3] {
    let dot = |weights: [f64; 3]| weights.iter().zip(rgb).map(|(w, part)| w * part).sum::<f64>();
    let root = |t: f64| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
    let x = root(dot([0.4124, 0.3576, 0.1805]) / 0.9505);
    let y = root(dot([0.2126, 0.7152, 0.0722]));
    let z = root(dot([0.0193, 0.1192, 0.9505]) / 1.089);
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[test]
fn curves_are_told_apart_by_every_reader() {
    for theme in 0..2 {
        let page = colour(theme, "page");
        let curves: Vec<[f64; 3]> =
            (0..super::curves::COLOURS).map(|index| colour(theme, &format!("c{index}"))).collect();
        for (index, &curve) in curves.iter().enumerate() {
            assert!(contrast(curve, page) >= 2.98, "theme {theme}: c{index} is hardly seen");
        }
        assert!(contrast(colour(theme, "text"), page) >= 7.0);
        assert!(contrast(colour(theme, "quiet"), page) >= 4.5);
        for (sight, matrix) in SIGHTS {
            let seen: Vec<[f64; 3]> = curves
                .iter()
                .map(|&curve| {
                    lab(matrix.map(|row| {
                        let sum: f64 = row.iter().zip(curve).map(|(w, part)| w * part).sum();
                        sum.clamp(0.0, 1.0)
                    }))
                })
                .collect();
            for (a, left) in seen.iter().enumerate() {
                for (b, right) in seen.iter().enumerate().skip(a + 1) {
                    let square = |(a, b): (&f64, &f64)| (a - b).powi(2);
                    let apart = left.iter().zip(right).map(square).sum::<f64>().sqrt();
                    // The first four, all that most pages use, must differ by more.
                    let least = if b < 4 { 30.0 } else { 20.0 };
                    assert!(apart >= least, "{sight}, theme {theme}: c{a} and c{b}: {apart:.1}");
                }
            }
        }
    }
}
