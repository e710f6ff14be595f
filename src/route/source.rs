//! A TOML file's text, its values and where each stands: all that an error message needs.
//!
//! Knows TOML and serde, not what our files mean.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// More of one file's errors would not be read by anybody.
const ERRORS_MAX: usize = 20;

/// What is wrong in one of the operator's files, or with the file itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteError {
    /// Which file.
    #[serde(serialize_with = "shown")]
    pub file: PathBuf,
    /// Where in it; `None` when it is about the whole file.
    #[serde(flatten)]
    pub at: Option<Position>,
    /// What is wrong.
    pub message: String,
    /// What was expected, or what to do.
    pub hint: Option<String>,
}

/// As it is shown: a file's name need not be UTF-8, and text that goes out must be.
fn shown<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// A place in a text, as editors count: from 1, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Position {
    /// Where the byte `offset` of `text` stands.
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl RouteError {
    /// About a file as a whole.
    pub(crate) fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), at: None, message: message.into(), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for RouteError {}

/// The text of a key at the top of a file, also where the rest of it is broken.
pub(crate) fn salvage(text: &str, key: &str) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(text);
    table.get_ref().get(key)?.get_ref().as_str().map(str::to_owned)
}

/// A file that is TOML.
#[derive(Debug)]
pub(crate) struct Source<'t> {
    file: &'t Path,
    text: &'t str,
    tree: Spanned<DeTable<'t>>,
}

impl<'t> Source<'t> {
    /// Reads the text as a `T`, or says everything that keeps it from being one.
    pub(crate) fn parse<T: DeserializeOwned>(
        file: &'t Path,
        text: &'t str,
    ) -> Result<(T, Self), Vec<RouteError>> {
        let tree = match DeTable::parse(text) {
            Ok(tree) => tree,
            // What follows a broken line is mostly nonsense: the first error is the true one.
            Err(error) => return Err(vec![explain(file, text, &error)]),
        };
        let source = Self { file, text, tree };
        source.read().map(|value| (value, source))
    }

    /// serde stops at the first error. So what it stumbles over is taken out, and it reads again.
    fn read<T: DeserializeOwned>(&self) -> Result<T, Vec<RouteError>> {
        let mut rest = self.tree.clone();
        let mut taken_out: Vec<String> = Vec::new();
        let mut errors = Vec::new();
        loop {
            let error = match T::deserialize(toml::de::Deserializer::from(rest.clone())) {
                Ok(value) if errors.is_empty() => return Ok(value),
                Ok(_) => break,
                Err(error) => error,
            };
            let is_consequence = missing_key(error.message())
                .is_some_and(|missing| taken_out.iter().any(|key| key == missing));
            if !is_consequence {
                errors.push(explain(self.file, self.text, &error));
            }
            let culprit = error.span().and_then(|span| remove(rest.get_mut(), &span));
            match culprit {
                Some(culprit) if errors.len() < ERRORS_MAX => taken_out.push(culprit),
                _ => break,
            }
        }
        errors.sort_by_key(|error| error.at);
        Err(errors)
    }

    /// Where the value of a key stands: `["idle", "sleep", "1", "to"]`. Without the key, the place
    /// nearest to where it would be.
    fn value(&self, path: &[&str]) -> Range<usize> {
        let mut range = 0..0;
        let mut table = Some(self.tree.get_ref());
        let mut array = None;
        for step in path {
            let next = match (table, array) {
                (Some(table), _) => table.get(*step),
                (None, Some(array)) => element(array, step),
                (None, None) => None,
            };
            let Some(next) = next else { break };
            range = next.span();
            table = next.get_ref().as_table();
            array = next.get_ref().as_array();
        }
        range
    }

    /// Where a value begins, for a person.
    pub(crate) fn position(&self, path: &[&str]) -> Position {
        Position::of(self.text, self.value(path).start)
    }

    /// Where the key itself stands.
    fn key(&self, path: &[&str]) -> Range<usize> {
        let Some((last, parents)) = path.split_last() else { return 0..0 };
        let mut table = self.tree.get_ref();
        for step in parents {
            match table.get(*step).and_then(|value| value.get_ref().as_table()) {
                Some(next) => table = next,
                None => return self.value(path),
            }
        }
        table.get_key_value(*last).map_or_else(|| self.value(path), |(key, _)| key.span())
    }
}

fn element<'a, 't>(
    array: &'a toml::de::DeArray<'t>,
    index: &str,
) -> Option<&'a Spanned<DeValue<'t>>> {
    array.get(index.parse::<usize>().ok()?)
}

/// The errors that a file has although it has the right shape.
#[derive(Debug)]
pub(crate) struct Findings<'s> {
    source: &'s Source<'s>,
    errors: Vec<RouteError>,
    notes: Vec<RouteError>,
}

impl<'s> Findings<'s> {
    pub(crate) fn new(source: &'s Source<'s>) -> Self {
        Self { source, errors: Vec::new(), notes: Vec::new() }
    }

    /// The value at `path` is wrong.
    pub(crate) fn value(&mut self, path: &[&str], message: impl Into<String>) -> &mut RouteError {
        self.push(self.source.value(path), message.into())
    }

    /// The key at `path` is wrong.
    pub(crate) fn key(&mut self, path: &[&str], message: impl Into<String>) -> &mut RouteError {
        self.push(self.source.key(path), message.into())
    }

    /// The value at `path` is allowed, and does something else than it says.
    pub(crate) fn note(&mut self, path: &[&str], message: impl Into<String>, hint: Option<&str>) {
        let mut note = self.error(self.source.value(path), message.into());
        note.hint = hint.map(str::to_owned);
        self.notes.push(note);
    }

    /// All notes, in the order of the file.
    pub(crate) fn take_notes(&mut self) -> Vec<RouteError> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.sort_by_key(|note| note.at);
        notes.truncate(ERRORS_MAX);
        notes
    }

    fn push(&mut self, range: Range<usize>, message: String) -> &mut RouteError {
        let error = self.error(range, message);
        self.errors.push(error);
        self.errors.last_mut().expect("one was pushed in the line above")
    }

    fn error(&self, range: Range<usize>, message: String) -> RouteError {
        let at = Some(Position::of(self.source.text, range.start));
        RouteError { file: self.source.file.to_owned(), at, message, hint: None }
    }

    /// `value` if nothing was found.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, Vec<RouteError>> {
        if self.errors.is_empty() {
            return Ok(value);
        }
        self.errors.sort_by_key(|error| error.at);
        self.errors.truncate(ERRORS_MAX);
        Err(self.errors)
    }
}

/// Takes the entry with this key or this value out of the tree; its key.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let mut culprit = None;
    for (key, value) in table.iter_mut() {
        if key.span() == *span || value.span() == *span || holds(value, span) {
            culprit = Some(key.clone());
            break;
        }
        if let Some(culprit) = remove_within(value.get_mut(), span) {
            return Some(culprit);
        }
    }
    let culprit = culprit?;
    table.remove(&culprit).map(|_| culprit.into_inner().into_owned())
}

fn remove_within(value: &mut DeValue<'_>, span: &Range<usize>) -> Option<String> {
    match value {
        DeValue::Table(table) => remove(table, span),
        DeValue::Array(array) => {
            array.iter_mut().find_map(|element| remove_within(element.get_mut(), span))
        }
        _ => None,
    }
}

/// Whether `span` is within this plain value, or is one of its plain elements.
fn holds(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    match value.get_ref() {
        DeValue::Table(_) => false,
        DeValue::Array(array) => {
            array.iter().any(|element| element.span() == *span || holds(element, span))
        }
        _ => value.span().start <= span.start && span.end <= value.span().end,
    }
}

/// serde's and TOML's errors in our words.
fn explain(file: &Path, text: &str, error: &toml::de::Error) -> RouteError {
    let (message, hint) = reword(error.message());
    let at = Some(Position::of(text, error.span().map_or(0, |span| span.start)));
    RouteError { file: file.to_owned(), at, message, hint }
}

fn reword(message: &str) -> (String, Option<String>) {
    let message = message.trim().replace('\n', ", ");
    for (theirs, ours) in [("unknown field", "unknown key"), ("unknown variant", "unknown value")] {
        let Some(rest) = message.strip_prefix(theirs) else { continue };
        let mut quoted = rest.split('`').skip(1).step_by(2);
        let Some(given) = quoted.next() else { continue };
        let known: Vec<&str> = quoted.collect();
        return (format!("{ours} `{given}`"), Some(suggest(given, &known)));
    }
    if let Some(key) = missing_key(&message) {
        return (format!("missing key `{key}`"), None);
    }
    if message == "wanted string or table" {
        return ("expected a string".into(), None);
    }
    let Some((wrong, expected)) = message.rsplit_once("expected ") else { return (message, None) };
    (format!("{wrong}expected {}", plain_words(expected)), None)
}

fn missing_key(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Rust's types in an operator's words.
fn plain_words(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number up to 65535",
        "u32" => "a whole number up to 4294967295",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        rust if rust.starts_with("struct ") => "a table",
        other => other,
    }
}

/// "did you mean", and all that is known.
pub(crate) fn suggest(given: &str, known: &[&str]) -> String {
    let all = known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let all =
        if known.is_empty() { "nothing is known here".into() } else { format!("known: {all}") };
    match nearest(given, known) {
        Some(word) => format!("did you mean `{word}`? {all}"),
        None => all,
    }
}

fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(given, word), *word))
        .filter(|(distance, word)| *distance <= word.len().max(given.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}
