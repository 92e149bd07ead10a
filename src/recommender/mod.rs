//! Serving a trained model: lists for known and new users, similar items, scores, cold items.

mod cold;
mod index;
mod query;
mod together;
mod turns;

use std::sync::{Arc, OnceLock};

use cold::Calibration;
use index::Index;
pub(crate) use index::Masks;
pub use query::Query;
use query::Whom;
pub(crate) use together::{Search, apart};

use crate::backend::TopK;
use crate::config::{DeviceChoice, MAX_TOP_K, validate_top_k};
use crate::data::{Pairs, Split};
use crate::device::Device;
use crate::model::Model;
use crate::records::Metrics;
use crate::{Error, Result, cpu, evaluate, with_backend};

/// Queries answered at a time.
const MOST_QUERIES: usize = 8192;
/// Approximate limit on the masked items of the queries answered at a time.
const MOST_MASKED: usize = 1 << 26;

/// An item and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredItem {
    /// The item.
    pub item: u32,
    /// Equation (10), or a cosine for similar items.
    pub score: f32,
}

/// A trained model, ready to answer.
///
/// Answers take `&self`, so any number of threads may ask at a time. On the CPU each computes on
/// its own thread while there are idle processors. Callers that must wait, there or on a GPU, are
/// answered together. An answer's bits depend only on the model and the question. A forked process
/// cannot use its parent's GPU: answers on a GPU are errors there. On the CPU it can answer, but
/// must [install](rayon::ThreadPool::install) a pool of its own around questions with many answers,
/// for the threads of rayon's global pool do not exist there. See [`Model::load`] for what must not
/// happen to the model's file meanwhile.
pub struct Recommender {
    model: Arc<Model>,
    device: Device,
    /// p(H_u), U × d.
    user_rows: Arc<Vec<f32>>,
    /// Item rows, I' × d: p(H_i) or its stand-in. Shared with callers, so they are replaced, never
    /// written to.
    item_rows: Arc<Vec<f32>>,
    /// H_i or its stand-in, I' × d.
    item_nodes: Vec<f32>,
    /// Items without training interactions, ascending.
    cold: Vec<u32>,
    /// Users without training interactions, ascending.
    cold_users: Vec<u32>,
    /// The mean degree of items with training interactions.
    mean_degree: f64,
    calibration: Option<Calibration>,
    /// Whether the model's own items without interactions have rows made of their features.
    own_cold_scored: bool,
    index: Index,
    /// Normalised item rows for cosines, made on first use.
    similar: OnceLock<Index>,
}

impl Recommender {
    /// Serves `model` on the CPU.
    ///
    /// # Errors
    /// The errors of [`Recommender::on`]; today none of them occurs on the CPU.
    pub fn new(model: impl Into<Arc<Model>>) -> Result<Self> {
        Self::on(model, DeviceChoice::Cpu)
    }

    /// Serves `model` on a device.
    ///
    /// # Errors
    /// The errors of [`Device::open`] and [`Recommender::on_device`].
    pub fn on(model: impl Into<Arc<Model>>, device: DeviceChoice) -> Result<Self> {
        let (device, passed_over) = Device::open(device)?;
        if let Some(reason) = passed_over {
            tracing::warn!(%reason, "answering on the CPU because GPU 0 cannot be used");
        }
        Self::on_device(model, device)
    }

    /// Serves `model` on an open device.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] if the model does not fit, [`Error::DeviceOperation`].
    pub fn on_device(model: impl Into<Arc<Model>>, device: Device) -> Result<Self> {
        Self::placed(model.into(), device).map_err(Error::without_advice)
    }

    fn placed(model: Arc<Model>, device: Device) -> Result<Self> {
        let [nodes, mut predicted] = with_backend!(device.clone(), backend => {
            model.on(backend)?.nodes_and_predictions()?
        });
        let user_elements = model.users() * model.embedding_size();
        let item_rows = predicted.split_off(user_elements);
        let has_none = |item: &u32| model.graph().users_of(*item as usize).next().is_none();
        let cold: Vec<u32> = (0..model.items() as u32).filter(has_none).collect();
        let cold_users = (0..model.users() as u32)
            .filter(|&user| model.graph().items_of(user as usize).next().is_none())
            .collect();
        let known = (model.items() - cold.len()).max(1);
        let pairs: usize =
            (0..model.users()).map(|user| model.graph().items_of(user).count()).sum();
        Ok(Self {
            index: Index::new(&device, &item_rows, model.embedding_size())?,
            user_rows: Arc::new(predicted),
            item_rows: Arc::new(item_rows),
            item_nodes: nodes[user_elements..].to_vec(),
            cold,
            cold_users,
            mean_degree: (pairs as f64 / known as f64).max(1.0),
            calibration: None,
            own_cold_scored: false,
            similar: OnceLock::new(),
            model,
            device,
        })
    }

    /// The `k` best items for a user, best first, without the user's training items; fewer if there
    /// are not as many.
    ///
    /// Lists of [users without training interactions](Recommender::cold_users) say nothing about
    /// them; [`Query::items`] needs no training.
    ///
    /// # Errors
    /// [`Error::Setting`] for a user or a `k` (1 to 1024) out of range; [`Error::DeviceMemory`] and
    /// [`Error::DeviceOperation`].
    pub fn top_k(&self, user: u32, k: usize) -> Result<Vec<ScoredItem>> {
        Ok(scored_items(&self.search(&[Query::user(user)], k)?, 0))
    }

    /// The lists of [`Recommender::top_k`] for many users.
    ///
    /// # Errors
    /// The errors of [`Recommender::top_k`].
    pub fn top_k_batch(&self, users: &[u32], k: usize) -> Result<TopK> {
        let queries: Vec<_> = users.iter().map(|&user| Query::user(user)).collect();
        self.search(&queries, k)
    }

    /// The `k` best items for each query.
    ///
    /// # Errors
    /// [`Error::Setting`] for a user, an item or a `k` (1 to 1024) out of range, and for a query
    /// without items; [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
    pub fn search(&self, queries: &[Query<'_>], k: usize) -> Result<TopK> {
        check_k(k)?;
        let mut lists = TopK::empty(0, k);
        let mut left = queries;
        while !left.is_empty() {
            let mut masks = Masks::new();
            let mut rows = Vec::new();
            let mut count = 0;
            // Bounds memory whatever the number of queries.
            while count < left.len().min(MOST_QUERIES) && masks.items.len() < MOST_MASKED {
                let number = queries.len() - left.len() + count;
                self.push_query(&left[count], &mut rows, &mut masks)
                    .map_err(|error| of_query(error, number, queries.len()))?;
                count += 1;
            }
            let found = self.index.search(rows, masks, k)?;
            lists.items.extend(found.items);
            lists.scores.extend(found.scores);
            left = &left[count..];
        }
        Ok(lists)
    }

    /// Appends a query's row and its mask.
    fn push_query(&self, query: &Query<'_>, rows: &mut Vec<f32>, masks: &mut Masks) -> Result<()> {
        self.push_row(query.whom, rows)?;
        self.check_items("excluded item", query.excluded)?;
        match (query.with_seen, query.whom) {
            (true, _) => masks.push(std::iter::empty(), query.excluded),
            (false, Whom::User(user)) => {
                masks.push(self.model.graph().items_of(user as usize), query.excluded);
            }
            (false, Whom::Items(items)) => {
                let both = [items, query.excluded].concat();
                masks.push(std::iter::empty(), &both);
            }
        }
        Ok(())
    }

    /// The best `k` of `candidates` (repeats count once) for a query, best first, ties by lower
    /// number: the list for a shelf of chosen items, such as [`Recommender::cold_items`]. Items
    /// that the query's user has interacted with are left out as in [`Recommender::search`].
    ///
    /// # Errors
    /// The errors of [`Recommender::search`].
    pub fn rank(&self, query: Query<'_>, candidates: &[u32], k: usize) -> Result<Vec<ScoredItem>> {
        check_k(k)?;
        self.check_items("candidate", candidates)?;
        let (mut row, mut masks) = (Vec::new(), Masks::new());
        self.push_query(&query, &mut row, &mut masks)?;
        let mut left: Vec<u32> = candidates.to_vec();
        left.retain(|item| masks.of(0).binary_search(item).is_err());
        left.sort_unstable();
        left.dedup();
        let mut ranked: Vec<ScoredItem> = left
            .into_iter()
            .map(|item| ScoredItem { item, score: cpu::product(&row, self.item_row(item)) })
            .collect();
        // A stable sort: among equal scores the lower number stays first.
        ranked.sort_by(|left, right| right.score.total_cmp(&left.score));
        ranked.truncate(k);
        Ok(ranked)
    }

    /// The row of a query's user, d numbers: a score is its inner product with an item's row. For a
    /// vector database that holds the [item rows](Recommender::item_rows), say, and is to answer for
    /// new users.
    ///
    /// # Errors
    /// [`Error::Setting`], as [`Recommender::search`].
    pub fn row(&self, query: Query<'_>) -> Result<Vec<f32>> {
        let mut row = Vec::with_capacity(self.width());
        self.push_row(query.whom, &mut row)?;
        Ok(row)
    }

    /// The scores of pairs (users\[n\], items\[n\]), seen or not, with the same bits as in lists.
    ///
    /// # Errors
    /// [`Error::Setting`] for slices of different lengths and for numbers out of range.
    pub fn scores(&self, users: &[u32], items: &[u32]) -> Result<Vec<f32>> {
        check_pairs(users, items)?;
        self.check_items("item", items)?;
        let mut row = Vec::new();
        let score = |(&user, &item): (&u32, &u32)| {
            row.clear();
            self.push_row(Whom::User(user), &mut row)?;
            Ok(cpu::product(&row, self.item_row(item)))
        };
        users.iter().zip(items).map(score).collect()
    }

    /// The `k` items nearest to `item` by the cosine of their rows, best first, without `item`
    /// itself.
    ///
    /// # Errors
    /// The errors of [`Recommender::top_k`].
    pub fn similar_items(&self, item: u32, k: usize) -> Result<Vec<ScoredItem>> {
        Ok(scored_items(&self.similar_items_batch(&[item], k)?, 0))
    }

    /// The lists of [`Recommender::similar_items`] for many items.
    ///
    /// # Errors
    /// The errors of [`Recommender::top_k`].
    pub fn similar_items_batch(&self, items: &[u32], k: usize) -> Result<TopK> {
        check_k(k)?;
        self.check_items("item", items)?;
        let index = match self.similar.get() {
            Some(index) => index,
            None => {
                self.index.check_process()?;
                let mut rows = self.item_rows.to_vec();
                rows.chunks_exact_mut(self.width()).for_each(normalize);
                let index = Index::new(&self.device, &rows, self.width())?;
                // Another thread may have been faster; its index is the same.
                self.similar.get_or_init(|| index)
            }
        };
        let mut masks = Masks::new();
        let mut queries = Vec::with_capacity(items.len() * self.width());
        for &item in items {
            masks.push(std::iter::once(item), &[]);
            let start = queries.len();
            queries.extend_from_slice(self.item_row(item));
            normalize(&mut queries[start..]);
        }
        index.search(queries, masks, k)
    }

    /// Whether the index of [`Recommender::similar_items`] exists.
    #[cfg(feature = "python")]
    pub(crate) fn has_similar_index(&self) -> bool {
        self.similar.get().is_some()
    }

    /// The metrics of `split` at each of `lengths` (1 to 1024, ascending), measured as in training
    /// (SPEC §9), without each user's training items.
    ///
    /// # Errors
    /// [`Error::Setting`] for other lengths; the errors of [`Recommender::search`].
    ///
    /// # Panics
    /// For a split whose offsets do not bound the items of each of its users.
    pub fn evaluate(&self, split: &Split, lengths: &[usize]) -> Result<Metrics> {
        validate_top_k(lengths)?;
        self.check_items("item", &split.items)?;
        // Ascending, and at least one.
        let longest = lengths.last().copied().unwrap_or(1);
        let lists = self.top_k_batch(&split.users, longest)?;
        Ok(evaluate::metrics(split, &split.users, &lists, lengths))
    }

    /// [`Recommender::evaluate`] for pairs that are in no split yet. Users without training
    /// interactions are left out, as in a data set's splits.
    ///
    /// # Errors
    /// The errors of [`Recommender::evaluate`]; [`Error::Setting`] for slices of different lengths
    /// and if no pair is left.
    pub fn evaluate_pairs(
        &self,
        users: &[u32],
        items: &[u32],
        lengths: &[usize],
    ) -> Result<Metrics> {
        self.evaluate(&self.held_out(users, items)?, lengths)
    }

    /// The split made of these pairs for [`Recommender::evaluate_pairs`].
    ///
    /// # Errors
    /// [`Error::Setting`], as [`Recommender::evaluate_pairs`].
    pub(crate) fn held_out(&self, users: &[u32], items: &[u32]) -> Result<Split> {
        check_pairs(users, items)?;
        self.check_items("item", items)?;
        let count = self.model.users();
        if let Some(&user) = users.iter().find(|&&user| user as usize >= count) {
            return Err(out_of_range("user", user, count));
        }
        let mut trained = vec![true; count];
        self.cold_users.iter().for_each(|&user| trained[user as usize] = false);
        let pairs = Pairs { users: users.to_vec(), items: items.to_vec() };
        let (split, left_out) = Split::new(&pairs, &trained);
        if split.users.is_empty() {
            let problem = format!(
                "{} pairs found, {left_out} of them of users without training interactions; one \
                 pair of another user expected",
                users.len()
            );
            return Err(Error::setting("users", problem));
        }
        Ok(split)
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The number of items, including items added after training.
    pub fn items(&self) -> usize {
        self.item_rows.len() / self.width()
    }

    /// The embedding size d.
    pub fn width(&self) -> usize {
        self.model.embedding_size()
    }

    /// p(H_u), U × d: a score is the product of one of these rows and one of
    /// [`Recommender::item_rows`].
    pub fn user_rows(&self) -> &[f32] {
        &self.user_rows
    }

    /// Shares ownership of [`Recommender::user_rows`].
    pub fn shared_user_rows(&self) -> Arc<Vec<f32>> {
        self.user_rows.clone()
    }

    /// The items' rows, I × d: p(H_i), or its stand-in for items scored by their features. Items
    /// added after training follow the model's.
    pub fn item_rows(&self) -> &[f32] {
        &self.item_rows
    }

    /// Shares ownership of the current [`Recommender::item_rows`]; later additions do not show.
    pub fn shared_item_rows(&self) -> Arc<Vec<f32>> {
        self.item_rows.clone()
    }

    fn item_row(&self, item: u32) -> &[f32] {
        let start = item as usize * self.width();
        &self.item_rows[start..start + self.width()]
    }

    /// Appends the row of a known or new user.
    fn push_row(&self, whom: Whom<'_>, rows: &mut Vec<f32>) -> Result<()> {
        let d = self.width();
        match whom {
            Whom::User(user) => {
                let users = self.model.users();
                if user as usize >= users {
                    return Err(out_of_range("user", user, users));
                }
                rows.extend_from_slice(&self.user_rows[user as usize * d..][..d]);
            }
            Whom::Items(items) => {
                self.check_items("item", items)?;
                if items.is_empty() {
                    let problem = "none found; a new user is known by one item at least";
                    return Err(Error::setting("items", problem));
                }
                // Sorted, so that the order of the sum does not depend on the order given.
                let mut items = items.to_vec();
                items.sort_unstable();
                items.dedup();
                // Rows made of neither interactions nor features carry no information.
                if items.iter().any(|&item| self.says_something(item)) {
                    items.retain(|&item| self.says_something(item));
                }
                let mut sum = vec![0.0f64; d];
                let mut weights = 0.0;
                for &item in &items {
                    let weight = self.weight(item);
                    let node = &self.item_nodes[item as usize * d..][..d];
                    sum.iter_mut().zip(node).for_each(|(sum, &x)| *sum += weight * f64::from(x));
                    weights += weight;
                }
                rows.extend(sum.into_iter().map(|sum| (sum / weights) as f32));
            }
        }
        Ok(())
    }

    /// Whether an item's row comes from interactions or from features.
    fn says_something(&self, item: u32) -> bool {
        self.own_cold_scored || item as usize >= self.model.items() || !self.is_cold(item)
    }

    fn is_cold(&self, item: u32) -> bool {
        self.cold.binary_search(&item).is_ok()
    }

    /// 1/√degree of an item, its end's factor of an edge in Â. An item without interactions counts
    /// as one of mean degree.
    fn weight(&self, item: u32) -> f64 {
        let graph = self.model.graph();
        let degree = match self.is_cold(item) {
            true => self.mean_degree,
            false => graph.users_of(item as usize).count() as f64,
        };
        1.0 / degree.sqrt()
    }

    /// Refuses items out of range, which messages call `what`.
    fn check_items(&self, what: &str, items: &[u32]) -> Result<()> {
        match items.iter().find(|&&item| item as usize >= self.items()) {
            Some(&item) => Err(out_of_range(what, item, self.items())),
            None => Ok(()),
        }
    }
}

fn check_pairs(users: &[u32], items: &[u32]) -> Result<()> {
    if users.len() == items.len() {
        return Ok(());
    }
    let problem = format!("{} users and {} items found, pairs expected", users.len(), items.len());
    Err(Error::setting("items", problem))
}

fn check_k(k: usize) -> Result<()> {
    if (1..=MAX_TOP_K).contains(&k) {
        return Ok(());
    }
    Err(Error::setting("k", format!("{k} found, 1 to {MAX_TOP_K} expected")))
}

/// The error of query `number` of `all`.
fn of_query(error: Error, number: usize, all: usize) -> Error {
    match error {
        Error::Setting { name, problem } if all > 1 => {
            Error::setting(format!("query {number} (of 0 to {}): {name}", all - 1), problem)
        }
        other => other,
    }
}

fn out_of_range(what: &str, found: u32, count: usize) -> Error {
    let largest = count.saturating_sub(1);
    Error::setting(what, format!("{found} found, a number from 0 to {largest} expected"))
}

/// The list at a position.
fn scored_items(top: &TopK, position: usize) -> Vec<ScoredItem> {
    let scores = &top.scores[position * top.k..];
    // Scores were computed in f32.
    let scored = |(&item, &score): (&u32, &f64)| ScoredItem { item, score: score as f32 };
    top.list(position).iter().zip(scores).map(scored).collect()
}

/// Scales a row to length 1 unless it is 0.
fn normalize(row: &mut [f32]) {
    let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}
