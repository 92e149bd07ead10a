//! The devices to compute on.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::cpu::instruction_set;
use crate::cuda::{self, Kernels, Unusable};
use crate::wording::Caller;

/// The CPU and every GPU: the value for `device`, its name, and why it cannot be used, or `None`.
#[pyfunction]
pub fn devices(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let found = py.detach(|| {
        let kernels = Kernels::embedded();
        let threads = rayon::current_num_threads();
        let cpu = format!("CPU, {threads} threads, {}", instruction_set().name());
        // Without a driver there is no GPU to list.
        let gpus = cuda::gpus().unwrap_or_default().into_iter().map(|gpu| {
            let problem = cuda::can_run(&gpu, kernels.as_ref()).err();
            (
                Some(gpu.ordinal),
                gpu.name,
                problem.map(|problem| Caller::Python.words(&problem.to_string())),
            )
        });
        std::iter::once((None, cpu, None)).chain(gpus).collect::<Vec<_>>()
    });
    let list = PyList::empty(py);
    for (number, name, problem) in found {
        let device = PyDict::new(py);
        match number {
            Some(number) => device.set_item("device", number)?,
            None => device.set_item("device", "cpu")?,
        }
        device.set_item("name", name)?;
        device.set_item("problem", problem)?;
        list.append(device)?;
    }
    Ok(list)
}

/// Why `"auto"` picks the CPU although there is a GPU, or `None`.
#[pyfunction]
pub fn passed_over(py: Python<'_>) -> Option<String> {
    let reason = || {
        let reason = match cuda::gpus() {
            Ok(gpus) => {
                let gpu = gpus.into_iter().find(|gpu| gpu.ordinal == 0)?;
                cuda::can_run(&gpu, Kernels::embedded().as_ref()).err()?
            }
            Err(Unusable::NoDriver) => return None,
            Err(reason) => reason,
        };
        Some(Caller::Python.words(&reason.to_string()))
    };
    py.detach(reason)
}
