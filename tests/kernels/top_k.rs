//! `top_k.cu`: the best items of each user, in the order of SPEC §9, ties included.

use std::sync::Arc;

use bm3_engine::backend::{Backend, TopK, view};
use bm3_engine::cuda::{Cuda, LONGEST_LIST};
use bm3_engine::graph::Graph;

use crate::check::{graph, numbers, on_device, upload};

/// The lists by sorting every score; a score is the fused sum over the columns in their order.
fn sorted(graph: &Graph, predicted: &[f32], width: usize, users: &[u32], k: usize) -> TopK {
    let mut lists =
        TopK { k, items: vec![TopK::NO_ITEM; users.len() * k], scores: vec![0.0; users.len() * k] };
    for (position, &user) in users.iter().enumerate() {
        let row = |node: usize| &predicted[node * width..(node + 1) * width];
        let mut scores: Vec<(f32, u32)> = (0..graph.items() as u32)
            .filter(|item| !graph.items_of(user as usize).any(|masked| masked == *item))
            .map(|item| {
                let products = row(user as usize).iter().zip(row(graph.users() + item as usize));
                (products.fold(0.0f32, |sum, (a, b)| a.mul_add(*b, sum)), item)
            })
            // As in the CPU backend, these are not scores.
            .filter(|(score, _)| *score > f32::NEG_INFINITY)
            .collect();
        scores.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        for (rank, (score, item)) in scores.into_iter().take(k).enumerate() {
            lists.items[position * k + rank] = item;
            lists.scores[position * k + rank] = f64::from(score);
        }
    }
    lists
}

/// Asserts that `found` gives each user of `asked` her list in `expected`.
#[track_caller]
fn is_repeated(found: &TopK, expected: &TopK, asked: &[u32]) {
    let k = expected.k;
    for (position, &user) in asked.iter().enumerate() {
        let (found_at, expected_at) = (position * k, user as usize * k);
        let of = |lists: &TopK, first: usize| {
            (lists.items[first..first + k].to_vec(), lists.scores[first..first + k].to_vec())
        };
        assert_eq!(of(found, found_at), of(expected, expected_at), "user {user} at {position}");
    }
}

fn top_k(cuda: &Cuda, graph: &Graph, predicted: &[f32], users: &[u32], k: usize) -> TopK {
    let device_graph = cuda.upload_graph(Arc::new(graph.clone())).unwrap();
    let nodes = upload(cuda, predicted);
    let lists = cuda.top_k(&device_graph, view(&nodes, 0..predicted.len()), users, k).unwrap();
    cuda.read_lists(lists).unwrap()
}

#[test]
fn lists_have_the_order_and_the_bits_of_a_full_sort() {
    on_device(|cuda| {
        // One user and item; fewer items than K; a block's users and one more; so many items that
        // candidates are cut several times; every size of candidate room; d of whole and partial
        // depths; so many users that slices have several tiles, with and without a first cut by
        // groups of items; a slice with more keys than registers hold, in an odd number; two steps
        // of columns.
        for (users, items, width, k) in [
            (1, 1, 4, 1),
            (3, 5, 12, 20),
            (16, 130, 64, 5),
            (17, 700, 64, 50),
            (5, 900, 20, 128),
            (4, 3000, 4, 129),
            (3, 1500, 36, 500),
            (2, 2500, 4, 1024),
            (1700, 700, 4, 50),
            (1700, 700, 4, 4),
            (600, 3000, 4, 20),
            (9, 1067, 4, 300),
            (70, 200, 132, 20),
        ] {
            // One kind of graph is enough for the case with many users.
            for self_loops in [false, true].into_iter().take(if users > 1000 { 1 } else { 2 }) {
                let graph = graph(users as u64, users, items, 3 * users, self_loops);
                let predicted = numbers(4, (users + items) * width);
                // In another order, with one user twice.
                let mut asked: Vec<u32> = (0..users as u32).rev().collect();
                asked.push(0);
                let found = top_k(cuda, &graph, &predicted, &asked, k);
                let expected = sorted(&graph, &predicted, width, &asked, k);
                assert_eq!(found, expected, "{users} users, {items} items, d = {width}, K = {k}");
            }
        }
    });
}

/// Every user is asked for so often that items are not sliced, in groups of two tiles with a
/// partial last tile. Some users know so many items that candidates overflow, or that few groups
/// are left.
#[test]
fn a_first_cut_by_groups_of_items_loses_none() {
    on_device(|cuda| {
        let (users, items, width, k) = (50, 4300, 8, 10);
        let mut predicted = numbers(4, (users + items) * width);
        // Every other user's scores are negative, below those of rows of zeros.
        predicted[users * width..].iter_mut().for_each(|value| *value = value.abs());
        for row in predicted[..users * width].chunks_mut(width).step_by(2) {
            row.iter_mut().for_each(|value| *value = -value.abs());
        }
        let nobody = Graph::new(&bm3_engine::data::Pairs::default(), users, items, false);
        let once: Vec<u32> = (0..users as u32).collect();
        let ranked = sorted(&nobody, &predicted, width, &once, items);
        // Users know their best 0 to 196 items, and the last one all but ten, so that few groups
        // are left.
        let known = |user: u32| if user == 49 { items - 10 } else { 4 * user as usize };
        let pairs = once.iter().flat_map(|&user| {
            let best = &ranked.items[user as usize * items..][..known(user)];
            best.iter().map(move |&item| (user, item))
        });
        let (known_by, known): (Vec<u32>, Vec<u32>) = pairs.unzip();
        let pairs = bm3_engine::data::Pairs { users: known_by, items: known };
        let graph = Graph::new(&pairs, users, items, false);
        let expected = sorted(&graph, &predicted, width, &once, k);
        let asked: Vec<u32> = (0..8600).map(|index| (index * 7) % users as u32).collect();
        let found = top_k(cuda, &graph, &predicted, &asked, k);
        is_repeated(&found, &expected, &asked);
    });
}

/// Items whose scores differ by less than halves can resolve, by about as much, and by some more:
/// the tensor cores order them differently.
#[test]
fn scores_closer_than_halves_are_told_apart() {
    on_device(|cuda| {
        let (users, items, width) = (20, 1000, 32);
        let graph = graph(5, users, items, 100, false);
        let all: Vec<u32> = (0..users as u32).collect();
        let noise = numbers(4, (users + items) * width);
        for apart in [1e-5, 1e-3, 1e-2] {
            let mut predicted = noise.clone();
            for node in users..users + items {
                for column in 0..width {
                    // All items are near the first one.
                    let value = &mut predicted[node * width + column];
                    *value = noise[users * width + column] + apart * *value;
                }
            }
            // In slices without a first cut, and in slices of two tiles with one.
            let often = (0..1056).map(|row| row % 20).collect();
            let searches = [(vec![0, 3, 19], 30), (often, 4)];
            for (asked, k) in searches.into_iter().take(if apart == 1e-3 { 2 } else { 1 }) {
                let found = top_k(cuda, &graph, &predicted, &asked, k);
                is_repeated(&found, &sorted(&graph, &predicted, width, &all, k), &asked);
            }
        }
    });
}

/// Many items in slices without a first cut, so that candidates are compacted on the way.
#[test]
fn close_scores_are_told_apart_on_the_way() {
    on_device(|cuda| {
        let (items, width, k) = (34_000, 4, 60);
        let graph = graph(1, 3, items, 1, false);
        let noise = numbers(4, (3 + items) * width);
        // Eight users a warp: leftovers of one must not reach the next.
        let asked: Vec<u32> = (0..32).map(|row| row % 3).collect();
        for apart in [1e-5, 0.006] {
            let mut predicted = noise.clone();
            for (index, value) in predicted.iter_mut().enumerate().skip(3 * width) {
                *value = [0.7, -0.9, 0.4, 0.8][index % width] + apart * *value;
            }
            let found = top_k(cuda, &graph, &predicted, &asked, k);
            is_repeated(&found, &sorted(&graph, &predicted, width, &[0, 1, 2], k), &asked);
        }
    });
}

/// Rows for which halves lose the most: rounding cuts off nearly half a step of the mantissa where
/// the best items meet the user, and adds as much to all others.
#[test]
fn the_most_that_halves_lose_is_allowed_for() {
    on_device(|cuda| {
        // With a first cut; and without one, so that candidates are compacted on the way.
        for (items, width, k) in [(700, 132, 1), (700, 32, 2), (67_000, 72, 17)] {
            let graph = graph(1, 1, items, 1, false);
            let (below, above) = (1.0 + 0.99 / 2048.0, 1.0 + 1.01 / 2048.0);
            let half = width / 2;
            let mut predicted = vec![0.0; (1 + items) * width];
            predicted[..half].fill(below);
            predicted[half..width].fill(above);
            let best: Vec<usize> = (0..k).map(|rank| items / 2 - 3 * rank).collect();
            for item in 0..items {
                let row = &mut predicted[(1 + item) * width..][..width];
                if best.contains(&item) {
                    row[..half].fill(below);
                    // Outweighs the 2e-5 per column that their products lack compared with the
                    // others.
                    row[width - 1] = 3e-5 * half as f32;
                } else {
                    // The first third scores far below the largest, so that more items have to be
                    // looked at.
                    let scale = if item < items / 3 { 1.0 / 1024.0 } else { 1.0 };
                    row[half..].fill(above * scale);
                }
            }
            let expected = sorted(&graph, &predicted, width, &[0], k);
            let listed = |item: &u32| best.contains(&(*item as usize));
            assert!(expected.items.iter().all(listed), "the test's own: {expected:?}");
            assert_eq!(top_k(cuda, &graph, &predicted, &[0], k), expected, "{items} items");
        }
    });
}

/// Rows whose products or sums are not numbers, or exceed what halves and their sums can hold: they
/// lose no other item, and an item without a score is not listed.
#[test]
fn rows_far_from_one_are_ranked() {
    on_device(|cuda| {
        let (users, items, width) = (6, 700, 16);
        let graph = graph(6, users, items, 30, false);
        let scaled = |user: f32, item: f32| {
            let mut predicted = numbers(4, (users + items) * width);
            predicted[..users * width].iter_mut().for_each(|value| *value *= user);
            predicted[users * width..].iter_mut().for_each(|value| *value *= item);
            predicted
        };
        let with = |item: usize, value: f32| {
            let mut predicted = scaled(1.0, 1.0);
            predicted[(users + item) * width..][..width].fill(value);
            predicted
        };
        for (what, predicted) in [
            ("a NaN", with(500, f32::NAN)),
            ("an infinity", with(3, f32::INFINITY)),
            ("one that is much larger", with(699, 1e6)),
            ("one whose norm overflows", with(0, 1e30)),
            ("large ones", scaled(1e15, 1e17)),
            ("scores that overflow", scaled(1e18, 1e25)),
            ("small ones", scaled(1e-15, 1e-15)),
            ("scores that vanish", scaled(1e-25, 1e-20)),
            ("large users and small items", scaled(3e18, 1e-20)),
            ("large users", scaled(3e18, 1.0)),
            ("zeros", scaled(0.0, 1.0)),
        ] {
            for k in [5, 60] {
                let asked: Vec<u32> = (0..users as u32).collect();
                let found = top_k(cuda, &graph, &predicted, &asked, k);
                assert_eq!(found, sorted(&graph, &predicted, width, &asked, k), "{what}, K = {k}");
            }
        }
    });
}

#[test]
fn equal_scores_go_by_the_lower_item() {
    on_device(|cuda| {
        let (users, items, width) = (3, 400, 4);
        let graph = graph(3, users, items, 9, false);
        // Scores of a few values, many times each; zeros of both signs are equal.
        let mut predicted: Vec<f32> = numbers(4, (users + items) * width)
            .into_iter()
            .map(|value| (2.0 * value).round() / 2.0)
            .collect();
        predicted[users * width..(users + 40) * width].fill(-0.0);
        for k in [1, 7, 50, 300] {
            let found = top_k(cuda, &graph, &predicted, &[0, 1, 2], k);
            let expected = sorted(&graph, &predicted, width, &[0, 1, 2], k);
            assert_eq!(found, expected, "K = {k}");
        }
    });
}

/// A user whose items all precede the next user's first one, which must not be masked for her.
#[test]
fn a_user_keeps_the_next_users_items() {
    on_device(|cuda| {
        let pairs = bm3_engine::data::Pairs { users: vec![0, 0, 1, 1], items: vec![0, 1, 5, 6] };
        let graph = Graph::new(&pairs, 2, 8, false);
        let predicted = numbers(4, 10 * 4);
        let found = top_k(cuda, &graph, &predicted, &[0, 1], 8);
        assert_eq!(found, sorted(&graph, &predicted, 4, &[0, 1], 8));
        assert!(found.list(0).contains(&5) && found.list(1).contains(&0));
    });
}

/// A product too small for f32 is a signed zero; zeros of both signs are equal and go by the item.
#[test]
fn zeros_of_both_signs_are_equal() {
    on_device(|cuda| {
        let pairs = bm3_engine::data::Pairs { users: vec![0], items: vec![9] };
        let graph = Graph::new(&pairs, 1, 10, false);
        // As wide as a block's columns: without padding, no +0 is added to a product's -0.
        let width = 16;
        let mut predicted = vec![1e-30; 11 * width];
        for item in (0..10).step_by(2) {
            predicted[(1 + item) * width..][..width].fill(-1e-30);
        }
        let found = top_k(cuda, &graph, &predicted, &[0], 6);
        assert_eq!(found.list(0), [0, 1, 2, 3, 4, 5]);
    });
}

#[test]
fn scores_that_ascend_with_the_items_are_all_taken_in() {
    on_device(|cuda| {
        // The worst order: every item is better than all before it, in slices of four tiles.
        let (items, width) = (67_000, 4);
        let graph = graph(1, 3, items, 1, false);
        let mut predicted = vec![1.0; (3 + items) * width];
        // Users with scores of their own.
        predicted[width..2 * width].fill(2.0);
        predicted[2 * width..3 * width].fill(3.0);
        for item in 0..items {
            predicted[(3 + item) * width..(4 + item) * width].fill(item as f32);
        }
        let found = top_k(cuda, &graph, &predicted, &[0, 1, 2], 60);
        assert_eq!(found, sorted(&graph, &predicted, width, &[0, 1, 2], 60));
    });
}

#[test]
fn a_user_who_knows_every_item_has_an_empty_list() {
    on_device(|cuda| {
        let pairs = bm3_engine::data::Pairs { users: vec![0; 6], items: (0..6).collect() };
        let graph = Graph::new(&pairs, 2, 6, false);
        let predicted = numbers(4, 8 * 4);
        let found = top_k(cuda, &graph, &predicted, &[0, 1], 3);
        assert_eq!(found.list(0), [0u32; 0]);
        assert_eq!(found.list(1).len(), 3);
        let none = top_k(cuda, &graph, &predicted, &[], 3);
        assert!(none.items.is_empty());
        assert!(top_k(cuda, &graph, &predicted, &[0, 1], 0).items.is_empty());
    });
}

/// Three slices that have fewer keys than K each, and together.
#[test]
fn a_user_who_knows_most_items_has_a_short_list() {
    on_device(|cuda| {
        let pairs = bm3_engine::data::Pairs {
            users: vec![0; 250],
            items: (0..300).filter(|item| item % 6 != 0).collect(),
        };
        let graph = Graph::new(&pairs, 2, 300, false);
        let predicted = numbers(4, 302 * 4);
        let found = top_k(cuda, &graph, &predicted, &[0, 1], 128);
        assert_eq!(found, sorted(&graph, &predicted, 4, &[0, 1], 128));
        assert_eq!(found.list(0).len(), 50);
    });
}

#[test]
fn longer_lists_than_the_kernel_keeps_are_refused() {
    on_device(|cuda| {
        let graph = graph(1, 2, 3, 2, false);
        let device_graph = cuda.upload_graph(Arc::new(graph)).unwrap();
        let nodes = upload(cuda, &numbers(1, 5 * 4));
        let error = cuda.top_k(&device_graph, view(&nodes, 0..20), &[0], LONGEST_LIST + 1);
        let error = error.expect_err("refused");
        assert!(error.is_input() && error.to_string().contains("at most 1024"), "{error}");
    });
}
