//! Raw interactions: what is read, what is refused, and how splits and features come out.

use std::fs;
use std::path::{Path, PathBuf};

use bm3_engine::Trainer;
use bm3_engine::config::{ConfigFile, DeviceChoice, TrainConfig};
use bm3_engine::data::{Dataset, DatasetOptions, FeatureFile, FeatureType, IdMaps};
use bm3_engine::prepare::{
    Delimiter, FeatureInput, MissingFeatures, PrepareOptions, PrepareSummary, SplitMethod,
    TableOptions, prepare,
};
use tempfile::TempDir;

struct Raw {
    folder: TempDir,
}

impl Raw {
    fn new(table: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("raw.csv"), table).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self) -> PrepareOptions {
        PrepareOptions {
            table: TableOptions {
                path: self.path("raw.csv"),
                user_column: None,
                item_column: None,
                rating_column: None,
                time_column: None,
                split_column: None,
                delimiter: None,
                has_header: true,
            },
            min_rating: None,
            k_core: 0,
            split_method: SplitMethod::Random { seed: 1 },
            shares: [0.8, 0.1, 0.1],
            features: Vec::new(),
            missing_features: MissingFeatures::Error,
            feature_type: FeatureType::F32,
            name: "mine".to_owned(),
            out: self.path("out"),
            overwrite: false,
        }
    }

    fn prepare(&self, change: impl FnOnce(&mut PrepareOptions)) -> Result<PrepareSummary, String> {
        let mut options = self.options();
        change(&mut options);
        prepare(&options, &mut |_| {}).map_err(|error| {
            assert!(error.is_input(), "{error} is the user's to mend");
            assert!(!options.out.exists() || options.overwrite, "something was written");
            error.to_string()
        })
    }

    #[track_caller]
    fn refused(&self, change: impl FnOnce(&mut PrepareOptions), parts: &[&str]) {
        let error = self.prepare(change).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }

    /// A file with one feature per row, and the ids of its rows.
    fn features(&self, ids: Option<&str>, values: &[f32]) -> FeatureInput {
        let header =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 1), }}", values.len());
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        fs::write(self.path("f.npy"), bytes).unwrap();
        if let Some(ids) = ids {
            fs::write(self.path("ids.txt"), ids).unwrap();
        }
        FeatureInput {
            name: "image".to_owned(),
            files: vec![FeatureFile::new(self.path("f.npy"))],
            ids: ids.map(|_| self.path("ids.txt")).into_iter().collect(),
        }
    }

    fn feature_column(&self) -> Vec<f64> {
        let path = self.path("out/image_feat.npy");
        let matrix = bm3_engine::data::FeatureMatrix::open(&path).unwrap();
        let mut value = [0.0];
        (0..matrix.rows())
            .map(|row| {
                matrix.copy_row(row, 0..1, &mut value);
                value[0]
            })
            .collect()
    }
}

const TABLE: &str =
    "user_id,item_id,rating,timestamp\nann,B,5,3\nbob,A,1,1\nann,A,4,1\nann,C,3,2\nbob,B,2,2\n";

fn maps(directory: &Path) -> IdMaps {
    IdMaps::read(directory).unwrap().unwrap()
}

#[test]
fn a_table_becomes_a_folder() {
    for delimiter in ["\t", ";", "|", ","] {
        let raw = Raw::new(&TABLE.replace(',', delimiter));
        let summary = raw.prepare(|_| {}).unwrap();
        assert_eq!(summary.splits.iter().sum::<usize>(), 5);
        let maps = maps(&raw.path("out"));
        assert_eq!(
            (maps.users, maps.items),
            (
                vec!["ann", "bob"].into_iter().map(String::from).collect::<Vec<_>>(),
                ["B", "A", "C"].map(String::from).to_vec()
            )
        );
        Dataset::open(&raw.path("out"), &DatasetOptions::default()).unwrap();
    }
}

#[test]
fn time_and_leave_one_out_test_the_latest() {
    for method in [SplitMethod::Time, SplitMethod::LeaveOneOut] {
        let raw = Raw::new(TABLE);
        raw.prepare(|options| {
            options.split_method = method;
            options.shares = [0.4, 0.3, 0.3];
        })
        .unwrap();
        let dataset = Dataset::open(&raw.path("out"), &DatasetOptions::default()).unwrap();
        // ann: A at 1, C at 2, B at 3; items are numbered B, A, C.
        assert_eq!(dataset.test.items_of(0), [0], "{method:?}");
        assert_eq!(dataset.valid.items_of(0), [2], "{method:?}");
    }
}

#[test]
fn what_is_not_used_or_not_known_is_said() {
    let last = |options: &mut PrepareOptions| options.split_method = SplitMethod::LeaveOneOut;
    let untimed = Raw::new("user_id,item_id,created\nann,B,9\nann,A,8\nann,C,7\n");
    let warnings = untimed.prepare(last).unwrap().warnings;
    assert!(warnings[0].starts_with("there is no column of times, so"), "{warnings:?}");
    assert!(Raw::new(TABLE).prepare(last).unwrap().warnings.iter().all(|w| !w.contains("times")));
    let split = Raw::new("userID\titemID\tx_label\n1\t2\t0\n1\t3\t1\n");
    let warnings = split.prepare(|_| {}).unwrap().warnings;
    assert!(warnings[0].starts_with("the column x_label is not used"), "{warnings:?}");
    let expected =
        "no interaction is in the validation split: the users have too few for its share";
    assert!(warnings.iter().any(|warning| warning == expected), "{warnings:?}");
}

/// A split that was published stays, whatever it calls its parts.
#[test]
fn a_column_names_the_split() {
    let given = |options: &mut PrepareOptions| {
        options.table.split_column = Some("part".to_owned());
        options.split_method = SplitMethod::Given;
    };
    for [train, valid, test] in
        [["0", "1", "2"], ["train", "Valid", "TEST"], ["training", "dev", "test"]]
    {
        let raw = Raw::new(&format!(
            "user_id,item_id,part\nann,A,{test}\nann,B,{train}\nann,C,{valid}\nbob,A,{train}\nbob,B,{test}\n\
             bob,C,{train}\n"
        ));
        let summary = raw.prepare(given).unwrap();
        assert_eq!((summary.splits, summary.warnings.len()), ([3, 1, 2], 0), "{train}");
        let dataset = Dataset::open(&raw.path("out"), &DatasetOptions::default()).unwrap();
        assert_eq!((dataset.valid.items_of(0), dataset.test.items_of(0)), (&[2][..], &[0][..]));
        assert_eq!(dataset.test.items_of(1), [1]);
    }
    let other = "the split is \"later\"; expected 0, 1 or 2, or train, valid or test";
    Raw::new("user_id,item_id,part\na,b,later\n").refused(given, &["line 2", other]);
    Raw::new("user_id,item_id,part\na,b,\n").refused(given, &["line 2", "has no split"]);
    Raw::new(TABLE).refused(given, &["no column for the split called `part`", "--split-column"]);
    let unnamed = |options: &mut PrepareOptions| options.split_method = SplitMethod::Given;
    Raw::new(TABLE).refused(unnamed, &["--split-column: not given, the column that names"]);
}

/// A model trained on a folder keeps the folder's ids, whoever trains it.
#[test]
fn a_run_of_the_library_keeps_the_ids() {
    let raw = Raw::new(TABLE);
    raw.prepare(|options| options.shares = [1.0, 0.0, 0.0]).unwrap();
    let dataset = Dataset::open(&raw.path("out"), &DatasetOptions::default()).unwrap();
    assert_eq!(dataset.folder(), Some(&*raw.path("out")));
    let config = TrainConfig { epochs: 1, embedding_size: 4, ..TrainConfig::default() };
    Trainer::new(config)
        .device(DeviceChoice::Cpu)
        .directory(raw.path("run"))
        .fit(&dataset)
        .unwrap();
    assert_eq!(maps(&raw.path("run")), maps(&raw.path("out")));
    let settings = |run: &str| ConfigFile::read(&raw.path(run).join("config.toml")).unwrap().run;
    assert_eq!(settings("run").data, Some(raw.path("out")));

    // A data set that was changed is not what the folder has.
    let mut changed = dataset.clone();
    changed.train.users.swap(0, 1);
    changed.train.items.swap(0, 1);
    assert!(changed.source().is_none() && dataset.source().is_some());
    let trainer = Trainer::new(TrainConfig { epochs: 1, embedding_size: 4, ..Default::default() });
    trainer.directory(raw.path("changed")).fit(&changed).unwrap();
    assert_eq!(settings("changed").data, None);
}

#[test]
fn columns_go_by_name_or_number() {
    let raw = Raw::new("x,1,ann,B\ny,2,bob,A\n");
    raw.prepare(|options| {
        options.table.has_header = false;
        options.table.user_column = Some("3".to_owned());
        options.table.item_column = Some("4".to_owned());
    })
    .unwrap();
    assert_eq!(maps(&raw.path("out")).users, ["ann", "bob"]);
    let raw = Raw::new("who,what\nann,B\n");
    raw.refused(|_| {}, &["raw.csv: no column for the user", "found who, what", "--user-column"]);
    let headless = "or add --no-header if the first line is an interaction";
    Raw::new("196,242,3\n186,302,3\n").refused(|_| {}, &["found 196, 242, 3; ", headless]);
    let error = Raw::new("user,what\nann,B\n").prepare(|_| {}).unwrap_err();
    assert!(
        error.ends_with("no column for the item; found user, what; name it with --item-column")
    );
    let named = |options: &mut PrepareOptions| {
        options.table.user_column = Some("who".to_owned());
        options.table.item_column = Some("that".to_owned());
    };
    raw.refused(named, &["no column for the item called `that`", "--item-column"]);
}

/// The files of MovieLens: no header, columns between two colons, and no quotes. One colon is part of
/// an id.
#[test]
fn two_colons_separate_columns() {
    let table = "ann::B::5::3\nbob::A:1::1::1\nann::A:1::4::1\nann::\"C::3::2\nbob::B::2::2\n";
    let as_commas = table.replace("\"C", "C").replace("::", ",");
    let headless = |options: &mut PrepareOptions| {
        options.table.has_header = false;
        options.table.time_column = Some("4".to_owned());
        options.split_method = SplitMethod::Time;
    };
    for delimiter in [None, Some(Delimiter::DoubleColon)] {
        let (colons, commas) = (Raw::new(table), Raw::new(&as_commas));
        commas.prepare(headless).unwrap();
        colons
            .prepare(|options| {
                headless(options);
                options.table.delimiter = delimiter;
            })
            .unwrap();
        let interactions = |raw: &Raw| fs::read_to_string(raw.path("out/mine.inter")).unwrap();
        assert_eq!(interactions(&colons), interactions(&commas));
        assert_eq!(maps(&colons.path("out")).items, ["B", "A:1", "\"C"]);
    }
    // One title has more spaces than the line has separators.
    let titles = Raw::new("ann::Toy Story (1995)::5\nbob::Dead Presidents (1995)::3\n");
    titles.prepare(|options| options.table.has_header = false).unwrap();
    assert_eq!(maps(&titles.path("out")).items, ["Toy Story (1995)", "Dead Presidents (1995)"]);
    let named = "user::item::time\nann::B::2018-03-05 10:00:00\nann::A::2018-03-05 09:00:00\n";
    Raw::new(named).prepare(|_| {}).unwrap();
    Raw::new("ann::B\nann::A::5\n")
        .refused(|options| options.table.has_header = false, &["line 2", "has 3 columns"]);
    // RecBole's types follow one colon.
    let typed = Raw::new("user_id:token\titem_id:token\nann\tB::1\n");
    typed.prepare(|_| {}).unwrap();
    assert_eq!(maps(&typed.path("out")).items, ["B::1"]);
}

/// Dates are times: split by them as by their seconds.
#[test]
fn dates_are_times() {
    let raw = Raw::new(
        "user_id,item_id,date\nann,B,2018-07-07 22:09:11\nann,A,2018-07-07T22:09:09Z\n\
         ann,C,2018-07-08T00:09:10+02:00\n",
    );
    raw.prepare(|options| {
        options.split_method = SplitMethod::LeaveOneOut;
    })
    .unwrap();
    let text = fs::read_to_string(raw.path("out/mine.inter")).unwrap();
    let times: Vec<&str> = text.lines().skip(1).map(|l| l.split('\t').nth(3).unwrap()).collect();
    assert_eq!(times, ["1531001351", "1531001349", "1531001350"]);
    let dataset = Dataset::open(&raw.path("out"), &DatasetOptions::default()).unwrap();
    assert_eq!((dataset.test.items_of(0), dataset.valid.items_of(0)), (&[0][..], &[2][..]));
    let expected = "expected a number, or a date as in 2026-11-28 or 2026-11-28T09:30:00Z";
    let timed = |options: &mut PrepareOptions| options.split_method = SplitMethod::Time;
    Raw::new("user_id,item_id,time\na,b,07/07/2018\n").refused(timed, &["line 2", expected]);
}

#[test]
fn mistakes_in_the_table_name_the_line() {
    Raw::new("").refused(|_| {}, &["raw.csv", "is empty"]);
    let headless = |options: &mut PrepareOptions| options.table.has_header = false;
    Raw::new("").refused(headless, &["raw.csv", "is empty"]);
    Raw::new("user_id,item_id\n").refused(|_| {}, &["is empty"]);
    Raw::new("user_id,item_id\na,b\na\n").refused(|_| {}, &["line 3", "1 columns"]);
    Raw::new("user_id,item_id\na,b\n,b\n").refused(|_| {}, &["line 3", "has no user"]);
    let rated = |options: &mut PrepareOptions| options.min_rating = Some(1.0);
    Raw::new("user_id,item_id,rating\na,b,five\n")
        .refused(rated, &["line 2", "the rating is \"five\""]);
    Raw::new("user_id,item_id\na,b\n").refused(rated, &["no column for the rating"]);
    let timed = |options: &mut PrepareOptions| options.split_method = SplitMethod::Time;
    Raw::new("user_id,item_id,time\na,b,soon\n").refused(timed, &["the time is \"soon\""]);
    let last = |options: &mut PrepareOptions| options.split_method = SplitMethod::LeaveOneOut;
    Raw::new("user_id,item_id,time\na,b,2\na,c,soon\n")
        .refused(last, &["line 3", "the time is \"soon\""]);
    let core = |options: &mut PrepareOptions| options.k_core = 9;
    Raw::new(TABLE).refused(core, &["no interaction is left", "5 read", "--k-core"]);
    let missing = |options: &mut PrepareOptions| options.table.path = "missing.csv".into();
    Raw::new(TABLE).refused(missing, &["missing.csv: cannot read"]);
    // Quotes that are left open: at the end, in the header, and up to the next one.
    let open = "has a quote that is not closed up to the file's end";
    Raw::new("user_id,item_id\na,b\nc,\"d\ne,f\ng,h\n").refused(|_| {}, &["line 3", open]);
    Raw::new("user_id,item_id\na,b\nc,\"d").refused(|_| {}, &["line 3", open]);
    Raw::new("user_id,item_id,\"text\na,b,c\n").refused(|_| {}, &["line 1", open]);
    Raw::new("user_id,item_id\na,\"b\nc,d\ne,\"f\n")
        .refused(|_| {}, &["line 2", "an id of the item that goes over several lines"]);
    // Files that are no tables, by their first bytes.
    for (bytes, problem) in [
        (&b"\x1f\x8b\x08\0"[..], "is compressed by gzip; unpack it first"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\xff\xfeu\0s\0", "is UTF-16, not UTF-8"),
        (b"{\"user\": 1}\n", "is JSON; save it as a table"),
    ] {
        let other = Raw::new(TABLE);
        fs::write(other.path("raw.csv"), bytes).unwrap();
        other.refused(|_| {}, &["raw.csv", problem]);
    }
    let invalid = Raw::new(TABLE);
    fs::write(invalid.path("raw.csv"), b"user_id,item_id\n\xff\xfe,b\n").unwrap();
    invalid.refused(|_| {}, &["line 2", "not UTF-8"]);
    // Names of columns that nobody asks for may be in any encoding.
    let other = Raw::new(TABLE);
    fs::write(other.path("raw.csv"), b"user_id;item_id;Gr\xf6\xdfe\na;b;1\na;c;2\nb;b;1\n")
        .unwrap();
    other.prepare(|_| {}).unwrap();
}

#[test]
fn features_follow_their_items() {
    let raw = Raw::new(TABLE);
    let input = raw.features(Some("A\nB\nC\nD\n"), &[1.0, 2.0, 3.0, 4.0]);
    raw.prepare(|options| options.features = vec![input]).unwrap();
    assert_eq!(raw.feature_column(), [2.0, 1.0, 3.0]);

    // What editors put before the first line and after the last is no part of an id.
    let raw = Raw::new(TABLE);
    let input = raw.features(Some("\u{feff}B\r\nA\r\nC\r\n\r\n"), &[1.0, 2.0, 3.0]);
    raw.prepare(|options| options.features = vec![input]).unwrap();
    assert_eq!(raw.feature_column(), [1.0, 2.0, 3.0]);

    let raw = Raw::new(TABLE);
    let input = raw.features(Some("A\nB\nC\n"), &[1.0, 2.0, 1e5]);
    let halves = |options: &mut PrepareOptions| {
        options.features = vec![input];
        options.feature_type = FeatureType::F16;
    };
    raw.refused(halves, &["row 2, column 0 is 100000", "--feature-type f32"]);

    let raw = Raw::new("user_id,item_id\na,2\na,0\n");
    let input = raw.features(None, &[5.0, 6.0, 7.0]);
    raw.prepare(|options| options.features = vec![input]).unwrap();
    assert_eq!(raw.feature_column(), [7.0, 5.0]);
}

#[test]
fn items_without_features_are_an_error_unless_said_otherwise() {
    let raw = Raw::new(TABLE);
    let input = || raw.features(Some("A\nB\n"), &[1.0, 2.0]);
    let with = |missing| {
        move |options: &mut PrepareOptions| {
            options.missing_features = missing;
            options.overwrite = true;
        }
    };
    raw.refused(
        |options| options.features = vec![input()],
        &["f.npy: has no features for 1 of 3 items (among them C)", "--missing-features"],
    );
    for (missing, expected) in [
        (MissingFeatures::Zero, vec![2.0, 1.0, 0.0]),
        (MissingFeatures::Mean, vec![2.0, 1.0, 1.5]),
        (MissingFeatures::DropItem, vec![2.0, 1.0]),
    ] {
        raw.prepare(|options| {
            with(missing)(options);
            options.features = vec![input()];
        })
        .unwrap();
        assert_eq!(raw.feature_column(), expected, "{missing:?}");
    }
    // A table of other ids is a mistake, whatever is wanted for missing rows.
    for missing in [MissingFeatures::Error, MissingFeatures::Mean, MissingFeatures::DropItem] {
        for (ids, found) in [
            (Some("x\ny\n"), "its first id is x"),
            (None, "without --feature-ids, rows go by number, 0 to 1"),
        ] {
            let raw = Raw::new(TABLE);
            let input = raw.features(ids, &[1.0, 2.0]);
            let options = |options: &mut PrepareOptions| {
                options.missing_features = missing;
                options.features = vec![input];
            };
            raw.refused(options, &["has features for none of ", found, "--feature-ids, one id"]);
        }
    }
    let raw = Raw::new(TABLE);
    let input = raw.features(Some("A\nB\n"), &[1.0, 2.0, 3.0]);
    raw.refused(
        |options| options.features = vec![input],
        &["ids.txt: 2 items are named", "has 3 rows"],
    );
    let input = raw.features(Some("A\nA\n"), &[1.0, 2.0]);
    raw.refused(|options| options.features = vec![input], &["line 2", "\"A\" is there twice"]);
    let input = raw.features(Some("A\nB\n"), &[1.0, f32::NAN]);
    raw.refused(|options| options.features = vec![input], &["row 1, column 0 is NaN"]);
}

/// A folder with an earlier data set ends up with the new one alone, or is left as it was.
#[test]
fn nothing_is_left_of_an_earlier_data_set() {
    let raw = Raw::new(TABLE);
    let image = raw.features(Some("A\nB\nC\n"), &[1.0, 2.0, 3.0]);
    raw.prepare(|options| options.features = vec![image]).unwrap();
    fs::write(raw.path("out/notes.txt"), "mine").unwrap();
    let names = || {
        let entries = fs::read_dir(raw.path("out")).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.sort();
        names
    };
    let before = names();
    let again = |change: fn(&mut PrepareOptions)| {
        let mut options = raw.options();
        options.name = "other".to_owned();
        change(&mut options);
        prepare(&options, &mut |_| {}).map_err(|error| error.to_string())
    };
    // Even without the files that the new data set would replace, the old features would be taken
    // for part of it.
    for name in ["i_id_mapping.csv", "u_id_mapping.csv"] {
        fs::remove_file(raw.path("out").join(name)).unwrap();
    }
    let error = again(|_| {}).unwrap_err();
    assert!(error.contains("mine.inter exists, and would be taken for a part of"), "{error}");
    fs::remove_file(raw.path("out/mine.inter")).unwrap();
    let error = again(|_| {}).unwrap_err();
    assert!(error.contains("image_feat.npy exists, and would be taken for a part of"), "{error}");
    assert_eq!(names(), ["image_feat.npy", "notes.txt"], "of {before:?}");
    fs::write(raw.path("out/mine.inter"), "older").unwrap();

    again(|options| options.overwrite = true).unwrap();
    let expected = ["i_id_mapping.csv", "notes.txt", "other.inter", "u_id_mapping.csv"];
    assert_eq!(names(), expected);
    let dataset = Dataset::open(&raw.path("out"), &DatasetOptions::default()).unwrap();
    assert_eq!((dataset.name.as_str(), dataset.modalities.len()), ("other", 0));

    // An input file is not removed.
    let error = again(|options| {
        options.overwrite = true;
        options.name = "third".to_owned();
        options.table.path = options.out.join("../out/other.inter");
    })
    .unwrap_err();
    assert!(error.starts_with("--out: ") && error.contains("other.inter is to be read"), "{error}");
    assert_eq!(names(), expected);
    // Nor is it replaced.
    let error = again(|options| {
        options.overwrite = true;
        options.table.path = options.out.join("../out/other.inter");
    })
    .unwrap_err();
    assert!(error.starts_with("--out: ") && error.contains("other.inter is to be read"), "{error}");
    assert_eq!(names(), expected);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn what_this_build_cannot_read_says_how_to_get_it() {
    let raw = Raw::new("");
    for (bytes, format) in [
        (&b"PAR1\x15\x04"[..], "is Parquet,"),
        (b"ARROW1\0\0", "is Arrow IPC,"),
        (b"\xff\xff\xff\xff\x10\0\0\0", "is Arrow IPC,"),
    ] {
        fs::write(raw.path("raw.csv"), bytes).unwrap();
        raw.refused(|_| {}, &["raw.csv", format, "--features parquet", "as CSV"]);
    }
}
