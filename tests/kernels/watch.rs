//! `watch.cuh`: the first number that is not finite, as `adam.cu`, `adam_rows.cu` and
//! `watch_losses` see it, and the CPU backend's twin of each.

use bm3_engine::backend::{AdamStep, Backend, BatchRooms, view};
use bm3_engine::batch::Batch;
use bm3_engine::cpu::Cpu;
use bm3_engine::step::{adam_step, fresh_features};
use bm3_engine::watch::{Failure, Place};

use crate::check::{on_device, updated, upload};

const NAN: f32 = f32::NAN;
const INFINITE: f32 = f32::INFINITY;

/// Ordinary constants of steps.
fn history(steps: u64) -> Vec<AdamStep> {
    (1..=steps).map(|step| adam_step(step, 0.01)).collect()
}

/// Runs a body on the device and on the CPU.
macro_rules! on_both {
    ($backend:ident => $body:expr) => {{
        {
            let $backend = &Cpu::<f32>::new();
            $body
        }
        on_device(|$backend| $body);
    }};
}

/// The failure in dense steps with these constants and gradients, each half of the elements in
/// turn, and with loss sums of `sums`.
fn dense<B: Backend<Real = f32>>(
    backend: &B,
    history: &[AdamStep],
    gradients: &[Vec<f32>],
    sums: &[f64],
) -> Option<Failure> {
    let mut schedule = Default::default();
    backend.set_schedule(&mut schedule, 0, history).unwrap();
    let elements = gradients[0].len();
    let mut arenas = [(); 3].map(|()| upload(backend, &vec![0.5; elements]));
    let mut losses = backend.losses(sums).unwrap();
    for (step, gradients) in gradients.iter().enumerate() {
        let batch = backend.upload_batch(Batch::new(&[0], &[0]), step as u32 + 1).unwrap();
        let gradients = upload(backend, gradients);
        // The later half first: the smaller element is kept, in either order.
        let middle = (elements / 2).next_multiple_of(4);
        for range in [middle..elements, 0..middle] {
            let gradients = view(&gradients, range.clone());
            let updated = updated(&mut arenas, range);
            backend.adam(&batch, &schedule, gradients, updated, &mut losses).unwrap();
        }
        backend.watch_losses(&batch, &mut losses).unwrap();
    }
    backend.failure(&losses).unwrap()
}

fn in_dense(step: u32, element: usize) -> Option<Failure> {
    Some(Failure { step, place: Place::Dense { element } })
}

#[test]
fn gradients_that_are_not_finite_are_seen_where_they_are() {
    on_both!(backend => {
        let good = vec![0.25f32; 1200];
        let with = |places: &[(usize, f32)]| {
            let mut gradients = good.clone();
            places.iter().for_each(|&(place, value)| gradients[place] = value);
            gradients
        };
        let see = |steps: &[Vec<f32>]| dense(backend, &history(3), steps, &[1.0; 3]);
        assert_eq!(see(&[good.clone(), good.clone()]), None);
        // Each of a thread's four elements, in threads of the first block and the last.
        for element in [0, 1, 2, 3, 4, 1021, 1196, 1199] {
            for value in [NAN, INFINITE, -INFINITE, 1e21] {
                let found = see(&[good.clone(), with(&[(element, value)])]);
                assert_eq!(found, in_dense(2, element / 4 * 4), "{element}: {value}");
            }
        }
        // Large, but its contribution to v is still finite.
        assert_eq!(see(&[with(&[(5, 1e19)])]), None);
        // The first of several steps, and the first element of a step.
        let bad = [with(&[(900, NAN), (40, INFINITE), (44, NAN)]), with(&[(0, NAN)])];
        assert_eq!(see(&bad), in_dense(1, 40));
        assert_eq!(see(&[good.clone(), bad[1].clone(), bad[0].clone()]), in_dense(2, 0));
    });
}

#[test]
fn parameters_that_are_moved_too_far_are_seen() {
    on_both!(backend => {
        let mut history = history(2);
        history[1].step_size = 1e39;
        let gradients = vec![vec![0.25f32; 8]; 2];
        assert_eq!(dense(backend, &history, &gradients, &[1.0; 3]), in_dense(2, 0));
    });
}

#[test]
fn the_first_loss_term_that_is_not_finite_is_kept_and_goes_before_gradients() {
    on_both!(backend => {
        let good = vec![0.25f32; 8];
        let bad = vec![NAN; 8];
        let infinite = f64::INFINITY;
        for (sums, term) in [
            ([infinite, 1.0, 1.0, 1.0, 1.0], 0),
            ([1.0, 1.0, infinite, 1.0, f64::NAN], 2),
            ([1.0, 1.0, 1.0, 1.0, infinite], 4),
        ] {
            let expected = |step| {
                let place = Place::Loss { term, value: infinite };
                Some(Failure { step, place })
            };
            let see = |steps: &[Vec<f32>]| dense(backend, &history(3), steps, &sums);
            assert_eq!(see(&[good.clone(), good.clone()]), expected(1));
            assert_eq!(see(&[bad.clone(), good.clone()]), expected(1));
        }
    });
}

/// The failure in one step of the rows of two modalities with these dz.
fn rows<B: Backend<Real = f32>>(
    backend: &B,
    dz: &[Vec<f32>; 2],
    step_size: f64,
) -> Option<Failure> {
    let (width, columns, count) = (4, 70, 90);
    // Two tiles of lines and two of columns.
    let items: Vec<u32> = (0..count).map(|position| 2 * position + 1).collect();
    let batch = Batch::new(&vec![0; items.len()], &items);
    let batch = backend.upload_batch(batch, 2).unwrap();
    let constants = AdamStep { step_size, ..adam_step(2, 0.01) };
    let mut schedule = Default::default();
    backend.set_schedule(&mut schedule, 0, &[adam_step(1, 0.01), constants]).unwrap();
    let mut losses = backend.losses(&[1.0; 7]).unwrap();
    let weight = upload(backend, &vec![0.5; width * columns]);
    for (modality, dz) in dz.iter().enumerate() {
        let state = fresh_features(vec![0.5; 200 * columns], 200);
        let mut features = backend.trained_features(state, columns).unwrap();
        let room = batch.rooms().items * width;
        let mut dz = dz.clone();
        // Rows that the batch does not fill are ignored.
        dz.resize(room, NAN);
        let dz = upload(backend, &dz);
        let (dz, weight) = (view(&dz, 0..room), view(&weight, 0..width * columns));
        let losses = &mut losses;
        backend.adam_rows(&batch, dz, weight, &schedule, &mut features, modality, losses).unwrap();
    }
    backend.failure(&losses).unwrap()
}

#[test]
fn rows_that_are_not_finite_are_seen_where_they_are() {
    on_both!(backend => {
        let good = vec![0.25f32; 90 * 4];
        let with = |positions: &[usize], value: f32| {
            let mut dz = good.clone();
            positions.iter().for_each(|&position| dz[4 * position + 1] = value);
            dz
        };
        let seen = |modality, item| {
            Some(Failure { step: 2, place: Place::Features { modality, item } })
        };
        assert_eq!(rows(backend, &[good.clone(), good.clone()], 0.01), None);
        for position in [0, 5, 63, 64, 89] {
            let item = 2 * position as u32 + 1;
            let bad = with(&[position], NAN);
            assert_eq!(rows(backend, &[bad.clone(), good.clone()], 0.01), seen(0, item));
            assert_eq!(rows(backend, &[good.clone(), bad], 0.01), seen(1, item));
        }
        let bad = with(&[80, 17, 18], 1e30);
        assert_eq!(rows(backend, &[good.clone(), bad.clone()], 0.01), seen(1, 35));
        assert_eq!(rows(backend, &[with(&[70], NAN), bad], 0.01), seen(0, 141));
        // A finite gradient that moves parameters too far.
        assert_eq!(rows(backend, &[good.clone(), good.clone()], 1e39), seen(0, 1));
    });
}
