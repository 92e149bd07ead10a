//! `initial_values.cu`: the draws of Philox, bit for bit those of the CPU.

use bm3_engine::backend::Backend;
use bm3_engine::config::{Propagation, TrainConfig};
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
