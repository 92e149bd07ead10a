//! Large feature files are read without mapping more of them at a time than is needed.
#![cfg(target_os = "linux")]

mod emulator;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bm3_engine::backend::Backend;
use bm3_engine::cuda::Cuda;
use bm3_engine::data::{Dataset, DatasetOptions, FeatureMatrix};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const ITEMS: usize = 16_384;
const COLUMNS: usize = 4096;
const BYTES: u64 = (ITEMS * COLUMNS * 4) as u64;

/// The most that may be mapped while a table is checked, beyond what was mapped before: slices of
/// 64 MiB, and what the system maps around them.
const MOST_CHECKED: u64 = 96 << 20;

/// The same while a table is copied: 32 MiB, the parts of 1 MiB that threads hold, twice, and what
/// the system maps around them.
fn most_copied() -> u64 {
    (48 << 20) + ((2 * rayon::current_num_threads() as u64) << 20)
}

/// Bytes of mapped file pages that count as this process's memory.
fn mapped_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssFile:")).expect("RssFile");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A data set with one sparse table of 256 MiB: all zeros but its last number.
fn write(folder: &Path) {
    let mut file = File::create(folder.join("image_feat.npy")).unwrap();
    let fields =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({ITEMS}, {COLUMNS}), }}");
    let header = format!("{fields:<117}\n");
    file.write_all(b"\x93NUMPY\x01\x00\x76\x00").unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(128 + BYTES - 4).unwrap();
    File::options()
        .append(true)
        .open(folder.join("image_feat.npy"))
        .unwrap()
        .write_all(&2.5f32.to_le_bytes())
        .unwrap();
    let last = ITEMS - 1;
    let rows = format!("userID\titemID\tx_label\n0\t0\t0\n0\t{last}\t0\n");
    std::fs::write(folder.join("large.inter"), rows).unwrap();
}

/// Mapped memory is counted for the whole process, but the other test's file is small.
#[test]
fn a_large_table_is_read_without_being_held() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let before = mapped_bytes();
    let (mut most, mut seen) = (0, Vec::new());
    let dataset =
        Dataset::open_with(folder.path(), &DatasetOptions::default(), &mut |name, done, all| {
            assert_eq!((name, all), ("image", BYTES));
            seen.push(done);
            most = mapped_bytes().max(most);
        })
        .unwrap();
    assert!(seen.is_sorted() && seen.len() > 3, "{seen:?}");
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&BYTES)));
    assert!(
        most < before + MOST_CHECKED,
        "{most} bytes mapped while it was checked, {before} before"
    );

    // Released pages are read again, and hold what the file holds.
    let features: &Arc<FeatureMatrix> = &dataset.modalities[0].features;
    assert_eq!(features.row_f32(ITEMS - 1).unwrap()[COLUMNS - 1], 2.5);

    let Some(device) = emulator::device() else { return };
    let most = Arc::new(AtomicU64::new(0));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let cuda = Cuda::new(device).reporting({
        let (most, seen) = (most.clone(), seen.clone());
        Arc::new(move |file: &str, done, all| {
            assert!(file.ends_with("image_feat.npy") && all == BYTES);
            most.fetch_max(mapped_bytes(), Ordering::Relaxed);
            seen.lock().unwrap().push(done);
        })
    });
    let before = mapped_bytes();
    cuda.frozen_features(features.clone(), ITEMS).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.len() > 3, "{seen:?}");
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&BYTES)));
    let most = most.load(Ordering::Relaxed);
    let limit = before + most_copied();
    assert!(most < limit, "{most} bytes mapped while it was copied, {before} before");
}

/// Of all 16-bit patterns, as f16 and as bf16, exactly the non-finite ones are refused.
#[test]
fn numbers_of_two_bytes_are_finite_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let finite = |dtype: Dtype, bits: u16| match dtype {
        Dtype::F16 => f16::from_bits(bits).is_finite(),
        _ => bf16::from_bits(bits).is_finite(),
    };
    let check = |dtype: Dtype, numbers: &[u16]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let tensor = TensorView::new(dtype, vec![numbers.len() / 8, 8], &bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([("all", tensor)], None).unwrap()).unwrap();
        FeatureMatrix::open(&path).unwrap().check_finite(numbers.len() / 8)
    };
    for dtype in [Dtype::F16, Dtype::BF16] {
        let (good, bad): (Vec<u16>, Vec<u16>) =
            (0..=u16::MAX).partition(|&bits| finite(dtype, bits));
        check(dtype, &good).unwrap();
        // The sample includes infinities of both signs.
        for (number, &bits) in bad.iter().step_by(32).enumerate() {
            let mut numbers = good[..24].to_vec();
            numbers[number % 24] = bits;
            let error = check(dtype, &numbers).expect_err("a number that is not finite");
            let place = format!("row {}, column {} ", number % 24 / 8, number % 8);
            assert!(error.to_string().contains(&place), "{dtype:?} {bits:#x}: {error}");
        }
    }
}
