//! Every golden case, an exact small problem with all its intermediate values, on the CPU in f64
//! and f32 and through the CUDA kernels.
//!
//! The cases are in `BM3_GOLDEN_DIR`, or else in `tests/golden` and, if present,
//! `../shared/golden`. Each case prints one line with the largest deviations found. f64 must agree
//! to 1e-10; f32 to what its arithmetic allows, see [`Kind::tolerance`].

mod emulator;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bm3_engine::backend::{Backend, Dropout, TopK};
use bm3_engine::batch::Batch;
use bm3_engine::config::{Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{FeatureMatrix, Pairs, Split};
use bm3_engine::evaluate;
use bm3_engine::graph::Graph;
use bm3_engine::parameters::Layout;
use bm3_engine::real::Real;
use bm3_engine::step::{DenseState, DeviceModel, RawFeatures, fresh_features};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// The settings in a case's metadata.
#[derive(Deserialize)]
struct Settings {
    users: usize,
    items: usize,
    dim: usize,
    image_dim: usize,
    text_dim: usize,
    n_layers: usize,
    dropout: f64,
    reg_weight: f64,
    cl_weight: f64,
    frozen: bool,
    self_loops: bool,
    propagation: String,
    lr: f64,
    steps: usize,
    topk: Vec<usize>,
    params: Vec<String>,
    min_rel_score_gap: f64,
}

struct Case {
    settings: Settings,
    reals: BTreeMap<String, Vec<f64>>,
    integers: BTreeMap<String, Vec<i64>>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a golden file can be read");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let settings = &metadata.metadata().as_ref().expect("metadata")["bm3"];
        let settings = serde_json::from_str(settings).expect("settings of a golden case");
        let (mut reals, mut integers) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in SafeTensors::deserialize(&bytes).expect("a safetensors file").iter() {
            let words = tensor.data().as_chunks::<8>().0.iter();
            match tensor.dtype() {
                Dtype::F64 => {
                    let values = words.map(|word| f64::from_le_bytes(*word)).collect();
                    reals.insert(name.to_owned(), values);
                }
                Dtype::I64 => {
                    let values = words.map(|word| i64::from_le_bytes(*word)).collect();
                    integers.insert(name.to_owned(), values);
                }
                Dtype::U8 | Dtype::BOOL => {
                    let values = tensor.data().iter().map(|&byte| i64::from(byte)).collect();
                    integers.insert(name.to_owned(), values);
                }
                other => panic!("{name}: unexpected type {other:?}"),
            }
        }
        Self { settings, reals, integers }
    }

    fn real(&self, name: &str) -> &[f64] {
        self.reals.get(name).unwrap_or_else(|| panic!("no array {name}"))
    }

    fn integer(&self, name: &str) -> &[i64] {
        self.integers.get(name).unwrap_or_else(|| panic!("no array {name}"))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.integer(name).iter().map(|&id| u32::try_from(id).expect("an id")).collect()
    }

    /// The modalities as (our name, width, letter of the case's arrays).
    fn modalities(&self) -> Vec<(&'static str, usize, &'static str)> {
        let settings = &self.settings;
        [("image", settings.image_dim, "v"), ("text", settings.text_dim, "t")]
            .into_iter()
            .filter(|(name, _, _)| settings.params.contains(&format!("{name}_w")))
            .collect()
    }

    fn rows_with_label(&self, label: i64) -> Pairs {
        let rows = self.integer("inter").as_chunks::<3>().0;
        let (users, items) = rows
            .iter()
            .filter(|row| row[2] == label)
            .map(|row| (row[0] as u32, row[1] as u32))
            .unzip();
        Pairs { users, items }
    }

    /// The split of the rows with `label`, by the rules of SPEC §8 and §9.
    fn split(&self, label: i64) -> Split {
        let trained = self.rows_with_label(0);
        let rows = self.rows_with_label(label);
        let mut users: Vec<u32> = Vec::new();
        for user in &rows.users {
            if trained.users.contains(user) && !users.contains(user) {
                users.push(*user);
            }
        }
        let (mut offsets, mut items) = (vec![0], Vec::new());
        for user in &users {
            let own = rows.users.iter().zip(&rows.items).filter(|(other, _)| *other == user);
            items.extend(own.map(|(_, &item)| item));
            offsets.push(items.len());
        }
        Split { users, offsets, items }
    }
}

/// The golden files' name of one of our tensors.
fn golden_name(ours: &str) -> String {
    let parts: Vec<&str> = ours.split('.').collect();
    match parts[..] {
        ["user_embedding"] => "user_emb".to_owned(),
        ["item_embedding"] => "item_emb".to_owned(),
        ["predictor", "weight"] => "pred_w".to_owned(),
        ["predictor", "bias"] => "pred_b".to_owned(),
        ["propagation", layer, "weight"] => format!("gcn_w{layer}"),
        ["modality", name, "weight"] => format!("{name}_w"),
        ["modality", name, "bias"] => format!("{name}_b"),
        _ => panic!("unknown tensor {ours}"),
    }
}

/// The kind of a compared value, which decides its tolerance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Graph,
    Nodes,
    Loss,
    Gradient,
    Parameters,
    Scores,
    Metrics,
}

impl Kind {
    /// How far a value may be from f64's. `scale` is the array's largest magnitude.
    ///
    /// f64: 1e-10. f32: the errors that plain f32 arithmetic makes on these very cases
    /// (golden/README: loss 6e-7, gradients 3.4e-7 of the largest, parameters 8e-7), doubled for
    /// another order of summation. Node values and scores are sums of fewer than 64 products, each
    /// rounded to 2⁻²⁴ of its size.
    fn tolerance<T: Real>(self, scale: f64) -> f64 {
        if size_of::<T>() == 8 {
            return 1e-10 * scale.max(1.0);
        }
        match self {
            Self::Graph => 1.2e-7 * scale,
            Self::Nodes | Self::Scores => 64.0 * 6e-8 * scale,
            Self::Loss => 1.2e-6,
            Self::Gradient => 7e-7 * scale,
            Self::Parameters => 1.6e-6,
            Self::Metrics => 1e-12,
        }
    }
}

/// The largest deviation of each kind, as a fraction of its tolerance.
#[derive(Default)]
struct Report {
    largest: BTreeMap<Kind, f64>,
    failures: Vec<String>,
}

impl Report {
    fn compare<T: Real>(&mut self, kind: Kind, name: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "length of {name}");
        let scale = expected.iter().fold(0.0f64, |scale, value| scale.max(value.abs()));
        let deviation = found
            .iter()
            .zip(expected)
            .map(|(found, expected)| (found - expected).abs())
            .fold(0.0, f64::max);
        let largest = self.largest.entry(kind).or_default();
        *largest = largest.max(deviation);
        let tolerance = kind.tolerance::<T>(scale);
        // A NaN must fail too.
        if deviation.is_nan() || found.iter().any(|value| value.is_nan()) || deviation > tolerance {
            self.failures.push(format!("{name}: off by {deviation:.2e}, allowed {tolerance:.2e}"));
        }
    }
}

fn to_f64<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

fn from_f64<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

fn model<B: Backend>(backend: B, case: &Case) -> (DeviceModel<B>, Arc<Graph>, TrainConfig) {
    let settings = &case.settings;
    let config = TrainConfig {
        embedding_size: settings.dim,
        layers: settings.n_layers,
        propagation: match settings.propagation.as_str() {
            "gcn" => Propagation::Gcn,
            "light" => Propagation::Light,
            other => panic!("unknown propagation {other}"),
        },
        self_loops: settings.self_loops,
        reg_weight: settings.reg_weight,
        cl_weight: settings.cl_weight,
        freeze_features: settings.frozen,
        ..TrainConfig::default()
    };
    let widths: Vec<(String, usize)> =
        case.modalities().iter().map(|&(name, width, _)| (name.to_owned(), width)).collect();
    let layout = Layout::new(&config, settings.users, settings.items, &widths);
    let mut parameters = vec![B::Real::ZERO; layout.len()];
    for tensor in &layout.tensors {
        let values = case.real(&format!("init_{}", golden_name(&tensor.name)));
        parameters[tensor.range.clone()].copy_from_slice(&from_f64(values));
    }
    let zeros = vec![B::Real::ZERO; layout.len()];
    let dense = DenseState { parameters, first: zeros.clone(), second: zeros };
    let features = case
        .modalities()
        .iter()
        .map(|&(name, width, _)| {
            let values = case.real(&format!("init_{name}_feat"));
            if settings.frozen {
                let values = values.iter().map(|&value| value as f32).collect();
                let matrix = FeatureMatrix::from_f32(settings.items, width, values);
                RawFeatures::Frozen(Arc::new(matrix.expect("a matrix of these sizes")))
            } else {
                RawFeatures::Trained(fresh_features(from_f64(values), settings.items))
            }
        })
        .collect();
    let graph = Arc::new(Graph::new(
        &case.rows_with_label(0),
        settings.users,
        settings.items,
        settings.self_loops,
    ));
    let model = DeviceModel::new(backend, &config, layout, graph.clone(), &dense, features);
    (model.expect("the device has room"), graph, config)
}

fn masks(case: &Case, step: usize) -> Dropout {
    let settings = &case.settings;
    if settings.dropout == 0.0 {
        return Dropout::None;
    }
    let letters = ["u", "i"].into_iter().chain(case.modalities().into_iter().map(|(_, _, m)| m));
    let kept = letters
        .map(|letter| {
            let name = format!("step{step}_mask_{letter}");
            match case.integers.get(&name) {
                Some(mask) => mask.iter().map(|&kept| kept != 0).collect(),
                None => case.real(&name).iter().map(|&kept| kept != 0.0).collect(),
            }
        })
        .collect();
    Dropout::Given { probability: settings.dropout, kept: Arc::new(kept) }
}

fn check_graph<T: Real>(case: &Case, graph: &Graph, report: &mut Report) {
    let (users, items) = (case.ids("adj_user"), case.ids("adj_item"));
    let mut found = Vec::new();
    let mut distinct = 0;
    for (&user, &item) in users.iter().zip(&items) {
        assert!(graph.items_of(user as usize).any(|other| other == item), "edge {user}-{item}");
        let item = graph.users() + item as usize;
        found.push(graph.scale(user as usize) * graph.scale(item));
        distinct += 1;
    }
    assert_eq!(
        (0..graph.users()).map(|user| graph.items_of(user).count()).sum::<usize>(),
        distinct
    );
    report.compare::<T>(Kind::Graph, "adj_val", &found, case.real("adj_val"));
}

fn check_forward<B: Backend>(case: &Case, model: &mut DeviceModel<B>, report: &mut Report) {
    let users = case.settings.users * case.settings.dim;
    let nodes = to_f64(&model.nodes().expect("propagation"));
    report.compare::<B::Real>(Kind::Nodes, "H_u", &nodes[..users], case.real("H_u"));
    report.compare::<B::Real>(Kind::Nodes, "H_i", &nodes[users..], case.real("H_i"));
    let predicted = to_f64(&model.predictions().expect("predictions"));
    report.compare::<B::Real>(Kind::Nodes, "P_u", &predicted[..users], case.real("P_u"));
    report.compare::<B::Real>(Kind::Nodes, "P_i", &predicted[users..], case.real("P_i"));
    let items: Vec<u32> = (0..case.settings.items as u32).collect();
    for (index, (_, _, letter)) in case.modalities().into_iter().enumerate() {
        let name = format!("F_{letter}");
        let projected = to_f64(&model.project_items(index, &items).expect("projection"));
        report.compare::<B::Real>(Kind::Nodes, &name, &projected, case.real(&name));
    }
}

fn check_losses<T: Real>(
    case: &Case,
    config: &TrainConfig,
    step: usize,
    losses: &[f64],
    report: &mut Report,
) {
    let mut names = vec!["ui".to_owned(), "iu".to_owned()];
    for (_, _, letter) in case.modalities() {
        names.push(letter.to_owned());
        names.push(if letter == "v" { "vt" } else { "tv" }.to_owned());
    }
    names.push("reg".to_owned());
    let total = bm3_engine::step::total_loss(config, losses);
    for (name, &loss) in names.iter().zip(losses).chain([(&"total".to_owned(), &total)]) {
        let name = format!("step{step}_loss_{name}");
        report.compare::<T>(Kind::Loss, &name, &[loss], case.real(&name));
    }
}

fn check_gradients<B: Backend>(case: &Case, model: &mut DeviceModel<B>, report: &mut Report) {
    let gradients = to_f64(&model.gradients().expect("gradients"));
    for tensor in model.layout().tensors.clone() {
        let name = format!("step0_grad_{}", golden_name(&tensor.name));
        let found = &gradients[tensor.range.clone()];
        report.compare::<B::Real>(Kind::Gradient, &name, found, case.real(&name));
    }
    let states = model.feature_states().expect("features");
    for ((modality, _, _), state) in case.modalities().into_iter().zip(states) {
        let Some(state) = state else { continue };
        // The first moment after one step is (1 − β₁) times the gradient.
        let found: Vec<f64> = state.first.iter().map(|value| value.to_f64() / 0.1).collect();
        let name = format!("step0_grad_{modality}_feat");
        report.compare::<B::Real>(Kind::Gradient, &name, &found, case.real(&name));
    }
}

fn check_parameters<B: Backend>(
    case: &Case,
    model: &mut DeviceModel<B>,
    steps: usize,
    report: &mut Report,
) {
    let parameters = to_f64(&model.dense_state().expect("parameters").parameters);
    let tensors = model.layout().tensors.clone();
    let mut found: Vec<(String, Vec<f64>)> = tensors
        .iter()
        .map(|tensor| (golden_name(&tensor.name), parameters[tensor.range.clone()].to_vec()))
        .collect();
    let states = model.feature_states().expect("features");
    for ((modality, _, _), state) in case.modalities().into_iter().zip(states) {
        if let Some(state) = state {
            found.push((format!("{modality}_feat"), to_f64(&state.values)));
        }
    }
    for (parameter, found) in found {
        let name = format!("after{steps}_{parameter}");
        let expected = case.real(&name);
        report.compare::<B::Real>(Kind::Parameters, &name, &found, expected);
    }
}

fn check_evaluation<B: Backend>(
    case: &Case,
    model: &mut DeviceModel<B>,
    steps: usize,
    report: &mut Report,
) {
    let settings = &case.settings;
    let (users, items, d) = (settings.users, settings.items, settings.dim);
    let predicted = to_f64(&model.predictions().expect("predictions"));
    let scores: Vec<f64> = (0..users * items)
        .map(|index| {
            let (user, item) = (index / items, users + index % items);
            (0..d).map(|k| predicted[user * d + k] * predicted[item * d + k]).sum()
        })
        .collect();
    let name = format!("eval{steps}_scores");
    report.compare::<B::Real>(Kind::Scores, &name, &scores, case.real(&name));
    // Ranked scores differ by at least the case's gap. f32 resolves the gap only if it exceeds
    // f32's own error.
    let resolved = size_of::<B::Real>() == 8 || settings.min_rel_score_gap > 64.0 * 6e-8;
    for (label, split_name) in [(1, "valid"), (2, "test")] {
        let split = case.split(label);
        assert_eq!(split.users, case.ids(&format!("{split_name}_users")), "users of {split_name}");
        let k = *settings.topk.last().expect("list lengths");
        let lists: TopK = model.top_k(&split.users, k).expect("top-K");
        let name = format!("eval{steps}_{split_name}");
        let expected = case.ids(&format!("{name}_topk"));
        let unmasked = case.ids(&format!("{split_name}_unmasked"));
        let columns = expected.len() / split.users.len();
        for (position, &unmasked) in unmasked.iter().enumerate() {
            let real = (unmasked as usize).min(columns);
            let expected = &expected[position * columns..position * columns + real];
            if resolved && lists.list(position) != expected {
                let found = lists.list(position);
                report.failures.push(format!("{name}_topk: {found:?} is not {expected:?}"));
            }
        }
        let metrics = evaluate::metrics(&split, &split.users, &lists, &settings.topk);
        let found: Vec<f64> = (0..settings.topk.len())
            .flat_map(|k| metrics.by_name().map(|(_, values)| values[k]))
            .collect();
        if resolved {
            let name = format!("{name}_metrics");
            report.compare::<B::Real>(Kind::Metrics, &name, &found, case.real(&name));
        }
    }
}

fn check<B: Backend>(backend: B, case: &Case) -> Report {
    let mut report = Report::default();
    let (mut model, graph, config) = model(backend, case);
    check_graph::<B::Real>(case, &graph, &mut report);
    check_forward(case, &mut model, &mut report);
    check_evaluation(case, &mut model, 0, &mut report);
    for step in 0..case.settings.steps {
        let users = case.ids(&format!("step{step}_users"));
        let items = case.ids(&format!("step{step}_items"));
        let dropout = masks(case, step);
        model.step(Batch::new(&users, &items), &dropout, case.settings.lr).expect("a step");
        let losses = model.losses().expect("losses");
        model.set_losses(&vec![0.0; losses.len()]).expect("losses");
        check_losses::<B::Real>(case, &config, step, &losses, &mut report);
        if step == 0 {
            check_gradients(case, &mut model, &mut report);
        }
        if step == 0 || step == 2 {
            check_parameters(case, &mut model, step + 1, &mut report);
        }
    }
    check_evaluation(case, &mut model, 3, &mut report);
    report
}

fn directories() -> Vec<PathBuf> {
    if let Some(directory) = std::env::var_os("BM3_GOLDEN_DIR") {
        return vec![directory.into()];
    }
    // The build machine's path if it exists, else the working directory: the test may have moved to
    // another machine.
    let compiled = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if compiled.is_dir() { compiled } else { Path::new(".") };
    vec![root.join("tests/golden"), root.join("../shared/golden")]
}

#[test]
fn every_case_agrees_on_every_backend() {
    let mut cases = BTreeMap::new();
    for directory in directories() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            if path.extension().is_some_and(|ending| ending == "safetensors") {
                let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
                cases.entry(name).or_insert(path);
            }
        }
    }
    assert!(!cases.is_empty(), "no golden case in {:?}", directories());
    let mut failures = Vec::new();
    for (name, path) in cases {
        let case = Case::read(&path);
        let mut reports = vec![
            ("f64", check(Cpu::<f64>::new(), &case)),
            ("f32", check(Cpu::<f32>::new(), &case)),
        ];
        reports.extend(emulator::cuda().map(|cuda| ("cuda", check(cuda, &case))));
        for (precision, report) in reports {
            let deviations: Vec<String> = report
                .largest
                .iter()
                .map(|(kind, deviation)| format!("{kind:?} {deviation:.1e}").to_lowercase())
                .collect();
            let verdict = if report.failures.is_empty() { "ok" } else { "FAILED" };
            println!("{name:16} {precision:4} {verdict:6} {}", deviations.join("  "));
            failures
                .extend(report.failures.iter().map(|text| format!("{name} {precision}: {text}")));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
