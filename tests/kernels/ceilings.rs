//! `ceilings.cu`: what the device does at most, and that it is done.

use std::time::{Duration, Instant};

use bm3_engine::backend::Backend;

use crate::check::on_device;

#[test]
fn ceilings_are_measured_on_right_results() {
    on_device(|cuda| {
        // Wrong results are an error.
        let ceilings = cuda.ceilings().unwrap();
        let (tensor, upload) = (ceilings.tensor.unwrap(), ceilings.upload.unwrap());
        for rate in [ceilings.copy, ceilings.multiply_add, tensor, upload] {
            assert!(rate.is_finite() && rate > 0.0, "{ceilings:?}");
        }
    });
}

/// So that what is asked for meanwhile follows without gaps: a clock would see who asks, too.
#[test]
fn launches_that_are_timed_begin_when_they_have_been_asked_for() {
    on_device(|cuda| {
        let begun = Instant::now();
        let operations = cuda.profile(&mut || Ok(())).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(5), "the device was not held");
        assert!(operations.is_empty(), "{operations:?}");
    });
}
