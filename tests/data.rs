//! Data folders, good and bad: what is read, and the error for each mistake.

use std::fs;
use std::path::Path;

use bm3_engine::data::{
    Dataset, DatasetOptions, FeatureFile, FeatureMatrix, FeatureType, SplitRatio,
};
use half::f16;
use tempfile::TempDir;

const GOOD: &str =
    "userID\titemID\trating\tx_label\n0\t0\t1\t0\n0\t1\t1\t0\n1\t0\t1\t0\n0\t2\t1\t1\n1\t1\t1\t2\n";

fn folder(inter: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("d.inter"), inter).unwrap();
    directory
}

/// A `.npy` file of any type and order, written by hand.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let python = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{descr}', 'fortran_order': {python}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn npy_f32(rows: usize, columns: usize, values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    npy("<f4", false, &format!("({rows}, {columns})"), &data)
}

fn open(directory: &Path) -> Result<Dataset, String> {
    Dataset::open(directory, &DatasetOptions::default()).map_err(|error| {
        assert!(error.is_input(), "{error} is the user's to mend");
        error.to_string()
    })
}

#[track_caller]
fn refused(inter: &str, parts: &[&str]) {
    let directory = folder(inter);
    let error = open(directory.path()).unwrap_err();
    for part in parts.iter().chain(&["d.inter"]) {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[track_caller]
fn features_refused(file: &[u8], parts: &[&str]) {
    let directory = folder(GOOD);
    fs::write(directory.path().join("image_feat.npy"), file).unwrap();
    let error = open(directory.path()).unwrap_err();
    for part in parts.iter().chain(&["image_feat.npy"]) {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn a_good_folder_is_read() {
    let directory = folder(GOOD);
    let values: Vec<f32> = (0..8).map(|x| x as f32).collect();
    fs::write(directory.path().join("image_feat.npy"), npy_f32(4, 2, &values)).unwrap();
    fs::write(directory.path().join("audio_feat.npy"), npy_f32(3, 1, &values[..3])).unwrap();
    let dataset = open(directory.path()).unwrap();
    assert_eq!((dataset.name.as_str(), dataset.users, dataset.items), ("d", 2, 3));
    assert_eq!(dataset.train.users, [0, 0, 1]);
    assert_eq!(dataset.train.items, [0, 1, 0]);
    assert_eq!((dataset.valid.users.as_slice(), dataset.valid.items_of(0)), (&[0][..], &[2][..]));
    let names: Vec<&str> = dataset.modalities.iter().map(|modality| &*modality.name).collect();
    assert_eq!(names, ["audio", "image"]);
    assert_eq!(dataset.warnings.len(), 1, "one row too many: {:?}", dataset.warnings);
}

#[test]
fn mistakes_in_the_interactions_name_the_line() {
    refused("", &["is empty"]);
    refused("userID\tx_label\n", &["no column `itemID`", "userID, x_label"]);
    let commas = ["\"userID,itemID,x_label\" has no tab", "separated by tabs", "prepare`"];
    refused("userID,itemID,x_label\r\n0,1,0\n", &commas);
    refused("userID\titemID\tx_label\n0\t1\t0\n0\t2\n", &["line 3", "2 tab-separated", "3"]);
    refused("userID\titemID\tx_label\n0\t1\t0\n\nab\t1\t0\n", &["line 4", "userID is \"ab\""]);
    refused("userID\titemID\tx_label\n0\t-1\t0\n", &["line 2", "itemID is \"-1\""]);
    refused("userID\titemID\tx_label\n0\t1.0\t0\n", &["line 2", "itemID is \"1.0\""]);
    refused("userID\titemID\tx_label\n9999999999\t1\t0\n", &["line 2", "9999999999"]);
    refused("userID\titemID\tx_label\n0\t1\t0\n2000000000\t1\t0\n", &["line 3", "far beyond"]);
    refused("userID\titemID\tx_label\n0\t1\t3\n", &["line 2", "x_label is \"3\""]);
    refused("userID\titemID\tx_label\n0\t1\t1\n", &["no training interaction"]);
    refused("userID\titemID\n0\t1\n", &["no column `x_label`", "--split"]);
    let error = open(Path::new("/does/not/exist")).unwrap_err();
    assert!(error.contains("/does/not/exist: cannot read"), "{error}");
    let file = folder(GOOD);
    let error = open(&file.path().join("d.inter")).unwrap_err();
    assert!(
        error.contains("d.inter: is a file; expected a folder: `bm3-engine prepare"),
        "{error}"
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(open(empty.path()).unwrap_err().contains("has no .inter file"));
    let two = folder(GOOD);
    fs::write(two.path().join("e.inter"), GOOD).unwrap();
    assert!(open(two.path()).unwrap_err().contains("several .inter files (d.inter, e.inter)"));
}

#[test]
fn mistakes_in_the_features_name_the_place() {
    let good = npy_f32(3, 2, &[0.0; 6]);
    features_refused(&npy_f32(2, 2, &[0.0; 4]), &["has 2 rows", "3 items"]);
    features_refused(&good[..good.len() - 1], &["truncated", "23 bytes", "needs 24"]);
    features_refused(&[&good[..], b"x"].concat(), &["too long", "25 bytes", "needs 24"]);
    features_refused(&npy("<i4", false, "(3, 2)", &[0; 24]), &["\"<i4\"", "float32"]);
    features_refused(&npy("|O", false, "(3, 2)", &[0; 24]), &["\"|O\""]);
    features_refused(&npy("<f4", false, "(6,)", &[0; 24]), &["1 dimension", "[6]"]);
    features_refused(&npy("<f4", false, "(3, 1, 2)", &[0; 24]), &["3 dimensions"]);
    let bad = [0.0, 0.0, 0.0, f32::NAN, 0.0, f32::INFINITY];
    features_refused(&npy_f32(3, 2, &bad), &["row 1, column 1 is NaN"]);
    let large = 1e300f64.to_le_bytes();
    features_refused(
        &npy("<f8", false, "(3, 1)", &[large, large, large].concat()),
        &["modality `image`: ", "row 0, column 0 is 1e300, beyond the largest f32 (3.4028235e38)"],
    );
    features_refused(b"not an array", &["does not begin with"]);
    // A row after the last item belongs to no item, so its NaN does not matter.
    let directory = folder(GOOD);
    let spare = npy_f32(4, 1, &[0.0, 0.0, 0.0, f32::NAN]);
    fs::write(directory.path().join("image_feat.npy"), spare).unwrap();
    open(directory.path()).unwrap();
}

#[test]
fn a_fortran_table_names_the_first_row_too() {
    // Columns are stored one after the other; the first bad row is 1, in the second column.
    let data: Vec<u8> = [0.0, 0.0, f32::NAN, 0.0, f32::NAN, 0.0]
        .iter()
        .flat_map(|value: &f32| value.to_le_bytes())
        .collect();
    features_refused(&npy("<f4", true, "(3, 2)", &data), &["row 1, column 1 is NaN"]);
}

#[test]
fn every_type_and_order_reads_as_the_same_numbers() {
    let expected = [[1.5f64, -2.0, 0.25], [3.0, 1024.0, -0.125]];
    let c_order: Vec<f64> = expected.iter().flatten().copied().collect();
    let fortran_order: Vec<f64> =
        (0..3).flat_map(|column| expected.map(|row| row[column])).collect();
    for fortran in [false, true] {
        let values = if fortran { &fortran_order } else { &c_order };
        for (kind, dtype) in
            [("f2", FeatureType::F16), ("f4", FeatureType::F32), ("f8", FeatureType::F64)]
        {
            for big_endian in [false, true] {
                let encode = |&value: &f64| -> Vec<u8> {
                    let mut bytes = match dtype {
                        FeatureType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
                        FeatureType::F32 => (value as f32).to_le_bytes().to_vec(),
                        _ => value.to_le_bytes().to_vec(),
                    };
                    if big_endian {
                        bytes.reverse();
                    }
                    bytes
                };
                let data: Vec<u8> = values.iter().flat_map(encode).collect();
                let order = if big_endian { ">" } else { "<" };
                let file = tempfile::NamedTempFile::new().unwrap();
                let bytes = npy(&format!("{order}{kind}"), fortran, "(2, 3)", &data);
                fs::write(file.path(), bytes).unwrap();
                let matrix = FeatureMatrix::open(file.path()).unwrap();
                assert_eq!(matrix.dtype(), dtype);
                for (row, expected) in expected.iter().enumerate() {
                    let (mut double, mut single) = ([0.0f64; 3], [0.0f32; 2]);
                    matrix.copy_row(row, 0..3, &mut double);
                    assert_eq!(&double, expected, "{order}{kind} fortran {fortran}");
                    matrix.copy_row(row, 1..3, &mut single);
                    assert_eq!(single.map(f64::from), expected[1..]);
                }
                matrix.check_finite(2).unwrap();
            }
        }
    }
}

#[test]
fn modalities_are_chosen_replaced_and_checked() {
    let directory = folder(GOOD);
    let other = directory.path().join("other.npy");
    fs::write(directory.path().join("image_feat.npy"), npy_f32(3, 2, &[0.0; 6])).unwrap();
    fs::write(&other, npy_f32(3, 5, &[0.0; 15])).unwrap();
    let open = |options: &DatasetOptions| {
        let dataset =
            Dataset::open(directory.path(), options).map_err(|error| error.to_string())?;
        let describe = |modality: &bm3_engine::data::Modality| {
            (modality.name.clone(), modality.features.columns())
        };
        Ok::<_, String>(dataset.modalities.iter().map(describe).collect::<Vec<_>>())
    };
    let image = |width| ("image".to_owned(), width);
    assert_eq!(open(&DatasetOptions::default()).unwrap(), [image(2)]);
    let files = vec![FeatureFile::new(&other)];
    let features = vec![("image".to_owned(), files.clone())];
    let replaced = DatasetOptions { features, ..Default::default() };
    assert_eq!(open(&replaced).unwrap(), [image(5)]);
    let none = DatasetOptions { modalities: Some(vec![]), ..Default::default() };
    assert_eq!(open(&none).unwrap(), []);
    let missing = DatasetOptions { modalities: Some(vec!["text".into()]), ..Default::default() };
    assert!(open(&missing).unwrap_err().contains("text_feat.npy"));
    let twice = vec![("a".to_owned(), files.clone()), ("a".to_owned(), files)];
    let twice = DatasetOptions { features: twice, ..Default::default() };
    assert!(open(&twice).unwrap_err().contains("modality `a`: --feature gives it twice"));
}

#[test]
fn odd_but_usable_data_is_only_warned_about() {
    // User 1 and item 1 have no interaction; user 2 none in training.
    let directory = folder("itemID\tuserID\tx_label\r\n0\t0\t0\r\n2\t0\t0\r\n0\t2\t1\r\n2\t0\t1");
    let dataset = open(directory.path()).unwrap();
    assert_eq!((dataset.users, dataset.items), (3, 3));
    assert_eq!(dataset.valid.users, [0]);
    let warnings = dataset.warnings.join("\n");
    assert!(warnings.contains("1 of the 3 user ids"), "{warnings}");
    assert!(warnings.contains("1 of the 3 item ids"), "{warnings}");
    assert!(warnings.contains("1 validation and 0 test interactions are left out"), "{warnings}");
}

#[test]
fn a_split_is_made_where_there_is_none() {
    let rows: String = (0..200).map(|row| format!("{}\t{}\n", row % 10, row / 2)).collect();
    let directory = folder(&format!("userID\titemID\n{rows}"));
    let split = Some(SplitRatio { train: 0.8, valid: 0.1, test: 0.1, seed: 3 });
    let options = DatasetOptions { split, ..Default::default() };
    let dataset = Dataset::open(directory.path(), &options).unwrap();
    assert_eq!(dataset.train.users.len(), 160);
    assert_eq!((dataset.valid.items.len(), dataset.test.items.len()), (20, 20));
}

#[test]
fn a_fingerprint_sees_every_part() {
    let directory = folder(GOOD);
    let first = open(directory.path()).unwrap();
    assert_eq!(
        first.interactions_fingerprint(),
        open(directory.path()).unwrap().interactions_fingerprint()
    );
    for other in [
        GOOD.replace("0\t1\t1\t0", "1\t1\t1\t0"),
        GOOD.replace("0\t2\t1\t1", "0\t2\t1\t2"),
        GOOD.replace("1\t1\t1\t2", "1\t2\t1\t2"),
    ] {
        let changed = open(folder(&other).path()).unwrap();
        assert_ne!(first.interactions_fingerprint(), changed.interactions_fingerprint());
    }
    let with = |value: f32| {
        let directory = folder(GOOD);
        let file = npy_f32(3, 1, &[0.0, value, 0.0]);
        fs::write(directory.path().join("image_feat.npy"), file).unwrap();
        open(directory.path()).unwrap().features_fingerprints()
    };
    assert_ne!(with(1.0), with(2.0));
    assert_eq!(with(1.0).len(), 1);
}

#[test]
fn a_real_data_set_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/lfm2k");
    if !path.exists() {
        eprintln!("skipped: ../shared is not here");
        return;
    }
    let dataset = open(&path).unwrap();
    assert_eq!((dataset.users, dataset.items), (1858, 1425));
    assert_eq!(dataset.train.users.len(), 44_327);
    assert_eq!((dataset.valid.items.len(), dataset.test.items.len()), (4_799, 7_219));
    let widths: Vec<usize> =
        dataset.modalities.iter().map(|modality| modality.features.columns()).collect();
    assert_eq!(widths, [512, 384]);
}

/// The same numbers have the same fingerprint, however they are stored; any other number changes
/// it.
#[test]
fn a_fingerprint_of_features_is_of_every_number() {
    let (rows, columns) = (100, 3);
    let values: Vec<f32> = (0..rows * columns).map(|index| index as f32 - 70.0).collect();
    let of = |values: &[f32]| {
        FeatureMatrix::from_f32(rows, columns, values.to_vec()).unwrap().fingerprint(rows)
    };
    let expected = of(&values);
    let mut other = values.clone();
    for place in [0, 1, 150, 298, 299] {
        for (value, next) in [(0.25, -1.0), (-values[place], values[place])] {
            other[place] = value;
            assert_ne!(of(&other), expected, "{place}");
            // Two changes of the same kind do not undo one another either.
            let second = (place + 1) % other.len();
            other[second] = if next == -1.0 { 0.25 } else { -values[second] };
            assert_ne!(of(&other), expected, "{place}");
            other.copy_from_slice(&values);
        }
    }
    let matrix = FeatureMatrix::from_f32(rows, columns, values.clone()).unwrap();
    assert_ne!(matrix.fingerprint(rows - 1), expected);
    let path = folder(GOOD);
    let file = path.path().join("image_feat.npy");
    fs::write(&file, npy_f32(rows, columns, &values)).unwrap();
    assert_eq!(FeatureMatrix::open(&file).unwrap().fingerprint(rows), expected);
}
