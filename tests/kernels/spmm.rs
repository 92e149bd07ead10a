//! `spmm.cu`: Â times a matrix.

use std::sync::Arc;

use bm3_engine::backend::{Backend, SpmmFactors, view, view_mut};
use bm3_engine::cpu::Cpu;
use bm3_engine::graph::Graph;

use crate::check::{close, download, graph, magnitudes, numbers, on_device, roundings, upload};

fn spmm<B: Backend>(
    backend: &B,
    graph: &Arc<Graph>,
    width: usize,
    x: Option<&[f32]>,
    base: Option<&[f32]>,
    factors: SpmmFactors,
) -> Vec<B::Real> {
    let elements = graph.nodes() * width;
    let on_device = backend.upload_graph(graph.clone()).expect("room");
    let [x, base] = [x, base].map(|values| values.map(|values| upload(backend, values)));
    let part = |buffer: &Option<B::Buffer>| buffer.is_some().then_some(0..elements);
    let (x_range, base_range) = (part(&x), part(&base));
    let x_view = x.as_ref().zip(x_range).map(|(buffer, range)| view(buffer, range));
    let base_view = base.as_ref().zip(base_range).map(|(buffer, range)| view(buffer, range));
    // The old contents must be overwritten.
    let mut y = upload(backend, &vec![7.0; elements]);
    backend
        .spmm(&on_device, x_view, base_view, factors, view_mut(&mut y, 0..elements))
        .expect("spmm");
    download(backend, &y, elements)
}

/// The graphs: one user and one item; nodes without neighbours; a hub with 30 % of all edges in
/// many segments, alone and with self-loops; a row of exactly one segment, and of one entry more; a
/// row of longer segments.
fn graphs() -> Vec<(&'static str, Graph)> {
    let full = |users: usize| {
        let pairs =
            bm3_engine::data::Pairs { users: (0..users as u32).collect(), items: vec![0; users] };
        Graph::new(&pairs, users, 2, false)
    };
    vec![
        ("one pair", graph(1, 1, 1, 1, false)),
        ("no pair", graph(1, 2, 3, 0, false)),
        ("only loops", graph(1, 2, 3, 0, true)),
        ("empty rows", graph(2, 40, 30, 35, false)),
        ("a hub", graph(3, 300, 50, 700, false)),
        ("a hub and loops", graph(4, 300, 50, 700, true)),
        ("one full segment", full(32)),
        ("a segment and one more", full(33)),
        ("31 segments of 36", full(1100)),
    ]
}

#[test]
fn agrees_with_the_cpu_on_every_graph() {
    on_device(|cuda| {
        for (name, graph) in graphs() {
            let graph = Arc::new(graph);
            let degree = graph.offsets().windows(2).map(|row| row[1] - row[0]).max().unwrap_or(0);
            for width in [4, 12, 64, 68, 132, 512] {
                let x = numbers(5, graph.nodes() * width);
                let base = numbers(6, graph.nodes() * width);
                let factors = SpmmFactors { neighbours: 0.5, base: 0.25, item_base: 1.0 };
                for (x, base) in
                    [(Some(&x), Some(&base)), (Some(&x), None), (None, Some(&base)), (None, None)]
                {
                    let (x, base) = (x.map(|x| &x[..]), base.map(|base| &base[..]));
                    let found = spmm(cuda, &graph, width, x, base, factors);
                    let cpu = Cpu::<f64>::new();
                    let expected = spmm(&cpu, &graph, width, x, base, factors);
                    let (x, base) = (x.map(magnitudes), base.map(magnitudes));
                    let sizes = spmm(&cpu, &graph, width, x.as_deref(), base.as_deref(), factors);
                    // Two scales and their product are rounded, beside the sum.
                    let allowed = 4.0 + roundings(degree);
                    close(&format!("{name}, d = {width}"), &found, &expected, &sizes, allowed);
                }
            }
        }
    });
}

/// Horner's rule passes one buffer as x and base, and another one for the result.
#[test]
fn x_may_be_the_base() {
    on_device(|cuda| {
        let graph = Arc::new(graph(9, 20, 9, 60, false));
        let x = numbers(7, graph.nodes() * 8);
        let factors = SpmmFactors { neighbours: 1.0, base: 1.0, item_base: 0.0 };
        let elements = x.len();
        let device_graph = cuda.upload_graph(graph.clone()).unwrap();
        let (buffer, mut y) = (upload(cuda, &x), upload(cuda, &vec![0.0; elements]));
        let both = || Some(view(&buffer, 0..elements));
        cuda.spmm(&device_graph, both(), both(), factors, view_mut(&mut y, 0..elements)).unwrap();
        let found = download(cuda, &y, elements);
        assert_eq!(found, spmm(cuda, &graph, 8, Some(&x), Some(&x), factors));
    });
}

/// A matrix too large for a cache is multiplied some columns at a time; the last part is narrower
/// here.
#[test]
fn columns_are_done_in_parts() {
    on_device(|cuda| {
        let (graph, width) = (Arc::new(graph(10, 21_000, 500, 3_000, false)), 508);
        let x = numbers(8, graph.nodes() * width);
        let degree = graph.offsets().windows(2).map(|row| row[1] - row[0]).max().unwrap_or(0);
        let factors = SpmmFactors { neighbours: 0.5, base: 0.5, item_base: 1.0 };
        let found = spmm(cuda, &graph, width, Some(&x), Some(&x), factors);
        let cpu = Cpu::<f64>::new();
        let expected = spmm(&cpu, &graph, width, Some(&x), Some(&x), factors);
        let magnitudes = magnitudes(&x);
        let sizes = spmm(&cpu, &graph, width, Some(&magnitudes), Some(&magnitudes), factors);
        close("in parts", &found, &expected, &sizes, 4.0 + roundings(degree));
    });
}
