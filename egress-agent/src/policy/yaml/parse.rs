//! Parser events into [`Node`] trees, within [`Limits`].

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, StrInput, Tag};

use super::scalar::resolve;
use super::text::Limits;
use super::{Key, Node, Value};
use crate::policy::diagnostic::{Diagnostic, Severity, Source, Span};

/// Reads a part of a file: one document, or more where `...` ends one.
pub fn parse(source: &Arc<Source>, limits: &Limits) -> Result<Vec<Node>, Box<Diagnostic>> {
    let mut reader = Reader {
        source,
        limits,
        nodes: 0,
        alias_bytes: 0,
    };
    reader.read(&source.text)
}

/// What is open while events come in.
enum Open {
    Sequence(Vec<Node>),
    Mapping {
        entries: Vec<(Key, Node)>,
        places: HashMap<Box<str>, usize>,
        merges: Vec<Node>,
        key: Option<Key>,
    },
}

struct Frame {
    open: Open,
    start: Span,
    anchor: usize,
}

type Failure = Box<Diagnostic>;

struct Reader<'a> {
    source: &'a Arc<Source>,
    limits: &'a Limits,
    nodes: usize,
    alias_bytes: usize,
}

impl Reader<'_> {
    fn read(&mut self, text: &str) -> Result<Vec<Node>, Failure> {
        let mut parser = Parser::new(StrInput::new(text));
        let mut roots = Vec::new();
        let mut stack: Vec<Frame> = Vec::new();
        let mut anchors: HashMap<usize, Node> = HashMap::new();
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let at = Self::span(*error.marker(), *error.marker());
                let failure = self.fail("yaml-syntax", at, format!("not YAML: {}", error.info()));
                Box::new(failure.help("look at indentation, quotes and brackets up to this place"))
            })?;
            let span = Self::span(span.start, span.end);
            let (node, anchor) = match event {
                Event::Scalar(text, style, anchor, tag) => {
                    let value = self.scalar(&text, style, tag.as_deref(), span)?;
                    (Node { span, value }, anchor)
                }
                Event::SequenceStart(anchor, tag) => {
                    self.container_tag(tag.as_deref(), "seq", span)?;
                    let open = Open::Sequence(Vec::new());
                    self.push(&mut stack, open, span, anchor)?;
                    continue;
                }
                Event::MappingStart(anchor, tag) => {
                    self.container_tag(tag.as_deref(), "map", span)?;
                    let open = Open::Mapping {
                        entries: Vec::new(),
                        places: HashMap::new(),
                        merges: Vec::new(),
                        key: None,
                    };
                    self.push(&mut stack, open, span, anchor)?;
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(frame) = stack.pop() else { continue };
                    self.close(frame, span)?
                }
                Event::Alias(anchor) => {
                    let Some(target) = anchors.get(&anchor) else {
                        return Err(self
                            .fail(
                                "yaml-syntax",
                                span,
                                "the alias refers to an anchor that is not complete here",
                            )
                            .into());
                    };
                    self.measure(target, span)?;
                    let node = Node {
                        span,
                        value: target.value.clone(),
                    };
                    (node, 0)
                }
                _ => continue,
            };
            self.count(span)?;
            if anchor != 0 {
                // The copy that is kept for aliases counts as one.
                self.measure(&node, span)?;
                anchors.insert(anchor, node.clone());
            }
            self.place(&mut stack, &mut roots, node)?;
        }
        roots.retain(|root| root.value != Value::Null);
        Ok(roots)
    }

    fn push(
        &mut self,
        stack: &mut Vec<Frame>,
        open: Open,
        start: Span,
        anchor: usize,
    ) -> Result<(), Failure> {
        if stack.len() >= self.limits.depth {
            let message = format!("nested deeper than {} levels", self.limits.depth);
            return Err(self.fail("yaml-depth", start, message).into());
        }
        stack.push(Frame {
            open,
            start,
            anchor,
        });
        Ok(())
    }

    fn close(&self, frame: Frame, end: Span) -> Result<(Node, usize), Failure> {
        let span = Span {
            end: if end.line == frame.start.line {
                end.end
            } else {
                0
            },
            ..frame.start
        };
        let value = match frame.open {
            Open::Sequence(items) => Value::Sequence(items),
            Open::Mapping {
                mut entries,
                mut places,
                merges,
                ..
            } => {
                for node in merges {
                    self.merge(node, &mut entries, &mut places)?;
                }
                Value::Mapping(entries)
            }
        };
        Ok((Node { span, value }, frame.anchor))
    }

    /// `<<: *base`: entries that the mapping does not have itself.
    fn merge(
        &self,
        node: Node,
        entries: &mut Vec<(Key, Node)>,
        places: &mut HashMap<Box<str>, usize>,
    ) -> Result<(), Failure> {
        match node.value {
            Value::Mapping(merged) => {
                for (key, value) in merged {
                    if !places.contains_key(&key.name) {
                        places.insert(key.name.clone(), entries.len());
                        entries.push((key, value));
                    }
                }
                Ok(())
            }
            Value::Sequence(items) => {
                for item in items {
                    self.merge(item, entries, places)?;
                }
                Ok(())
            }
            _ => Err(self
                .fail("yaml-merge", node.span, "`<<` can only merge objects")
                .into()),
        }
    }

    fn place(&self, stack: &mut [Frame], roots: &mut Vec<Node>, node: Node) -> Result<(), Failure> {
        let Some(frame) = stack.last_mut() else {
            roots.push(node);
            return Ok(());
        };
        match &mut frame.open {
            Open::Sequence(items) => items.push(node),
            Open::Mapping {
                entries,
                places,
                merges,
                key,
            } => match key.take() {
                None => *key = Some(self.key(node)?),
                Some(name) if &*name.name == "<<" => merges.push(node),
                Some(name) => {
                    if let Some(first) = places.get(&name.name) {
                        let first = entries.get(*first).map_or(Span::default(), |e| e.0.span);
                        let message = format!("the key `{}` occurs twice", name.name);
                        let failure = self
                            .fail("duplicate-key", name.span, message)
                            .help("remove one of them, or merge their values")
                            .related(self.source, first, "first written here");
                        return Err(Box::new(failure));
                    }
                    places.insert(name.name.clone(), entries.len());
                    entries.push((name, node));
                }
            },
        }
        Ok(())
    }

    /// Keys are strings to Kubernetes; numbers and booleans become them.
    fn key(&self, node: Node) -> Result<Key, Failure> {
        let name = match node.value {
            Value::String(text) => text,
            Value::Integer(value) => value.to_string().into(),
            Value::Float(value) => value.to_string().into(),
            Value::Bool(value) => value.to_string().into(),
            Value::Null | Value::Sequence(_) | Value::Mapping(_) => {
                let message = format!("a key must be a string, not {}", node.kind());
                return Err(self.fail("yaml-key", node.span, message).into());
            }
        };
        Ok(Key {
            name,
            span: node.span,
        })
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        span: Span,
    ) -> Result<Value, Failure> {
        let string = || Value::String(text.into());
        let Some(tag) = tag else {
            return Ok(if style == ScalarStyle::Plain {
                resolve(text)
            } else {
                string()
            });
        };
        // The non-specific tag `!` makes a plain scalar a string.
        if tag.handle.is_empty() && tag.suffix == "!" {
            return Ok(string());
        }
        let resolved = resolve(text);
        let fits = tag.is_yaml_core_schema()
            && match tag.suffix.as_str() {
                "str" => return Ok(string()),
                "int" => matches!(resolved, Value::Integer(_)),
                "float" => {
                    if let Value::Integer(_) = resolved {
                        return Ok(Value::Float(text.parse().unwrap_or(f64::NAN)));
                    }
                    matches!(resolved, Value::Float(_))
                }
                "bool" => matches!(resolved, Value::Bool(_)),
                "null" => resolved == Value::Null,
                _ => false,
            };
        if fits {
            return Ok(resolved);
        }
        let message = format!("the tag `{tag}` does not fit here");
        Err(Box::new(
            self.fail("yaml-tag", span, message).help("remove the tag"),
        ))
    }

    fn container_tag(&self, tag: Option<&Tag>, name: &str, span: Span) -> Result<(), Failure> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == name) => {
                let message = format!("the tag `{tag}` does not fit here");
                let failure = self.fail("yaml-tag", span, message).help("remove the tag");
                Err(Box::new(failure))
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, span: Span) -> Result<(), Failure> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            let message = format!("more than {} values in one document", self.limits.nodes);
            return Err(self.fail("yaml-size", span, message).into());
        }
        Ok(())
    }

    /// Counts what an alias copies, before it is copied.
    fn measure(&mut self, node: &Node, span: Span) -> Result<(), Failure> {
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            self.count(span)?;
            let bytes = match &node.value {
                Value::String(text) => text.len(),
                Value::Sequence(items) => {
                    left.extend(items);
                    0
                }
                Value::Mapping(entries) => {
                    left.extend(entries.iter().map(|(_, value)| value));
                    entries.iter().map(|(key, _)| key.name.len()).sum()
                }
                _ => 0,
            };
            self.alias_bytes += bytes;
            if self.alias_bytes > self.limits.alias_bytes {
                let message = format!(
                    "aliases expand to more than {} bytes",
                    self.limits.alias_bytes
                );
                return Err(self.fail("yaml-size", span, message).into());
            }
        }
        Ok(())
    }

    fn span(start: Marker, end: Marker) -> Span {
        Span::new(start.line(), start.col() + 1, end.line(), end.col() + 1)
    }

    fn fail(&self, rule: &'static str, span: Span, message: impl Into<Box<str>>) -> Diagnostic {
        let help = match rule {
            "yaml-depth" | "yaml-size" => "no document needs that much",
            "yaml-merge" => "merge an object, or leave `<<` out",
            "yaml-key" => "write a plain word before the colon",
            _ => "correct it as YAML",
        };
        let failure = Diagnostic::new(Severity::Error, rule, message);
        failure.help(help).at(self.source, span)
    }
}
