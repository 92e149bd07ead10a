//! The interaction graph (SPEC §2): Â = D^-1/2 A D^-1/2 over users and items.

use crate::data::Pairs;

/// The reference code adds this to every degree before taking the root.
const DEGREE_EPSILON: f64 = 1e-7;

/// The symmetric bipartite adjacency of the distinct training pairs, as compressed rows.
///
/// Nodes are users first, then items: item i is node U + i. Â is never stored: its value on an
/// edge is `scale(a) · scale(b)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    users: usize,
    items: usize,
    offsets: Vec<usize>,
    neighbours: Vec<u32>,
}

impl Graph {
    /// Builds the graph of `pairs`, whose ids are below `users` and `items`; repeated pairs
    /// collapse.
    ///
    /// With `self_loops` every node is also its own neighbour, and the loop counts in its degree.
    pub fn new(pairs: &Pairs, users: usize, items: usize, self_loops: bool) -> Self {
        let mut edges: Vec<u64> = Vec::with_capacity(pairs.users.len() * 2 + users + items);
        for (&user, &item) in pairs.users.iter().zip(&pairs.items) {
            let (user, item) = (u64::from(user), users as u64 + u64::from(item));
            edges.push(user << 32 | item);
            edges.push(item << 32 | user);
        }
        if self_loops {
            edges.extend((0..(users + items) as u64).map(|node| node << 32 | node));
        }
        rayon::slice::ParallelSliceMut::par_sort_unstable(&mut edges[..]);
        edges.dedup();
        let mut offsets = vec![0; users + items + 1];
        for edge in &edges {
            offsets[(edge >> 32) as usize + 1] += 1;
        }
        for node in 0..users + items {
            offsets[node + 1] += offsets[node];
        }
        let neighbours = edges.iter().map(|&edge| edge as u32).collect();
        Self { users, items, offsets, neighbours }
    }

    /// U, the number of users.
    pub fn users(&self) -> usize {
        self.users
    }

    /// I, the number of items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// N = U + I.
    pub fn nodes(&self) -> usize {
        self.users + self.items
    }

    /// The number of stored entries of A: both directions of every pair, and the loops.
    pub fn entries(&self) -> usize {
        self.neighbours.len()
    }

    /// N + 1 bounds of the rows in [`Graph::all_neighbours`].
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The neighbours of all nodes, row by row, ascending in each.
    pub fn all_neighbours(&self) -> &[u32] {
        &self.neighbours
    }

    /// The neighbours of a node, ascending.
    pub fn neighbours(&self, node: usize) -> &[u32] {
        &self.neighbours[self.offsets[node]..self.offsets[node + 1]]
    }

    /// The items of a user's training pairs, ascending, as item ids.
    pub fn items_of(&self, user: usize) -> impl Iterator<Item = u32> + '_ {
        let users = self.users as u32;
        // A self-loop of the user is a node below U, not an item.
        self.neighbours(user).iter().filter_map(move |&node| node.checked_sub(users))
    }

    /// The users of an item's training pairs, ascending.
    pub fn users_of(&self, item: usize) -> impl Iterator<Item = u32> + '_ {
        let users = self.users as u32;
        self.neighbours(self.users + item).iter().copied().take_while(move |&node| node < users)
    }

    /// (degree + 10⁻⁷)^-1/2 of a node: the factor that each end of an edge contributes to Â.
    pub fn scale(&self, node: usize) -> f64 {
        let degree = (self.offsets[node + 1] - self.offsets[node]) as f64;
        1.0 / (degree + DEGREE_EPSILON).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The graph is symmetric and has each pair once, and nothing else.
        #[test]
        fn holds_each_distinct_pair_in_both_directions(
            pairs in prop::collection::vec((0u32..9, 0u32..7), 0..60), self_loops: bool
        ) {
            let (users, items) = pairs.iter().copied().unzip();
            let graph = Graph::new(&Pairs { users, items }, 9, 7, self_loops);
            for node in 0..16u32 {
                let expected: Vec<u32> = (0..16u32)
                    .filter(|&other| {
                        (self_loops && node == other)
                            || pairs.iter().any(|&(user, item)| {
                                (user, item + 9) == (node, other) || (user, item + 9) == (other, node)
                            })
                    })
                    .collect();
                prop_assert_eq!(graph.neighbours(node as usize), &expected);
            }
            for user in 0..9 {
                prop_assert!(graph.items_of(user).all(|item| item < 7));
            }
        }
    }
}
