//! Serving: lists follow the definition, however they are asked for, on the CPU and through the
//! CUDA kernels; and training through the library leaves what the program `bm3-engine` leaves.

#[path = "../common/mod.rs"]
mod common;
#[path = "../emulator/mod.rs"]
mod emulator;

mod cold;
mod models;

use bm3_engine::backend::TopK;
use bm3_engine::config::{Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{Dataset, FeatureMatrix, Modality};
use bm3_engine::device::Device;
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

/// The CPU, and the emulated (or real) GPU if there is one.
fn devices() -> Vec<Device> {
    let gpu = emulator::cuda().map(Device::Gpu);
    std::iter::once(Device::Cpu(Cpu::new())).chain(gpu).collect()
}

fn recommenders(model: &Model) -> Vec<Recommender> {
    let on = |device| Recommender::on_device(model.clone(), device).unwrap();
    devices().into_iter().map(on).collect()
}

/// A list by the definition: all items' products, without those left out, sorted.
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

/// Asserts the expected items, except where f32 cannot tell their scores apart.
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

        // The same by pairs; user 60 does not exist.
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

/// Rows held by a caller stay as they were when items are added.
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
        // Items of a group lead to items of that group.
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
    refused(search(Query::user(0).excluding(&[41])), "excluded item: 41 found");
    refused(recommender.rank(Query::user(0), &[40], 5).unwrap_err(), "candidate: 40 found");
    let queries = [Query::user(0), Query::items(&[])];
    let error = recommender.search(&queries, 5).unwrap_err();
    refused(error, "query 1 (of 0 to 1): items: none found");
    assert_eq!(recommender.cold_users(), [0u32; 0]);
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

/// A child has its parent's recommender, but neither its GPU nor the thread that works with it.
#[cfg(target_os = "linux")]
#[test]
fn a_forked_process_is_told_that_the_gpu_is_not_its_own() {
    let model = trained(&groups(), TrainConfig { epochs: 1, ..config() });
    for (device, mut recommender) in devices().into_iter().zip(recommenders(&model)) {
        let is_gpu = matches!(device, Device::Gpu(_));
        let before = recommender.top_k(1, 5).unwrap();
        let new = rows_of(&groups().modalities, &[3]);
        // SAFETY: the child calls only what is tested here, and ends at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: only ends the child if it waits for ever.
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
            // The device itself is not dropped: what the driver does in a child is not tested here.
            drop(recommender);
            // SAFETY: nothing has to be done at the end of this process.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and nothing else waits for it.
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

    /// For any k and any exclusions, a list is the beginning of the whole list without them.
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
