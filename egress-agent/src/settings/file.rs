//! The settings file: TOML, every key known, every mistake shown in its line.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::TABLE;
use super::error::Problem;
use super::layer::{Layer, setting};
use super::value::{Form, Raw, nearest};

/// Reads a settings file. What is well formed is returned even when there are
/// problems, so that the values can be checked in the same run.
pub(super) fn read(source: &str, problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::new();
    let (table, errors) = DeTable::parse_recoverable(source);
    // After a syntax error the rest may be misread; only the first ones count.
    if !errors.is_empty() {
        problems.extend(errors.iter().map(|error| Problem::InFile {
            message: error.message().to_owned(),
            span: error.span().unwrap_or(0..0),
            help: None,
        }));
        return layer;
    }
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        let Some(known) = setting(name) else {
            let near = nearest(name, TABLE.iter().map(|setting| setting.key));
            problems.push(Problem::InFile {
                message: format!("unknown setting `{name}`"),
                span: key.span(),
                help: Some(match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "`egress-agent --help` lists all settings".to_owned(),
                }),
            });
            continue;
        };
        let many = known.separator.is_some();
        match value.get_ref() {
            DeValue::Array(items) if many => {
                let list = items.iter().map(|item| raw(item, problems)).collect();
                layer.insert(known.key, list);
            }
            DeValue::Array(_) => problems.push(Problem::InFile {
                message: format!("{name}: takes one value, not a list"),
                span: value.span(),
                help: None,
            }),
            _ => {
                let one = raw(value, problems);
                layer.insert(known.key, vec![one]);
            }
        }
    }
    layer
}

fn raw(value: &Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) -> Raw {
    let form = match value.get_ref() {
        DeValue::String(text) => Form::Text(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => {
            Form::Text(number.as_str().replace('_', ""))
        }
        DeValue::Boolean(yes) => Form::Text(yes.to_string()),
        DeValue::Table(fields) => Form::Table(
            fields
                .iter()
                .map(|(key, value)| {
                    let inner = raw(value, problems);
                    (key.get_ref().clone().into_owned(), key.span(), inner)
                })
                .collect(),
        ),
        other => {
            problems.push(Problem::InFile {
                message: format!("no setting takes a TOML {}", other.type_str()),
                span: value.span(),
                help: Some("write the value in quotes".to_owned()),
            });
            Form::Text(String::new())
        }
    };
    Raw {
        form,
        span: Some(value.span()),
    }
}
