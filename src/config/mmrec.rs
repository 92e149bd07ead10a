//! The keys of MMRec's settings files, so that those files can be used unchanged.
//!
//! Keys that only have another name are translated, keys without a meaning here are skipped with a
//! notice, and values that would change results but that this engine does not support are errors.

use std::path::PathBuf;

use super::value::{Problem, Value};
use super::{DeviceChoice, RunSettings, TrainSettings};

/// MMRec's name and ours, for keys that differ in nothing else.
pub(super) const RENAMED: &[(&str, &str)] = &[
    ("n_layers", "layers"),
    ("train_batch_size", "batch_size"),
    ("stopping_step", "patience"),
    ("topk", "top_k"),
];

/// MMRec's key for γ, whose value is a list.
pub(super) const DECAY: &str = "learning_rate_scheduler";

/// Keys translated by [`MmrecKeys::assign`].
pub(super) const TRANSLATED: &[&str] =
    &[DECAY, "feat_embed_dim", "data_path", "dataset", "use_gpu", "gpu_id"];

/// Keys without a meaning here: whatever their value, results are the same.
const IGNORED: &[&str] = &[
    "checkpoint_dir",
    "eval_batch_size",
    "hidden_dropout_prob",
    "hidden_size",
    "hyper_parameters",
    "layer_norm_eps",
    "max_img_size",
    "max_position_embeddings",
    "max_txt_len",
    "metrics",
    "neg_prefix",
    "pad_token_id",
    "rating_field",
    "recommend_topk",
    "req_training",
    "require_training",
    "save_recommended_topk",
    "time_field",
    "training_neg_sample_num",
    "type_vocab_size",
    "use_neg_sampling",
    "user_graph_dict_file",
    "vocab_size",
];

/// A key of which only one value is supported, and the message for any other.
struct Fixed {
    key: &'static str,
    holds: fn(&Value) -> bool,
    expected: &'static str,
}

const FIXED: &[Fixed] = &[
    Fixed {
        key: "model",
        holds: |value| value.text().is_ok_and(|name| name.eq_ignore_ascii_case("bm3")),
        expected: "this engine trains BM3 and no other model",
    },
    Fixed {
        key: "learner",
        holds: |value| value.text().is_ok_and(|name| name.eq_ignore_ascii_case("adam")),
        expected: "the only optimiser here is `adam`",
    },
    Fixed {
        key: "weight_decay",
        holds: |value| value.number() == Ok(0.0),
        expected: "Adam has no weight decay here; 0 is expected",
    },
    Fixed {
        key: "clip_grad_norm",
        holds: |value| *value == Value::Null,
        expected: "gradients are not clipped here; remove the key",
    },
    Fixed {
        key: "eval_step",
        holds: |value| value.integer() == Ok(1),
        expected: "every epoch is evaluated here; 1 is expected",
    },
    Fixed {
        key: "valid_metric",
        holds: |value| value.text().is_ok_and(|name| name.eq_ignore_ascii_case("recall@20")),
        expected: "early stopping watches Recall@20 and no other metric here",
    },
    Fixed {
        key: "valid_metric_bigger",
        holds: |value| value.boolean() == Ok(true),
        expected: "a higher Recall@20 is better; true is expected",
    },
    Fixed {
        key: "end2end",
        holds: |value| value.boolean() == Ok(false),
        expected: "features are not extracted here; false is expected",
    },
    Fixed {
        key: "is_multimodal_model",
        holds: |value| value.boolean() == Ok(true),
        expected: "BM3 is multimodal; to train without features write `modalities: none`",
    },
    Fixed {
        key: "use_full_sampling",
        holds: |value| value.boolean() == Ok(false),
        expected: "a step takes a batch of pairs here; false is expected",
    },
    Fixed {
        key: "inter_splitting_label",
        holds: |value| value.text() == Ok("x_label"),
        expected: "the split is read from the column `x_label`",
    },
    Fixed {
        key: "filter_out_cod_start_users",
        holds: |value| value.boolean() == Ok(true),
        expected: "held-out interactions of users without training ones are left out here; true is \
                   expected",
    },
    Fixed {
        key: "use_raw_features",
        holds: |value| value.boolean() == Ok(false),
        expected: "images and texts themselves are not read here; false is expected",
    },
    Fixed {
        key: "user_id_field",
        holds: |value| is_column(value, ["userID", "userID:token", "user_id:token"]),
        expected: "users are read from the column `userID` of the .inter file: rename it there",
    },
    Fixed {
        key: "item_id_field",
        holds: |value| is_column(value, ["itemID", "itemID:token", "item_id:token"]),
        expected: "items are read from the column `itemID` of the .inter file: rename it there",
    },
    Fixed {
        key: "field_separator",
        holds: |value| value.text() == Ok("\t"),
        expected: ".inter files are separated by tabs",
    },
];

/// Whether the value is one of a column's names. The last of them is the placeholder in
/// `overall.yaml`, which stays until the data set's own file gives the name.
fn is_column(value: &Value, names: [&str; 3]) -> bool {
    value.text().is_ok_and(|name| names.contains(&name))
}

/// The effect of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It set a value.
    Assigned,
    /// It names the `.inter` file, which must be the one that is read.
    Interactions(String),
    /// It names the features of a modality. They are a problem if they are not the folder's, and
    /// only if the modality is used.
    Features { modality: &'static str, problem: Option<Problem> },
    /// It is MMRec's and means nothing here.
    Ignored,
    /// It is not one of MMRec's.
    Unknown,
}

/// MMRec's keys that only have a meaning together, gathered from all files.
#[derive(Debug, Default)]
pub(super) struct MmrecKeys {
    data_path: Option<PathBuf>,
    dataset: Option<String>,
    use_gpu: Option<bool>,
    gpu_id: Option<usize>,
    feat_embed_dim: Option<usize>,
}

impl MmrecKeys {
    /// Takes a key in lower case that is neither our own nor a renamed one.
    pub fn assign(
        &mut self,
        train: &mut TrainSettings,
        key: &str,
        value: &Value,
    ) -> Result<Outcome, Problem> {
        match key {
            DECAY => train.learning_rate_decay = Some(decay(value)?),
            "feat_embed_dim" => self.feat_embed_dim = Some(value.integer()?),
            "data_path" => self.data_path = Some(value.text()?.into()),
            "dataset" => self.dataset = Some(value.text()?.to_owned()),
            "use_gpu" => self.use_gpu = Some(value.boolean()?),
            "gpu_id" => self.gpu_id = Some(value.integer()?),
            "inter_file_name" => return Ok(Outcome::Interactions(value.text()?.to_owned())),
            "vision_feature_file" => return feature_file("image", value),
            "text_feature_file" => return feature_file("text", value),
            _ if IGNORED.contains(&key) => return Ok(Outcome::Ignored),
            _ => {
                let Some(fixed) = FIXED.iter().find(|fixed| fixed.key == key) else {
                    return Ok(Outcome::Unknown);
                };
                if !(fixed.holds)(value) {
                    return Err(format!("{value} found; {}", fixed.expected));
                }
                return Ok(Outcome::Ignored);
            }
        }
        Ok(Outcome::Assigned)
    }

    /// Completes `run` from keys that only work together. Our own keys and flags win.
    ///
    /// # Errors
    /// The key and its problem.
    pub fn finish(
        self,
        train: &TrainSettings,
        run: &mut RunSettings,
        notices: &mut Vec<String>,
    ) -> Result<(), (&'static str, Problem)> {
        let embedding_size =
            train.embedding_size.unwrap_or(super::TrainConfig::default().embedding_size);
        if let Some(size) = self.feat_embed_dim
            && size != embedding_size
        {
            let problem = format!(
                "{size} found, {embedding_size} expected: features are projected to \
                 `embedding_size` numbers"
            );
            return Err(("feat_embed_dim", problem));
        }
        if run.data.is_none() {
            match (self.data_path, self.dataset) {
                (Some(path), Some(dataset)) => run.data = Some(path.join(dataset)),
                (None, Some(dataset)) => run.data = Some(dataset.into()),
                (Some(path), None) => notices.push(format!(
                    "data_path {} names no data set without `dataset`; --data does",
                    path.display()
                )),
                (None, None) => {}
            }
        }
        if run.device.is_none() {
            run.device = match (self.use_gpu, self.gpu_id) {
                (Some(false), _) => Some(DeviceChoice::Cpu),
                // MMRec's own file has 0 and computes on the CPU if there is no GPU.
                (_, Some(0)) | (Some(true), None) => Some(DeviceChoice::Auto),
                (_, Some(number)) => Some(DeviceChoice::Gpu(number)),
                (None, None) => None,
            };
        }
        Ok(())
    }
}

/// The effect of naming a modality's feature file.
fn feature_file(modality: &'static str, value: &Value) -> Result<Outcome, Problem> {
    let read = format!("{modality}_feat.npy");
    let problem = (value.text()? != read).then(|| {
        format!(
            "{value} found; {read} of the data folder is read here: name another file with \
             --feature {modality}=FILE"
        )
    });
    Ok(Outcome::Features { modality, problem })
}

/// The γ of each of several schedules, over which MMRec would sweep.
pub(super) fn decays(value: &Value) -> Option<Result<Vec<Value>, Problem>> {
    match value.list() {
        schedules @ [Value::List(_), _, ..] => {
            Some(schedules.iter().map(|schedule| Ok(Value::Float(decay(schedule)?))).collect())
        }
        _ => None,
    }
}

/// γ of `[γ, 50]`: MMRec multiplies the learning rate by γ^(epoch/50), as this engine does.
fn decay(value: &Value) -> Result<f64, Problem> {
    // A sweep over one schedule is a list in a list.
    let schedule = match value.list() {
        [inner @ Value::List(_)] => inner.list(),
        outer => outer,
    };
    match schedule {
        [gamma, period] if period.number() == Ok(50.0) => gamma.number(),
        [_, period] => Err(format!(
            "a period of {period} found, 50 expected; for a period of T epochs write [γ^(50/T), 50]"
        )),
        _ => Err(format!("{value} found, [γ, 50] expected")),
    }
}
