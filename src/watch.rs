//! The first non-finite number of a run, watched for at every step.
//!
//! A loss term, a gradient or a parameter that becomes NaN or infinite spoils everything after it.
//! Each step checks its losses when it updates the parameters, and each update checks the values it
//! writes, so nothing is read for this alone. A device keeps the first failure until it is asked,
//! once per epoch. Whatever it does until then, the answer is the step at which a device that stops
//! at once would have stopped.

/// What was not finite, and at which step (from 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Failure {
    /// The optimiser's step.
    pub step: u32,
    /// What was not finite.
    pub place: Place,
}

/// What was not finite. Of several at one step, the first in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// The sum of a loss term.
    Loss {
        /// The number of the term, see [`crate::step::loss_names`].
        term: usize,
        /// The sum: NaN or an infinity.
        value: f64,
    },
    /// Dense parameters, their moments or their gradient.
    Dense {
        /// The index in the arena of the first of four elements; one of them is not finite.
        element: usize,
    },
    /// Trained features, their moments or their gradient.
    Features {
        /// The modality's number.
        modality: usize,
        /// The row.
        item: u32,
    },
}

/// What a device has seen so far: the first failure of each kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Watch {
    /// The step, the term and its sum.
    pub loss: Option<(u32, u32, f64)>,
    /// The step and a quarter of the element's index.
    pub dense: Option<(u32, u32)>,
    /// The step and the item, for each modality.
    pub features: Vec<Option<(u32, u32)>>,
}

impl Watch {
    /// Nothing seen yet, for `modalities` modalities.
    pub fn new(modalities: usize) -> Self {
        Self { features: vec![None; modalities], ..Self::default() }
    }

    /// The first failure.
    pub fn first(&self) -> Option<Failure> {
        let loss = self.loss.map(|(step, term, value)| Failure {
            step,
            place: Place::Loss { term: term as usize, value },
        });
        let dense = self.dense.map(|(step, quarter)| Failure {
            step,
            place: Place::Dense { element: 4 * quarter as usize },
        });
        let features = self.features.iter().enumerate().filter_map(|(modality, seen)| {
            seen.map(|(step, item)| Failure { step, place: Place::Features { modality, item } })
        });
        // At equal steps, `min_by_key` keeps the first of this order.
        loss.into_iter().chain(dense).chain(features).min_by_key(|failure| failure.step)
    }
}

/// Keeps the earlier of two sightings or, at the same step, the one with the smaller number.
pub(crate) fn keep_first(seen: &mut Option<(u32, u32)>, new: (u32, u32)) {
    *seen = Some(seen.map_or(new, |seen| seen.min(new)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_counts_and_then_the_loss() {
        let mut watch = Watch::new(2);
        assert_eq!(watch.first(), None);
        watch.features[1] = Some((7, 3));
        let place = Place::Features { modality: 1, item: 3 };
        assert_eq!(watch.first(), Some(Failure { step: 7, place }));
        keep_first(&mut watch.dense, (7, 9));
        keep_first(&mut watch.dense, (8, 1));
        keep_first(&mut watch.dense, (7, 5));
        let place = Place::Dense { element: 20 };
        assert_eq!(watch.first(), Some(Failure { step: 7, place }));
        watch.loss = Some((8, 0, f64::INFINITY));
        assert_eq!(watch.first(), Some(Failure { step: 7, place }));
        watch.loss = Some((7, 2, f64::INFINITY));
        let place = Place::Loss { term: 2, value: f64::INFINITY };
        assert_eq!(watch.first(), Some(Failure { step: 7, place }));
    }
}
