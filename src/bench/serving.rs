//! How fast a model answers: single users, batches, concurrent callers.

use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Spread;
use crate::recommender::Recommender;
use crate::{Error, Result};

/// The most single answers to time.
const MOST_ANSWERS: usize = 200_000;
/// Users in a batch.
const BATCHES: [usize; 4] = [16, 256, 4096, 16384];
/// Concurrent callers.
const CALLERS: [usize; 4] = [1, 2, 4, 8];

/// Times of answers, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the answers took no longer.
    pub p50: f64,
    /// 99 of 100 answers took no longer.
    pub p99: f64,
}

impl Latency {
    /// The percentiles of at least one time.
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

/// Answers to batches of users.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BatchRate {
    /// Users in a batch.
    pub users: usize,
    /// Seconds for a batch.
    pub seconds: Spread,
    /// Users per second in the median batch.
    pub users_per_second: f64,
}

/// Answers to single users that several threads request at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CallerRate {
    /// The number of calling threads.
    pub callers: usize,
    /// Users per second, over all threads.
    pub users_per_second: f64,
    /// The latency of each answer.
    pub latency: Latency,
}

/// The figures of one model on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Serving {
    /// The device, in words.
    pub device: String,
    /// U, the number of users.
    pub users: usize,
    /// I, the number of items.
    pub items: usize,
    /// d, the embedding size.
    pub embedding_size: usize,
    /// K, the length of the lists.
    pub top_k: usize,
    /// One user at a time, one caller.
    pub single: Latency,
    /// By batch size.
    pub batches: Vec<BatchRate>,
    /// By number of callers.
    pub callers: Vec<CallerRate>,
}

/// Measures lists of `k` items for users in scattered order, each figure over about `window`.
///
/// # Errors
/// As [`Recommender::top_k`]; [`Error::Setting`] for a model without users.
pub fn measure_serving(
    recommender: &Recommender,
    device: String,
    k: usize,
    window: Duration,
) -> Result<Serving> {
    let users = recommender.model().users();
    if users == 0 {
        return Err(Error::setting("--model", "a model without users found"));
    }
    // Warm up.
    recommender.top_k(0, k)?;
    let single = answers(recommender, users, k, 0, Instant::now() + window)?;
    let batches = BATCHES
        .iter()
        .map(|&size| {
            let batch: Vec<u32> = (0..size).map(|place| user_at(place, users)).collect();
            let (mut times, end) = (Vec::new(), Instant::now() + window);
            while times.len() < 3 || Instant::now() < end {
                let start = Instant::now();
                recommender.top_k_batch(&batch, k)?;
                times.push(start.elapsed().as_secs_f64());
            }
            let seconds = Spread::of(times);
            let users_per_second = size as f64 / seconds.median;
            Ok(BatchRate { users: size, seconds, users_per_second })
        })
        .collect::<Result<_>>()?;
    let callers = CALLERS
        .iter()
        .map(|&callers| {
            let end = Instant::now() + window;
            let each: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..callers)
                    .map(|caller| {
                        scope.spawn(move || answers(recommender, users, k, caller * 7919, end))
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                    .collect()
            });
            let times: Vec<f64> = each.into_iter().collect::<Result<Vec<_>>>()?.concat();
            // Every caller is busy all the time.
            let users_per_second = callers as f64 * times.len() as f64 / times.iter().sum::<f64>();
            Ok(CallerRate { callers, users_per_second, latency: Latency::of(times) })
        })
        .collect::<Result<_>>()?;
    Ok(Serving {
        device,
        users,
        items: recommender.items(),
        embedding_size: recommender.width(),
        top_k: k,
        single: Latency::of(single),
        batches,
        callers,
    })
}

/// The user at a position in an endless, scattered order.
fn user_at(place: usize, users: usize) -> u32 {
    ((place as u64).wrapping_mul(0x9e37_79b9) % users as u64) as u32
}

/// Times single answers until `end`, in seconds.
fn answers(
    recommender: &Recommender,
    users: usize,
    k: usize,
    first: usize,
    end: Instant,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let mut now = Instant::now();
    while (now < end || times.is_empty()) && times.len() < MOST_ANSWERS {
        recommender.top_k(user_at(first + times.len(), users), k)?;
        let done = Instant::now();
        times.push((done - now).as_secs_f64());
        now = done;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (0..=100).rev().map(f64::from).collect();
        assert_eq!(Latency::of(times), Latency { p50: 50.0, p99: 99.0 });
        assert_eq!(Latency::of(vec![3.0]), Latency { p50: 3.0, p99: 3.0 });
    }
}
