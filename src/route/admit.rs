//! The checks of what decides over a request before a session has a word in it: `[static]`,
//! `[wake.ignore]` and `[limits]`.

use std::path::Path;

use bytes::Bytes;
use http::HeaderValue;

use super::{
    Rate,
    check::Check,
    file::{IgnoreTable, LimitsTable, StaticTable},
    load,
    local::{Ignore, Pattern, StaticAnswer, Statics},
};
use crate::session::RouteLimits;

/// What is larger belongs to an instance.
const FILE_MAX: u64 = 64 * 1024;
/// More answers of one route.
const STATICS_MAX: usize = 64;
/// More of one list of patterns would be looked through for every request.
const PATTERNS_MAX: usize = 100;
/// A longer pattern.
const PATTERN_MAX: usize = 256;
const TEXT: &str = "text/plain; charset=utf-8";
/// By the ending of a file's name.
const CONTENT_TYPES: [(&str, &str); 10] = [
    ("txt", TEXT),
    ("html", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("xml", "application/xml"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("ico", "image/vnd.microsoft.icon"),
    ("webmanifest", "application/manifest+json"),
];

impl Check<'_> {
    /// `instances` is `instance.max`.
    pub(super) fn limits(
        &mut self,
        table: &LimitsTable,
        instances: Option<u32>,
    ) -> (RouteLimits, Option<Rate>) {
        let LimitsTable { wakes, held, running, when_full } = *table;
        let limits = [
            (["limits", "held"], held),
            (["limits", "running"], running),
            (["instance", "max"], instances),
        ];
        for (path, limit) in limits {
            if limit == Some(0) {
                self.found.value(&path, format!("`{}` starts at 1", path[1])).hint =
                    Some("a route whose sessions could never wake is better removed".into());
            }
        }
        (RouteLimits { held, running, instances, when_full: when_full.into() }, wakes.0)
    }

    pub(super) fn ignore(&mut self, table: &IgnoreTable) -> Ignore {
        let IgnoreTable { agents, paths, status } = table;
        if !may_be_answered(*status) {
            let wrong = "not a status for it, expected 200 to 299 or 400 to 599";
            self.found.value(&["wake", "ignore", "status"], wrong);
        }
        for (index, path) in paths.iter().enumerate().filter(|(_, path)| !is_path(path)) {
            let at = ["wake", "ignore", "paths", &index.to_string()];
            self.found.value(&at, format!("`{path}` is no path, expected `/` and what follows it"));
        }
        let agents = self.patterns("agents", agents.iter().map(|agent| agent.to_ascii_lowercase()));
        let paths = self.patterns("paths", paths.iter().cloned());
        Ignore { agents, paths, status: *status }
    }

    fn patterns(&mut self, key: &str, texts: impl Iterator<Item = String>) -> Vec<Pattern> {
        let patterns: Vec<_> = texts.map(|text| Pattern::of(&text)).collect();
        if PATTERNS_MAX < patterns.len() {
            let wrong = format!("more than {PATTERNS_MAX}");
            self.found.value(&["wake", "ignore", key], wrong);
        }
        for (index, pattern) in patterns.iter().enumerate() {
            let at = ["wake", "ignore", key, &index.to_string()];
            match pattern.text() {
                "" => {
                    self.found.value(&at, "it would ignore everybody").hint =
                        Some("name what is in it, or what it begins with".into());
                }
                text if PATTERN_MAX < text.len() => {
                    self.found.value(&at, format!("longer than {PATTERN_MAX} bytes"));
                }
                text if text.contains('*') => {
                    self.found.value(&at, "a `*` can only be the end of it");
                }
                _ => {}
            }
        }
        patterns
    }

    pub(super) fn statics(
        &mut self,
        tables: std::collections::BTreeMap<String, StaticTable>,
        folder: &Path,
    ) -> Statics {
        if STATICS_MAX < tables.len() {
            self.found.key(&["static"], format!("more than {STATICS_MAX} answers"));
        }
        let mut statics = Statics::new();
        for (path, table) in tables {
            if !is_path(&path) || path.contains('*') {
                let wrong = format!("`{path}` is no path");
                self.found.key(&["static", &path], wrong).hint =
                    Some("expected `/` and what follows it, percent-encoded, without `?`".into());
            }
            if let Some(answer) = self.static_answer(&path, table, folder) {
                statics.insert(path.into(), answer);
            }
        }
        statics
    }

    fn static_answer(
        &mut self,
        path: &str,
        table: StaticTable,
        folder: &Path,
    ) -> Option<StaticAnswer> {
        let StaticTable { status, content_type, body, file } = table;
        let status = status.unwrap_or(200);
        if !may_be_answered(status) {
            let wrong = "not a status for it, expected 200 to 299 or 400 to 599";
            self.found.value(&["static", path, "status"], wrong);
        }
        let (body, kind) = match (body, file) {
            (Some(_), Some(_)) => {
                self.found.key(&["static", path, "file"], "either `body` or `file`, not both");
                return None;
            }
            (body, None) => (body.unwrap_or_default().into_bytes(), TEXT),
            (None, Some(file)) => {
                let kind = content_type_of(&file);
                let file = folder.join(file);
                let read = load::read_bytes(&file, FILE_MAX);
                match read.and_then(|read| read.ok_or_else(|| "there is no such file".to_owned())) {
                    Ok(bytes) => (bytes, kind),
                    Err(wrong) => {
                        let wrong = format!("{}: {wrong}", file.display());
                        self.found.value(&["static", path, "file"], wrong);
                        return None;
                    }
                }
            }
        };
        if status == 204 && !body.is_empty() {
            self.found.value(&["static", path], "204 has no body");
        }
        let content_type = content_type.as_deref().unwrap_or(kind);
        let Ok(content_type) = HeaderValue::from_str(content_type) else {
            self.found.value(&["static", path, "content_type"], "not a header's value");
            return None;
        };
        Some(StaticAnswer { status, content_type, body: Bytes::from(body) })
    }
}

fn may_be_answered(status: u16) -> bool {
    matches!(status, 200..=299 | 400..=599)
}

/// As it stands in a request.
fn is_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    path.starts_with('/') && path.bytes().all(plain)
}

fn content_type_of(file: &Path) -> &'static str {
    let ending = file.extension().unwrap_or_default().to_ascii_lowercase();
    let known = CONTENT_TYPES.iter().find(|(known, _)| ending == *known);
    known.map_or("application/octet-stream", |(_, kind)| kind)
}
