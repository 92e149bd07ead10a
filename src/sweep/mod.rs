//! Many runs at once: every configuration of a grid with every seed, on one copy of the data.
//!
//! A sweep's directory has an ordinary run directory for each run, so that a run can be evaluated,
//! queried and continued like any other. Its numbers are the same as if it were trained alone: runs
//! share only what none of them changes (interactions, graph, frozen features).
//!
//! [`Plan`] says what to try, [`SweepDirectory`] keeps it, [`Sweep`] trains, [`Results`] compares.

mod capacity;
mod directory;
mod host;
mod lanes;
mod plan;
mod results;

pub use capacity::{Room, on_cpu, on_gpu};
pub use directory::{RESULTS, RESULTS_TABLE, SWEEP, SweepDirectory};
pub use lanes::{Event, Lanes, Sweep, Watcher};
pub use plan::{Choice, Plan, PlannedRun};
pub use results::{ConfigurationResult, Outcome, Results, RunResult, Spread, Spreads};
