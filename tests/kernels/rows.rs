//! `gather_rows.cu`, `scatter_rows.cu`, `add_scaled.cu`: rows taken, given back, and summed.

use std::sync::Arc;

use bm3_engine::backend::{Backend, view, view_mut};
use bm3_engine::batch::Batch;
use bm3_engine::cpu::Cpu;

use crate::check::{close, download, graph, ids, magnitudes, numbers, on_device, upload};

/// Batches: one pair; repeats of pairs, users and items; more pairs than nodes.
fn batches(users: usize, items: usize) -> Vec<Batch> {
    [1, 7, 90].map(|pairs| Batch::new(&ids(3, pairs, users), &ids(4, pairs, items))).into()
}

#[test]
fn gathered_rows_are_those_of_the_batch() {
    on_device(|cuda| {
        for width in [4, 60, 516] {
            let (users, items) = (13, 9);
            let graph = Arc::new(graph(1, users, items, 20, false));
            let nodes = numbers(2, (users + items) * width);
            for batch in batches(users, items) {
                let mut expected = Vec::new();
                for node in batch
                    .users
                    .iter()
                    .map(|&user| user as usize)
                    .chain(batch.items.iter().map(|&item| users + item as usize))
                {
                    expected.extend_from_slice(&nodes[node * width..(node + 1) * width]);
                }
                let elements = expected.len();
                let device_graph = cuda.upload_graph(graph.clone()).unwrap();
                let device_batch = cuda.upload_batch(batch).unwrap();
                let source = upload(cuda, &nodes);
                // Two rows more than the batch has, which must stay as they are.
                let mut rows = upload(cuda, &vec![7.0; elements + 2 * width]);
                cuda.gather_rows(
                    &device_graph,
                    &device_batch,
                    view(&source, 0..nodes.len()),
                    view_mut(&mut rows, 0..elements),
                )
                .unwrap();
                expected.extend(vec![7.0; 2 * width]);
                assert_eq!(download(cuda, &rows, expected.len()), expected);
            }
        }
    });
}

#[test]
fn scattered_rows_are_added_to_their_nodes_alone() {
    on_device(|cuda| {
        for width in [4, 60, 516] {
            let (users, items) = (13, 9);
            let graph = Arc::new(graph(1, users, items, 20, false));
            let nodes = numbers(2, (users + items) * width);
            for batch in batches(users, items) {
                let elements = (batch.users.len() + batch.items.len()) * width;
                let rows = numbers(5, elements);
                let device_graph = cuda.upload_graph(graph.clone()).unwrap();
                let device_batch = cuda.upload_batch(batch.clone()).unwrap();
                let source = upload(cuda, &rows);
                let mut target = upload(cuda, &nodes);
                cuda.scatter_rows(
                    &device_graph,
                    &device_batch,
                    view(&source, 0..elements),
                    view_mut(&mut target, 0..nodes.len()),
                )
                .unwrap();
                let mut expected = nodes.clone();
                let batch_nodes = (batch.users.iter().map(|&user| user as usize))
                    .chain(batch.items.iter().map(|&item| users + item as usize));
                for (row, node) in batch_nodes.enumerate() {
                    for column in 0..width {
                        expected[node * width + column] += rows[row * width + column];
                    }
                }
                // One addition each: the same bits.
                assert_eq!(download(cuda, &target, nodes.len()), expected);
            }
        }
    });
}

#[test]
fn scaled_vectors_are_added() {
    fn add<B: Backend>(backend: &B, x: &[f32], y: &[f32]) -> Vec<B::Real> {
        let x_buffer = upload(backend, x);
        let mut y_buffer = upload(backend, y);
        let part = view_mut(&mut y_buffer, 0..y.len());
        backend.add_scaled(0.3, view(&x_buffer, 0..x.len()), part).unwrap();
        download(backend, &y_buffer, y.len())
    }
    on_device(|cuda| {
        for elements in [4, 1000, 1028] {
            let (x, y) = (numbers(1, elements), numbers(2, elements));
            let cpu = Cpu::<f64>::new();
            let sizes = add(&cpu, &magnitudes(&x), &magnitudes(&y));
            // The factor is rounded to f32, then the one fused operation.
            close("y + 0.3 x", &add(cuda, &x, &y), &add(&cpu, &x, &y), &sizes, 2.0);
        }
    });
}
