//! Whom a list is for, and what it leaves out.

/// A question for a list of items.
///
/// What its user has interacted with in training, or the items it is made of, are left out unless
/// [`Query::with_seen`] is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    pub(super) whom: Whom<'a>,
    pub(super) excluded: &'a [u32],
    pub(super) with_seen: bool,
}

/// Whom a list is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom<'a> {
    /// A user of the training data.
    User(u32),
    /// Somebody who has interacted with these items.
    Items(&'a [u32]),
}

impl<'a> Query<'a> {
    /// For a user of the training data, by number.
    pub fn user(user: u32) -> Self {
        Self { whom: Whom::User(user), excluded: &[], with_seen: false }
    }

    /// For somebody the model was not trained on, who has interacted with these items (at least one;
    /// the order decides nothing, repeats count once).
    ///
    /// In the place of a row p(H_u) stands the mean of the items' rows H_i, each weighted by 1/√degree
    /// as in Â: the loss of equation (6) makes p(H_u) point where the rows of the user's items point.
    /// The model's own items without interactions count once they are scored by their features, or where
    /// there are no others; they, and items added after training, as ones of the mean degree.
    /// On Last.fm-2K users left out of training are served nearly as well by it (Recall@20 .322) as by
    /// training on them (.336; `examples/cold_start.rs`).
    pub fn items(items: &'a [u32]) -> Self {
        Self { whom: Whom::Items(items), excluded: &[], with_seen: false }
    }

    /// Leaves out these items as well, in any order.
    #[must_use]
    pub fn excluding(self, items: &'a [u32]) -> Self {
        Self { excluded: items, ..self }
    }

    /// Recommends items that were interacted with, too.
    #[must_use]
    pub fn with_seen(self) -> Self {
        Self { with_seen: true, ..self }
    }
}
