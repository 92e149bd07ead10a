//! Progress of reading large feature files, and of copying them to a GPU.

use std::sync::Arc;

use bm3_engine::cuda::UploadProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Smaller tables are loaded before anybody looks.
const LEAST_BYTES: u64 = 128 << 20;

/// A progress bar on a terminal; nothing elsewhere.
#[derive(Clone)]
pub struct Loading {
    bar: ProgressBar,
}

impl Loading {
    /// A bar that is shown while a file loads, if `talks`.
    pub fn new(talks: bool) -> Self {
        let target = match talks {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        // The template is a constant; if indicatif ever refuses it, its default bar is shown.
        let style = ProgressStyle::with_template(template);
        Self { bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())) }
    }

    fn show(&self, message: String, done: u64, all: u64) {
        if all < LEAST_BYTES {
            return;
        }
        if done == 0 {
            self.bar.reset();
            self.bar.set_length(all);
            self.bar.set_message(message);
        }
        self.bar.set_position(done);
        if done == all {
            self.bar.finish_and_clear();
        }
    }

    /// Shows progress in reading and checking a modality's features.
    pub fn reading(&self) -> impl FnMut(&str, u64, u64) {
        let loading = self.clone();
        move |modality, done, all| loading.show(format!("reading {modality}"), done, all)
    }

    /// Shows progress in copying a file's features to a GPU.
    pub fn copying(&self) -> Arc<UploadProgress> {
        let loading = self.clone();
        Arc::new(move |file: &str, done, all| {
            loading.show(format!("copying {file} to the GPU"), done, all);
        })
    }
}
