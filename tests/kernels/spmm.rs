//! `spmm.cu`: Â times a matrix.

use std::sync::Arc;

use bm3_engine::backend::{AdamStep, Backend, SpmmFactors, SpmmInputs, view, view_mut};
use bm3_engine::batch::Batch;
use bm3_engine::cpu::Cpu;
use bm3_engine::graph::Graph;
use bm3_engine::step::adam_step;
use bm3_engine::watch::{Failure, Place};

use crate::check::{
    close, download, graph, magnitudes, numbers, on_device, roundings, updated, upload,
};

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
    let inputs = SpmmInputs { x: x_view, base: base_view, factors };
    // The old contents must be overwritten.
    let mut y = upload(backend, &vec![7.0; elements]);
    backend.spmm(&on_device, inputs, view_mut(&mut y, 0..elements)).expect("spmm");
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

/// What an Adam step with a product as its gradient leaves: parameters, moments, and what it saw of
/// numbers that are not finite.
fn updated_by<B: Backend<Real = f32>>(
    backend: &B,
    graph: &Arc<Graph>,
    width: usize,
    inputs: [Option<&[f32]>; 2],
    steps: u32,
    fused: bool,
) -> ([Vec<f32>; 3], Option<Failure>) {
    // Parameters lie before and after those that the product is the gradient of.
    let (before, after, elements) = (8, 4, graph.nodes() * width);
    let (range, all) = (before..before + elements, before + elements + after);
    let on_device = backend.upload_graph(graph.clone()).unwrap();
    let mut schedule = Default::default();
    let constants: Vec<AdamStep> = (1..=2).map(|step| adam_step(step, 0.01)).collect();
    backend.set_schedule(&mut schedule, 0, &constants).unwrap();
    let mut losses = backend.losses(&[1.0; 3]).unwrap();
    let values = [numbers(1, all), numbers(2, all), magnitudes(&numbers(3, all))];
    let mut arenas = values.each_ref().map(|values| upload(backend, values));
    let [x, base] = inputs.map(|values| values.map(|values| upload(backend, values)));
    for step in 1..=steps {
        let batch = backend.upload_batch(Batch::new(&[0], &[0]), step).unwrap();
        let part = |buffer| view(buffer, 0..elements);
        let inputs = SpmmInputs {
            x: x.as_ref().map(part),
            base: base.as_ref().map(part),
            factors: SpmmFactors { neighbours: 0.5, base: 0.25, item_base: 1.0 },
        };
        let updated = updated(&mut arenas, range.clone());
        if fused {
            backend.spmm_adam(&on_device, inputs, &batch, &schedule, updated, &mut losses).unwrap();
        } else {
            let mut y = upload(backend, &vec![7.0; elements]);
            backend.spmm(&on_device, inputs, view_mut(&mut y, 0..elements)).unwrap();
            let y = view(&y, 0..elements);
            backend.adam(&batch, &schedule, y, updated, &mut losses).unwrap();
        }
    }
    let found = arenas.each_ref().map(|buffer| download(backend, buffer, all));
    (found, backend.failure(&losses).unwrap())
}

/// The update with a product as the gradient has the bits of the product, then the update, and sees
/// the same numbers that are not finite: on every graph, in whole rows and in parts.
#[test]
fn the_update_by_a_product_has_the_bits_of_both() {
    fn check<B: Backend<Real = f32>>(backend: &B) {
        let wide = ("columns in parts", graph(10, 21_000, 500, 3_000, false), vec![508]);
        let graphs = graphs().into_iter().map(|(name, graph)| (name, graph, vec![4, 64, 132]));
        for (name, graph, widths) in graphs.chain([wide]) {
            let graph = Arc::new(graph);
            for width in widths {
                let x = numbers(5, graph.nodes() * width);
                let base = numbers(6, graph.nodes() * width);
                // NaN reaches the rows of its neighbours; the last row has one of its own.
                let (mut bad, mut bad_base) = (x.clone(), base.clone());
                bad[width] = f32::NAN;
                bad_base[base.len() - 2] = f32::INFINITY;
                let cases = [
                    [Some(&x), Some(&base)],
                    [None, Some(&base)],
                    [Some(&bad), Some(&base)],
                    [Some(&x), Some(&bad_base)],
                ];
                // The largest is slow to emulate.
                let (first, steps) = if width == 508 { (3, 1) } else { (0, 2) };
                for (case, inputs) in cases.into_iter().enumerate().skip(first) {
                    let inputs = inputs.map(|values| values.map(Vec::as_slice));
                    let [(apart, seen_apart), (fused, seen)] = [false, true]
                        .map(|fused| updated_by(backend, &graph, width, inputs, steps, fused));
                    let bits = |values: &[f32]| -> Vec<Option<u32>> {
                        // A NaN's bits are the processor's choice.
                        let bits = |value: &f32| (!value.is_nan()).then(|| value.to_bits());
                        values.iter().map(bits).collect()
                    };
                    for (fused, apart) in fused.iter().zip(&apart) {
                        assert_eq!(bits(fused), bits(apart), "{name}, d = {width}, case {case}");
                    }
                    assert_eq!(seen, seen_apart, "{name}, d = {width}, case {case}");
                    if case == 3 {
                        let element = 8 + base.len() - 4;
                        let place = Place::Dense { element };
                        assert_eq!(seen, Some(Failure { step: 1, place }), "{name}, d = {width}");
                    }
                }
            }
        }
    }
    check(&Cpu::<f32>::new());
    on_device(check);
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
        let inputs = SpmmInputs { x: both(), base: both(), factors };
        cuda.spmm(&device_graph, inputs, view_mut(&mut y, 0..elements)).unwrap();
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
