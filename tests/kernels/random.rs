//! `initial_values.cu` and `epoch_order.cu`: the draws of Philox, bit for bit those of the CPU.

use bm3_engine::backend::Backend;
use bm3_engine::config::{Order, Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::parameters::Layout;

use crate::check::{download, on_device};

#[test]
fn initial_values_have_the_bits_of_the_cpu() {
    let config = TrainConfig { propagation: Propagation::Gcn, layers: 2, ..TrainConfig::default() };
    let widths = [("image".to_owned(), 5), ("text".to_owned(), 31)];
    for (users, items) in [(1, 1), (37, 90)] {
        let layout = Layout::new(&config, users, items, &widths);
        for seed in [0, 999, u64::MAX - 5] {
            let expected: Vec<f32> = layout.initial_values(seed);
            on_device(|cuda| {
                let values = cuda.initial_values(&layout, seed).unwrap();
                let found = download(cuda, &values, layout.len());
                let differ =
                    found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(differ, None, "seed {seed}");
            });
        }
    }
}

#[test]
fn orders_of_epochs_are_those_of_the_cpu() {
    on_device(|cuda| {
        // A warp's 256 keys, a block's 2,048, and a little more or less.
        for pairs in [1, 2, 255, 256, 257, 2048, 2049, 6001] {
            for (seed, epoch) in [(7, 0), (u64::MAX, 3)] {
                let found = cuda.epoch_order(Order::Random, seed, epoch, pairs).unwrap();
                let expected =
                    Cpu::<f32>::new().epoch_order(Order::Random, seed, epoch, pairs).unwrap();
                assert_eq!(found, expected, "{pairs} pairs, epoch {epoch}");
            }
        }
        let in_file_order = cuda.epoch_order(Order::File, 1, 1, 5).unwrap();
        assert_eq!(in_file_order, [0, 1, 2, 3, 4]);
    });
}
