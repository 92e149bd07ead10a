//! Â times a dense matrix (SPEC §2, equation (2)).
//!
//! Computes y_i = neighbours · s_i Σ_j s_j x_j + (base + \[i ≥ U\] item_base) · b_i, where s is the
//! degree factor and j runs over the neighbours of i. Shapes: x, b, y N × d. y is written (`=`), or
//! is the gradient with which Adam updates p, m and v in place, and is never stored as a whole.
//! Ownership: one task computes each row of y and adds its neighbours in ascending order.
//! Bytes: entries · (4 + d · sizeof x + sizeof s) gathered, N d read once and written once; with
//! Adam, p, m and v read and written once instead. Flops: 2 · entries · d, and Adam's 14 N d.
//! Work is divided by entries + rows, so that a hub does not make one task far longer than the
//! rest.

use std::ops::Range;

use rayon::prelude::*;

use super::adam::update_part;
use super::read;
use super::simd::{multiply_add, vectorized};
use crate::backend::{AdamStep, SpmmInputs};
use crate::graph::Graph;
use crate::real::Real;

/// Tasks that the rows are divided into: enough to balance any processor, few enough to be cheap.
const TASKS: usize = 256;

/// Elements of a gradient that a task computes before it updates the parameters: 8 KB in f32, a part
/// of the nearest cache.
const GRADIENTS_AT_ONCE: usize = 2048;

/// Columns whose sums stay in registers while a row walks its neighbours.
const COLUMN_BLOCK: usize = 64;

/// A graph with the kernel's scales and its division into tasks.
#[derive(Debug)]
pub struct CpuGraph<T> {
    /// The graph.
    pub graph: std::sync::Arc<Graph>,
    scales: Vec<T>,
    tasks: Vec<Range<usize>>,
}

impl<T: Real> CpuGraph<T> {
    /// Prepares `graph`: the degree factors in type T and the division into tasks.
    pub fn new(graph: std::sync::Arc<Graph>) -> Self {
        let nodes = graph.nodes();
        let scales = (0..nodes).map(|node| T::from_f64(graph.scale(node))).collect();
        let work_before = |node: usize| graph.offsets()[node] + node;
        let total = work_before(nodes);
        let mut bounds: Vec<usize> = (0..=TASKS)
            .map(|task| {
                let target = (total as u128 * task as u128 / TASKS as u128) as usize;
                partition_point(nodes, |node| work_before(node) < target)
            })
            .collect();
        bounds.dedup();
        let tasks = bounds.windows(2).map(|pair| pair[0]..pair[1]).collect();
        Self { graph, scales, tasks }
    }
}

/// The first node in 0..=nodes for which `before` is false.
fn partition_point(nodes: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, nodes);
    while low < high {
        let middle = usize::midpoint(low, high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// A product: see the module.
pub struct Product<'a, T> {
    graph: &'a CpuGraph<T>,
    x: Option<&'a [T]>,
    base: Option<&'a [T]>,
    factors: [T; 3],
    /// d.
    width: usize,
}

impl<'a, T: Real> Product<'a, T> {
    /// The product with `elements` elements.
    pub fn new(graph: &'a CpuGraph<T>, inputs: SpmmInputs<'a, Vec<T>>, elements: usize) -> Self {
        let SpmmInputs { x, base, factors } = inputs;
        let factors = [factors.neighbours, factors.base, factors.item_base].map(T::from_f64);
        let width = elements / graph.graph.nodes().max(1);
        Self { graph, x: x.map(read), base: base.map(read), factors, width }
    }

    /// The numbers read for all neighbours' rows, and the operations to add them up.
    pub fn gathering(&self) -> (usize, usize) {
        let entries = if self.x.is_some() { self.graph.graph.entries() } else { 0 };
        (entries * (self.width + 1), 2 * entries * self.width)
    }

    /// Writes the product to `y`.
    pub fn write(&self, y: &mut [T]) {
        self.tasks().zip(self.parts(y)).for_each(|(rows, y)| self.rows(rows, y));
    }

    /// Adam's step with the product as the gradient, some rows at a time, so that they are still in
    /// the cache; returns the first of the updated elements that is not finite.
    pub fn update(
        &self,
        step: AdamStep,
        [parameters, first, second]: [&mut [T]; 3],
    ) -> Option<usize> {
        let [first, second] = [first, second].map(|buffer| self.parts(buffer));
        let moments = first.zip(second);
        let parts = self.tasks().zip(self.parts(parameters)).zip(moments);
        let update = |((rows, parameters), (first, second)): ((Range<usize>, &mut [T]), _)| {
            self.update_rows(rows, step, [parameters, first, second])
        };
        parts.filter_map(update).min()
    }

    /// [`Product::update`] for some rows, one after the other.
    fn update_rows(
        &self,
        rows: Range<usize>,
        step: AdamStep,
        [parameters, first, second]: [&mut [T]; 3],
    ) -> Option<usize> {
        let width = self.width.max(1);
        let rows_at_once = (GRADIENTS_AT_ONCE / width).max(1);
        let elements = rows_at_once * width;
        let mut gradients = vec![T::ZERO; elements.min(parameters.len())];
        let moments = first.chunks_mut(elements).zip(second.chunks_mut(elements));
        let mut wrong = None;
        for (part, (parameters, (first, second))) in
            parameters.chunks_mut(elements).zip(moments).enumerate()
        {
            let from = rows.start + part * rows_at_once;
            let gradients = &mut gradients[..parameters.len()];
            self.rows(from..from + parameters.len() / width, gradients);
            let found = update_part(step, gradients, [parameters, first, second]);
            wrong = wrong.or(found.map(|element| from * width + element));
        }
        wrong
    }

    /// The rows of each task.
    fn tasks(&self) -> impl IndexedParallelIterator<Item = Range<usize>> {
        self.graph.tasks.par_iter().cloned()
    }

    /// The parts of an N × d matrix that the tasks own.
    fn parts<'b>(
        &self,
        mut rest: &'b mut [T],
    ) -> impl IndexedParallelIterator<Item = &'b mut [T]> + use<'b, T> {
        let part = |rows: &Range<usize>| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(rows.len() * self.width);
            rest = tail;
            part
        };
        self.graph.tasks.iter().map(part).collect::<Vec<_>>().into_par_iter()
    }

    /// Computes `rows`.
    fn rows(&self, rows: Range<usize>, y: &mut [T]) {
        if self.width == 0 {
            return;
        }
        let graph = &self.graph.graph;
        rows_of_product(
            &graph.offsets()[rows.start..=rows.end],
            graph.all_neighbours(),
            &self.graph.scales,
            rows.start,
            graph.users(),
            self.x,
            self.base,
            self.factors,
            self.width,
            y,
        );
    }
}

vectorized! {
    fn rows_of_product<T: Real>(
        offsets: &[usize],
        neighbours: &[u32],
        scales: &[T],
        first_row: usize,
        users: usize,
        x: Option<&[T]>,
        base: Option<&[T]>,
        factors: [T; 3],
        width: usize,
        y: &mut [T],
    ) {
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let node = first_row + row;
            let neighbours = &neighbours[offsets[row]..offsets[row + 1]];
            match x {
                None => y.fill(T::ZERO),
                Some(x) => {
                    let factor = factors[0] * scales[node];
                    let mut start = 0;
                    while start + COLUMN_BLOCK <= width {
                        let block = &mut y[start..start + COLUMN_BLOCK];
                        sum_neighbours::<T, FUSED, COLUMN_BLOCK>(
                            neighbours, scales, x, width, start, factor, block,
                        );
                        start += COLUMN_BLOCK;
                    }
                    while start < width {
                        let block = &mut y[start..start + 4];
                        sum_neighbours::<T, FUSED, 4>(
                            neighbours, scales, x, width, start, factor, block,
                        );
                        start += 4;
                    }
                }
            }
            if let Some(base) = base {
                let factor = if node < users { factors[1] } else { factors[1] + factors[2] };
                let base = &base[node * width..(node + 1) * width];
                for (y, &b) in y.iter_mut().zip(base) {
                    *y = multiply_add::<T, FUSED>(factor, b, *y);
                }
            }
        }
    }
}

/// block = factor · Σ_j s_j x_j\[start..start + BLOCK\].
#[inline(always)]
fn sum_neighbours<T: Real, const FUSED: bool, const BLOCK: usize>(
    neighbours: &[u32],
    scales: &[T],
    x: &[T],
    width: usize,
    start: usize,
    factor: T,
    block: &mut [T],
) {
    let mut sums = [T::ZERO; BLOCK];
    for &neighbour in neighbours {
        let neighbour = neighbour as usize;
        let scale = scales[neighbour];
        let row = &x[neighbour * width + start..][..BLOCK];
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum = multiply_add::<T, FUSED>(scale, value, *sum);
        }
    }
    for (out, sum) in block.iter_mut().zip(sums) {
        *out = factor * sum;
    }
}
