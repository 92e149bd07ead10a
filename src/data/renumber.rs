//! Interactions under the numbers of another data set of the same users and items.

use std::collections::HashMap;

use super::{DataError, Dataset, IdMaps, Pairs};

/// The new number of each old one; `None` for an id that has none.
struct Numbers {
    users: Vec<Option<u32>>,
    items: Vec<Option<u32>>,
}

impl Numbers {
    fn new(from: &IdMaps, to: &IdMaps) -> Self {
        let numbers = |from: &[String], to: &[String]| {
            let number_of: HashMap<&str, u32> = to.iter().map(String::as_str).zip(0..).collect();
            from.iter().map(|id| number_of.get(id.as_str()).copied()).collect()
        };
        Self { users: numbers(&from.users, &to.users), items: numbers(&from.items, &to.items) }
    }

    /// The pairs whose user and item have new numbers.
    fn of(&self, pairs: impl Iterator<Item = (u32, u32)>) -> Pairs {
        let number =
            |numbers: &[Option<u32>], old: u32| numbers.get(old as usize).copied().flatten();
        let (users, items) = pairs
            .filter_map(|(user, item)| {
                Some((number(&self.users, user)?, number(&self.items, item)?))
            })
            .unzip();
        Pairs { users, items }
    }
}

impl Dataset {
    /// The interactions of this data set under the numbers that `to` gives to its ids, which `from`
    /// names, without features; and how many interactions are left out, because their user or item
    /// is not in `to` or is a held-out user without training interactions. The result has as many
    /// users and items as `to`.
    ///
    /// # Errors
    /// [`DataError::Parts`] if no training interaction remains.
    pub fn renumbered(&self, from: &IdMaps, to: &IdMaps) -> Result<(Self, usize), DataError> {
        let numbers = Numbers::new(from, to);
        let train = self.train.users.iter().copied().zip(self.train.items.iter().copied());
        let train = numbers.of(train);
        let [valid, test] = [&self.valid, &self.test].map(|split| {
            let pairs = split.users.iter().zip(split.offsets.windows(2)).flat_map(|(&user, of)| {
                split.items[of[0]..of[1]].iter().map(move |&item| (user, item))
            });
            numbers.of(pairs)
        });
        let sizes = (to.users.len(), to.items.len());
        let splits = [&valid, &test];
        let renumbered =
            Self::assemble(&self.name, train, splits, sizes, Vec::new(), &mut |_, _, _| ())?;
        let left_out = self.interactions() - renumbered.interactions();
        Ok((renumbered, left_out))
    }

    /// The number of interactions in all splits.
    fn interactions(&self) -> usize {
        self.train.items.len() + self.valid.items.len() + self.test.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(users: &[&str], items: &[&str]) -> IdMaps {
        let owned = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect();
        IdMaps { users: owned(users), items: owned(items) }
    }

    #[test]
    fn interactions_follow_their_ids() {
        let data = Dataset::builder("shop")
            .train(&[0, 0, 1, 2], &[0, 1, 2, 1])
            .valid(&[0, 1, 1], &[2, 0, 1])
            .build()
            .unwrap();
        let from = maps(&["ann", "bob", "new"], &["A", "B", "C"]);
        let to = maps(&["eve", "bob", "ann"], &["C", "X", "A"]);
        let (renumbered, left_out) = data.renumbered(&from, &to).unwrap();
        assert_eq!((renumbered.users, renumbered.items, left_out), (3, 3, 3));
        // B and the new user are unknown.
        assert_eq!(renumbered.train, Pairs { users: vec![2, 1], items: vec![2, 0] });
        assert_eq!(renumbered.valid.users, [2, 1]);
        assert_eq!(
            (renumbered.valid.items_of(0), renumbered.valid.items_of(1)),
            (&[0][..], &[2][..])
        );
        let (same, none) = data.renumbered(&from, &from).unwrap();
        assert_eq!((same.interactions_fingerprint(), none), (data.interactions_fingerprint(), 0));
        data.renumbered(&from, &maps(&["x"], &["y"])).unwrap_err();
    }
}
