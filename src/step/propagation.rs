//! The propagation over the graph and its gradient (SPEC §2 (2), (3); §4).

use std::ops::Range;

use super::{DeviceModel, Workspace};
use crate::Result;
use crate::backend::{Backend, SpmmFactors, view, view_mut};
use crate::config::Propagation;

impl<B: Backend> DeviceModel<B> {
    /// (2), (3): H from H⁰, the items' residual included.
    pub(super) fn propagate(&mut self, backend: &B) -> Result<()> {
        let Self { layout, graph, parameters, workspace, .. } = self;
        let all = 0..layout.nodes.len();
        let Workspace { nodes, layers, neighbour_sums, activations, .. } = workspace;
        match self.settings.propagation {
            Propagation::Light => propagate_light(
                backend,
                graph,
                self.settings.layers,
                (&*parameters, layout.nodes.clone()),
                layers,
                (nodes, all),
            ),
            Propagation::Gcn => {
                let share = 1.0 / (self.settings.layers + 1) as f64;
                let initial = || view(&*parameters, layout.nodes.clone());
                let readout = SpmmFactors { neighbours: 0.0, base: share, item_base: 1.0 };
                backend.spmm(
                    graph,
                    None,
                    Some(initial()),
                    readout,
                    view_mut(nodes, all.clone()),
                )?;
                for (layer, weight) in layout.propagation.iter().enumerate() {
                    let x = match layer {
                        0 => initial(),
                        _ => view(&activations[layer - 1], all.clone()),
                    };
                    let sums = &mut neighbour_sums[layer];
                    let product = SpmmFactors { neighbours: 1.0, base: 0.0, item_base: 0.0 };
                    backend.spmm(graph, Some(x), None, product, view_mut(sums, all.clone()))?;
                    let weight = view(&*parameters, weight.clone());
                    let activation = &mut activations[layer];
                    let sums = view(&*sums, all.clone());
                    backend.gcn_layer(sums, weight, view_mut(activation, all.clone()))?;
                    let activation = view(&*activation, all.clone());
                    backend.add_scaled(share, activation, view_mut(nodes, all.clone()))?;
                }
                Ok(())
            }
        }
    }

    /// dH⁰ (and dW^l) from G.
    pub(super) fn propagate_backward(&mut self, backend: &B) -> Result<()> {
        let Self { layout, graph, parameters, gradients, workspace, .. } = self;
        let all = 0..layout.nodes.len();
        let Workspace { node_gradient, layers, neighbour_sums, activations, .. } = workspace;
        match self.settings.propagation {
            // Â is symmetric, so the backward pass is the forward one, applied to G.
            Propagation::Light => propagate_light(
                backend,
                graph,
                self.settings.layers,
                (&*node_gradient, all),
                layers,
                (gradients, layout.nodes.clone()),
            ),
            Propagation::Gcn => {
                let share = 1.0 / (self.settings.layers + 1) as f64;
                let [gradient, next] = layers;
                let base = || Some(view(&*node_gradient, all.clone()));
                let readout = SpmmFactors { neighbours: 0.0, base: share, item_base: 0.0 };
                backend.spmm(graph, None, base(), readout, view_mut(gradient, all.clone()))?;
                for (layer, weight) in layout.propagation.iter().enumerate().rev() {
                    backend.gcn_layer_backward(
                        view(&neighbour_sums[layer], all.clone()),
                        view(&*parameters, weight.clone()),
                        view(&activations[layer], all.clone()),
                        view_mut(gradient, all.clone()),
                        view_mut(next, all.clone()),
                        view_mut(gradients, weight.clone()),
                    )?;
                    let x = Some(view(&*next, all.clone()));
                    let residual = if layer == 0 { 1.0 } else { 0.0 };
                    let factors = SpmmFactors { neighbours: 1.0, base: share, item_base: residual };
                    if layer == 0 {
                        let target = view_mut(gradients, layout.nodes.clone());
                        backend.spmm(graph, x, base(), factors, target)?;
                    } else {
                        backend.spmm(graph, x, base(), factors, view_mut(gradient, all.clone()))?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// y = R x for the light form, by Horner's rule (SPEC §4): R = 1/(L + 1) Σ_l Âˡ, plus the identity
/// on item rows. R is symmetric, so it is also its own gradient.
fn propagate_light<B: Backend>(
    backend: &B,
    graph: &B::Graph,
    layers: usize,
    x: (&B::Buffer, Range<usize>),
    between: &mut [B::Buffer; 2],
    y: (&mut B::Buffer, Range<usize>),
) -> Result<()> {
    let all = 0..x.1.len();
    let x = || view(x.0, x.1.clone());
    let share = 1.0 / (layers + 1) as f64;
    // Swap the references, not the buffers, so that every call queues the same operations.
    let [mut current, mut next] = between.each_mut();
    for layer in 1..layers {
        let from = if layer == 1 { x() } else { view(&*current, all.clone()) };
        let factors = SpmmFactors { neighbours: 1.0, base: 1.0, item_base: 0.0 };
        backend.spmm(graph, Some(from), Some(x()), factors, view_mut(next, all.clone()))?;
        std::mem::swap(&mut current, &mut next);
    }
    let from = match layers {
        0 => None,
        1 => Some(x()),
        _ => Some(view(&*current, all)),
    };
    let factors = SpmmFactors { neighbours: share, base: share, item_base: 1.0 };
    backend.spmm(graph, from, Some(x()), factors, view_mut(y.0, y.1))
}
