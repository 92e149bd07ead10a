//! Tests of [`super`]: our own files in both languages, MMRec's files, and every kind of error.

use super::*;
use crate::config::{
    ByteSize, DeviceChoice, FeatureStorage, FeatureTypeChoice, ModalityChoice, Order, Propagation,
    SplitRatio, TrainConfig,
};

/// Reads files of these names and texts as one.
fn read_all(files: &[(&str, &str)]) -> Result<ConfigFile> {
    let directory = tempfile::tempdir().unwrap();
    let paths: Vec<_> = files
        .iter()
        .map(|(name, text)| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        })
        .collect();
    ConfigFile::read_all(&paths)
}

fn read(name: &str, text: &str) -> Result<ConfigFile> {
    read_all(&[(name, text)])
}

/// The message without the directory, for text that must be refused.
fn problem(name: &str, text: &str) -> String {
    let error = read(name, text).unwrap_err();
    assert!(error.is_input(), "{error}");
    let message = error.to_string();
    message.find(name).map_or(message.clone(), |start| message[start..].to_owned())
}

#[test]
fn every_own_key_is_read_from_both_languages_and_in_both_cases() {
    let toml = r#"
        embedding_size = 32
        layers = 2
        propagation = "gcn"
        self-loops = true
        dropout = 0.3
        reg_weight = 0
        cl-weight = 1.5
        freeze_features = true
        feature-type = "bf16"
        learning-rate = 1e-4
        learning_rate_decay = 0.96
        batch-size = 512
        epochs = 3
        patience = 2
        top-k = [20, 5]
        seed = 7
        order = "file"
        data = "data/baby"
        modalities = ["image", "text"]
        split = [0.7, 0.1, 0.2]
        device = 1
        feature_storage = "stream"
        device_memory = "2GB"
        threads = 2
        out = "runs/x"
        checkpoint-seconds = 5
        init = "start.safetensors"
        [features]
        image = "i.npy"
        text = "t.npy"
    "#;
    let yaml = r#"
embedding-size: 32
layers: 2
propagation: gcn
self_loops: true
dropout: 0.3
reg-weight: 0
cl_weight: 1.5
freeze-features: True
feature_type: bf16
learning_rate: 1e-4
learning-rate-decay: .96
batch_size: 512
epochs: 3
patience: 2
top_k: [20, 5]
seed: [7]
order: file
data: data/baby
modalities: image,text
split: 0.7,0.1,0.2
device: "1"
feature-storage: stream
device-memory: 2000000000
threads: 2
out: runs/x
checkpoint_seconds: 5
init: start.safetensors
features:
  image: i.npy
  text: t.npy
"#;
    let config = read("run.toml", toml).unwrap();
    assert_eq!(config, read("run.yaml", yaml).unwrap());
    assert!(config.notices.is_empty());

    let mut train = TrainConfig::default();
    config.train.apply(&mut train);
    let expected = TrainConfig {
        embedding_size: 32,
        layers: 2,
        propagation: Propagation::Gcn,
        self_loops: true,
        dropout: 0.3,
        reg_weight: 0.0,
        cl_weight: 1.5,
        freeze_features: true,
        feature_type: FeatureTypeChoice::Bf16,
        learning_rate: 1e-4,
        learning_rate_decay: 0.96,
        batch_size: 512,
        epochs: 3,
        patience: 2,
        top_k: vec![5, 20],
        seed: 7,
        order: Order::File,
    };
    assert_eq!(train, expected);
    let run = config.run;
    assert_eq!(run.data.as_deref(), Some(Path::new("data/baby")));
    assert_eq!(run.modalities, Some(ModalityChoice::Only(vec!["image".into(), "text".into()])));
    assert_eq!(run.split, Some(SplitRatio { train: 0.7, valid: 0.1, test: 0.2 }));
    assert_eq!((run.device, run.threads), (Some(DeviceChoice::Gpu(1)), Some(2)));
    assert_eq!(run.feature_storage, Some(FeatureStorage::Stream));
    assert_eq!(run.device_memory, Some(ByteSize(2_000_000_000)));
    assert_eq!(run.checkpoint_seconds, Some(5));
    assert_eq!(run.features.len(), 2);
}

/// Settings that conflict within one file may be completed by another file or a flag: only the
/// whole is checked.
#[test]
fn files_complete_each_other() {
    let narrow = ("narrow.toml", "feature_type = 'f16'");
    let frozen = ("frozen.toml", "freeze_features = true");
    let config = read_all(&[narrow, frozen]).unwrap();
    let mut train = TrainConfig::default();
    config.train.apply(&mut train);
    train.validate().unwrap();
    let mut train = TrainConfig::default();
    read_all(&[narrow]).unwrap().train.apply(&mut train);
    assert!(train.validate().unwrap_err().to_string().contains("--freeze-features"));
}

#[test]
fn the_list_of_keys_is_the_list_of_what_can_be_assigned() {
    for key in keys::KEYS {
        let (mut train, mut run) = (TrainSettings::default(), RunSettings::default());
        // The key is known: it is set, or its value is of the wrong kind.
        let outcome = keys::assign(&mut train, &mut run, key, &Value::Integer(1));
        assert_ne!(outcome, Ok(false), "{key}");
    }
}

/// The three files of MMRec's settings for its runs, as far as all of its versions agree.
const OVERALL: &str = r#"
gpu_id: 0
use_gpu: True
seed: [999]
data_path: 'data/'
inter_splitting_label: 'x_label'
filter_out_cod_start_users: True
is_multimodal_model: True
checkpoint_dir: 'saved'
save_recommended_topk: True
recommend_topk: 'recommend_topk/'
embedding_size: 64
weight_decay: 0.0
req_training: True
epochs: 1000
stopping_step: 20
train_batch_size: 2048
learner: adam
learning_rate: 0.001
learning_rate_scheduler: [1.0, 50]
eval_step: 1
training_neg_sample_num: 1
use_neg_sampling: True
use_full_sampling: False
NEG_PREFIX: neg__
USER_ID_FIELD: user_id:token
ITEM_ID_FIELD: item_id:token
TIME_FIELD: timestamp:float
field_separator: "\t"
metrics: ["Recall", "NDCG", "Precision", "MAP"]
topk: [5, 10, 20, 50]
valid_metric: Recall@20
eval_batch_size: 4096
use_raw_features: False
max_txt_len: 32
max_img_size: 256
vocab_size: 30522
type_vocab_size: 2
hidden_size: 4
pad_token_id: 0
max_position_embeddings: 512
layer_norm_eps: 1e-12
hidden_dropout_prob: 0.1
end2end: False
clip_grad_norm:
hyper_parameters: ["seed"]
"#;
const BABY: &str = r#"
USER_ID_FIELD: userID
ITEM_ID_FIELD: itemID
TIME_FIELD: timestamp
filter_out_cod_start_users: True
inter_file_name: 'baby.inter'
vision_feature_file: 'image_feat.npy'
text_feature_file: 'text_feat.npy'
user_graph_dict_file: 'user_graph_dict.npy'
field_separator: "\t"
"#;
const BM3: &str = r#"
embedding_size: 64
feat_embed_dim: 64
n_layers: [1, 2]
dropout: [0.3, 0.5]
reg_weight: [0.1, 0.01]
cl_weight: 2.0
use_neg_sampling: False
hyper_parameters: ["n_layers", "reg_weight", "dropout"]
"#;

/// Writes MMRec's three files.
fn mmrec_files(directory: &Path) -> [std::path::PathBuf; 3] {
    [("overall.yaml", OVERALL), ("baby.yaml", BABY), ("BM3.yaml", BM3)].map(|(name, text)| {
        std::fs::write(directory.join(name), text).unwrap();
        directory.join(name)
    })
}

/// Flags with these settings.
fn flags(layers: Option<usize>, dropout: Option<f64>, reg_weight: Option<f64>) -> TrainSettings {
    TrainSettings { layers, dropout, reg_weight, ..TrainSettings::default() }
}

#[test]
fn mmrec_files_are_read_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let paths = mmrec_files(directory.path());
    let none = RunSettings::default();
    let given = flags(Some(2), Some(0.3), Some(0.01));
    let config = ConfigFile::read_under(&paths, &given, &none).unwrap();
    let mut train = TrainConfig::default();
    config.train.apply(&mut train);
    let expected =
        TrainConfig { layers: 2, dropout: 0.3, reg_weight: 0.01, ..TrainConfig::default() };
    assert_eq!(train, expected);
    assert_eq!(config.run.device, Some(DeviceChoice::Auto));
    assert_eq!(config.run.data, None);
    let [overall, baby, bm3, data_path] = config.notices.as_slice() else {
        panic!("{:?}", config.notices);
    };
    assert!(overall.contains("eval_batch_size") && overall.contains("NEG_PREFIX"), "{overall}");
    assert!(baby.contains("USER_ID_FIELD, ITEM_ID_FIELD"), "{baby}");
    assert!(bm3.ends_with("here: use_neg_sampling, hyper_parameters"), "{bm3}");
    assert!(data_path.contains("names no data set"), "{data_path}");
    // `--data` names one.
    let run = RunSettings { data: Some("d".into()), ..none };
    let config = ConfigFile::read_under(&paths, &given, &run).unwrap();
    assert_eq!((config.notices.len(), config.run.data), (3, Some("d".into())));
}

#[test]
fn lists_are_a_grid_unless_something_gives_one_value() {
    let directory = tempfile::tempdir().unwrap();
    let paths = mmrec_files(directory.path());
    let none = RunSettings::default();
    let grid = |paths: &[std::path::PathBuf], train: &TrainSettings| {
        let (config, axes) = ConfigFile::read_sweep(paths, train, &none).unwrap();
        let axes: Vec<_> = axes.iter().map(|axis| (axis.flag(), axis.listed())).collect();
        (config.train.layers, axes.into_iter().map(|(flag, values)| flag + "=" + &values).collect())
    };
    let (layers, axes): (_, Vec<String>) = grid(&paths, &TrainSettings::default());
    assert_eq!(
        (layers, axes),
        (None, ["layers=1,2", "dropout=0.3,0.5", "reg-weight=0.1,0.01"].map(String::from).to_vec())
    );
    // A flag, and a later file, which may replace a value by a list.
    let later = directory.path().join("later.yaml");
    let text = "dropout: 0.1\nembedding-size: [16, 64]\nseed: [1, 2]\n\
                learning_rate_scheduler: [[1.0, 50], [0.96, 50]]\n";
    std::fs::write(&later, text).unwrap();
    let all = [&paths[..], std::slice::from_ref(&later)].concat();
    let (layers, axes): (_, Vec<String>) = grid(&all, &flags(Some(3), None, None));
    assert_eq!(layers, Some(3));
    let expected =
        ["reg-weight=0.1,0.01", "embedding-size=16,64", "seed=1,2", "learning-rate-decay=1.0,0.96"];
    assert_eq!(axes, expected);
    let last = directory.path().join("last.yaml");
    std::fs::write(&last, "learning_rate_scheduler: [0.9, 50]\nembedding_size: 64\nseed: 3")
        .unwrap();
    let all = [&all[..], &[last]].concat();
    let one = ConfigFile::read_under(&all, &flags(Some(1), None, Some(0.0)), &none).unwrap();
    assert_eq!((one.train.dropout, one.train.learning_rate_decay), (Some(0.1), Some(0.9)));
    assert_eq!((one.train.embedding_size, one.train.seed), (Some(64), Some(3)));
    let open = ConfigFile::read_under(&all, &flags(Some(1), None, None), &none).unwrap_err();
    assert!(open.to_string().ends_with(
        "BM3.yaml: line 6: reg_weight: [0.1, 0.01] found; a list means a sweep; give one value, or \
         `bm3-engine sweep --grid reg-weight=0.1,0.01`"
    ), "{open}");
}

/// Results are MMRec's only if the files that it would read are the ones read here.
#[test]
fn mmrec_files_of_data_are_those_that_are_read() {
    let other = "text_feature_file: clip_text.npy\nvision_feature_file: image_feat.npy";
    assert_eq!(
        problem("a.yaml", other),
        "a.yaml: line 1: text_feature_file: \"clip_text.npy\" found; text_feat.npy of the data \
         folder is read here: name another file with --feature text=FILE"
    );
    let replaced = "text_feature_file: text_feat.npy";
    read_all(&[("a.yaml", other), ("b.yaml", replaced)]).unwrap();
    read("a.yaml", &format!("{other}\nmodalities: [image]")).unwrap();
    read("a.yaml", &format!("{other}\nfeatures: {{text: x.npy}}")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    std::fs::write(&path, other).unwrap();
    let features = vec!["text=x.npy".parse().unwrap()];
    let run = RunSettings { features, ..RunSettings::default() };
    ConfigFile::read_under(&[&path], &TrainSettings::default(), &run).unwrap();

    let run = RunSettings { data: Some(directory.path().into()), ..RunSettings::default() };
    let under = |text: &str| {
        std::fs::write(&path, text).unwrap();
        ConfigFile::read_under(&[&path], &TrainSettings::default(), &run).map(drop)
    };
    // Problems of the folder are reported when it is opened.
    under("inter_file_name: other.inter").unwrap();
    std::fs::write(directory.path().join("baby.inter"), "").unwrap();
    under("inter_file_name: baby.inter").unwrap();
    let error = under("seed: 1\ninter_file_name: other.inter").unwrap_err().to_string();
    assert!(
        error.contains("a.yaml: line 2: inter_file_name: \"other.inter\" found; baby.inter is")
    );
    read("a.yaml", "inter_file_name: other.inter").unwrap();
}

#[test]
fn mmrec_keys_that_work_together() {
    let config = read("a.yaml", "data_path: d/\ndataset: baby\nuse_gpu: False\ngpu_id: 3").unwrap();
    assert_eq!(config.run.data.as_deref(), Some(Path::new("d/baby")));
    assert_eq!(config.run.device, Some(DeviceChoice::Cpu));
    let config = read("a.yaml", "gpu_id: 3\nlearning_rate_scheduler: [[0.96, 50]]").unwrap();
    assert_eq!(config.run.device, Some(DeviceChoice::Gpu(3)));
    assert_eq!(config.train.learning_rate_decay, Some(0.96));
    let config = read("a.yaml", "gpu_id: 3\ndevice: cpu\ndata: x\ndataset: baby").unwrap();
    assert_eq!(config.run.device, Some(DeviceChoice::Cpu));
    assert_eq!(config.run.data.as_deref(), Some(Path::new("x")));
}

#[test]
fn mmrec_values_that_would_change_results_are_errors() {
    for (text, expected) in [
        ("weight_decay: 0.1", "line 1: weight_decay: 0.1 found; Adam has no weight decay"),
        ("learner: sgd", "line 1: learner: \"sgd\" found; the only optimiser here is `adam`"),
        ("eval_step: 2", "line 1: eval_step: 2 found; every epoch is evaluated"),
        ("clip_grad_norm: {max_norm: 5}", "line 1: clip_grad_norm: a table found; gradients"),
        ("end2end: True", "line 1: end2end: true found; features are not extracted"),
        ("valid_metric: NDCG@20", "line 1: valid_metric: \"NDCG@20\" found; early stopping"),
        ("valid_metric_bigger: False", "line 1: valid_metric_bigger: false found"),
        ("model: LightGCN", "line 1: model: \"LightGCN\" found; this engine trains BM3"),
        ("inter_splitting_label: fold", "line 1: inter_splitting_label: \"fold\" found"),
        ("field_separator: ','", "line 1: field_separator: \",\" found"),
        ("use_full_sampling: True", "line 1: use_full_sampling: true found"),
        ("is_multimodal_model: False", "line 1: is_multimodal_model: false found"),
        ("filter_out_cod_start_users: False", "line 1: filter_out_cod_start_users: false found"),
        ("use_raw_features: True", "line 1: use_raw_features: true found; images and texts"),
        ("USER_ID_FIELD: uid", "line 1: USER_ID_FIELD: \"uid\" found; users are read from"),
        ("ITEM_ID_FIELD: userID", "line 1: ITEM_ID_FIELD: \"userID\" found; items are read from"),
        ("learning_rate_scheduler: [0.96, 10]", "line 1: learning_rate_scheduler: a period of 10"),
        ("learning_rate_scheduler: 0.96", "line 1: learning_rate_scheduler: 0.96 found, [γ, 50]"),
        (
            "learning_rate_scheduler: [[1.0, 50], [0.96, 50]]",
            "line 1: learning_rate_scheduler: [[1.0, 50], [0.96, 50]] found; a list means a sweep",
        ),
        ("feat_embed_dim: 32", "feat_embed_dim: 32 found, 64 expected"),
    ] {
        let found = problem("m.yaml", text);
        assert!(found.starts_with(&format!("m.yaml: {expected}")), "{text}: {found}");
    }
}

#[test]
fn a_sweep_is_not_a_setting() {
    assert_eq!(
        problem("BM3.yaml", "cl_weight: 2.0\ndropout: [0.3, 0.5]\n"),
        "BM3.yaml: line 2: dropout: [0.3, 0.5] found; a list means a sweep; give one value, or \
         `bm3-engine sweep --grid dropout=0.3,0.5`"
    );
    let seeds = problem("a.yaml", "seed: [3, 5]");
    assert!(seeds.ends_with("give one value, or `bm3-engine sweep --seeds 3,5`"), "{seeds}");
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_may_be_meant() {
    for (key, meant) in [
        ("embeding_size", "embedding_size"),
        ("batchsize", "batch_size"),
        ("learning-rat", "learning_rate"),
        ("n_layer", "n_layers"),
        ("checkpoint-second", "checkpoint_seconds"),
    ] {
        assert_eq!(
            problem("a.toml", &format!("seed = 1\n\n{key} = 2\n")),
            format!("a.toml: line 3: {key}: is not a setting; did you mean `{meant}`?")
        );
    }
    let found = problem("a.toml", "[zzz]\nx = 1");
    assert!(
        found.starts_with("a.toml: line 1: zzz: is not a setting; the settings are"),
        "{found}"
    );
}

#[test]
fn values_out_of_range_or_of_another_kind_name_the_line() {
    for (name, text, expected) in [
        ("a.toml", "seed = 1\nlayers = 9", "line 2: layers: 9 found, 0 to 4 expected"),
        ("a.yaml", "\n\ntrain_batch_size: 0", "line 3: train_batch_size: 0 found, 1 to 16777216"),
        ("a.toml", "layers = -1", "line 1: layers: -1 found, a whole number from 0 expected"),
        ("a.toml", "dropout = nan", "line 1: dropout: NaN found, at least 0"),
        ("a.toml", "dropout = 'half'", "line 1: dropout: \"half\" found, a number expected"),
        ("a.toml", "'self-loops' = 1", "line 1: self-loops: 1 found, true or false expected"),
        ("a.yaml", "propagation: heavy", "line 1: propagation: \"heavy\" found, `light` or `gcn`"),
        ("a.yaml", "order: up", "line 1: order: \"up\" found, `random` or `file` expected"),
        ("a.toml", "feature_type = 'f64'", "line 1: feature_type: \"f64\" found, `auto` or `f32`"),
        ("a.toml", "split = [0.8, 0.2]", "line 1: split: 2 shares found, three expected"),
        ("a.toml", "device = 'gpu'", "line 1: device: `gpu` found, `cpu`, `auto` or"),
        ("a.toml", "modalities = ['a', 'a']", "line 1: modalities: `a` is there twice"),
        ("a.toml", "[features]\n'a b' = 'x'", "line 1: features: `a b` is not a modality's name"),
        ("a.toml", "features = 'x'", "line 1: features: \"x\" found, a table expected"),
        ("a.toml", "data = 2024-01-01", "line 1: data: a table found, text expected"),
        ("a.toml", "\nthreads = 0", "line 2: threads: 0 found, a number from 1 expected"),
        ("a.toml", "threads = [1, 2]", "line 1: threads: [1, 2] found; give one value"),
        ("a.toml", "epochs = 0", "line 1: epochs: 0 found, a number from 1 expected"),
        ("a.yaml", "dropout: [0.5, 1.5]", "line 1: dropout: 1.5 found, at least 0"),
        ("a.yaml", "dropout: [0.5, half]", "line 1: dropout: \"half\" found, a number expected"),
        ("a.yaml", "n_layers: [1, 1]", "line 1: n_layers: `1` is there twice"),
        ("a.yaml", "n_layers: 1\nlayers: 1", "line 2: layers: is already given, as `n_layers`"),
    ] {
        let found = problem(name, text);
        assert!(found.starts_with(&format!("{name}: {expected}")), "{text}: {found}");
    }
}

#[test]
fn syntax_errors_name_the_line() {
    for (name, text) in [
        ("a.toml", "seed = 1\nlayers = = 2\n"),
        ("a.toml", "seed = 1\nseed = 2\n"),
        ("a.yaml", "seed: 1\nlayers: [2\n"),
        ("a.yaml", "seed: 1\nseed: 2\n"),
        ("a.yaml", "seed: 1\n  layers: 2\n"),
    ] {
        let found = problem(name, text);
        let rest =
            found.strip_prefix(&format!("{name}: line ")).unwrap_or_else(|| panic!("{found}"));
        assert!(rest.starts_with(['1', '2', '3']), "{found}");
        assert!(!found.contains('\n'), "{found}");
    }
}

#[test]
fn what_yaml_is_wrong_is_said_in_our_words_and_its_place_once() {
    let twice = problem("a.yaml", "seed: 1\nlayers: 1\nseed: 2\n");
    assert_eq!(twice, "a.yaml: line 3: `seed` is there twice; keep one of the two");
    let open = problem("a.yaml", "seed: 1\nlayers: [2\n");
    assert!(!open.contains("column"), "{open}");
}

#[test]
fn files_that_are_none() {
    assert!(problem("a.json", "{}").contains("end in .toml, .yaml or .yml"));
    assert!(problem("a.yaml", "- 1\n- 2\n").contains("[1, 2] found, a table of settings expected"));
    let missing = ConfigFile::read(Path::new("does/not/exist.toml")).unwrap_err();
    assert!(missing.is_input() && missing.to_string().contains("cannot read"), "{missing}");
    for (name, text) in
        [("a.toml", ""), ("a.yaml", "# nothing\n"), ("a.yml", ""), ("a.yaml", "---\n")]
    {
        assert_eq!(read(name, text).unwrap(), ConfigFile::default(), "{name}: {text:?}");
    }
    assert_eq!(read("a.yaml", "seed:\nlayers: null\n").unwrap(), ConfigFile::default());
}

#[test]
fn a_text_is_read_as_a_toml_file_is() {
    let text = "layers = 2\ndevice = 1\nn_layers = 3";
    let file = problem("run.toml", text).replace("run.toml: ", "settings: ");
    let error = ConfigFile::parse(text).unwrap_err();
    assert!(error.is_input());
    assert_eq!(error.to_string(), file);
    let text = "layers = 2\ndevice = 1\nseed = [7]";
    assert_eq!(ConfigFile::parse(text).unwrap(), read("run.toml", text).unwrap());
    assert_eq!(ConfigFile::parse("").unwrap(), ConfigFile::default());
    let error = ConfigFile::parse("layer = 2").unwrap_err().to_string();
    assert_eq!(error, "settings: line 1: layer: is not a setting; did you mean `layers`?");
}
