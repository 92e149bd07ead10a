//! Many runs at once: every configuration of a grid with every seed, on one copy of the data.
//!
//! A sweep's directory has one ordinary run directory for each run, so that a run can be evaluated,
//! asked and continued like any other, and its numbers are those of that run alone: runs share what
//! none of them changes (interactions, graph, frozen features), and nothing else.
//!
//! [`Plan`] says what is tried, [`SweepDirectory`] keeps it, [`Sweep`] trains, [`Results`] compares.

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
