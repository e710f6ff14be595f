//! `mtls`: the client's certificate. That it is valid, and from an authority that we know, is the
//! listener's word; here it is only asked whose it is.

use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{Met, Outcome, Refusal, Request};
use crate::route::Route;

pub(super) fn ask(route: &Route, request: &Request<'_>) -> Outcome {
    match admits(route, request.host, request.certificate) {
        Some(user) => Outcome::Met(Met { user, ..Met::default() }),
        None => Outcome::Not(Refusal::NotAllowed),
    }
}

/// Whether this certificate may enter, and the name in it, if there is one.
pub(super) fn admits(
    route: &Route,
    host: &str,
    certificate: Option<&[u8]>,
) -> Option<Option<String>> {
    let mtls = route.recipe.access.mtls.as_ref()?;
    let (_, certificate) = X509Certificate::from_der(certificate?).ok()?;
    let subject = certificate.subject().to_string();
    let names = names(&certificate);
    let matches = |patterns: &[String], names: &[String]| {
        let mut patterns = patterns.iter().map(|pattern| route.render(host, pattern));
        patterns.any(|pattern| names.iter().any(|name| is_like(&pattern, name)))
    };
    let everybody = mtls.subject.is_empty() && mtls.san.is_empty();
    let met = everybody
        || matches(&mtls.subject, std::slice::from_ref(&subject))
        || matches(&mtls.san, &names);
    let common = certificate.subject().iter_common_name().next();
    let common = common.and_then(|name| name.as_str().ok()).map(str::to_owned);
    met.then(|| common.or_else(|| names.into_iter().next()))
}

/// What it is for: DNS names, mail addresses, URIs.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            Some((*name).to_owned())
        }
        _ => None,
    });
    names.collect()
}

/// `*` stands for anything. Case counts in a subject; names are compared as they are written.
fn is_like(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::route::{EngineKind, Engines};

    fn route(mtls: &str) -> Route {
        let text = format!(
            "host = \"{{session}}.test\"\n[instance]\ncommand = [\"x\"]\n[access.mtls]\n{mtls}"
        );
        let engines = Engines::from([("local".to_owned(), EngineKind::Process)]);
        Route::parse("r", Path::new("r.toml"), &text, &engines).expect("a route")
    }

    fn certificate(common: &str, names: &[&str]) -> Vec<u8> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common);
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn the_subject_or_a_name_must_fit_the_session() {
        let alice = certificate("alice", &["alice.users.test", "alice@example.com"]);
        let admitted = |mtls: &str, host: &str| admits(&route(mtls), host, Some(&alice)).is_some();
        assert!(admitted("", "bob.test"), "any certificate that the listener took");
        assert!(admitted("subject = [\"CN={session}\"]", "alice.test"));
        assert!(!admitted("subject = [\"CN={session}\"]", "bob.test"));
        assert!(!admitted("subject = [\"CN={session}\"]", "alic.test"));
        assert!(admitted("san = [\"{session}.users.test\"]", "alice.test"));
        assert!(admitted("san = [\"nobody\", \"*@example.com\"]", "bob.test"));
        assert!(!admitted("san = [\"*@example.org\"]", "bob.test"));
    }

    #[test]
    fn without_a_certificate_nobody_enters() {
        for certificate in [None, Some(&b""[..]), Some(b"no certificate")] {
            assert_eq!(admits(&route(""), "a.test", certificate), None);
        }
        let alice = certificate("alice", &[]);
        assert_eq!(admits(&route(""), "a.test", Some(&alice)), Some(Some("alice".into())));
    }

    #[test]
    fn a_star_is_anything_and_nothing_else_is() {
        for (pattern, name) in
            [("*", ""), ("*", "x"), ("a*c", "ac"), ("a*c", "abc"), ("a*b*c", "a1b2b3c"), ("a", "a")]
        {
            assert!(is_like(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("a", "ab"),
            ("a*c", "a"),
            ("a*c", "abcd"),
            ("aa*aa", "aaa"),
            ("", "x"),
            ("a*b*c", "acb"),
        ] {
            assert!(!is_like(pattern, name), "{pattern} {name}");
        }
    }
}
