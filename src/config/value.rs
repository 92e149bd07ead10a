//! A value of a settings file, the same for TOML and YAML.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Any value TOML or YAML can write, with tables in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
}

/// The problem of a value: what was found, what was expected.
pub(super) type Problem = String;

impl Value {
    /// The value itself, or the only element of a list, as MMRec's files write `seed: [999]`.
    fn single(&self) -> Result<&Self, Problem> {
        match self {
            Self::List(values) => match values.as_slice() {
                [value] => Ok(value),
                [] => Err("an empty list found; give one value".into()),
                _ => Err(format!("{self} found; give one value")),
            },
            value => Ok(value),
        }
    }

    fn expected<T>(&self, expected: &str) -> Result<T, Problem> {
        Err(format!("{self} found, {expected} expected"))
    }

    pub fn boolean(&self) -> Result<bool, Problem> {
        match self.single()? {
            Self::Bool(value) => Ok(*value),
            other => other.expected("true or false"),
        }
    }

    /// A whole number from 0.
    pub fn integer<T: TryFrom<i128>>(&self) -> Result<T, Problem> {
        let value = self.single()?;
        match value {
            Self::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        }
        .map_or_else(|| value.expected("a whole number from 0"), Ok)
    }

    #[allow(clippy::cast_precision_loss, reason = "the nearest number is what a file means")]
    pub fn number(&self) -> Result<f64, Problem> {
        match self.single()? {
            Self::Float(number) => Ok(*number),
            Self::Integer(number) => Ok(*number as f64),
            other => other.expected("a number"),
        }
    }

    pub fn text(&self) -> Result<&str, Problem> {
        match self.single()? {
            Self::Text(text) => Ok(text),
            other => other.expected("text"),
        }
    }

    /// A word that may also look like a number, as in `device: 0`.
    pub fn word(&self) -> Result<String, Problem> {
        match self.single()? {
            Self::Text(text) => Ok(text.clone()),
            Self::Integer(number) => Ok(number.to_string()),
            other => other.expected("text"),
        }
    }

    /// The elements of a list, or the value as the only element of one.
    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(values) => values,
            value => std::slice::from_ref(value),
        }
    }

    pub fn table(&self) -> Result<&[(String, Self)], Problem> {
        match self {
            Self::Table(entries) => Ok(entries),
            other => other.expected("a table"),
        }
    }
}

/// As in JSON; tables are only named, since they can be long.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Null => formatter.write_str("null"),
            Self::Bool(value) => value.fmt(formatter),
            Self::Integer(value) => value.fmt(formatter),
            Self::Float(value) => fmt::Debug::fmt(value, formatter),
            Self::Text(text) => fmt::Debug::fmt(text, formatter),
            Self::List(values) => {
                formatter.write_str("[")?;
                for (position, value) in values.iter().enumerate() {
                    let separator = if position == 0 { "" } else { ", " };
                    write!(formatter, "{separator}{value}")?;
                }
                formatter.write_str("]")
            }
            Self::Table(_) => formatter.write_str("a table"),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
                Value::deserialize(inner)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Integer(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Integer(value.into()))
            }
            fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
                Ok(Value::Integer(value))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = sequence.next_element()? {
                    values.push(value);
                }
                Ok(Value::List(values))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Value::Table(entries))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_one_is_a_value_and_a_longer_one_is_not() {
        let one = Value::List(vec![Value::Integer(999)]);
        assert_eq!(one.integer::<u64>(), Ok(999));
        let two = Value::List(vec![Value::Float(0.3), Value::Float(0.5)]);
        assert_eq!(two.number().unwrap_err(), "[0.3, 0.5] found; give one value");
        assert!(Value::List(vec![]).number().unwrap_err().contains("empty list"));
    }

    #[test]
    fn a_value_of_another_kind_says_what_was_found() {
        assert_eq!(
            Value::Text("yes".into()).boolean().unwrap_err(),
            "\"yes\" found, true or false expected"
        );
        assert_eq!(
            Value::Integer(-1).integer::<u64>().unwrap_err(),
            "-1 found, a whole number from 0 expected"
        );
        assert_eq!(
            Value::Float(1.0).integer::<usize>().unwrap_err(),
            "1.0 found, a whole number from 0 expected"
        );
        assert_eq!(Value::Integer(2).number(), Ok(2.0));
        assert_eq!(Value::Integer(0).word().as_deref(), Ok("0"));
        assert!(Value::Null.table().unwrap_err().starts_with("null found"));
    }
}
