//! How well a model serves items and users that training has not seen: hides the interactions of a
//! tenth of the items, then of a tenth of the users, and looks for the hidden pairs.
//!
//!     cargo run --release --example cold_start -- FOLDER [SEEDS]
//!
//! Prints two Markdown tables of Recall@20: means and standard deviations over the seeds, which
//! choose what is hidden and start the training.

use std::error::Error;
use std::path::Path;

use bm3_engine::data::{DatasetOptions, Pairs, Split};
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::{Dataset, Query, Recommender, TrainConfig, Trainer};

const K: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give a folder in MMRec's layout")?;
    let seeds: u64 = arguments.next().map_or(Ok(3), |seeds| seeds.parse())?;
    let dataset = Dataset::open(Path::new(&folder), &DatasetOptions::default())?;
    let mut items = Table::new(["features", "popularity, had it been known", "random"]);
    let mut users = Table::new(["by their items", "popularity", "trained on", "those not hidden"]);
    for seed in 1..=seeds {
        items.add(&cold_items(&dataset, seed)?);
        users.add(&new_users(&dataset, seed)?);
        eprintln!("seed {seed} of {seeds} done");
    }
    println!("Hidden items, ranked among each other for every user who has some of them:\n");
    println!("{}", items.markdown());
    println!("Hidden users, all items ranked for the training items of each, test items found:\n");
    println!("{}", users.markdown());
    Ok(())
}

fn trained(dataset: &Dataset, seed: u64) -> Result<Recommender, bm3_engine::Error> {
    let config = TrainConfig { seed, ..TrainConfig::default() };
    let trained = Trainer::new(config).fit(dataset)?;
    Recommender::new(trained.model.expect("was not stopped"))
}

/// A random tenth of `count` numbers, as a mask.
fn tenth(count: usize, seed: u64) -> Vec<bool> {
    let stream = Stream::new(seed, Purpose::Split, 0, 1);
    let mut order: Vec<(f64, usize)> =
        (0..count).map(|number| (stream.uniform(number as u64), number)).collect();
    order.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut hidden = vec![false; count];
    order[..count / 10].iter().for_each(|&(_, number)| hidden[number] = true);
    hidden
}

fn pairs_of(split: &Split) -> Pairs {
    let mut pairs = Pairs::default();
    for (position, &user) in split.users.iter().enumerate() {
        for &item in split.items_of(position) {
            pairs.users.push(user);
            pairs.items.push(item);
        }
    }
    pairs
}

/// The data set without the pairs that `hides` selects.
fn without(
    dataset: &Dataset,
    hides: impl Fn(u32, u32) -> bool,
) -> Result<Dataset, bm3_engine::Error> {
    let kept = |pairs: &Pairs| -> (Vec<u32>, Vec<u32>) {
        let all = pairs.users.iter().copied().zip(pairs.items.iter().copied());
        all.filter(|&(user, item)| !hides(user, item)).unzip()
    };
    let (train, valid) = (kept(&dataset.train), kept(&pairs_of(&dataset.valid)));
    let mut builder = Dataset::builder(&dataset.name)
        .train(&train.0, &train.1)
        .valid(&valid.0, &valid.1)
        .at_least(dataset.users, dataset.items);
    for modality in &dataset.modalities {
        builder = builder.modality(&modality.name, modality.features.clone());
    }
    Ok(builder.build()?)
}

/// Recall@20 of hidden items: by features, by a popularity that nobody could have known, at random.
fn cold_items(dataset: &Dataset, seed: u64) -> Result<[f64; 3], bm3_engine::Error> {
    let hidden = tenth(dataset.items, seed);
    let mut recommender = trained(&without(dataset, |_, item| hidden[item as usize])?, seed)?;
    recommender.score_cold_items(&[])?;
    let candidates: Vec<u32> =
        (0..dataset.items as u32).filter(|&item| hidden[item as usize]).collect();
    let mut wanted = vec![Vec::new(); dataset.users];
    let mut popularity = vec![0.0; dataset.items];
    for pairs in [&dataset.train, &pairs_of(&dataset.valid), &pairs_of(&dataset.test)] {
        for (&user, &item) in pairs.users.iter().zip(&pairs.items) {
            if hidden[item as usize] {
                wanted[user as usize].push(item);
                popularity[item as usize] += 1.0;
            }
        }
    }
    let stream = Stream::new(seed, Purpose::Split, 0, 2);
    let best = |score: &dyn Fn(u32) -> f64| -> Vec<u32> {
        let mut order = candidates.clone();
        order.sort_by(|&left, &right| score(right).total_cmp(&score(left)));
        order.truncate(K);
        order
    };
    let popular = best(&|item| popularity[item as usize]);
    let mut sums = [0.0; 3];
    let mut users = 0.0;
    for (user, wanted) in wanted.iter().enumerate().filter(|(_, wanted)| !wanted.is_empty()) {
        let ranked = recommender.rank(Query::user(user as u32), &candidates, K)?;
        let by_features: Vec<u32> = ranked.iter().map(|found| found.item).collect();
        let place = |item| (user * dataset.items) as u64 + u64::from(item);
        let random = best(&|item| stream.uniform(place(item)));
        for (sum, list) in sums.iter_mut().zip([&by_features, &popular, &random]) {
            *sum += recall(list, wanted);
        }
        users += 1.0;
    }
    Ok(sums.map(|sum| sum / users))
}

/// Recall@20 of hidden users by their items, by popularity, and by a model trained on them; and of
/// the users who were not hidden.
fn new_users(dataset: &Dataset, seed: u64) -> Result<[f64; 4], bm3_engine::Error> {
    let hidden = tenth(dataset.users, seed);
    let recommender = trained(&without(dataset, |user, _| hidden[user as usize])?, seed)?;
    let whole = trained(dataset, seed)?;
    let mut seen = vec![Vec::new(); dataset.users];
    let mut popularity = vec![0.0; dataset.items];
    for (&user, &item) in dataset.train.users.iter().zip(&dataset.train.items) {
        seen[user as usize].push(item);
        popularity[item as usize] += f64::from(u8::from(!hidden[user as usize]));
    }
    let mut by_popularity: Vec<u32> = (0..dataset.items as u32).collect();
    by_popularity
        .sort_by(|&left, &right| popularity[right as usize].total_cmp(&popularity[left as usize]));
    let (mut sums, mut counts) = ([0.0; 4], [0.0; 2]);
    for (position, &user) in dataset.test.users.iter().enumerate() {
        let (wanted, seen) = (dataset.test.items_of(position), &seen[user as usize]);
        if !hidden[user as usize] {
            let list = recommender.top_k_batch(&[user], K)?;
            sums[3] += recall(list.list(0), wanted);
            counts[1] += 1.0;
            continue;
        }
        let new = recommender.search(&[Query::items(seen)], K)?;
        let known = whole.top_k_batch(&[user], K)?;
        let popular: Vec<u32> =
            by_popularity.iter().copied().filter(|item| !seen.contains(item)).take(K).collect();
        for (sum, list) in sums.iter_mut().zip([new.list(0), &popular, known.list(0)]) {
            *sum += recall(list, wanted);
        }
        counts[0] += 1.0;
    }
    Ok([sums[0] / counts[0], sums[1] / counts[0], sums[2] / counts[0], sums[3] / counts[1]])
}

fn recall(list: &[u32], wanted: &[u32]) -> f64 {
    list.iter().filter(|item| wanted.contains(item)).count() as f64 / wanted.len() as f64
}

/// Figures of several seeds.
struct Table<const N: usize> {
    names: [&'static str; N],
    figures: Vec<[f64; N]>,
}

impl<const N: usize> Table<N> {
    fn new(names: [&'static str; N]) -> Self {
        Self { names, figures: Vec::new() }
    }

    fn add(&mut self, figures: &[f64; N]) {
        self.figures.push(*figures);
    }

    fn markdown(&self) -> String {
        let mut text = "| | Recall@20 | deviation |\n|---|---:|---:|\n".to_owned();
        for (column, name) in self.names.iter().enumerate() {
            let count = self.figures.len() as f64;
            let mean = self.figures.iter().map(|row| row[column]).sum::<f64>() / count;
            let square = |row: &[f64; N]| (row[column] - mean).powi(2);
            let variance = self.figures.iter().map(square).sum::<f64>() / (count - 1.0).max(1.0);
            text += &format!("| {name} | {mean:.4} | {:.4} |\n", variance.sqrt());
        }
        text
    }
}
