//! Â times a dense matrix (SPEC §2, equation (2)).
//!
//! Computes y_i = neighbours · s_i Σ_j s_j x_j + (base + \[i ≥ U\] item_base) · b_i, where s is the
//! degree factor and j runs over the neighbours of i. Shapes: x, b, y N × d.
//! Ownership: one task writes each row of y and adds its neighbours in ascending order.
//! Bytes: entries · (4 + d · sizeof x + sizeof s) gathered, N d read twice and written once.
//! Flops: 2 · entries · d.
//! Work is divided by entries + rows, so that a hub does not make one task far longer than the
//! rest.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{multiply_add, vectorized};
use crate::backend::SpmmFactors;
use crate::graph::Graph;
use crate::real::Real;

/// Tasks that the rows are divided into: enough to balance any processor, few enough to be cheap.
const TASKS: usize = 256;

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

/// See the module. `x` and `base` may be absent; `y` is overwritten.
pub fn spmm<T: Real>(
    graph: &CpuGraph<T>,
    x: Option<&[T]>,
    base: Option<&[T]>,
    factors: SpmmFactors,
    y: &mut [T],
) {
    let width = y.len() / graph.graph.nodes().max(1);
    if width == 0 {
        return;
    }
    let mut parts = Vec::with_capacity(graph.tasks.len());
    let mut rest = y;
    for rows in &graph.tasks {
        let (part, tail) = rest.split_at_mut(rows.len() * width);
        parts.push((rows.clone(), part));
        rest = tail;
    }
    parts.into_par_iter().for_each(|(rows, y)| {
        let users = graph.graph.users();
        let offsets = &graph.graph.offsets()[rows.start..=rows.end];
        rows_of_product(
            offsets,
            graph.graph.all_neighbours(),
            &graph.scales,
            rows.start,
            users,
            x,
            base,
            [factors.neighbours, factors.base, factors.item_base].map(T::from_f64),
            width,
            y,
        );
    });
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
