//! `epoch_order.cu` and `batches.cu`: an epoch's order and its batches equal the CPU's.

use bm3_engine::backend::{Backend, BatchRooms};
use bm3_engine::batch::{Batch, EpochPlan, epoch_order};
use bm3_engine::config::Order;
use bm3_engine::data::Pairs;

use crate::check::{ids, on_device};

fn check(users: usize, items: usize, pairs: usize, batch_size: usize) {
    let file = Pairs { users: ids(1, pairs, users), items: ids(2, pairs, items) };
    on_device(|cuda| {
        let mut batches = cuda.batches(&file, users, items, batch_size).unwrap();
        for (order, seed, epoch) in
            [(Order::Random, 7, 0), (Order::Random, u64::MAX, 3), (Order::File, 7, 1)]
        {
            let plan = EpochPlan { order, seed, epoch, first_step: 1 };
            cuda.arrange(&mut batches, plan).unwrap();
            let expected: Vec<Batch> = epoch_order(order, seed, epoch, pairs)
                .chunks(batch_size)
                .map(|positions| Batch::of_pairs(&file, positions))
                .collect();
            let found = batches.read().unwrap();
            assert_eq!(found.len(), expected.len());
            for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "batch {number} of {pairs} pairs by {batch_size}");
            }
        }
    });
}

/// Around a warp's 256 keys and a block's 2,048; batches of one pair, around a round of 256, of all
/// pairs, and of more than there are.
#[test]
fn batches_are_those_of_the_cpu() {
    check(1, 1, 1, 1);
    check(3, 2, 2, 5);
    check(20, 300, 255, 1);
    check(20, 300, 256, 64);
    check(300, 20, 257, 256);
    check(300, 70_000, 2048, 255);
    check(300, 2, 2049, 257);
    check(5, 500, 2049, 1 << 20);
    check(100_000, 40, 6001, 2048);
}

/// The same pair again and again: one user and one item have all pairs.
#[test]
fn a_batch_of_one_pair_many_times_has_one_row_of_each() {
    let file = Pairs { users: vec![4; 700], items: vec![2; 700] };
    on_device(|cuda| {
        let mut batches = cuda.batches(&file, 5, 3, 600).unwrap();
        let plan = EpochPlan { order: Order::Random, seed: 1, epoch: 1, first_step: 1 };
        cuda.arrange(&mut batches, plan).unwrap();
        let found = batches.read().unwrap();
        assert_eq!(found[0], Batch::new(&[4; 600], &[2; 600]));
        assert_eq!(found[1], Batch::new(&[4; 100], &[2; 100]));
    });
}

/// A step is requested once, and recorded once alone and once with others, however many batches
/// follow. A request to stop is obeyed before each batch, and an epoch can start from any batch.
#[test]
fn the_batches_of_an_epoch_are_visited_until_told_to_stop() {
    let file = Pairs { users: ids(1, 95, 9), items: ids(2, 95, 9) };
    on_device(|cuda| {
        let mut batches = cuda.batches(&file, 9, 9, 10).unwrap();
        let plan = EpochPlan { order: Order::File, seed: 1, epoch: 0, first_step: 31 };
        cuda.arrange(&mut batches, plan).unwrap();
        let mut visit = |numbers, mut allowed: i32| {
            let mut asked = 0;
            let mut step = |batch: &<bm3_engine::cuda::Cuda as Backend>::Batch| {
                asked += 1;
                assert_eq!(batch.rooms().users, 64);
                Ok(())
            };
            let mut proceed = || {
                allowed -= 1;
                allowed >= 0
            };
            let done = cuda.each_batch(&mut batches, numbers, &mut step, &mut proceed).unwrap();
            (done, asked)
        };
        assert_eq!(visit(3..10, 4), (4, 2), "the first batch, and the recorded one");
        assert_eq!(visit(0..10, 3), (3, 1), "whether it is the same; of ten together three");
        assert_eq!(visit(0..10, 0), (0, 1), "none of ten");
        assert_eq!(visit(0..10, 10), (10, 11), "ten are recorded together");
        assert_eq!(visit(0..10, 11), (10, 1), "they serve again");
        assert_eq!(visit(4..4, 1), (0, 0), "nothing to do");
    });
}
