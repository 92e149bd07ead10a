//! `gather_rows.cu`, `scatter_rows.cu`, `add_scaled.cu`: rows taken, given back, and summed.

use std::sync::Arc;

use bm3_engine::backend::{Backend, BatchRooms, view, view_mut};
use bm3_engine::batch::Batch;
use bm3_engine::cpu::Cpu;

use crate::check::{
    BatchCase, close, collect, download, graph, ids, magnitudes, numbers, on_device, places,
    spread, upload,
};

/// Batches: one pair; repeated pairs, users and items; more pairs than nodes; each by itself and at
/// the end of an epoch.
fn batches(users: usize, items: usize) -> Vec<BatchCase> {
    [1, 7, 190]
        .into_iter()
        .map(|pairs| BatchCase::new(ids(3, pairs, users), ids(4, pairs, items)))
        .flat_map(|case| [case.short(), case])
        .collect()
}

/// The nodes of a batch's users, then of its items.
fn nodes_of(batch: &Batch, users: usize) -> Vec<usize> {
    let user_nodes = batch.users.iter().map(|&user| user as usize);
    user_nodes.chain(batch.items.iter().map(|&item| users + item as usize)).collect()
}

#[test]
fn gathered_rows_are_those_of_the_batch() {
    on_device(|cuda| {
        for width in [4, 60, 516] {
            let (users, items) = (73, 9);
            let graph = Arc::new(graph(1, users, items, 20, false));
            let nodes = numbers(2, (users + items) * width);
            for case in batches(users, items) {
                let device_graph = cuda.upload_graph(graph.clone()).unwrap();
                let batch = case.host();
                let rooms = case.with(cuda, |batch| batch.rooms());
                let rows = rooms.users + rooms.items;
                let places = places(&batch, rooms, 0);
                let source = upload(cuda, &nodes);
                let mut target = upload(cuda, &vec![7.0; rows * width]);
                case.with(cuda, |batch| {
                    let rows = view_mut(&mut target, 0..rows * width);
                    cuda.gather_rows(&device_graph, batch, view(&source, 0..nodes.len()), rows)
                })
                .unwrap();
                // Rows that the batch does not fill stay as they are.
                let gathered = collect(&nodes, &nodes_of(&batch, users), width);
                let expected = spread(&gathered, &places, rows, width, 7.0);
                assert_eq!(download(cuda, &target, rows * width), expected);
            }
        }
    });
}

#[test]
fn scattered_rows_are_added_to_their_nodes_alone() {
    on_device(|cuda| {
        for width in [4, 60, 516] {
            let (users, items) = (73, 9);
            let graph = Arc::new(graph(1, users, items, 20, false));
            let nodes = numbers(2, (users + items) * width);
            for case in batches(users, items) {
                let device_graph = cuda.upload_graph(graph.clone()).unwrap();
                let batch = case.host();
                let rooms = case.with(cuda, |batch| batch.rooms());
                let room = rooms.users + rooms.items;
                let places = places(&batch, rooms, 0);
                let rows = numbers(5, places.len() * width);
                let source = upload(cuda, &spread(&rows, &places, room, width, 7.0));
                let mut target = upload(cuda, &nodes);
                case.with(cuda, |batch| {
                    let all = view_mut(&mut target, 0..nodes.len());
                    cuda.scatter_rows(&device_graph, batch, view(&source, 0..room * width), all)
                })
                .unwrap();
                let mut expected = nodes.clone();
                for (row, node) in nodes_of(&batch, users).into_iter().enumerate() {
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
