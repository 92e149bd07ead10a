//! Every operation of the CUDA backend against the CPU backend in f64, over odd sizes.
//!
//! The kernels run in the emulator (`tests/emulator`), which runs threads and blocks in several
//! orders one after the other. This exposes a result that depends on the order, such as one with a
//! missing barrier. With `BM3_TEST_GPU=1` they run on the GPU.
//!
//! Tolerances are derived. Each output is a sum of products. The same operation on the magnitudes
//! of its inputs gives Σ|products| for each output, and the distance from f64 may be as many
//! roundings of that as the operation does in a row, see [`check::close`].

#[path = "../emulator/mod.rs"]
mod emulator;

mod adam;
mod batches;
mod ceilings;
mod check;
mod dense;
mod features;
mod loss;
mod metrics;
mod norms;
mod random;
mod rows;
mod spmm;
mod top_k;
mod watch;
