//! `multiply.cu`, `sum_slices.cu`, `leaky_relu.cu`: the predictor and the layers of the paper's
//! form, forward and backward.

use bm3_engine::backend::{Backend, BatchRooms, view, view_mut};
use bm3_engine::cpu::Cpu;
use bm3_engine::real::Real;

use crate::check::{
    BatchCase, SPLIT, close, collect, download, magnitudes, numbers, on_device, places, roundings,
    spread, upload,
};

/// Rows and widths: less than a tile, a tile, and a rest; a depth of several slices.
const SHAPES: [(usize, usize); 8] =
    [(1, 4), (3, 12), (64, 64), (65, 68), (200, 36), (700, 64), (130, 132), (3, 512)];

fn to_f64<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

fn predict<B: Backend>(backend: &B, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<B::Real> {
    let buffers = [x, weight, bias].map(|values| upload(backend, values));
    let mut p = upload(backend, &vec![7.0; x.len()]);
    let whole = |index: usize, values: &[f32]| view(&buffers[index], 0..values.len());
    let target = view_mut(&mut p, 0..x.len());
    backend.predict(None, whole(0, x), whole(1, weight), whole(2, bias), target).unwrap();
    download(backend, &p, x.len())
}

#[test]
fn predictions_agree_with_the_cpu() {
    on_device(|cuda| {
        for (rows, width) in SHAPES {
            let (x, weight) = (numbers(1, rows * width), numbers(2, width * width));
            let bias = numbers(3, width);
            let cpu = Cpu::<f64>::new();
            let expected = predict(&cpu, &x, &weight, &bias);
            let sizes = predict(&cpu, &magnitudes(&x), &magnitudes(&weight), &magnitudes(&bias));
            let found = predict(cuda, &x, &weight, &bias);
            let allowed = SPLIT + roundings(width);
            close(&format!("p of {rows} rows, d = {width}"), &found, &expected, &sizes, allowed);
        }
    });
}

/// A batch of `rows` rows, at least three, with one modality, so that its items' rows come twice.
fn batch_of(rows: usize) -> BatchCase {
    let items = (rows / 3) as u32;
    let users = rows as u32 - 2 * items;
    BatchCase::new((0..users).collect(), (0..users).map(|user| user.min(items - 1)).collect())
}

/// dW and db in one, and dx, over the rows of a batch.
fn predict_backward<B: Backend>(
    backend: &B,
    case: &BatchCase,
    gradient: &[f32],
    x: &[f32],
    weight: &[f32],
) -> (Vec<B::Real>, Vec<B::Real>) {
    let width = weight.len().isqrt();
    let weight_buffer = upload(backend, weight);
    let parameters = width * width + width;
    case.with(backend, |batch| {
        let rooms = batch.rooms();
        let (places, rows) = (places(&case.host(), rooms, 1), rooms.users + 2 * rooms.items);
        let elements = rows * width;
        // Rows that the batch does not fill have no gradient and arbitrary x.
        let gradient = upload(backend, &spread(gradient, &places, rows, width, 0.0));
        let x = upload(backend, &spread(x, &places, rows, width, 3.0));
        // The gradient starts in the middle of its arena, as in a step.
        let mut arena = upload(backend, &vec![7.0; parameters + 8]);
        let mut input = upload(backend, &vec![7.0; elements]);
        let (gradient, x) = (|| view(&gradient, 0..elements), view(&x, 0..elements));
        let target = view_mut(&mut arena, 4..4 + parameters);
        backend.predict_gradient(batch, gradient(), x, target).unwrap();
        let weight = view(&weight_buffer, 0..weight.len());
        let target = view_mut(&mut input, 0..elements);
        backend.predict_backward(batch, gradient(), weight, target).unwrap();
        let arena = download(backend, &arena, parameters + 8);
        assert!(arena[..4].iter().chain(&arena[4 + parameters..]).all(|v| v.to_f64() == 7.0));
        let input = collect(&download(backend, &input, elements), &places, width);
        (arena[4..4 + parameters].to_vec(), input)
    })
}

/// A batch's rows are predicted like those of a whole matrix, whatever the other rows hold.
#[test]
fn predictions_of_a_batch_are_those_of_its_rows() {
    on_device(|cuda| {
        let width = 12;
        let (weight, bias) = (numbers(2, width * width), numbers(3, width));
        for rows in [3, 75, 200] {
            let x = numbers(1, rows * width);
            let expected = predict(cuda, &x, &weight, &bias);
            for case in [batch_of(rows), batch_of(rows).short()] {
                let found = case.with(cuda, |batch| {
                    let rooms = batch.rooms();
                    let places = places(&case.host(), rooms, 1);
                    let all = rooms.users + 2 * rooms.items;
                    let x = upload(cuda, &spread(&x, &places, all, width, 3.0));
                    let [weight, bias] = [&weight, &bias].map(|values| upload(cuda, values));
                    let mut p = upload(cuda, &vec![7.0; all * width]);
                    cuda.predict(
                        Some(batch),
                        view(&x, 0..all * width),
                        view(&weight, 0..width * width),
                        view(&bias, 0..width),
                        view_mut(&mut p, 0..all * width),
                    )
                    .unwrap();
                    collect(&download(cuda, &p, all * width), &places, width)
                });
                assert_eq!(found, expected, "{rows} rows");
            }
        }
    });
}

#[test]
fn gradients_of_predictions_agree_with_the_cpu() {
    on_device(|cuda| {
        for (rows, width) in SHAPES {
            let rows = rows.max(3);
            let (gradient, x) = (numbers(1, rows * width), numbers(2, rows * width));
            let weight = numbers(3, width * width);
            let (cpu, case) = (Cpu::<f64>::new(), batch_of(rows));
            let (expected, expected_input) = predict_backward(&cpu, &case, &gradient, &x, &weight);
            let [gradient_size, x_size, weight_size] =
                [&gradient, &x, &weight].map(|values| magnitudes(values));
            let (sizes, input_sizes) =
                predict_backward(&cpu, &case, &gradient_size, &x_size, &weight_size);
            for case in [case.short(), case] {
                let (found, input) = predict_backward(cuda, &case, &gradient, &x, &weight);
                let name = format!("{rows} rows, d = {width}");
                let allowed = SPLIT + roundings(rows);
                close(&format!("dW, db of {name}"), &found, &expected, &sizes, allowed);
                let allowed = SPLIT + roundings(width);
                close(&format!("dx of {name}"), &input, &expected_input, &input_sizes, allowed);
            }
        }
    });
}

fn layer<B: Backend>(backend: &B, x: &[f32], weight: &[f32]) -> Vec<B::Real> {
    let buffers = [x, weight].map(|values| upload(backend, values));
    let mut y = upload(backend, &vec![7.0; x.len()]);
    let (x_view, w_view) = (view(&buffers[0], 0..x.len()), view(&buffers[1], 0..weight.len()));
    backend.gcn_layer(x_view, w_view, view_mut(&mut y, 0..x.len())).unwrap();
    download(backend, &y, x.len())
}

#[test]
fn layers_of_the_papers_form_agree_with_the_cpu() {
    on_device(|cuda| {
        for (rows, width) in SHAPES {
            let (x, weight) = (numbers(1, rows * width), numbers(2, width * width));
            let cpu = Cpu::<f64>::new();
            let expected = layer(&cpu, &x, &weight);
            // LeakyReLU does not enlarge an error.
            let sizes = layer(&cpu, &magnitudes(&x), &magnitudes(&weight));
            let found = layer(cuda, &x, &weight);
            let allowed = SPLIT + 1.0 + roundings(width);
            close(
                &format!("layer of {rows} rows, d = {width}"),
                &found,
                &expected,
                &sizes,
                allowed,
            );
        }
    });
}

/// The gradients of x and of W, for a given output `y`.
fn layer_backward<B: Backend>(
    backend: &B,
    x: &[f32],
    weight: &[f32],
    y: &[f32],
    gradient: &[f32],
) -> (Vec<B::Real>, Vec<B::Real>) {
    let buffers = [x, weight, y].map(|values| upload(backend, values));
    let mut gradient_buffer = upload(backend, gradient);
    let mut x_gradient = upload(backend, &vec![7.0; x.len()]);
    let mut weight_gradient = upload(backend, &vec![7.0; weight.len()]);
    backend
        .gcn_layer_backward(
            view(&buffers[0], 0..x.len()),
            view(&buffers[1], 0..weight.len()),
            view(&buffers[2], 0..y.len()),
            view_mut(&mut gradient_buffer, 0..gradient.len()),
            view_mut(&mut x_gradient, 0..x.len()),
            view_mut(&mut weight_gradient, 0..weight.len()),
        )
        .unwrap();
    (download(backend, &x_gradient, x.len()), download(backend, &weight_gradient, weight.len()))
}

#[test]
fn gradients_of_layers_agree_with_the_cpu() {
    on_device(|cuda| {
        for (rows, width) in SHAPES {
            let (x, weight) = (numbers(1, rows * width), numbers(2, width * width));
            // Both signs, and zeros, where the lower slope applies.
            let (y, gradient) = (numbers(3, rows * width), numbers(4, rows * width));
            let cpu = Cpu::<f64>::new();
            let (expected, expected_weight) = layer_backward(&cpu, &x, &weight, &y, &gradient);
            let [x_size, weight_size, gradient_size] =
                [&x, &weight, &gradient].map(|values| magnitudes(values));
            let (sizes, weight_sizes) =
                layer_backward(&cpu, &x_size, &weight_size, &y, &gradient_size);
            let (found, found_weight) = layer_backward(cuda, &x, &weight, &y, &gradient);
            let name = format!("{rows} rows, d = {width}");
            // The slope 0.2 is rounded, and so is its product.
            let allowed = SPLIT + 2.0 + roundings(width);
            close(&format!("dx of {name}"), &found, &expected, &sizes, allowed);
            let allowed = SPLIT + 2.0 + roundings(rows);
            close(
                &format!("dW of {name}"),
                &found_weight,
                &expected_weight,
                &weight_sizes,
                allowed,
            );
        }
    });
}

/// Products of numbers that TF32 holds exactly, with sums that f32 holds exactly: nothing is
/// rounded, so a missing or doubled product shows in full.
#[test]
fn small_integers_are_multiplied_exactly() {
    on_device(|cuda| {
        for (rows, width) in SHAPES {
            let integers = |seed, count| -> Vec<f32> {
                numbers(seed, count).iter().map(|value| (value * 9.0).round()).collect()
            };
            let (x, weight) = (integers(1, rows * width), integers(2, width * width));
            let bias = integers(3, width);
            let expected = to_f64(&predict(&Cpu::<f64>::new(), &x, &weight, &bias));
            assert_eq!(to_f64(&predict(cuda, &x, &weight, &bias)), expected);
            if rows > 2 {
                let case = batch_of(rows);
                let expected = predict_backward(&Cpu::<f64>::new(), &case, &x, &x, &weight);
                let found = predict_backward(cuda, &case.short(), &x, &x, &weight);
                assert_eq!(to_f64(&found.0), expected.0);
                assert_eq!(to_f64(&found.1), expected.1);
            }
        }
    });
}
