//! Serving: lists are those of the definition, whatever way they are asked for, on the CPU and through
//! the CUDA kernels; and training from a program leaves what the program `bm3-engine` leaves.

mod common;
mod emulator;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bm3_engine::backend::TopK;
use bm3_engine::config::{Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{DataError, Dataset, DatasetOptions, FeatureMatrix, IdMaps, Modality};
use bm3_engine::device::Device;
use bm3_engine::export::{ExportForm, export};
use bm3_engine::records::Observer;
use bm3_engine::run::StopReason;
use bm3_engine::{Model, Query, Recommender, ScoredItem, Trainer};
use common::groups;
use proptest::prelude::*;

fn config() -> TrainConfig {
    TrainConfig {
        embedding_size: 16,
        layers: 2,
        batch_size: 64,
        epochs: 8,
        learning_rate: 5e-3,
        ..TrainConfig::default()
    }
}

fn trained(dataset: &Dataset, config: TrainConfig) -> Model {
    Trainer::new(config).fit(dataset).unwrap().model.unwrap()
}

/// The CPU, and the emulated (or real) GPU where there is one.
fn devices() -> Vec<Device> {
    let gpu = emulator::cuda().map(Device::Gpu);
    std::iter::once(Device::Cpu(Cpu::new())).chain(gpu).collect()
}

fn recommenders(model: &Model) -> Vec<Recommender> {
    let on = |device| Recommender::on_device(model.clone(), device).unwrap();
    devices().into_iter().map(on).collect()
}

/// A list by the definition: all items' products, those left out removed, sorted.
fn by_definition(
    recommender: &Recommender,
    row: &[f32],
    left_out: &[u32],
    k: usize,
) -> Vec<(u32, f64)> {
    let d = recommender.width();
    let product = |item: &[f32]| -> f64 {
        row.iter().zip(item).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let rows = recommender.item_rows().chunks_exact(d);
    let mut scores: Vec<(u32, f64)> = rows
        .enumerate()
        .map(|(item, row)| (item as u32, product(row)))
        .filter(|(item, _)| !left_out.contains(item))
        .collect();
    scores.sort_by(|left, right| right.1.total_cmp(&left.1));
    scores.truncate(k);
    scores
}

/// Items are those expected but where f32 cannot tell their scores apart.
fn assert_list(found: &[u32], scores: &[f64], expected: &[(u32, f64)], d: usize) {
    assert_eq!(found.len(), expected.len());
    for ((item, score), (expected_item, expected_score)) in found.iter().zip(scores).zip(expected) {
        let tolerance = f64::from(f32::EPSILON) * d as f64 * expected_score.abs().max(1.0);
        assert!((score - expected_score).abs() <= tolerance, "{score} {expected_score}");
        if item != expected_item {
            let near = |other: &&(u32, f64)| (other.1 - score).abs() <= 2.0 * tolerance;
            assert!(expected.iter().filter(near).count() > 1, "{item} {expected_item}");
        }
    }
}

fn list(top: &TopK, position: usize) -> Vec<(u32, f64)> {
    let scores = &top.scores[position * top.k..];
    top.list(position).iter().copied().zip(scores.iter().copied()).collect()
}

#[test]
fn lists_are_those_of_the_definition() {
    let dataset = groups();
    for config in [config(), TrainConfig { propagation: Propagation::Gcn, ..config() }] {
        let model = trained(&dataset, config);
        for recommender in recommenders(&model) {
            let d = recommender.width();
            let users: Vec<u32> = (0..60).rev().collect();
            let lists = recommender.top_k_batch(&users, 7).unwrap();
            for (position, &user) in users.iter().enumerate() {
                let seen: Vec<u32> = model.graph().items_of(user as usize).collect();
                let row = &recommender.user_rows()[user as usize * d..][..d];
                let expected = by_definition(&recommender, row, &seen, 7);
                let found = list(&lists, position);
                let (items, scores): (Vec<u32>, Vec<f64>) = found.iter().copied().unzip();
                assert_list(&items, &scores, &expected, d);
                // One at a time: the same bits.
                let single = recommender.top_k(user, 7).unwrap();
                let of_batch = found.iter().map(|&(item, score)| (item, score as f32));
                assert!(single.iter().map(|found| (found.item, found.score)).eq(of_batch));
                // And by pairs.
                let pairs = recommender.scores(&vec![user; items.len()], &items).unwrap();
                assert_eq!(pairs, scores.iter().map(|&score| score as f32).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn lists_have_the_bits_of_those_that_training_measures() {
    let dataset = groups();
    let model = trained(&dataset, config());
    let users: Vec<u32> = (0..60).collect();
    for (device, recommender) in devices().into_iter().zip(recommenders(&model)) {
        let of_step = bm3_engine::with_backend!(device, backend => {
            model.on(backend).unwrap().top_k(&users, 20).unwrap()
        });
        assert!(recommender.top_k_batch(&users, 20).unwrap() == of_step);
        let test = recommender.evaluate(&dataset.test, &[5, 20]).unwrap();
        let measured = model.record().test.clone().unwrap();
        assert_eq!(Some(test.recall[1]), measured.recall_at(20));

        // The same of pairs; user 60 is not there.
        let split = &dataset.test;
        let of_pairs =
            |position: usize| vec![split.users[position]; split.items_of(position).len()];
        let pair_users: Vec<u32> = (0..split.users.len()).flat_map(of_pairs).collect();
        let again = recommender.evaluate_pairs(&pair_users, &split.items, &[5, 20]).unwrap();
        assert_eq!(again, test);
        for lengths in [&[][..], &[0, 5], &[5, 1025], &[20, 5], &[5, 5]] {
            assert!(recommender.evaluate(split, lengths).unwrap_err().is_input(), "{lengths:?}");
            let of_pairs = recommender.evaluate_pairs(&pair_users, &split.items, lengths);
            assert!(of_pairs.unwrap_err().is_input(), "{lengths:?}");
        }
        for (users, items, problem) in [
            (&[60][..], &[1][..], "user: 60 found"),
            (&[1], &[40], "item: 40 found"),
            (&[1], &[], "1 users and 0 items found"),
            (&[], &[], "0 pairs found"),
        ] {
            let error = recommender.evaluate_pairs(users, items, &[5]).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}

/// Rows that somebody holds stay as they were when items are added.
#[test]
fn held_rows_do_not_change() {
    let dataset = groups();
    let mut recommender = Recommender::new(trained(&dataset, config())).unwrap();
    let (users, items) = (recommender.shared_user_rows(), recommender.shared_item_rows());
    let before = items.to_vec();
    recommender.add_items(&rows_of(&dataset.modalities, &[1, 2])).unwrap();
    assert!(*items == before && recommender.shared_item_rows().len() == before.len() + 32);
    assert!(*users == recommender.user_rows());
    drop(recommender);
    assert!(*items == before);
}

#[test]
fn what_is_excluded_is_left_out_and_what_was_seen_can_be_asked_for() {
    let dataset = groups();
    let model = trained(&dataset, config());
    for recommender in recommenders(&model) {
        let all = recommender.search(&[Query::user(3).with_seen()], 40).unwrap();
        assert_eq!(all.list(0).len(), 40);
        let seen: Vec<u32> = model.graph().items_of(3).collect();
        let excluded = [all.items[0], all.items[5], all.items[5], seen[0]];
        let queries = [
            Query::user(3).excluding(&excluded),
            Query::user(3).excluding(&excluded).with_seen(),
            Query::user(3),
        ];
        let lists = recommender.search(&queries, 40).unwrap();
        let without = |left_out: &[&[u32]]| -> Vec<(u32, f64)> {
            let kept = |&(item, _): &(u32, f64)| !left_out.iter().any(|list| list.contains(&item));
            list(&all, 0).into_iter().filter(kept).collect()
        };
        assert_eq!(list(&lists, 0), without(&[&excluded, &seen]));
        assert_eq!(list(&lists, 1), without(&[&excluded]));
        assert_eq!(list(&lists, 2), without(&[&seen]));

        // Some candidates alone, in the order of the whole list.
        let candidates = [7, 30, 7, 2, seen[0], all.items[0]];
        let ranked = recommender.rank(queries[0], &candidates, 40).unwrap();
        let expected: Vec<(u32, f64)> = without(&[&excluded, &seen])
            .into_iter()
            .filter(|(item, _)| candidates.contains(item))
            .collect();
        assert!(ranked.iter().map(|r| (r.item, f64::from(r.score))).eq(expected));
    }
}

#[test]
fn a_new_user_is_the_weighted_mean_of_her_items_rows() {
    let dataset = groups();
    let model = trained(&dataset, TrainConfig { epochs: 40, ..config() });
    let nodes = model.on(Cpu::<f32>::new()).unwrap().nodes().unwrap();
    for recommender in recommenders(&model) {
        let d = recommender.width();
        let items = [9, 1, 25, 9];
        let node = |item: usize, column: usize| f64::from(nodes[(60 + item) * d + column]);
        let weight = |item: usize| 1.0 / (model.graph().users_of(item).count() as f64).sqrt();
        let mean = |column: usize| {
            let sum: f64 = [1, 9, 25].iter().map(|&i| weight(i) * node(i, column)).sum();
            (sum / [1, 9, 25].into_iter().map(weight).sum::<f64>()) as f32
        };
        let row: Vec<f32> = (0..d).map(mean).collect();
        let expected = by_definition(&recommender, &row, &items, 10);
        let found = recommender.search(&[Query::items(&items)], 10).unwrap();
        let (ids, scores): (Vec<u32>, Vec<f64>) = list(&found, 0).into_iter().unzip();
        assert_list(&ids, &scores, &expected, d);
        let reordered = [25, 9, 1];
        assert!(recommender.search(&[Query::items(&reordered)], 10).unwrap() == found);
        // Users of a group like its items: those of another make another list.
        let of_group = |group: u32| -> usize {
            let items: Vec<u32> = (0..5).map(|n| 4 * n + group).collect();
            let list = recommender.search(&[Query::items(&items)], 4).unwrap();
            list.list(0).iter().filter(|&&item| item % 4 == group).count()
        };
        let found: Vec<usize> = (0..4).map(of_group).collect();
        assert!(found.iter().all(|&count| count >= 2), "{found:?}");
    }
}

#[test]
fn similar_items_are_those_with_the_highest_cosine() {
    let dataset = groups();
    let model = trained(&dataset, config());
    for recommender in recommenders(&model) {
        let d = recommender.width();
        let row = |item: u32| &recommender.item_rows()[item as usize * d..][..d];
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let cosine = |a: u32, b: u32| {
            dot(row(a), row(b)) / (dot(row(a), row(a)) * dot(row(b), row(b))).sqrt()
        };
        let batch = recommender.similar_items_batch(&[4, 0], 39).unwrap();
        for (position, item) in [4, 0].into_iter().enumerate() {
            let mut expected: Vec<(u32, f64)> =
                (0..40).filter(|&other| other != item).map(|o| (o, cosine(item, o))).collect();
            expected.sort_by(|left, right| right.1.total_cmp(&left.1));
            let (ids, scores): (Vec<u32>, Vec<f64>) = list(&batch, position).into_iter().unzip();
            assert_list(&ids, &scores, &expected, 2 * d);
            let single = recommender.similar_items(item, 39).unwrap();
            assert!(single.iter().map(|s| s.item).eq(ids));
        }
    }
}

/// `groups` without the interactions of some items.
fn without_items(cold: &[u32]) -> Dataset {
    let whole = groups();
    let kept = |users: &[u32], items: &[u32]| -> (Vec<u32>, Vec<u32>) {
        let pairs = users.iter().copied().zip(items.iter().copied());
        pairs.filter(|(_, item)| !cold.contains(item)).unzip()
    };
    let (users, items) = kept(&whole.train.users, &whole.train.items);
    let mut builder = Dataset::builder("cold").train(&users, &items).at_least(60, 40);
    for modality in &whole.modalities {
        builder = builder.modality(&modality.name, modality.features.clone());
    }
    builder.build().unwrap()
}

/// The features of some items.
fn rows_of(modalities: &[Modality], items: &[u32]) -> Vec<Modality> {
    let of = |modality: &Modality| {
        let columns = modality.features.columns();
        let row = |&item: &u32| modality.features.row_f32(item as usize).unwrap().to_vec();
        let values = items.iter().flat_map(row).collect();
        let features = FeatureMatrix::from_f32(items.len(), columns, values).unwrap();
        Modality { name: modality.name.clone(), features: features.into() }
    };
    modalities.iter().map(of).collect()
}

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
            // Until then a cold item says nothing about who has it, unless she has nothing else.
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
            // By chance a quarter of them would, 15 ± 3.
            assert!(of_group >= 28, "{of_group}");

            // Added by its features, an item has the row that it would have as one of the model's.
            let again = rows_of(&dataset.modalities, &[17, 31]);
            assert_eq!(recommender.add_items(&again).unwrap(), 40..42);
            assert_eq!(recommender.items(), 42);
            assert_eq!(recommender.cold_items(), [12, 17, 22, 31, 40, 41]);
            let row = |item: usize| &recommender.item_rows()[item * 16..][..16];
            assert_eq!((row(40), row(41)), (row(17), row(31)));
            let found = recommender.top_k(5, 42).unwrap();
            let place = |item| found.iter().position(|found| found.item == item).unwrap();
            // Equal scores: the lower number is first.
            assert_eq!(place(40), place(17) + 1);
            assert_eq!(recommender.similar_items(40, 1).unwrap()[0].item, 17);
            let new_user = recommender.search(&[Query::items(&[40])], 3).unwrap();
            assert_eq!(new_user.items[0] % 4, 17 % 4);
        }
    }
}

/// Items that are added change nothing about what those of the model say of who has them.
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
        // The added ones have rows by their features: they say something, beside such as do not.
        let lists = |items: &[u32]| recommender.search(&[Query::items(items)], 9).unwrap();
        let own_left_out = Query::items(&[40]).excluding(&[17]);
        assert!(lists(&[40, 17]) == recommender.search(&[own_left_out], 9).unwrap());
        assert!(lists(&[40, 5]) != lists(&[5]));
        recommender.score_cold_items(&[]).unwrap();
        assert_ne!(ask(&recommender)[0], before[0]);
    }
}

/// On a real data set: a tenth of the items without any interaction, found again by their features.
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
    // Nobody knows how popular they would be: by popularity is by chance.
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

#[test]
fn requests_out_of_range_are_refused() {
    let dataset = groups();
    let model = trained(&dataset, TrainConfig { epochs: 1, ..config() });
    let recommender = Recommender::new(model).unwrap();
    let refused = |error: bm3_engine::Error, problem: &str| {
        assert!(error.is_input() && error.to_string().contains(problem), "{error}");
    };
    refused(recommender.top_k(60, 5).unwrap_err(), "user: 60 found, a number from 0 to 59");
    refused(recommender.top_k(0, 0).unwrap_err(), "k: 0 found, 1 to 1024 expected");
    refused(recommender.top_k(0, 1025).unwrap_err(), "k: 1025 found");
    refused(recommender.similar_items(40, 5).unwrap_err(), "item: 40 found, a number from 0 to 39");
    refused(recommender.scores(&[0], &[]).unwrap_err(), "1 users and 0 items found");
    let search = |query| recommender.search(&[query], 5).unwrap_err();
    refused(search(Query::items(&[])), "a new user is known by one item at least");
    refused(search(Query::items(&[3, 40])), "item: 40 found");
    refused(search(Query::user(0).excluding(&[41])), "item: 41 found");
    refused(recommender.rank(Query::user(0), &[40], 5).unwrap_err(), "item: 40 found");
    assert_eq!(recommender.search(&[], 5).unwrap().items, [0u32; 0]);
}

#[test]
fn callers_at_the_same_time_get_their_own_lists() {
    let model = trained(&groups(), config());
    for recommender in recommenders(&model) {
        let expected: Vec<Vec<ScoredItem>> =
            (0..60).map(|user| recommender.top_k(user, 1 + user as usize % 9).unwrap()).collect();
        std::thread::scope(|scope| {
            for caller in 0..8u32 {
                let (recommender, expected) = (&recommender, &expected);
                scope.spawn(move || {
                    for round in 0..40 {
                        let user = (caller * 7 + round * 11) % 60;
                        let found = recommender.top_k(user, 1 + user as usize % 9).unwrap();
                        assert_eq!(found, expected[user as usize]);
                    }
                });
            }
        });
    }
}

/// A child has its parent's recommender, and neither its GPU nor the thread that works with it.
#[cfg(target_os = "linux")]
#[test]
fn a_forked_process_is_told_that_the_gpu_is_not_its_own() {
    let model = trained(&groups(), TrainConfig { epochs: 1, ..config() });
    for (device, mut recommender) in devices().into_iter().zip(recommenders(&model)) {
        let is_gpu = matches!(device, Device::Gpu(_));
        let before = recommender.top_k(1, 5).unwrap();
        let new = rows_of(&groups().modalities, &[3]);
        // SAFETY: the child calls nothing but what is tested here, and ends at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: it ends the child where that waits for what never comes.
            unsafe { libc::alarm(20) };
            let is_told =
                |error: bm3_engine::Error| error.to_string().contains("load the model in this one");
            let right = match is_gpu {
                false => recommender.top_k(1, 5).is_ok_and(|found| found == before),
                true => {
                    recommender.top_k(1, 5).is_err_and(is_told)
                        && recommender.similar_items(1, 5).is_err_and(is_told)
                        && recommender.add_items(&new).is_err_and(is_told)
                }
            };
            // The device itself stays: what the driver does in a child is the driver's.
            drop(recommender);
            // SAFETY: nothing is to be done at the end of this process.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and nobody else waits for it.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "ended by signal {}", status & 127);
        assert_eq!(recommender.top_k(1, 5).unwrap(), before);
        drop(device);
    }
}

/// More queries than one launch takes.
#[test]
fn many_queries_are_answered_in_parts() {
    let model = trained(&groups(), TrainConfig { epochs: 2, ..config() });
    for recommender in recommenders(&model) {
        let users: Vec<u32> = (0..9000).map(|n| n * 7 % 60).collect();
        let lists = recommender.top_k_batch(&users, 3).unwrap();
        for position in [0, 4095, 4096, 8191, 8192, 8999] {
            let single = recommender.top_k(users[position], 3).unwrap();
            assert!(single.iter().map(|found| found.item).eq(lists.list(position).to_vec()));
        }
    }
}

#[test]
fn models_come_back_from_their_files_to_the_bit() {
    let directory = tempfile::tempdir().unwrap();
    let dataset = groups();
    for freeze_features in [false, true] {
        let config = TrainConfig { freeze_features, self_loops: true, ..config() };
        let model = trained(&dataset, config.clone());
        let path = directory.path().join("m.safetensors");
        model.save(&path).unwrap();
        let back = Model::load(&path).unwrap();
        assert_eq!(back.record(), model.record());
        assert_eq!(back.graph(), model.graph());
        for name in ["user_embedding", "item_embedding", "predictor.weight", "modality.text.bias"] {
            assert!(back.parameter(name).is_some());
            assert_eq!(back.parameter(name), model.parameter(name));
        }
        assert_eq!(back.parameter("smell"), None);
        for modality in 0..2 {
            assert_eq!(back.features(modality).unwrap(), model.features(modality).unwrap());
            assert_eq!(back.features(modality).unwrap().is_none(), freeze_features);
        }
        let again = directory.path().join("again.safetensors");
        back.save(&again).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());

        // Trained in memory, or kept in a directory: one model.
        let run = directory.path().join(format!("run-{freeze_features}"));
        let kept = Trainer::new(config).directory(&run).fit(&dataset).unwrap();
        let in_run = std::fs::read(run.join("model.safetensors")).unwrap();
        assert!(std::fs::read(&path).unwrap() == in_run);
        assert_eq!(kept.model.unwrap().record(), model.record());
    }
}

#[test]
fn training_can_be_stopped_from_the_callback_and_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let dataset = groups();
    let whole = Trainer::new(config()).threads(2).fit(&dataset).unwrap();
    assert_eq!((whole.records.len(), whole.summary.epochs), (8, 8));
    let run = directory.path().join("run");
    let mut epochs = Vec::new();
    let part = Trainer::new(config()).directory(&run).fit_with(&dataset, |record| {
        epochs.push(record.epoch);
        if record.epoch == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let part = part.unwrap();
    assert_eq!(epochs, [1, 2, 3]);
    assert_eq!(part.summary.stopped_by, StopReason::Interrupted);
    assert!(part.model.is_some());
    let error = Trainer::new(config()).directory(&run).fit(&dataset).unwrap_err().to_string();
    assert!(error.contains("a run is already here"), "{error}");
    let rest = Trainer::new(config()).resume(&run).fit(&dataset).unwrap();
    assert_eq!(rest.records.len(), 8);
    let (rest, whole) = (rest.model.unwrap(), whole.model.unwrap());
    assert_eq!(rest.parameter("user_embedding"), whole.parameter("user_embedding"));

    // An observer is told of every step, and stops by the flag.
    struct Steps(Vec<(u64, u64, u64)>, Arc<AtomicBool>);
    impl Observer for &mut Steps {
        fn step(&mut self, epoch: u64, step: u64, steps: u64) {
            self.0.push((epoch, step, steps));
            self.1.store((epoch, step) == (2, 3), Ordering::Relaxed);
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut steps = Steps(Vec::new(), stop.clone());
    let part = Trainer::new(config()).stop_when(stop).fit_observed(&dataset, &mut steps).unwrap();
    let count = part.summary.steps;
    assert_eq!((part.records.len(), steps.0.last().map(|last| last.0)), (1, Some(2)));
    assert_eq!(count, steps.0.len() as u64);

    // The settings kept are those of the run, and go on with it; another's are not replaced.
    let kept = || std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(kept().contains("epochs = 8\n"));
    let longer = TrainConfig { epochs: 9, ..config() };
    Trainer::new(longer.clone()).resume(&run).fit(&dataset).unwrap();
    assert!(kept().contains("epochs = 9\n"));
    let other = TrainConfig { layers: 1, ..longer };
    let error = Trainer::new(other.clone()).resume(&run).fit(&dataset).unwrap_err().to_string();
    assert!(error.contains("its setting layers is 2; expected 1"), "{error}");
    assert!(kept().contains("layers = 2\n") && kept().contains("epochs = 9\n"));
    let left = directory.path().join("left");
    std::fs::create_dir(&left).unwrap();
    let data = left.join("data");
    std::fs::write(left.join("config.toml"), format!("layers = 2\ndata = {data:?}\n")).unwrap();
    let settings = std::fs::read(left.join("config.toml")).unwrap();
    let error = Trainer::new(other.clone()).directory(&left).fit(&dataset).unwrap_err();
    assert!(error.to_string().contains("a run is already here, or its config.toml"), "{error}");
    assert_eq!(std::fs::read(left.join("config.toml")).unwrap(), settings);
    // One that is to go on where there is nothing begins.
    let new = Trainer::new(other).resume(directory.path().join("new")).fit(&dataset).unwrap();
    assert_eq!(new.summary.epochs, 9);

    // A flag that is up before anything was done.
    let stop = Arc::new(AtomicBool::new(true));
    let none = Trainer::new(config()).stop_when(stop.clone()).fit(&dataset).unwrap();
    assert!(none.model.is_none() && none.records.is_empty());
    assert!(stop.load(Ordering::Relaxed));
    assert!(Trainer::new(config()).threads(0).fit(&dataset).unwrap_err().is_input());
}

/// A model goes on with its file when that is replaced, and refuses one that is changed in place.
#[test]
fn a_model_whose_file_is_changed_in_place_says_so() {
    let dataset = without_items(&[12]);
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["model.safetensors", "copy.safetensors"].map(|n| folder.path().join(n));
    let model = trained(&dataset, TrainConfig { epochs: 1, ..config() });
    model.save(&path).unwrap();
    let loaded = Arc::new(Model::load(&path).unwrap());
    let mut recommender = Recommender::new(loaded.clone()).unwrap();
    // Replaced, also by itself: the file it has is as it was.
    trained(&dataset, TrainConfig { epochs: 2, ..config() }).save(&path).unwrap();
    assert_eq!(loaded.features(0).unwrap(), model.features(0).unwrap());
    let loaded = {
        loaded.save(&path).unwrap();
        Arc::new(Model::load(&path).unwrap())
    };
    recommender.score_cold_items(&[]).unwrap();
    let mut recommender = Recommender::new(loaded.clone()).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let newer = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    for length in [0, bytes.len() / 2, bytes.len()] {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(length as u64).unwrap();
        // A clock may not tell two writes in a row apart.
        file.set_modified(newer).unwrap();
        let changed = |error: bm3_engine::Error| {
            let is_changed = matches!(&error, bm3_engine::Error::Data(DataError::Changed { .. }));
            assert!(is_changed && error.to_string().contains("model.safetensors: was changed"));
        };
        changed(loaded.features(0).unwrap_err());
        changed(loaded.save(&copy).unwrap_err());
        changed(recommender.score_cold_items(&[]).unwrap_err());
        assert!(!copy.exists());
    }
    // What is in memory answers on.
    assert_eq!(recommender.top_k(0, 3).unwrap().len(), 3);
}

#[test]
fn what_serves_can_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Dataset>();
    shared::<Model>();
    shared::<Recommender>();
    shared::<Trainer>();
    shared::<bm3_engine::Error>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Of any k and any exclusions, a list is the beginning of the whole one without them.
    #[test]
    fn lists_are_beginnings(
        user in 0u32..60, k in 1usize..45, excluded in prop::collection::vec(0u32..40, 0..50)
    ) {
        static MODEL: std::sync::OnceLock<Vec<Recommender>> = std::sync::OnceLock::new();
        let made = || recommenders(&trained(&groups(), TrainConfig { epochs: 2, ..config() }));
        for recommender in MODEL.get_or_init(made) {
            let whole = recommender.search(&[Query::user(user)], 40).unwrap();
            let query = Query::user(user).excluding(&excluded);
            let found = recommender.search(&[query], k).unwrap();
            let mut expected = list(&whole, 0);
            expected.retain(|(item, _)| !excluded.contains(item));
            expected.truncate(k);
            prop_assert_eq!(list(&found, 0), expected);
        }
    }
}

/// A file whose interactions cannot be is refused, before anything is made of them.
#[test]
fn interactions_of_a_file_are_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    trained(&groups(), TrainConfig { epochs: 1, ..config() }).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let place = |name: &str| {
        let data = tensors.tensor(name).unwrap().data();
        data.as_ptr() as usize - whole.as_ptr() as usize
    };
    let refused = |place: usize, value: u32, problem: &str| {
        let mut changed = whole.clone();
        changed[place..place + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, &changed).unwrap();
        let error = Model::load(&path).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(problem), "{error}");
    };
    let (offsets, items) = (place("interactions.offsets"), place("interactions.items"));
    refused(offsets, 1, "`interactions.offsets` does not ascend from 0");
    refused(offsets + 4, u32::MAX, "`interactions.offsets` does not ascend from 0");
    refused(offsets + 4 * 60, 7, "expected [7]");
    refused(items, u32::MAX, "the items of user 0 are not distinct ones below 40");
    let twice = u32::from_le_bytes(whole[items + 4..items + 8].try_into().unwrap());
    refused(items, twice, "the items of user 0 are not distinct");
    let count = tensors.tensor("interactions.items").unwrap().shape()[0];
    refused(items + 4 * (count - 1), 40, "are not distinct ones below 40 that ascend");
}
