//! Whose pages may open a WebSocket, or change something. A browser sends its cookies along whichever
//! page asks, and says the page's origin; a page cannot forge that.

use http::{HeaderValue, Method, header};

use super::Request;
use crate::route::{
    access::{Access, Origin},
    canonical_host,
};

/// Whether the page that sends this, if one does, may. A client that names no origin is no page.
///
/// An open route looks at upgrades alone. Where somebody has entered, whose browser would enter for
/// any page, the page must not change anything either: the cookie is also sent by the pages of
/// sessions beside this one.
pub(super) fn admits(access: &Access, request: &Request<'_>) -> bool {
    if access.origin == Origin::Any {
        return true;
    }
    let is_safe = matches!(*request.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if !request.is_upgrade && (is_safe || access.is_open()) {
        return true;
    }
    let mut named = request.headers.get_all(header::ORIGIN).iter();
    let given = match (named.next(), named.next()) {
        (None, _) => return true,
        (Some(given), None) => given.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => return false,
    };
    is_same(given, request.host)
        || is_listed(&access.origin, given)
        || (!request.is_upgrade && is_own_form(given, request))
}

/// Whether a page of this origin may ask although it is another's.
pub(super) fn is_other_page(origin: &Origin, given: &str) -> bool {
    *origin == Origin::Any || is_listed(origin, given)
}

fn is_listed(origin: &Origin, given: &str) -> bool {
    match origin {
        Origin::Listed(listed) => listed.iter().any(|one| is_like(one, given)),
        Origin::Same | Origin::Any => false,
    }
}

/// `*` stands for a whole label, and for no more than that. The pattern is in lower case.
fn is_like(pattern: &str, given: &str) -> bool {
    let Some((before, behind)) = pattern.split_once('*') else {
        return pattern.eq_ignore_ascii_case(given);
    };
    let given = given.to_ascii_lowercase();
    let label = given.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    label.is_some_and(|label| !label.is_empty() && label.bytes().all(is_letter))
}

/// A page that wants no referrer sends its own forms without an origin. The browser still says
/// whose they are, if it is not too old for that.
fn is_own_form(origin: &str, request: &Request<'_>) -> bool {
    let site = request.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    origin == "null" && matches!(site, None | Some(b"same-origin" | b"none"))
}

/// Its port may be another: who forwards to us may have changed it.
fn is_same(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let is_web = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    is_web && canonical_host(authority).is_some_and(|origin| origin == host)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use http::{HeaderMap, HeaderValue, Method, Uri};

    use super::*;
    use crate::route::access::Policy;

    static URI: LazyLock<Uri> = LazyLock::new(Uri::default);

    fn admitted(origin: &Origin, given: &[&str]) -> bool {
        let access = Access { origin: origin.clone(), ..Access::open() };
        let mut headers = HeaderMap::new();
        for given in given {
            headers.append(header::ORIGIN, HeaderValue::from_str(given).expect("a value"));
        }
        admits(&access, &request(&Method::GET, &headers, true))
    }

    fn request<'a>(method: &'a Method, headers: &'a HeaderMap, is_upgrade: bool) -> Request<'a> {
        Request {
            method,
            uri: &URI,
            headers,
            host: "alice.example.com",
            named: "alice.example.com",
            is_secure: true,
            is_upgrade,
            address: None,
            certificate: None,
        }
    }

    #[test]
    fn a_foreign_page_changes_nothing_where_somebody_has_entered() {
        let open = Access::open();
        let closed = Access { require: vec![vec![Policy::Link]], ..Access::open() };
        let admitted =
            |access: &Access, method: Method, origin: &str, site: Option<&'static str>| {
                let mut headers = HeaderMap::new();
                headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("a value"));
                if let Some(site) = site {
                    headers.insert("sec-fetch-site", HeaderValue::from_static(site));
                }
                admits(access, &request(&method, &headers, false))
            };
        let bob = "https://bob.example.com";
        assert!(!admitted(&closed, Method::POST, bob, Some("same-site")));
        assert!(!admitted(&closed, Method::DELETE, bob, None));
        assert!(admitted(&closed, Method::GET, bob, Some("same-site")));
        assert!(admitted(&open, Method::POST, bob, Some("same-site")));
        assert!(admitted(&closed, Method::POST, "https://alice.example.com", None));
        assert!(admitted(&closed, Method::POST, "null", Some("same-origin")));
        assert!(!admitted(&closed, Method::POST, "null", Some("cross-site")));
    }

    #[test]
    fn the_sessions_own_pages_and_no_others() {
        let good = [
            "https://alice.example.com",
            "http://alice.example.com:8080",
            "HTTPS://ALICE.example.com.",
        ];
        for good in good {
            assert!(admitted(&Origin::Same, &[good]), "{good}");
        }
        assert!(admitted(&Origin::Same, &[]), "no page at all");
        let bad = [
            "null",
            "",
            "https://example.com",
            "https://bob.example.com",
            "https://alice.example.com.evil.test",
            "https://evil.test/alice.example.com",
            "https://alice.example.com@evil.test",
            "https://evil.test#alice.example.com",
            "file://alice.example.com",
            "alice.example.com",
        ];
        for bad in bad {
            assert!(!admitted(&Origin::Same, &[bad]), "{bad}");
            assert!(admitted(&Origin::Any, &[bad]), "{bad}");
        }
        assert!(!admitted(&Origin::Same, &["https://alice.example.com", "https://evil.test"]));
    }

    #[test]
    fn a_star_is_one_whole_label_of_the_same_scheme() {
        let listed = ["https://*.vscode-cdn.net", "vscode-webview://*", "http://*.a.test:8080"];
        let listed = Origin::Listed(listed.map(str::to_owned).into());
        for good in [
            "https://0a1b-c.vscode-cdn.net",
            "https://X.VSCODE-CDN.net",
            "vscode-webview://0kqd3v9s",
            "http://b.a.test:8080",
        ] {
            assert!(admitted(&listed, &[good]), "{good}");
        }
        for bad in [
            "https://vscode-cdn.net",
            "https://.vscode-cdn.net",
            "https://a.b.vscode-cdn.net",
            "https://evilvscode-cdn.net",
            "http://a.vscode-cdn.net",
            "https://a.vscode-cdn.net:8443",
            "https://a.vscode-cdn.net.evil.test",
            "https://evil.test/.vscode-cdn.net",
            "https://evil.test#.vscode-cdn.net",
            "https://evil@.vscode-cdn.net",
            "vscode-webview://",
            "vscode-webview://a.b",
            "vscode-webview://a/b",
            "vscode-webview2://a",
            "http://b.a.test",
            "*",
        ] {
            assert!(!admitted(&listed, &[bad]), "{bad}");
        }
    }

    #[test]
    fn listed_ones_are_whole_origins() {
        let listed = Origin::Listed(vec!["https://app.example.com".into()]);
        assert!(admitted(&listed, &["https://app.example.com"]));
        assert!(admitted(&listed, &["https://alice.example.com"]));
        for bad in [
            "http://app.example.com",
            "https://app.example.com:444",
            "https://app.example.com.evil.test",
        ] {
            assert!(!admitted(&listed, &[bad]), "{bad}");
        }
    }
}
