//! `metrics.cu`: Recall, NDCG, Precision and MAP from lists on the device.

use std::sync::Arc;

use bm3_engine::backend::{Backend, view};
use bm3_engine::data::Split;
use bm3_engine::evaluate;

use crate::check::{graph, ids, numbers, on_device, upload};

/// A split over some of `users`, with repeats among the wanted items.
fn split(users: &[u32], items: usize, most: usize) -> Split {
    let mut split = Split { users: users.to_vec(), offsets: vec![0], items: Vec::new() };
    for &user in users {
        let count = 1 + (user as usize * 7) % most;
        let mut wanted = ids(u64::from(user) + 90, count, items);
        if count > 2 {
            wanted[1] = wanted[0];
        }
        split.items.extend(wanted);
        split.offsets.push(split.items.len());
    }
    split
}

#[test]
fn agree_with_the_cpu() {
    on_device(|cuda| {
        for (users, items, lengths) in [
            (1, 1, vec![1]),
            (9, 40, vec![1, 5, 10, 50]),
            (700, 90, vec![3, 20, 31, 32, 33]),
            (10, 1500, vec![10, 1024]),
            (5, 60, (1..=40).collect()),
        ] {
            let graph = Arc::new(graph(2, users, items, 2 * users, false));
            let nodes = upload(cuda, &numbers(3, (users + items) * 4));
            let all: Vec<u32> = (0..users as u32).rev().collect();
            let measured: Vec<u32> = (0..users as u32).step_by(2).collect();
            let split = split(&measured, items, 12);
            let longest = lengths.iter().copied().max().unwrap();
            let device_graph = cuda.upload_graph(graph.clone()).unwrap();
            let elements = (users + items) * 4;
            let lists =
                cuda.top_k(&device_graph, view(&nodes, 0..elements), &all, longest).unwrap();
            let wanted = cuda.wanted(&split, &all, &lengths).unwrap();
            let found = cuda.metrics(&wanted, &lists).unwrap();
            let lists = cuda.read_lists(lists).unwrap();
            let expected = evaluate::metrics(&split, &all, &lists, &lengths);
            assert_eq!(found.top_k, expected.top_k);
            for ((name, found), (_, expected)) in
                found.by_name().into_iter().zip(expected.by_name())
            {
                for (found, expected) in found.iter().zip(expected) {
                    // Sums of f64 in another order.
                    let off = (found - expected).abs();
                    assert!(off <= 1e-12, "{name} of {users} users: {found}, not {expected}");
                }
            }
        }
    });
}

#[test]
fn a_split_without_users_gives_zeros() {
    on_device(|cuda| {
        let graph = Arc::new(graph(2, 3, 4, 5, false));
        let nodes = upload(cuda, &numbers(3, 7 * 4));
        let device_graph = cuda.upload_graph(graph).unwrap();
        let lists = cuda.top_k(&device_graph, view(&nodes, 0..28), &[0, 1], 5).unwrap();
        let empty = Split { users: vec![], offsets: vec![0], items: vec![] };
        let wanted = cuda.wanted(&empty, &[0, 1], &[5]).unwrap();
        let found = cuda.metrics(&wanted, &lists).unwrap();
        assert_eq!((found.recall, found.map), (vec![0.0], vec![0.0]));
    });
}
