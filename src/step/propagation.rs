//! The propagation over the graph and its gradient (SPEC §2 (2), (3); §4).

use std::ops::Range;

use super::{DeviceModel, StepSettings, Workspace};
use crate::Result;
use crate::backend::{Backend, SpmmFactors, SpmmInputs, view, view_mut};
use crate::config::Propagation;

impl<B: Backend> DeviceModel<B> {
    /// (2), (3): H from H⁰, the items' residual included.
    pub(super) fn propagate(&mut self, backend: &B) -> Result<()> {
        let Self { layout, graph, parameters, workspace, .. } = self;
        let all = 0..layout.nodes.len();
        let Workspace { nodes, layers, neighbour_sums, activations, .. } = workspace;
        match self.settings.propagation {
            Propagation::Light => {
                let (count, initial) =
                    (self.settings.layers, || (&*parameters, layout.nodes.clone()));
                horner(backend, graph, count, initial(), layers)?;
                let last = horner_end(count, initial(), layers);
                backend.spmm(graph, last, view_mut(nodes, all))
            }
            Propagation::Gcn => {
                let share = 1.0 / (self.settings.layers + 1) as f64;
                let initial = || view(&*parameters, layout.nodes.clone());
                let readout = SpmmFactors { neighbours: 0.0, base: share, item_base: 1.0 };
                let inputs = SpmmInputs { x: None, base: Some(initial()), factors: readout };
                backend.spmm(graph, inputs, view_mut(nodes, all.clone()))?;
                for (layer, weight) in layout.propagation.iter().enumerate() {
                    let x = match layer {
                        0 => initial(),
                        _ => view(&activations[layer - 1], all.clone()),
                    };
                    let sums = &mut neighbour_sums[layer];
                    let product = SpmmFactors { neighbours: 1.0, base: 0.0, item_base: 0.0 };
                    let inputs = SpmmInputs { x: Some(x), base: None, factors: product };
                    backend.spmm(graph, inputs, view_mut(sums, all.clone()))?;
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

    /// dH⁰ (and dW^l) from G, but for the [`last_product`].
    pub(super) fn propagate_backward(&mut self, backend: &B) -> Result<()> {
        let Self { layout, graph, parameters, gradients, workspace, .. } = self;
        let all = || layout.nodes.clone();
        let Workspace { node_gradient, layers, neighbour_sums, activations, .. } = workspace;
        let base = || view(&*node_gradient, all());
        match self.settings.propagation {
            // Â is symmetric, so the backward pass is the forward one, applied to G.
            Propagation::Light => {
                horner(backend, graph, self.settings.layers, (&*node_gradient, all()), layers)
            }
            Propagation::Gcn => {
                let share = 1.0 / (self.settings.layers + 1) as f64;
                let [gradient, next] = layers;
                let readout = SpmmFactors { neighbours: 0.0, base: share, item_base: 0.0 };
                let inputs = SpmmInputs { x: None, base: Some(base()), factors: readout };
                backend.spmm(graph, inputs, view_mut(gradient, all()))?;
                for (layer, weight) in layout.propagation.iter().enumerate().rev() {
                    backend.gcn_layer_backward(
                        view(&neighbour_sums[layer], all()),
                        view(&*parameters, weight.clone()),
                        view(&activations[layer], all()),
                        view_mut(gradient, all()),
                        view_mut(next, all()),
                        view_mut(gradients, layout.gradient(weight)),
                    )?;
                    if layer > 0 {
                        let factors = SpmmFactors { neighbours: 1.0, base: share, item_base: 0.0 };
                        let x = Some(view(&*next, all()));
                        let inputs = SpmmInputs { x, base: Some(base()), factors };
                        backend.spmm(graph, inputs, view_mut(gradient, all()))?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// The product that gives dH⁰ after [`DeviceModel::propagate_backward`]. `nodes` are the elements of
/// H⁰.
pub(super) fn last_product<'a, B: Backend>(
    settings: &StepSettings,
    workspace: &'a Workspace<B>,
    nodes: &Range<usize>,
) -> SpmmInputs<'a, B::Buffer> {
    let Workspace { node_gradient, layers, .. } = workspace;
    match settings.propagation {
        Propagation::Light => horner_end(settings.layers, (node_gradient, nodes.clone()), layers),
        Propagation::Gcn => {
            let share = 1.0 / (settings.layers + 1) as f64;
            SpmmInputs {
                x: Some(view(&layers[1], nodes.clone())),
                base: Some(view(node_gradient, nodes.clone())),
                factors: SpmmFactors { neighbours: 1.0, base: share, item_base: 1.0 },
            }
        }
    }
}

/// y = R x for the light form, by Horner's rule (SPEC §4), but for [`horner_end`]:
/// R = 1/(L + 1) Σ_l Âˡ, plus the identity on item rows. R is symmetric, so it is also its own
/// gradient.
fn horner<B: Backend>(
    backend: &B,
    graph: &B::Graph,
    layers: usize,
    x: (&B::Buffer, Range<usize>),
    between: &mut [B::Buffer; 2],
) -> Result<()> {
    let all = || 0..x.1.len();
    let x = || view(x.0, x.1.clone());
    for layer in 1..layers {
        let [even, odd] = between.each_mut();
        let (before, target) = if layer % 2 == 1 { (even, odd) } else { (odd, even) };
        let before = if layer == 1 { x() } else { view(&*before, all()) };
        let factors = SpmmFactors { neighbours: 1.0, base: 1.0, item_base: 0.0 };
        let inputs = SpmmInputs { x: Some(before), base: Some(x()), factors };
        backend.spmm(graph, inputs, view_mut(target, all()))?;
    }
    Ok(())
}

/// The last product of [`horner`].
fn horner_end<'a, Buffer>(
    layers: usize,
    (x, range): (&'a Buffer, Range<usize>),
    between: &'a [Buffer; 2],
) -> SpmmInputs<'a, Buffer> {
    let sum = match layers {
        0 => None,
        1 => Some(view(x, range.clone())),
        _ => Some(view(&between[(layers - 1) % 2], 0..range.len())),
    };
    let share = 1.0 / (layers + 1) as f64;
    let factors = SpmmFactors { neighbours: share, base: share, item_base: 1.0 };
    SpmmInputs { x: sum, base: Some(view(x, range)), factors }
}
