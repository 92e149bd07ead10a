//! What of a run's numbers was the first not to be finite, watched at every step.
//!
//! A loss term, a gradient or a parameter that becomes NaN or infinite spoils all that comes after.
//! Each step's losses are looked at when its parameters are updated, and each updated parameter by
//! whoever updates it, so that nothing is read for this alone. A device keeps what it has seen until
//! it is asked, which is once an epoch, and it keeps the first: whatever it does until then, the
//! answer is the step at which a device that stops at once would have stopped.

/// What was not finite, and at which step (from 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Failure {
    /// The optimiser's step.
    pub step: u32,
    /// What was not finite.
    pub place: Place,
}

/// What was not finite. Of several at one step, the first of these.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// A loss term, by its number; its sum became this.
    Loss {
        /// The number of the term, see [`crate::step::loss_names`].
        term: usize,
        /// NaN or an infinity.
        value: f64,
    },
    /// Dense parameters or, before them, their moments or gradient.
    Dense {
        /// The first of the four elements in the arena of which one it is.
        element: usize,
    },
    /// Trained features or, before them, their moments or gradient.
    Features {
        /// The modality's number.
        modality: usize,
        /// The row.
        item: u32,
    },
}

/// What a device has seen so far: of each kind the first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Watch {
    /// The step, the term and its sum.
    pub loss: Option<(u32, u32, f64)>,
    /// The step and a quarter of the element's number.
    pub dense: Option<(u32, u32)>,
    /// The step and the item, for each modality.
    pub features: Vec<Option<(u32, u32)>>,
}

impl Watch {
    /// Nothing seen, of so many modalities.
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
        // Of equal steps the first is kept.
        loss.into_iter().chain(dense).chain(features).min_by_key(|failure| failure.step)
    }
}

/// Keeps the smaller of two sightings: the earlier, and of one step that of the smaller number.
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
