//! Concurrent searches on the CPU.
//!
//! As long as there are no more callers than processors, each searches at once on its own thread.
//! The others wait for a turn instead of competing for processors. A caller that gets a turn also
//! searches for the callers waiting behind it, so that the item rows are read once for all of them.
//! The lock is held while a caller comes or goes, never during a search.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::together::{Search, apart};
use crate::backend::TopK;
use crate::cpu::ItemIndex;

/// Queries of one turn, as many as one task of the index takes.
const QUERIES: usize = ItemIndex::<f32>::TASK;

/// The rows of all items, and the callers' turns.
pub(crate) struct Turns {
    index: ItemIndex<f32>,
    /// Callers that may search at a time.
    lanes: usize,
    /// The process of the callers.
    process: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Callers that are searching.
    running: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    search: Search,
    answer: SyncSender<Answer>,
}

/// The message to a waiting caller.
enum Answer {
    /// Another caller has searched for it.
    Lists(TopK),
    /// It has the turn: its own search, and the others it is to answer.
    Turn(Search, Vec<Waiting>),
}

impl Turns {
    /// Packs I × d rows.
    pub fn new(items: &[f32], width: usize) -> Self {
        let lanes = std::thread::available_parallelism().map_or(1, usize::from);
        let (index, process) = (ItemIndex::new(items, width), std::process::id());
        Self { index, lanes, process, state: Mutex::default() }
    }

    /// The lists of a search.
    pub fn search(&self, search: Search) -> TopK {
        // More queries use the rayon pool, which shares the processors as well as turns do. In a
        // forked process the threads that hold turns do not exist.
        if search.count() > QUERIES || self.process != std::process::id() {
            return self.lists(&search);
        }
        let mut state = self.state();
        if state.running < self.lanes {
            state.running += 1;
            drop(state);
            return self.turn(search, Vec::new());
        }
        let (answer, answered) = sync_channel(1);
        state.waiting.push_back(Waiting { search, answer });
        drop(state);
        match answered.recv() {
            Ok(Answer::Lists(lists)) => lists,
            Ok(Answer::Turn(search, others)) => self.turn(search, others),
            // The thread that took the request answers it unless it panics.
            Err(_) => panic!("a thread that searched for several callers has ended"),
        }
    }

    /// Searches for the caller and for others, then passes the turn on.
    fn turn(&self, own: Search, others: Vec<Waiting>) -> TopK {
        let _next = Next(self);
        if others.is_empty() {
            return self.lists(&own);
        }
        let all = std::iter::once(&own).chain(others.iter().map(|waiting| &waiting.search));
        let lists = self.lists(&Search::together(all));
        let mut first = own.count();
        for Waiting { search, answer } in &others {
            // The receiver waits until it is answered.
            answer.send(Answer::Lists(apart(&lists, first, search))).ok();
            first += search.count();
        }
        apart(&lists, 0, &own)
    }

    fn lists(&self, search: &Search) -> TopK {
        let masked = |query| search.masks.of(query).iter().copied();
        self.index.search(&search.queries, masked, search.k)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes the turn on when dropped, so also after a panic.
struct Next<'a>(&'a Turns);

impl Drop for Next<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let Some(Waiting { search, answer }) = state.waiting.pop_front() else {
            state.running -= 1;
            return;
        };
        let mut count = search.count();
        let mut others = Vec::new();
        while let Some(next) = state.waiting.front() {
            count += next.search.count();
            if count > QUERIES {
                break;
            }
            others.extend(state.waiting.pop_front());
        }
        drop(state);
        // The receiver waits until it is answered.
        answer.send(Answer::Turn(search, others)).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    use super::super::Masks;
    use super::*;

    /// Many callers with searches of any size: each gets its own lists, and no turn is lost.
    #[test]
    fn callers_have_their_own_lists_and_turns_end() {
        let width = 4;
        let items: Vec<f32> = (0..400 * width).map(|n| ((n * 37) % 101) as f32 - 50.0).collect();
        let turns = Turns { lanes: 1, ..Turns::new(&items, width) };
        let search = |seed: usize| {
            let count = 1 + seed % 3;
            let queries = (0..count * width).map(|n| ((n + seed) * 31 % 17) as f32).collect();
            let mut masks = Masks::new();
            (0..count).for_each(|n| masks.push([(seed + n) as u32].into_iter(), &[7]));
            Search { queries, masks, k: 1 + seed % 5 }
        };
        let callers = 12;
        let barrier = Barrier::new(callers);
        std::thread::scope(|scope| {
            for caller in 0..callers {
                let (turns, barrier, search) = (&turns, &barrier, &search);
                scope.spawn(move || {
                    barrier.wait();
                    for round in 0..200 {
                        let seed = caller * 17 + round;
                        assert!(turns.search(search(seed)) == turns.lists(&search(seed)));
                    }
                });
            }
        });
        let state = turns.state();
        assert_eq!((state.running, state.waiting.len()), (0, 0));
    }

    /// A caller that waits while a search panics gets the next turn.
    #[test]
    fn a_turn_ends_by_a_panic_too() {
        let turns = Turns { lanes: 1, ..Turns::new(&[1.0, 2.0, 3.0, 4.0], 1) };
        let search = |k| {
            let mut masks = Masks::new();
            masks.push(std::iter::empty(), &[]);
            Search { queries: vec![1.0], masks, k }
        };
        std::thread::scope(|scope| {
            for caller in 0..6 {
                let turns = &turns;
                scope.spawn(move || {
                    for round in 0..100 {
                        // Alone, a search for lists of length 0 panics.
                        let k = if caller == 0 && round % 10 == 0 { 0 } else { 2 };
                        let found = catch_unwind(AssertUnwindSafe(|| turns.search(search(k))));
                        if let Ok(lists) = found {
                            assert_eq!(lists.items, [3, 2][..k]);
                        }
                    }
                });
            }
        });
        let state = turns.state();
        assert_eq!((state.running, state.waiting.len()), (0, 0));
        drop(state);
        assert!(catch_unwind(AssertUnwindSafe(|| turns.search(search(0)))).is_err());
        assert_eq!(turns.search(search(1)).items, [3]);
    }
}
