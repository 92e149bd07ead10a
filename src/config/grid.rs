//! A grid of training settings and modalities: `--grid KEY=VALUE,VALUE`.

use serde::{Deserialize, Serialize};

use super::value::Value;
use super::{RunConfig, RunSettings, TrainConfig, TrainSettings, keys};
use crate::{Error, Result};

const GRID: &str = "--grid";
const SEEDS: &str = "--seeds";

/// The most seeds that `--seeds N` may ask for; a list may be longer.
const MOST_SEEDS: u64 = 10_000;

/// The most values that a settings file may list for one setting.
const MOST_VALUES: usize = 1000;

/// The one setting of an axis that is not a training setting: which modalities are used. Of several
/// modalities that are used together, the names are joined by `+`.
const MODALITIES: &str = "modalities";

/// A training setting, or the modalities, and the values that it takes in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// The setting, as in a settings file: `reg_weight`.
    pub key: String,
    /// Its values, as in `config.toml`: at least one, without repeats.
    pub values: Vec<serde_json::Value>,
}

impl Axis {
    /// Reads `KEY=VALUE,VALUE`, where KEY is a flag's name without its dashes.
    ///
    /// # Errors
    /// [`Error::Setting`] for `--grid`: not of this form, a key that is not a training setting
    /// (with the closest one that is), a value of the wrong kind, or a repeated value.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |problem: String| Err(Error::setting(GRID, problem));
        let Some((written, values)) = text.split_once('=') else {
            return refuse(format!("`{text}` found, KEY=VALUE,VALUE expected, as in layers=1,2"));
        };
        let key = written.trim().trim_start_matches('-').to_lowercase().replace('-', "_");
        if key == "seed" {
            return refuse(format!(
                "`{text}` found; seeds are given by {SEEDS}, which also has the table show means \
                 over them: {SEEDS} {values}"
            ));
        }
        let known = known_keys();
        if !known.contains(&key) {
            return refuse(unknown(&key, &known));
        }
        let mut axis = Self { key, values: Vec::new() };
        for word in values.split(',') {
            let word = word.trim();
            let value = if axis.key == MODALITIES { together(word) } else { scalar(word) };
            if let Err(problem) = axis.push(&value, word) {
                return refuse(format!("{text}: {problem}"));
            }
        }
        Ok(axis)
    }

    /// The axis of a list in a settings file; `None` for a key that is not a training setting, and
    /// for those whose value is a list in any case.
    pub(super) fn of_list(key: &str, values: &[Value]) -> Option<Result<Self, String>> {
        if ["top_k", MODALITIES].contains(&key)
            || !(key == "seed" || known_keys().iter().any(|known| known == key))
        {
            return None;
        }
        if values.len() > MOST_VALUES {
            return Some(Err(format!(
                "{} values found, at most {MOST_VALUES} expected",
                values.len()
            )));
        }
        let mut axis = Self { key: key.to_owned(), values: Vec::new() };
        let pushed = values.iter().try_for_each(|value| axis.push(value, &value.to_string()));
        Some(pushed.map(|()| axis))
    }

    /// Adds a value, which messages show as `written`.
    fn push(&mut self, value: &Value, written: &str) -> Result<(), String> {
        let value = self.typed(value)?;
        if self.values.contains(&value) {
            return Err(format!("`{written}` is there twice"));
        }
        self.values.push(value);
        Ok(())
    }

    /// The flags that give `sweep` this axis.
    pub(super) fn as_flags(&self) -> String {
        match self.key.as_str() {
            "seed" => format!("{SEEDS} {}", self.listed()),
            _ => format!("{GRID} {}={}", self.flag(), self.listed()),
        }
    }

    /// Reads several axes of different settings.
    ///
    /// # Errors
    /// The errors of [`Axis::parse`], and [`Error::Setting`] for a repeated setting, or one to
    /// which `fixed` gives a single value.
    pub fn parse_all(
        texts: &[String],
        fixed: &TrainSettings,
        fixed_run: &RunSettings,
    ) -> Result<Vec<Self>> {
        let mut axes: Vec<Self> = Vec::new();
        for text in texts {
            let axis = Self::parse(text)?;
            let flag = axis.flag();
            if axes.iter().any(|earlier| earlier.key == axis.key) {
                let problem = format!("{flag} is there twice; give all its values in one list");
                return Err(Error::setting(GRID, problem));
            }
            if axis.is_given_by(fixed, fixed_run)? {
                let problem = format!(
                    "{flag} is to take the values {}, and --{flag} gives it one; leave one of the \
                     two out",
                    axis.listed()
                );
                return Err(Error::setting(GRID, problem));
            }
            axes.push(axis);
        }
        Ok(axes)
    }

    /// The name of the setting's flag without dashes: `reg-weight`.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The values, separated by commas.
    pub fn listed(&self) -> String {
        self.values.iter().map(word).collect::<Vec<_>>().join(",")
    }

    /// Gives the setting its value number `index`.
    ///
    /// # Errors
    /// [`Error::Setting`] if the value is not valid for this setting, as in a file that was edited.
    pub fn apply(&self, index: usize, config: &mut RunConfig) -> Result<()> {
        let (train, run) = self.value(index)?;
        train.apply(&mut config.train);
        if let Some(modalities) = run.modalities {
            config.modalities = modalities;
        }
        Ok(())
    }

    /// This setting alone, set to its value number `index`.
    ///
    /// # Errors
    /// The errors of [`Axis::apply`].
    pub fn value(&self, index: usize) -> Result<(TrainSettings, RunSettings)> {
        let value = self.values.get(index).cloned().unwrap_or_default();
        let read = serde_json::from_value::<Value>(value).map_err(|error| error.to_string());
        read.and_then(|value| self.settings(&value))
            .map_err(|problem| Error::setting(GRID, format!("{}: {problem}", self.flag())))
    }

    /// Whether `settings` give this setting a value.
    pub(super) fn is_given_by(&self, train: &TrainSettings, run: &RunSettings) -> Result<bool> {
        // `or` changes nothing if the setting is already given.
        let (own, own_run) = self.value(0)?;
        Ok(train.clone().or(own) == *train && run.clone().or(own_run) == *run)
    }

    /// This setting alone, set to `value`.
    fn settings(&self, value: &Value) -> Result<(TrainSettings, RunSettings), String> {
        let (mut train, mut run) = (TrainSettings::default(), RunSettings::default());
        let is_key = keys::assign(&mut train, &mut run, &self.key, value)?;
        if is_key { Ok((train, run)) } else { Err(format!("`{}` is not a setting", self.key)) }
    }

    /// A value in the form of `config.toml`.
    fn typed(&self, value: &Value) -> Result<serde_json::Value, String> {
        let (train, run) = self.settings(value)?;
        if let Some(modalities) = run.modalities {
            return serde_json::to_value(modalities).map_err(|error| error.to_string());
        }
        let mut config = TrainConfig::default();
        train.apply(&mut config);
        let fields = serde_json::to_value(&config).map_err(|error| error.to_string())?;
        match &fields[&self.key] {
            // JSON has no NaN or infinity.
            serde_json::Value::Null => Err(format!("{value} found, a finite number expected")),
            field => Ok(field.clone()),
        }
    }
}

/// A value as one word, for a run's name.
pub fn word(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        // A choice of no modality.
        serde_json::Value::Array(values) if values.is_empty() => "none".to_owned(),
        serde_json::Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// The seeds of `--seeds`: a number N stands for N seeds from `first` on, a list for itself.
///
/// # Errors
/// [`Error::Setting`] for `--seeds`: not a number, a number out of range, or a repeated seed.
pub fn seeds(text: &str, first: u64) -> Result<Vec<u64>> {
    let refuse = |problem: String| Err(Error::setting(SEEDS, problem));
    let read = |word: &str| word.trim().parse::<u64>();
    if !text.contains(',') {
        return match read(text) {
            Ok(count @ 1..=MOST_SEEDS) => Ok((0..count).map(|n| first.saturating_add(n)).collect()),
            _ => refuse(format!(
                "`{text}` found, how many seeds (1 to {MOST_SEEDS}) or a list of them expected, as \
                 in 5 or 1,5,9"
            )),
        };
    }
    let Ok(list) = text.split(',').map(read).collect::<Result<Vec<u64>, _>>() else {
        return refuse(format!("`{text}` found, whole numbers expected, as in 1,5,9"));
    };
    match list.iter().enumerate().find(|(position, seed)| list[..*position].contains(seed)) {
        Some((_, seed)) => refuse(format!("`{text}` found; {seed} is there twice")),
        None => Ok(list),
    }
}

/// A word as a settings file would read it.
fn scalar(word: &str) -> Value {
    match word {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = word.parse() {
        return Value::Integer(number);
    }
    word.parse().map_or_else(|_| Value::Text(word.to_owned()), Value::Float)
}

/// Modalities as a settings file would list them: one word, or names joined by `+`.
fn together(word: &str) -> Value {
    match word {
        "all" | "none" => Value::Text(word.to_owned()),
        names => {
            // In one order, so that a choice that is there twice is seen.
            let mut names: Vec<&str> = names.split('+').collect();
            names.sort_unstable();
            Value::List(names.into_iter().map(|name| Value::Text(name.to_owned())).collect())
        }
    }
}

/// Every training setting except the seed, and the modalities.
fn known_keys() -> Vec<String> {
    let fields = serde_json::to_value(TrainConfig::default()).unwrap_or_default();
    let fields = fields.as_object().cloned().unwrap_or_default();
    let settings = fields.into_iter().map(|(key, _)| key).filter(|key| key != "seed");
    settings.chain([MODALITIES.to_owned()]).collect()
}

fn unknown(key: &str, known: &[String]) -> String {
    let flags: Vec<String> = known.iter().map(|key| key.replace('_', "-")).collect();
    let written = key.replace('_', "-");
    let nearest = flags
        .iter()
        .map(|flag| (strsim::jaro_winkler(&written, flag), flag))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, flag)) if similarity > 0.8 => {
            format!("`{written}` is not a training setting; did you mean `{flag}`?")
        }
        _ => format!(
            "`{written}` is not a training setting, nor the modalities; there are {}",
            flags.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModalityChoice;

    fn problem(text: &str) -> String {
        let error = Axis::parse(text).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    }

    #[test]
    fn every_training_setting_but_the_seed_makes_an_axis() {
        for (text, expected) in [
            ("layers=0,2", "0,2"),
            ("embedding-size=16,32", "16,32"),
            ("propagation=light,gcn", "light,gcn"),
            ("self-loops=true,false", "true,false"),
            ("freeze-features=true", "true"),
            ("feature-type=f16,bf16", "f16,bf16"),
            ("dropout=.3, 0.50", "0.3,0.5"),
            ("reg-weight=0,1e-3", "0.0,0.001"),
            ("--cl-weight=2", "2.0"),
            ("learning_rate=1e-3", "0.001"),
            ("learning-rate-decay=0.96", "0.96"),
            ("batch-size=1024,2048", "1024,2048"),
            ("epochs=3", "3"),
            ("patience=0", "0"),
            ("top-k=5,10", "5,10"),
            ("order=file,random", "file,random"),
            ("modalities=image,image+text,none,all", "image,image+text,none,all"),
        ] {
            let axis = Axis::parse(text).unwrap();
            assert_eq!(axis.listed(), expected, "{text}");
            for index in 0..axis.values.len() {
                let run = RunSettings { data: Some("/d".into()), ..RunSettings::default() };
                let mut config = RunConfig::new(&TrainSettings::default(), &run).unwrap();
                axis.apply(index, &mut config).unwrap();
                let fields = serde_json::to_value(&config).unwrap();
                assert_eq!(fields[&axis.key], axis.values[index]);
            }
        }
        assert_eq!(known_keys().len(), 17);
    }

    #[test]
    fn what_is_wrong_with_an_axis_is_named() {
        for (text, expected) in [
            ("layers", "--grid: `layers` found, KEY=VALUE,VALUE expected"),
            ("layer=1,2", "--grid: `layer` is not a training setting; did you mean `layers`?"),
            ("reg_wieght=1", "`reg-wieght` is not a training setting; did you mean `reg-weight`?"),
            (
                "data=a,b",
                "`data` is not a training setting, nor the modalities; there are embedding-size, layers,",
            ),
            ("seed=1,2", "`seed=1,2` found; seeds are given by --seeds"),
            ("layers=1,two", "layers=1,two: \"two\" found, a whole number from 0 expected"),
            ("layers=1,-2", "layers=1,-2: -2 found, a whole number from 0 expected"),
            ("layers=", "layers=: \"\" found, a whole number from 0 expected"),
            ("dropout=nan", "dropout=nan: NaN found, a finite number expected"),
            ("order=up", "order=up: \"up\" found, `random` or `file` expected"),
            ("dropout=0.5,.50", "dropout=0.5,.50: `.50` is there twice"),
            ("modalities=text,text", "modalities=text,text: `text` is there twice"),
            ("modalities=text+text", "modalities=text+text: `text` is there twice"),
            ("modalities=a+b,b+a", "modalities=a+b,b+a: `b+a` is there twice"),
            ("modalities=a text", "`a text` is not a modality's name"),
        ] {
            let problem = problem(text);
            assert!(problem.contains(expected), "{problem}");
        }
        let all = |texts: &[&str], fixed: &TrainSettings| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            Axis::parse_all(&texts, fixed, &RunSettings::default())
                .map_err(|error| error.to_string())
        };
        let run = RunSettings { modalities: Some(ModalityChoice::All), ..RunSettings::default() };
        let texts = ["modalities=text,none".to_owned()];
        let both = Axis::parse_all(&texts, &TrainSettings::default(), &run).unwrap_err();
        assert!(both.to_string().contains("--modalities gives it one"), "{both}");
        let free = TrainSettings::default();
        assert_eq!(all(&["layers=1,2", "dropout=0"], &free).unwrap().len(), 2);
        let twice = all(&["layers=1", "layers=2"], &free).unwrap_err();
        assert!(twice.starts_with("--grid: layers is there twice"), "{twice}");
        let fixed = TrainSettings { reg_weight: Some(0.0), ..free };
        let both = all(&["layers=1", "reg-weight=1,2"], &fixed).unwrap_err();
        assert!(both.contains("reg-weight is to take the values 1.0,2.0, and --reg-"), "{both}");
    }

    #[test]
    fn seeds_are_counted_or_listed() {
        assert_eq!(seeds("3", 999).unwrap(), [999, 1000, 1001]);
        assert_eq!(seeds("1,5, 9", 999).unwrap(), [1, 5, 9]);
        for (text, expected) in [
            ("0", "--seeds: `0` found, how many seeds (1 to 10000)"),
            ("many", "`many` found, how many seeds"),
            ("1,x", "`1,x` found, whole numbers expected"),
            ("1,2,", "`1,2,` found, whole numbers expected"),
            ("1,2,1", "1 is there twice"),
        ] {
            let problem = seeds(text, 1).unwrap_err().to_string();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
