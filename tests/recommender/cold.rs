//! Items without interactions: the model's own, and those added after training.

use std::path::Path;

use bm3_engine::config::TrainConfig;
use bm3_engine::data::{Dataset, DatasetOptions, FeatureMatrix, IdMaps, Modality};
use bm3_engine::export::{ExportForm, export};
use bm3_engine::{Query, Recommender};

use crate::common::groups;
use crate::{config, list, recommenders, rows_of, trained, without_items};

#[test]
fn cold_items_are_found_by_their_features() {
    let cold = [12, 17, 22, 31];
    let dataset = without_items(&cold);
    for freeze_features in [false, true] {
        let config = TrainConfig { freeze_features, epochs: 30, ..config() };
        let model = trained(&dataset, config);
        for mut recommender in recommenders(&model) {
            assert_eq!(recommender.cold_items(), cold);
            let before = recommender.item_rows().to_vec();
            if freeze_features {
                let error = recommender.score_cold_items(&[]).unwrap_err().to_string();
                assert!(error.contains("modality image: no features found"), "{error}");
                let others = rows_of(&dataset.modalities, &(0..40).rev().collect::<Vec<_>>());
                let error = recommender.score_cold_items(&others).unwrap_err().to_string();
                assert!(error.contains("not the features that the model was trained"), "{error}");
            }
            // Until then a cold item says nothing about its user, unless she has nothing else.
            let of = |recommender: &Recommender, items: &[u32]| {
                list(&recommender.search(&[Query::items(items).with_seen()], 40).unwrap(), 0)
            };
            assert_eq!(of(&recommender, &[5, 17]), of(&recommender, &[5]));
            assert_ne!(of(&recommender, &[17]), of(&recommender, &[5]));
            assert_eq!(recommender.score_cold_items(&dataset.modalities).unwrap(), 4);
            assert_ne!(of(&recommender, &[5, 17]), of(&recommender, &[5]));
            for item in 0..40u32 {
                let range = item as usize * 16..(item as usize + 1) * 16;
                let unchanged = before[range.clone()] == recommender.item_rows()[range];
                assert_eq!(unchanged, !cold.contains(&item));
            }
            // A user prefers the cold item of her group.
            let first = |user| recommender.rank(Query::user(user), &cold, 1).unwrap()[0].item;
            let of_group = (0..60).filter(|&user| first(user) % 4 == user % 4).count();
            // By chance a quarter would, 15 ± 3.
            assert!(of_group >= 28, "{of_group}");

            // An item added by its features has the row that it would have as one of the model's.
            let again = rows_of(&dataset.modalities, &[17, 31]);
            assert_eq!(recommender.add_items(&again).unwrap(), 40..42);
            assert_eq!(recommender.items(), 42);
            assert_eq!(recommender.cold_items(), [12, 17, 22, 31, 40, 41]);
            let row = |item: usize| &recommender.item_rows()[item * 16..][..16];
            assert_eq!((row(40), row(41)), (row(17), row(31)));
            let found = recommender.top_k(5, 42).unwrap();
            let place = |item| found.iter().position(|found| found.item == item).unwrap();
            // Equal scores: the lower number comes first.
            assert_eq!(place(40), place(17) + 1);
            assert_eq!(recommender.similar_items(40, 1).unwrap()[0].item, 17);
            let new_user = recommender.search(&[Query::items(&[40])], 3).unwrap();
            assert_eq!(new_user.items[0] % 4, 17 % 4);
        }
    }
}

/// Adding items does not change what the model's own items say about their users.
#[test]
fn added_items_leave_the_models_own_cold_ones_as_they_are() {
    let dataset = without_items(&[12, 17]);
    for mut recommender in recommenders(&trained(&dataset, config())) {
        let histories: [&[u32]; 4] = [&[5, 17], &[17, 3, 12, 8], &[12, 17], &[5]];
        let old: Vec<u32> = (0..40).collect();
        let ask = |recommender: &Recommender| {
            let rank = |history: &&[u32]| {
                recommender.rank(Query::items(history).with_seen(), &old, 40).unwrap()
            };
            histories.iter().map(rank).collect::<Vec<_>>()
        };
        let before = ask(&recommender);
        assert_eq!(
            recommender.add_items(&rows_of(&dataset.modalities, &[17, 31])).unwrap(),
            40..42
        );
        assert_eq!(ask(&recommender), before);
        // Added items have rows by their features, so they count in a history, unlike the model's
        // cold ones.
        let lists = |items: &[u32]| recommender.search(&[Query::items(items)], 9).unwrap();
        let own_left_out = Query::items(&[40]).excluding(&[17]);
        assert!(lists(&[40, 17]) == recommender.search(&[own_left_out], 9).unwrap());
        assert!(lists(&[40, 5]) != lists(&[5]));
        recommender.score_cold_items(&[]).unwrap();
        assert_ne!(ask(&recommender)[0], before[0]);
    }
}

/// On a real data set: a tenth of the items lose all interactions and are found again by their
/// features.
#[test]
fn cold_items_of_a_real_data_set_are_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/lfm2k");
    if !folder.is_dir() {
        println!("skipped: {} is not there", folder.display());
        return;
    }
    let whole = Dataset::open(&folder, &DatasetOptions::default()).unwrap();
    let hidden = |item: u32| item % 10 == 3;
    let pairs = || whole.train.users.iter().copied().zip(whole.train.items.iter().copied());
    let (users, items): (Vec<u32>, Vec<u32>) = pairs().filter(|&(_, item)| !hidden(item)).unzip();
    let mut builder = Dataset::builder("cold").train(&users, &items);
    for modality in &whole.modalities {
        builder = builder.modality(&modality.name, modality.features.clone());
    }
    let dataset = builder.at_least(whole.users, whole.items).build().unwrap();
    let model = trained(&dataset, TrainConfig { epochs: 30, ..TrainConfig::default() });
    let mut recommender = Recommender::new(model).unwrap();
    recommender.score_cold_items(&[]).unwrap();
    let candidates: Vec<u32> = (0..whole.items as u32).filter(|&item| hidden(item)).collect();
    let (mut recall, mut by_chance, mut count) = (0.0, 0.0, 0.0);
    for user in 0..whole.users as u32 {
        let wanted: Vec<u32> = pairs()
            .filter(|&(other, item)| other == user && hidden(item))
            .map(|(_, item)| item)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let list = recommender.rank(Query::user(user), &candidates, 20).unwrap();
        let hits = list.iter().filter(|found| wanted.contains(&found.item)).count();
        recall += hits as f64 / wanted.len() as f64;
        by_chance += 20.0 / candidates.len() as f64;
        count += 1.0;
    }
    // Their popularity is unknown, so ranking by it is ranking by chance.
    let (recall, by_chance) = (recall / count, by_chance / count);
    println!("Recall@20 of hidden items: {recall:.3}, by chance {by_chance:.3}");
    assert!(recall > 2.5 * by_chance, "{recall} {by_chance}");
}

#[test]
fn items_that_cannot_be_added_are_refused() {
    let dataset = groups();
    let mut recommender = Recommender::new(trained(&dataset, config())).unwrap();
    let good = rows_of(&dataset.modalities, &[1, 2]);
    let mut refused = |features: &[Modality], problem: &str| {
        let error = recommender.add_items(features).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(problem), "{error}");
        assert_eq!(recommender.items(), 40);
    };
    let table = |name: &str, rows: usize, columns: usize, value: f32| Modality {
        name: name.to_owned(),
        features: FeatureMatrix::from_f32(rows, columns, vec![value; rows * columns])
            .unwrap()
            .into(),
    };
    refused(&good[..1], "modality text: no features found");
    refused(&[good[0].clone(), table("text", 1, 10, 0.0)], "tables of 2 and 1 rows");
    refused(&[good[0].clone(), table("text", 2, 11, 0.0)], "11 columns found, 10 expected");
    refused(&[good[0].clone(), good[1].clone(), table("smell", 2, 1, 0.0)], "modality smell");
    refused(&[good[0].clone(), table("text", 2, 10, f32::INFINITY)], "inf");
    // Finite themselves, but not what is computed of them.
    let large = [good[0].clone(), table("text", 2, 10, f32::MAX)];
    refused(&large, "features: row 0 of the new items: numbers so large found");
    let frozen = TrainConfig { freeze_features: true, ..config() };
    let mut recommender = Recommender::new(trained(&dataset, frozen)).unwrap();
    let error = recommender.add_items(&good).unwrap_err().to_string();
    assert!(error.contains("give them to score_cold_items first"), "{error}");
    let maps = IdMaps { users: vec![String::new(); 60], items: vec![String::new(); 39] };
    let folder = tempfile::tempdir().unwrap();
    let error = export(&recommender, ExportForm::Csv, folder.path(), Some(&maps), false);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("ids: 39 names of items found, 40 expected"), "{error}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    let plain = Dataset::builder("plain").train(&[0, 1], &[1, 0]).build().unwrap();
    let mut recommender = Recommender::new(trained(&plain, config())).unwrap();
    let error = recommender.add_items(&[]).unwrap_err().to_string();
    assert!(error.contains("none found in the model"), "{error}");
}
