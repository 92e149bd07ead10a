//! `adam.cu` and `adam_rows.cu`: the dense update, and the exact replay of rows.

use bm3_engine::backend::{
    ADAM_EPSILON, AdamStep, BETA1, BETA2, Backend, BatchRooms, FeatureState, view,
};
use bm3_engine::batch::{Batch, EpochPlan};
use bm3_engine::config::Order;
use bm3_engine::cuda::{Cuda, CudaBatch};
use bm3_engine::data::Pairs;
use bm3_engine::step::{adam_step, fresh_features};

use crate::check::{
    BatchCase, ROUNDING, SPLIT, close, download, ids, magnitudes, numbers, on_device, roundings,
    updated, upload,
};

/// One element's step in f32, with the roundings stated in the kernel's source.
fn update(step: AdamStep, gradient: f32, parameter: &mut f32, first: &mut f32, second: &mut f32) {
    let (step_size, root_factor) = (step.step_size as f32, step.root_factor as f32);
    let (rest1, rest2) = ((1.0 - BETA1) as f32, (1.0 - BETA2) as f32);
    *first = (BETA1 as f32).mul_add(*first, rest1 * gradient);
    *second = (BETA2 as f32).mul_add(*second, rest2 * gradient * gradient);
    let root = second.sqrt().mul_add(root_factor, ADAM_EPSILON as f32);
    *parameter -= step_size * *first / root;
}

/// Uploads the constants of steps.
fn schedule(cuda: &Cuda, history: &[AdamStep]) -> <Cuda as Backend>::Schedule {
    let mut schedule = Default::default();
    cuda.set_schedule(&mut schedule, 0, history).unwrap();
    schedule
}

fn history(steps: u64) -> Vec<AdamStep> {
    (1..=steps).map(|step| adam_step(step, 0.01 / step as f64)).collect()
}

#[test]
fn dense_steps_have_the_bits_of_the_formula() {
    on_device(|cuda| {
        // Partial blocks, a range of the elements alone, and gradients so small that their squares
        // are subnormal or 0.
        for (elements, range) in [(4, 0..4), (1020, 0..1020), (1028, 0..1028), (3000, 1028..2060)] {
            let mut parameters = numbers(1, elements);
            let (mut first, mut second) = (vec![0.0; elements], vec![0.0; elements]);
            let mut buffers = [&parameters, &first, &second].map(|values| upload(cuda, values));
            let schedule = schedule(cuda, &history(3));
            let mut losses = cuda.losses(&[1.0; 3]).unwrap();
            for (index, step) in history(3).into_iter().enumerate() {
                let batch = cuda.upload_batch(Batch::new(&[0], &[0]), index as u32 + 1).unwrap();
                let mut gradients = numbers(2 + index as u64, elements);
                gradients[range.start] = 0.0;
                gradients[range.start + 1] = 1e-21;
                gradients[range.start + 2] = 1e18;
                let given = upload(cuda, &gradients);
                let given = view(&given, range.clone());
                let updated = updated(&mut buffers, range.clone());
                cuda.adam(&batch, &schedule, given, updated, &mut losses).unwrap();
                for element in range.clone() {
                    let (m, v) = (&mut first[element], &mut second[element]);
                    update(step, gradients[element], &mut parameters[element], m, v);
                }
                for (buffer, expected) in buffers.iter().zip([&parameters, &first, &second]) {
                    let found = download(cuda, buffer, elements);
                    let bits = |values: &[f32]| -> Vec<u32> {
                        values.iter().map(|value| value.to_bits()).collect()
                    };
                    assert_eq!(bits(&found), bits(expected), "step {}", index + 1);
                }
            }
        }
    });
}

/// Rows with different histories: never touched, current, one and several steps behind.
fn state(rows: usize, columns: usize) -> FeatureState<f32> {
    FeatureState {
        values: numbers(1, rows * columns),
        first: numbers(2, rows * columns).iter().map(|value| 0.1 * value).collect(),
        second: magnitudes(&numbers(3, rows * columns)),
        touched: (0..rows as u32).map(|row| row % 5).collect(),
    }
}

fn read(cuda: &Cuda, features: &<Cuda as Backend>::Features) -> FeatureState<f32> {
    cuda.feature_state(features).unwrap().expect("trained").into_owned()
}

#[test]
fn replayed_rows_have_the_bits_of_dense_steps() {
    on_device(|cuda| {
        for (rows, columns) in [(1, 1), (7, 300), (23, 12)] {
            let history = history(4);
            for batch in [None, Some(vec![0]), Some((0..rows as u32).step_by(2).collect())] {
                let before = state(rows, columns);
                let mut features = cuda.trained_features(before.clone(), columns).unwrap();
                let schedule = schedule(cuda, &history);
                match &batch {
                    None => cuda.adam_rows_replay_all(4, &schedule, &mut features).unwrap(),
                    Some(items) => {
                        let items: &Vec<u32> = items;
                        let case = BatchCase::new(vec![0; items.len()], items.clone());
                        let case = BatchCase { step: 5, ..case };
                        case.with(cuda, |batch| {
                            cuda.adam_rows_replay(batch, &schedule, &mut features).unwrap();
                        });
                    }
                }
                let mut expected = before;
                for row in 0..rows {
                    let chosen = batch.as_ref().is_none_or(|items| items.contains(&(row as u32)));
                    // Rows that no gradient ever reached have moments of 0 and would not move.
                    if !chosen || expected.touched[row] == 0 {
                        continue;
                    }
                    let missed = &history[expected.touched[row] as usize..];
                    replay_row(&mut expected, row, columns, missed);
                    expected.touched[row] = history.len() as u32;
                }
                assert_eq!(read(cuda, &features), expected, "{rows} x {columns}");
            }
        }
    });
}

/// Numbers from 2^`least` to 2^`most` and their negatives, uniform in the exponent; some are 0.
fn of_all_sizes(seed: u64, count: usize, [least, most]: [f64; 2]) -> Vec<f32> {
    let sizes = numbers(seed, count);
    let size = |&size: &f32| match size {
        0.0 => 0.0,
        // The drawn number's magnitude gives the exponent, its sign the sign.
        size => {
            let exponent = least + (most - least) * f64::from(size.abs());
            exponent.exp2().copysign(f64::from(size)) as f32
        }
    };
    sizes.iter().map(size).collect()
}

/// Exponents on all sides of the bounds within which a step needs no branches.
const WIDE: [[f64; 2]; 2] = [[-107.0, 110.0], [-150.0, 154.0]];
/// Within them and just beyond.
const PLAIN: [[f64; 2]; 2] = [[-83.0, 25.0], [-105.0, 32.0]];
/// First moments below them, whose moves leave remainders too small for a float.
const TINY: [[f64; 2]; 2] = [[-130.0, -75.0], [-60.0, -20.0]];
/// Within them at first, and beyond them after some steps.
const LEAVING: [[f64; 2]; 2] = [[-83.0, -65.0], [-60.0, -20.0]];

/// Rows of several parts' columns and some more: within the bounds where a step has no branches, on
/// all sides of them, or on their way out of them.
///
/// `sizes`: exponents of the first moments, and of the second.
fn rare(rows: usize, columns: usize, sizes: [[f64; 2]; 2]) -> FeatureState<f32> {
    let elements = rows * columns;
    FeatureState {
        // Small values show the last bits of a small move.
        values: of_all_sizes(1, elements, sizes[0]),
        first: of_all_sizes(2, elements, sizes[0]),
        second: magnitudes(&of_all_sizes(3, elements, sizes[1])),
        touched: (0..rows as u32).map(|row| 1 + row % 7 * 31).collect(),
    }
}

/// Steps at one rate.
fn steady(rate: f64) -> Vec<AdamStep> {
    (1..=220).map(|step| adam_step(step, rate)).collect()
}

/// Steps as usual, and some at extreme rates.
fn rare_history() -> Vec<AdamStep> {
    let mut history = steady(1e-3);
    for (step, rate) in [(2, 0.0), (70, 1e-9), (71, 1e9), (140, 1e-36), (200, -0.5)] {
        history[step - 1] = adam_step(step as u64, rate);
    }
    history
}

#[track_caller]
fn assert_same_bits(found: &FeatureState<f32>, expected: &FeatureState<f32>, what: &str) {
    assert_eq!(found.touched, expected.touched, "{what}");
    let pairs = [
        ("value", &found.values, &expected.values),
        ("m", &found.first, &expected.first),
        ("v", &found.second, &expected.second),
    ];
    for (name, found, expected) in pairs {
        for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
            // The processor decides the bits of a NaN: 0x7fffffff on a GPU, 0xffc00000 on x86-64.
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{what}: {name} {place} is {found:e}, not {expected:e}");
        }
    }
}

/// Applies steps without a gradient to a row's elements, by the formula.
fn replay_row(state: &mut FeatureState<f32>, row: usize, columns: usize, steps: &[AdamStep]) {
    let FeatureState { values, first, second, .. } = state;
    for element in row * columns..(row + 1) * columns {
        for &step in steps {
            update(step, 0.0, &mut values[element], &mut first[element], &mut second[element]);
        }
    }
}

/// A step has branches for rare numbers, and whole series of steps skip them if no number is rare:
/// both give the bits of the formula. A GPU gets more elements, because its roots and divisions
/// start from its own approximations.
#[test]
fn rare_numbers_are_replayed_to_the_same_bits() {
    on_device(|cuda| {
        let many = if crate::emulator::on_gpu() { 500 } else { 1 };
        for (rows, columns, sizes) in [
            (7 * many, 1100, WIDE),
            (7 * many, 513, PLAIN),
            (7, 6, TINY),
            (7, 100, TINY),
            (7 * many, 512, LEAVING),
        ] {
            let before = rare(rows, columns, sizes);
            let histories = [
                ("usual", steady(1e-3)),
                // The smallest rate that goes without branches.
                ("small", steady(8e-6)),
                ("tiny", steady(1e-36)),
                ("mixed", rare_history()),
            ];
            for (rates, history) in histories {
                let mut features = cuda.trained_features(before.clone(), columns).unwrap();
                let schedule = schedule(cuda, &history);
                let last = history.len() as u32;
                cuda.adam_rows_replay_all(last, &schedule, &mut features).unwrap();
                let mut expected = before.clone();
                for row in 0..rows {
                    let missed = &history[before.touched[row] as usize..];
                    replay_row(&mut expected, row, columns, missed);
                    expected.touched[row] = last;
                }
                let what = format!("{rows} x {columns}, {rates} rates");
                assert_same_bits(&read(cuda, &features), &expected, &what);
            }
        }
    });
}

/// A batch's step with zero gradient equals a replayed one, whatever the numbers.
#[test]
fn a_step_of_rare_rows_has_the_bits_of_the_formula() {
    on_device(|cuda| {
        let (rows, columns, width) = (70, 1100, 4);
        for sizes in [WIDE, PLAIN, TINY] {
            for rate in [1e-3, 1e-9, 1e-36] {
                let items = (0..rows as u32).collect::<Vec<_>>();
                let case = BatchCase::new(vec![0; rows], items);
                let case = BatchCase { step: 2, ..case };
                let before = rare(rows, columns, sizes);
                let mut features = cuda.trained_features(before.clone(), columns).unwrap();
                let history = [adam_step(1, rate), adam_step(2, rate)];
                let schedule = schedule(cuda, &history);
                let weight = upload(cuda, &numbers(7, width * columns));
                case.with(cuda, |batch| {
                    let room = batch.rooms().items * width;
                    let dz = upload(cuda, &vec![0.0; room]);
                    let mut losses = cuda.losses(&[1.0; 5]).unwrap();
                    let (dz, weight) = (view(&dz, 0..room), view(&weight, 0..width * columns));
                    cuda.adam_rows(batch, dz, weight, &schedule, &mut features, 0, &mut losses)
                        .unwrap();
                });
                // All parts of the rows have reached this step: nothing is left to replay.
                cuda.adam_rows_replay_all(2, &schedule, &mut features).unwrap();
                let mut expected = before;
                for row in 0..rows {
                    replay_row(&mut expected, row, columns, &history[1..]);
                    expected.touched[row] = 2;
                }
                let what = format!("sizes {sizes:?}, rate {rate}");
                assert_same_bits(&read(cuda, &features), &expected, &what);
            }
        }
    });
}

/// The constants of steps reach the device as the history grows, even beyond the initial room.
#[test]
fn a_long_history_is_replayed_to_its_end() {
    on_device(|cuda| {
        let before = FeatureState { touched: vec![1], ..state(1, 4) };
        let mut features = cuda.trained_features(before.clone(), 4).unwrap();
        let history = history(2500);
        let mut schedule = Default::default();
        let mut known = 0;
        for last in [2, 1024, 1025, 2500] {
            cuda.set_schedule(&mut schedule, known, &history[known..last]).unwrap();
            cuda.adam_rows_replay_all(last as u32, &schedule, &mut features).unwrap();
            known = last;
        }
        let mut expected = before;
        replay_row(&mut expected, 0, 4, &history[1..]);
        expected.touched = vec![2500];
        assert_eq!(read(cuda, &features), expected);
    });
}

/// The rows' step is the dense one with the gradient dz W, which split TF32 computes to within its
/// roundings. Rows outside the batch do not change.
#[test]
fn steps_of_rows_take_the_gradient_dz_w() {
    on_device(|cuda| {
        for (rows, columns, width, pairs) in [(1, 1, 4, 1), (9, 70, 12, 5), (150, 133, 64, 200)] {
            let case = BatchCase::new(vec![0; pairs], ids(5, pairs, rows));
            let case = BatchCase { step: 2, ..case.short() };
            let items = case.host().items;
            let (dz, weight) = (numbers(6, items.len() * width), numbers(7, width * columns));
            // With moments of zero, the first moment after one step gives the gradient.
            let before = fresh_features(numbers(1, rows * columns), rows);
            let mut features = cuda.trained_features(before.clone(), columns).unwrap();
            // Uses the first step's constants for the second.
            let history = history(1);
            let schedule = schedule(cuda, &[history[0], history[0]]);
            let weight_buffer = upload(cuda, &weight);
            case.with(cuda, |batch| {
                let room = batch.rooms().items * width;
                let mut dz = dz.clone();
                dz.resize(room, 9.0);
                let dz = upload(cuda, &dz);
                let weight = view(&weight_buffer, 0..weight.len());
                let mut losses = cuda.losses(&[1.0; 5]).unwrap();
                let dz = view(&dz, 0..room);
                cuda.adam_rows(batch, dz, weight, &schedule, &mut features, 0, &mut losses)
                    .unwrap();
                assert_eq!(cuda.failure(&losses).unwrap(), None);
            });
            let after = read(cuda, &features);
            let (mut found, mut expected, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
            let mut untouched = (before.values.clone(), vec![0.0; rows * columns]);
            for (position, &item) in items.iter().enumerate() {
                for column in 0..columns {
                    let place = item as usize * columns + column;
                    let products = (0..width).map(|k| {
                        f64::from(dz[position * width + k])
                            * f64::from(weight[k * columns + column])
                    });
                    expected.push(products.clone().sum::<f64>() * (1.0 - BETA1));
                    sizes.push(products.map(f64::abs).sum::<f64>() * (1.0 - BETA1));
                    found.push(after.first[place]);
                    untouched.0[place] = after.values[place];
                    untouched.1[place] = after.first[place];
                    // Given the gradient, the rest has the bits of the formula, except for the
                    // gradient's own rounding: v and the step follow from m.
                    let gradient = f64::from(after.first[place]) / (1.0 - BETA1);
                    let v = (1.0 - BETA2) * gradient * gradient;
                    assert!((f64::from(after.second[place]) - v).abs() <= 8.0 * ROUNDING * v);
                    let root = v.sqrt() * history[0].root_factor + ADAM_EPSILON;
                    let moved = history[0].step_size * (1.0 - BETA1) * gradient / root;
                    let off =
                        f64::from(before.values[place]) - moved - f64::from(after.values[place]);
                    assert!(off.abs() <= 8.0 * ROUNDING, "element {place}: off by {off:e}");
                }
                assert_eq!(after.touched[item as usize], 2);
            }
            close("m", &found, &expected, &sizes, SPLIT + 3.0 + roundings(width));
            assert_eq!((after.values, after.first), untouched, "rows outside of the batch");
            let counted = after.touched.iter().filter(|&&step| step == 2).count();
            assert_eq!(counted, items.len());
        }
    });
}

/// Rows that only the next batch has are brought up to this batch's step, and no others. With or
/// without that, all rows end with the same bits.
#[test]
fn rows_of_the_next_batch_are_brought_up_beside_the_step() {
    on_device(|cuda| {
        let (rows, columns, width, size) = (30, 70, 12, 8);
        let batches_of =
            [[3, 3, 3, 5, 5, 7, 7, 7], [1, 3, 5, 9, 11, 13, 15, 17], [0, 1, 2, 3, 20, 21, 22, 23]];
        let items = batches_of.as_flattened().to_vec();
        let pairs = Pairs { users: vec![0; items.len()], items };
        let before = FeatureState {
            values: numbers(1, rows * columns),
            first: numbers(2, rows * columns),
            second: magnitudes(&numbers(3, rows * columns)),
            touched: vec![1; rows],
        };
        let schedule = schedule(cuda, &history(5));
        let weight = upload(cuda, &numbers(4, width * columns));
        // As many rows as batches have room for.
        let elements = 64 * width;
        let dz = upload(cuda, &numbers(5, elements));
        let run = |looks_ahead: bool| {
            let mut features = cuda.trained_features(before.clone(), columns).unwrap();
            let mut losses = cuda.losses(&[1.0; 5]).unwrap();
            let mut batches = cuda.batches(&pairs, 1, rows, size).unwrap();
            let plan = EpochPlan { order: Order::File, seed: 1, epoch: 0, first_step: 3 };
            cuda.arrange(&mut batches, plan).unwrap();
            let mut states = Vec::new();
            for numbers_of_batches in [0..1, 1..3] {
                let mut step = |batch: &CudaBatch| {
                    assert_eq!(batch.rooms().items * width, elements);
                    if looks_ahead {
                        cuda.adam_rows_replay_ahead(batch, &schedule, &mut features)?;
                    }
                    cuda.adam_rows_replay(batch, &schedule, &mut features)?;
                    let (dz, weight) = (view(&dz, 0..elements), view(&weight, 0..width * columns));
                    let features = &mut features;
                    cuda.adam_rows(batch, dz, weight, &schedule, features, 0, &mut losses)
                };
                for number in numbers_of_batches {
                    let one = number..number + 1;
                    cuda.each_batch(&mut batches, one, &mut step, &mut || true).unwrap();
                }
                states.push(read(cuda, &features));
            }
            cuda.adam_rows_replay_all(5, &schedule, &mut features).unwrap();
            (states, read(cuda, &features))
        };
        let ((without, end_without), (with, end_with)) = (run(false), run(true));
        let touched = |ahead: bool| -> Vec<u32> {
            let current = |row: &u32| [3, 5, 7].contains(row);
            let next = |row: &u32| ahead && batches_of[1].contains(row);
            (0..rows as u32).map(|row| if current(&row) || next(&row) { 3 } else { 1 }).collect()
        };
        assert_eq!((&without[0].touched, &with[0].touched), (&touched(false), &touched(true)));
        assert!(end_without == end_with, "bits differ");
    });
}
