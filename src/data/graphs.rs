//! The training graph of a data set, built on first use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Pairs;
use crate::graph::Graph;

/// The graphs without and with self-loops, each with the fingerprint of its pairs: a data set's
/// fields are public, so the pairs may have changed since.
#[derive(Debug, Default)]
pub(super) struct Graphs(Mutex<[Kept; 2]>);

/// A graph and the fingerprint of its pairs.
type Kept = Option<(u64, Arc<Graph>)>;

impl Graphs {
    /// The graph of these pairs, shared by all callers.
    ///
    /// It is built without holding the lock: rayon sorts it, and a thread that waits for the pool
    /// takes up other work, which may ask for the same graph.
    pub fn get(&self, pairs: &Pairs, users: usize, items: usize, self_loops: bool) -> Arc<Graph> {
        let made_of = fingerprint(pairs, users, items);
        let kept = || {
            let graphs = self.lock();
            let kept = graphs[usize::from(self_loops)].as_ref();
            kept.filter(|(of, _)| *of == made_of).map(|(_, graph)| graph.clone())
        };
        if let Some(graph) = kept() {
            return graph;
        }
        let made = Arc::new(Graph::new(pairs, users, items, self_loops));
        let slot = &mut self.lock()[usize::from(self_loops)];
        match slot {
            // Another thread was faster.
            Some((of, graph)) if *of == made_of => graph.clone(),
            _ => slot.insert((made_of, made)).1.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Kept; 2]> {
        // A panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Graphs {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }
}

/// A hash of the sizes and all pairs, word by word, since it is computed on every request for a
/// graph.
fn fingerprint(pairs: &Pairs, users: usize, items: usize) -> u64 {
    let sizes = [users as u64, items as u64, pairs.users.len() as u64];
    let of_pairs =
        pairs.users.iter().zip(&pairs.items).map(|(&u, &i)| u64::from(u) << 32 | u64::from(i));
    sizes.into_iter().chain(of_pairs).fold(0x243f_6a88_85a3_08d3, super::features::mix)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;
    use rayon::prelude::*;

    /// Tasks of one pool that ask for one graph all get it: none waits for the graph that it is
    /// itself building.
    #[test]
    fn tasks_of_a_pool_have_one_graph() {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let pairs = Pairs {
                users: (0..20_000).map(|pair| pair * 7 % 300).collect(),
                items: (0..20_000).map(|pair| pair * 11 % 500).collect(),
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
            for _ in 0..100 {
                let graphs = Graphs::default();
                let ask = |_| graphs.get(&pairs, 300, 500, false).entries();
                let entries: Vec<usize> =
                    pool.install(|| (0..32).into_par_iter().with_max_len(1).map(ask).collect());
                assert!(entries.iter().all(|&count| count == entries[0] && count > 0));
            }
            sender.send(()).unwrap();
        });
        receiver.recv_timeout(Duration::from_secs(120)).expect("tasks do not wait for themselves");
    }

    proptest! {
        /// Whatever was asked for before, the graph belongs to the current pairs.
        #[test]
        fn a_graph_belongs_to_its_pairs(
            sets in prop::collection::vec(prop::collection::vec((0u32..4, 0u32..3), 1..6), 1..8),
            self_loops: bool
        ) {
            let graphs = Graphs::default();
            for pairs in sets {
                let (users, items) = pairs.into_iter().unzip();
                let pairs = Pairs { users, items };
                let graph = graphs.get(&pairs, 4, 3, self_loops);
                prop_assert_eq!(&*graph, &Graph::new(&pairs, 4, 3, self_loops));
                let again = graphs.clone().get(&pairs, 4, 3, self_loops);
                prop_assert!(Arc::ptr_eq(&graph, &again), "is made once");
                let wider = graphs.get(&pairs, 5, 3, self_loops);
                prop_assert_eq!(wider.users(), 5);
            }
        }
    }
}
