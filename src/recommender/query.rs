//! Who a list is for, and what it leaves out.

/// A request for a list of items.
///
/// The list leaves out the items that the user interacted with in training, or the items that the
/// query is made of, unless [`Query::with_seen`] is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    pub(super) whom: Whom<'a>,
    pub(super) excluded: &'a [u32],
    pub(super) with_seen: bool,
}

/// Who a list is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom<'a> {
    /// A user of the training data.
    User(u32),
    /// A new user who has interacted with these items.
    Items(&'a [u32]),
}

impl<'a> Query<'a> {
    /// A query for a user of the training data, by number.
    pub fn user(user: u32) -> Self {
        Self { whom: Whom::User(user), excluded: &[], with_seen: false }
    }

    /// A query for a new user who has interacted with these items (at least one; their order does
    /// not matter, and repeats count once).
    ///
    /// In place of a row p(H_u) it uses the mean of the items' rows H_i, each weighted by 1/√degree
    /// as in Â: the loss of equation (6) makes p(H_u) point in the direction of the rows of the
    /// user's items. The model's own items without interactions count only once they are scored by
    /// their features, or if there are no others. They and items added after training are weighted
    /// as items of mean degree. On Last.fm-2K this serves users left out of training nearly as well
    /// (Recall@20 .322) as training on them (.336; `examples/cold_start.rs`).
    pub fn items(items: &'a [u32]) -> Self {
        Self { whom: Whom::Items(items), excluded: &[], with_seen: false }
    }

    /// Also leaves out these items, in any order.
    #[must_use]
    pub fn excluding(self, items: &'a [u32]) -> Self {
        Self { excluded: items, ..self }
    }

    /// Also lists items that the user has interacted with.
    #[must_use]
    pub fn with_seen(self) -> Self {
        Self { with_seen: true, ..self }
    }
}
