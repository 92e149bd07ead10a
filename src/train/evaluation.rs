//! Evaluation during training (SPEC §9): the users measured and the items sought in their lists.

use super::STOPPING_LENGTH;
use crate::Result;
use crate::backend::Backend;
use crate::config::TrainConfig;
use crate::data::{Dataset, Split};
use crate::evaluate;
use crate::records::Metrics;
use crate::step::DeviceModel;

/// The list lengths that a run measures, ascending: the configured ones and [`STOPPING_LENGTH`].
pub(crate) fn measured_lengths(config: &TrainConfig) -> Vec<usize> {
    let mut lengths = config.top_k.clone();
    lengths.push(STOPPING_LENGTH);
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// The parts shared by all evaluations on a data set.
pub(crate) struct Evaluation<B: Backend> {
    /// The users of both splits, each once.
    users: Vec<u32>,
    /// The length of their lists.
    longest: usize,
    /// The items sought for the validation and for the test split; `None` for a split without
    /// users.
    wanted: [Option<B::Wanted>; 2],
}

impl<B: Backend> Evaluation<B> {
    /// Evaluations at `lengths`, with lists of at least [`STOPPING_LENGTH`].
    pub fn new(backend: &B, dataset: &Dataset, lengths: &[usize]) -> Result<Self> {
        let users = evaluate::users_of(&[&dataset.valid, &dataset.test]);
        let wanted = |split: &Split| {
            (!split.users.is_empty()).then(|| backend.wanted(split, &users, lengths)).transpose()
        };
        let wanted = [wanted(&dataset.valid)?, wanted(&dataset.test)?];
        let longest = lengths.iter().copied().max().unwrap_or(0).max(STOPPING_LENGTH);
        Ok(Self { users, longest, wanted })
    }

    /// Both splits' metrics from one scoring pass; `None` for a split without users.
    pub fn measure(
        &self,
        model: &mut DeviceModel<B>,
    ) -> Result<(Option<Metrics>, Option<Metrics>)> {
        let lists = model.lists(&self.users, self.longest)?;
        let measure = |wanted: &Option<B::Wanted>| {
            wanted.as_ref().map(|wanted| model.backend().metrics(wanted, &lists)).transpose()
        };
        let [valid, test] = &self.wanted;
        Ok((measure(valid)?, measure(test)?))
    }
}
