//! `norm_backward.cu`: the Frobenius norms of both halves and their gradient.

use std::sync::Arc;

use bm3_engine::backend::{Backend, view, view_mut};
use bm3_engine::cpu::Cpu;

use crate::check::{close, download, graph, magnitudes, numbers, on_device, upload};

fn norms<B: Backend>(
    backend: &B,
    (users, items): (usize, usize),
    nodes: &[f32],
) -> (Vec<B::Real>, Vec<f64>) {
    let graph = backend.upload_graph(Arc::new(graph(1, users, items, 5, false))).unwrap();
    let source = upload(backend, nodes);
    let mut gradient = upload(backend, &vec![7.0; nodes.len()]);
    let mut losses = backend.losses(&[1.5, 2.5]).unwrap();
    let target = view_mut(&mut gradient, 0..nodes.len());
    let part = view(&source, 0..nodes.len());
    backend.norm_backward(&graph, part, 0.125, 0.25, target, &mut losses).unwrap();
    (download(backend, &gradient, nodes.len()), backend.read_losses(&losses).unwrap())
}

#[test]
fn agree_with_the_cpu() {
    on_device(|cuda| {
        // One chunk of 8,192 elements and less; halves of several chunks and a rest.
        for (users, items, width) in [(1, 1, 4), (3, 50, 12), (600, 300, 64), (128, 129, 64)] {
            let sizes = (users, items);
            let nodes = numbers(2, (users + items) * width);
            let (found, losses) = norms(cuda, sizes, &nodes);
            let (expected, expected_losses) = norms(&Cpu::<f64>::new(), sizes, &nodes);
            let magnitude: Vec<f64> =
                magnitudes(&expected.iter().map(|&value| value as f32).collect::<Vec<_>>())
                    .iter()
                    .map(|&value| f64::from(value))
                    .collect();
            // Squares are added four at a time in f32, all else in f64; the scale and the product
            // are rounded.
            close("gradient", &found, &expected, &magnitude, 8.0);
            assert_eq!(losses[0], 1.5);
            let off = (losses[1] - expected_losses[1]).abs();
            assert!(off <= 4.0 * crate::check::ROUNDING * expected_losses[1], "loss: {off:e}");
        }
    });
}

#[test]
fn a_half_of_zeros_has_no_gradient() {
    on_device(|cuda| {
        let mut nodes = numbers(2, 5 * 8);
        nodes[..3 * 8].fill(0.0);
        let (found, losses) = norms(cuda, (3, 2), &nodes);
        assert!(found[..3 * 8].iter().all(|&value| value == 0.0));
        assert!(found[3 * 8..].iter().any(|&value| value != 0.0));
        assert!(losses[1] > 2.5);
    });
}
