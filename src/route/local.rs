//! What a route answers without its sessions, and whom it does not wake them for.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::HeaderValue;

/// No user agent that we look for says more; a client may.
const AGENT_MAX: usize = 1024;

/// An answer that needs no session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StaticAnswer {
    /// The status.
    pub status: u16,
    /// What the body is.
    pub content_type: HeaderValue,
    /// The body.
    pub body: Bytes,
}

/// The answers of one route, by path.
pub(super) type Statics = BTreeMap<Box<str>, StaticAnswer>;

/// Whom sessions do not wake for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ignore {
    /// In lower case.
    pub(super) agents: Vec<Pattern>,
    pub(super) paths: Vec<Pattern>,
    /// What they are told while the session is not awake.
    pub status: u16,
}

/// A text to look for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pattern {
    /// All of it; for user agents, any part.
    Plain(Box<str>),
    /// What it begins with.
    Start(Box<str>),
}

impl Pattern {
    /// A star at the end means a beginning.
    pub(super) fn of(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(start) => Self::Start(start.into()),
            None => Self::Plain(text.into()),
        }
    }

    pub(super) fn text(&self) -> &str {
        let (Self::Plain(text) | Self::Start(text)) = self;
        text
    }
}

impl Ignore {
    /// Whether it ignores a request for this path by this user agent.
    pub fn has(&self, path: &str, agent: Option<&[u8]>) -> bool {
        let on_path = |pattern: &Pattern| match pattern {
            Pattern::Plain(text) => **text == *path,
            Pattern::Start(start) => path.starts_with(&**start),
        };
        let agent = agent.map_or(&b""[..], |agent| &agent[..agent.len().min(AGENT_MAX)]);
        let by_agent = |pattern: &Pattern| {
            let text = pattern.text().as_bytes();
            let here = |part: &[u8]| part.eq_ignore_ascii_case(text);
            match pattern {
                Pattern::Plain(_) => agent.windows(text.len().max(1)).any(here),
                Pattern::Start(_) => agent.get(..text.len()).is_some_and(here),
            }
        };
        self.paths.iter().any(on_path) || self.agents.iter().any(by_agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(agents: &[&str], paths: &[&str]) -> Ignore {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::of(text)).collect();
        Ignore { agents: patterns(agents), paths: patterns(paths), status: 503 }
    }

    #[test]
    fn an_agent_is_told_by_any_part_of_it_or_by_its_beginning() {
        let ignore = ignore(&["googlebot", "kube-probe/*"], &[]);
        let has = |agent: &str| ignore.has("/", Some(agent.as_bytes()));
        assert!(has("Mozilla/5.0 (compatible; Googlebot/2.1)") && has("GOOGLEBOT"));
        assert!(has("kube-probe/1.30") && has("Kube-Probe/"));
        assert!(!has("not kube-probe/1.30") && !has("kube-probe") && !has("Mozilla/5.0"));
        assert!(!has("") && !ignore.has("/", None));
    }

    #[test]
    fn a_path_is_told_whole_or_by_its_beginning() {
        let ignore = ignore(&[], &["/metrics", "/.well-known/*"]);
        let has = |path: &str| ignore.has(path, Some(b"curl"));
        assert!(has("/metrics") && has("/.well-known/") && has("/.well-known/a/b"));
        assert!(!has("/metrics/") && !has("/x/metrics") && !has("/.well-known") && !has("/"));
    }

    #[test]
    fn who_ignores_nobody_ignores_nobody() {
        assert!(!ignore(&[], &[]).has("/", Some(b"")));
    }

    #[test]
    fn an_endless_agent_is_looked_at_only_so_far() {
        let mut agent = vec![b'a'; AGENT_MAX];
        agent.extend_from_slice(b"googlebot");
        assert!(!ignore(&["googlebot"], &[]).has("/", Some(&agent)));
    }
}
