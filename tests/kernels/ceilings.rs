//! `ceilings.cu`: the device's measured maximum rates.

use bm3_engine::backend::Backend;

use crate::check::on_device;

#[test]
fn ceilings_are_measured_on_right_results() {
    on_device(|cuda| {
        // Measuring fails if the results are wrong.
        let ceilings = cuda.ceilings().unwrap();
        let (tensor, upload) = (ceilings.tensor.unwrap(), ceilings.upload.unwrap());
        for rate in [ceilings.copy, ceilings.multiply_add, tensor, upload] {
            assert!(rate.is_finite() && rate > 0.0, "{ceilings:?}");
        }
    });
}
