//! The hand-derived gradients against finite differences of a loss written another way.
//!
//! The reference below follows SPEC §2 and §3 with plain dense matrices over all nodes and all
//! items. It takes its parameters twice: once for the values through which gradients flow, once for
//! the targets, whose gradient is stopped.

mod common;

use bm3_engine::backend::Dropout;
use bm3_engine::config::Propagation;
use bm3_engine::philox::{Purpose, Stream};
use common::Problem;
use proptest::prelude::*;

type Rows = Vec<Vec<f64>>;

/// All parameters of a problem: the arena, then each modality's features.
#[derive(Clone)]
struct Parameters {
    dense: Vec<f64>,
    features: Vec<Vec<f64>>,
}

struct Forward {
    users: Rows,
    items: Rows,
    projected: Vec<Rows>,
}

fn rows(values: &[f64], width: usize) -> Rows {
    values.chunks(width).map(<[f64]>::to_vec).collect()
}

fn times(left: &Rows, right: &Rows) -> Rows {
    let columns = right.first().map_or(0, Vec::len);
    left.iter()
        .map(|row| {
            (0..columns)
                .map(|column| row.iter().zip(right).map(|(x, other)| x * other[column]).sum())
                .collect()
        })
        .collect()
}

/// x Wᵀ + b.
fn linear(x: &Rows, weight: &Rows, bias: &[f64]) -> Rows {
    x.iter()
        .map(|row| {
            weight
                .iter()
                .zip(bias)
                .map(|(weights, bias)| {
                    row.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() + bias
                })
                .collect()
        })
        .collect()
}

/// Â as a dense matrix, straight from its definition.
fn adjacency(problem: &Problem) -> Rows {
    let nodes = problem.users + problem.items;
    let mut matrix = vec![vec![0.0; nodes]; nodes];
    for &(user, item) in &problem.pairs {
        let (user, item) = (user as usize, problem.users + item as usize);
        matrix[user][item] = 1.0;
        matrix[item][user] = 1.0;
    }
    if problem.config.self_loops {
        for (node, row) in matrix.iter_mut().enumerate() {
            row[node] = 1.0;
        }
    }
    let scale: Vec<f64> =
        matrix.iter().map(|row| (row.iter().sum::<f64>() + 1e-7).powf(-0.5)).collect();
    for (row, values) in matrix.iter_mut().enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            *value *= scale[row] * scale[column];
        }
    }
    matrix
}

fn forward(problem: &Problem, adjacency: &Rows, parameters: &Parameters) -> Forward {
    let layout = problem.layout();
    let d = layout.embedding_size;
    let part =
        |range: &std::ops::Range<usize>, width| rows(&parameters.dense[range.clone()], width);
    let initial = part(&layout.nodes, d);
    let mut layer = initial.clone();
    let mut sum = initial.clone();
    for index in 0..problem.config.layers {
        layer = times(adjacency, &layer);
        if problem.config.propagation == Propagation::Gcn {
            layer = times(&layer, &part(&layout.propagation[index], d));
            for value in layer.iter_mut().flatten() {
                *value = if *value > 0.0 { *value } else { 0.2 * *value };
            }
        }
        for (sum, layer) in sum.iter_mut().flatten().zip(layer.iter().flatten()) {
            *sum += layer;
        }
    }
    for value in sum.iter_mut().flatten() {
        *value /= (problem.config.layers + 1) as f64;
    }
    let mut items = sum.split_off(problem.users);
    for (item, initial) in items.iter_mut().zip(&initial[problem.users..]) {
        for (value, initial) in item.iter_mut().zip(initial) {
            *value += initial;
        }
    }
    let projected = layout
        .modalities
        .iter()
        .zip(&parameters.features)
        .map(|(modality, features)| {
            let weight = part(&modality.weight, modality.columns);
            let bias = &parameters.dense[modality.bias.clone()];
            linear(&rows(features, modality.columns), &weight, bias)
        })
        .collect();
    Forward { users: sum, items, projected }
}

fn dropped(problem: &Problem, x: &Rows, tensor: u32) -> Rows {
    let probability = problem.config.dropout;
    let stream = Stream::new(problem.config.seed, Purpose::Dropout, 1, tensor);
    let threshold = probability * (1u64 << 32) as f64;
    x.iter()
        .enumerate()
        .map(|(row, values)| {
            let keep = |column: usize| {
                let word = stream.words(row as u32, column as u32 / 4)[column % 4];
                f64::from(word) >= threshold.round()
            };
            let scaled = |value: f64| value / (1.0 - probability);
            values
                .iter()
                .enumerate()
                .map(|(column, &value)| if keep(column) { scaled(value) } else { 0.0 })
                .collect()
        })
        .collect()
}

fn cosine(left: &[f64], right: &[f64]) -> f64 {
    let product: f64 = left.iter().zip(right).map(|(x, y)| x * y).sum();
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-8);
    product / (norm(left) * norm(right))
}

/// The terms ui, iu, align and mask of each modality, and reg. `online` carries the gradient.
fn terms(problem: &Problem, online: &Forward, target: &Forward, dense: &[f64]) -> Vec<f64> {
    let layout = problem.layout();
    let weight = rows(&dense[layout.predictor_weight.clone()], layout.embedding_size);
    let predict = |x: &Rows| linear(x, &weight, &dense[layout.predictor_bias.clone()]);
    let pairs: Vec<(usize, usize)> = problem
        .batch
        .iter()
        .map(|&pair| (problem.pairs[pair].0 as usize, problem.pairs[pair].1 as usize))
        .collect();
    let mean = |cosine: &dyn Fn(usize, usize) -> f64| {
        1.0 - pairs.iter().map(|&(user, item)| cosine(user, item)).sum::<f64>() / pairs.len() as f64
    };
    let (users, items) = (predict(&online.users), predict(&online.items));
    let user_target = dropped(problem, &target.users, 0);
    let item_target = dropped(problem, &target.items, 1);
    let mut terms = vec![
        mean(&|user, item| cosine(&users[user], &item_target[item])),
        mean(&|user, item| cosine(&items[item], &user_target[user])),
    ];
    for (index, (z, target)) in online.projected.iter().zip(&target.projected).enumerate() {
        let predicted = predict(z);
        let own = dropped(problem, target, 2 + index as u32);
        terms.push(mean(&|_, item| cosine(&predicted[item], &item_target[item])));
        terms.push(mean(&|_, item| cosine(&predicted[item], &own[item])));
    }
    let norm = |x: &Rows| x.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
    terms.push((norm(&online.users) + norm(&online.items)) / problem.items as f64);
    terms
}

fn check(problem: &Problem) -> Result<(), TestCaseError> {
    let parameters = Parameters {
        dense: problem.parameters(),
        features: (0..problem.modalities.len())
            .map(|index| problem.features(index).into_iter().map(f64::from).collect())
            .collect(),
    };
    let adjacency = adjacency(problem);
    let target = forward(problem, &adjacency, &parameters);
    let loss = |parameters: &Parameters| {
        let online = forward(problem, &adjacency, parameters);
        let terms = terms(problem, &online, &target, &parameters.dense);
        bm3_engine::step::total_loss(&problem.config, &terms)
    };

    let mut model = problem.model::<f64>();
    let dropout = match problem.config.dropout {
        0.0 => Dropout::None,
        probability => Dropout::Random { probability, seed: problem.config.seed },
    };
    model.step(problem.batch(), &dropout, 1e-3).expect("a step");

    let online = forward(problem, &adjacency, &parameters);
    let expected = terms(problem, &online, &target, &parameters.dense);
    let found = model.losses().expect("losses");
    prop_assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        prop_assert!((found - expected).abs() < 1e-12, "terms {found} and {expected}");
    }

    // Central differences: their error is h² times a third derivative, plus ε/h of the loss.
    let h = 1e-5;
    let difference = |change: &dyn Fn(&mut Parameters, f64)| {
        let [mut above, mut below] = [parameters.clone(), parameters.clone()];
        change(&mut above, h);
        change(&mut below, -h);
        (loss(&above) - loss(&below)) / (2.0 * h)
    };
    // Rows near the origin bend the cosine sharply: third derivatives grow with 1/‖a‖³.
    let smallest = smallest_norm(problem, &online, &parameters);
    let tolerance = 1e-7 + 50.0 * h * h / smallest.powi(3);
    let gradients = model.gradients().expect("gradients");
    prop_assert_eq!(gradients.len(), parameters.dense.len());
    for (index, found) in gradients.into_iter().enumerate() {
        let expected = difference(&|parameters, h| parameters.dense[index] += h);
        prop_assert!(
            (found - expected).abs() < tolerance,
            "parameter {index}: {found} is not {expected} (allowed {tolerance:e})"
        );
    }
    for (modality, state) in model.feature_states().expect("features").into_iter().enumerate() {
        let Some(state) = state else { continue };
        for index in 0..state.first.len() {
            let expected = difference(&|parameters, h| parameters.features[modality][index] += h);
            // Adam's first moment after one step is (1 − β₁) times the gradient.
            let found = state.first[index] / 0.1;
            prop_assert!(
                (found - expected).abs() < tolerance,
                "feature {index} of modality {modality}: {found} is not {expected}"
            );
        }
    }
    Ok(())
}

/// The smallest norm of a predictor output that the batch uses.
fn smallest_norm(problem: &Problem, online: &Forward, parameters: &Parameters) -> f64 {
    let layout = problem.layout();
    let weight = rows(&parameters.dense[layout.predictor_weight.clone()], layout.embedding_size);
    let bias = &parameters.dense[layout.predictor_bias.clone()];
    [&online.users, &online.items]
        .into_iter()
        .chain(&online.projected)
        .flat_map(|x| linear(x, &weight, bias))
        .map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt())
        .fold(1.0, f64::min)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]
    /// Any sizes, either propagation, 0 to 4 layers, 0 to 3 modalities, frozen or trained: the loss
    /// terms equal the plain ones and every gradient equals its finite difference.
    #[test]
    fn gradients_equal_finite_differences(problem in Problem::random()) {
        // LeakyReLU has no derivative at 0, so values that h can carry across it are left out.
        prop_assume!(far_from_kinks(&problem));
        check(&problem)?;
    }
}

fn far_from_kinks(problem: &Problem) -> bool {
    if problem.config.propagation == Propagation::Light {
        return true;
    }
    let layout = problem.layout();
    let dense = problem.parameters();
    let adjacency = adjacency(problem);
    let mut layer = rows(&dense[layout.nodes.clone()], layout.embedding_size);
    for weight in &layout.propagation {
        let weight = rows(&dense[weight.clone()], layout.embedding_size);
        layer = times(&times(&adjacency, &layer), &weight);
        if layer.iter().flatten().any(|value| *value != 0.0 && value.abs() < 1e-4) {
            return false;
        }
        for value in layer.iter_mut().flatten() {
            *value = if *value > 0.0 { *value } else { 0.2 * *value };
        }
    }
    true
}
