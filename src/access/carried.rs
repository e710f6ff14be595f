//! Where a request carries our own tokens, and what is left of it without them: they are never the
//! instance's to see.

use http::{HeaderMap, HeaderValue, Method, Uri, header, uri::PathAndQuery};

use super::{Request, token::Kind};

/// The parameter of a link's URL that holds its token.
pub(super) const PARAMETER: &str = "dormouse=";
/// What a WebSocket's protocol that is a token begins with.
const PROTOCOL: &str = "dormouse.token.";
/// The cookie, as browsers keep it for HTTPS and this host alone.
pub(super) const COOKIE: &str = "__Host-dormouse";
/// The cookie of `access.insecure_cookie`.
pub(super) const INSECURE_COOKIE: &str = "dormouse";
/// Our tokens in a request.
#[derive(Debug, Default)]
pub struct Carried<'a> {
    query: Option<&'a str>,
    protocol: Option<&'a str>,
    bearer: Option<&'a str>,
    /// Each with whether it is the one for plain HTTP. All there are: a page of a session beside this
    /// one may have set any number, and how many fit into a request is bounded by `limits.head`.
    cookies: Vec<(bool, &'a str)>,
}

/// What a request looks like without them; `None` where it stays as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// Its target.
    pub uri: Option<Uri>,
    /// The one `Cookie` that is left; empty: none is.
    pub cookie: Option<HeaderValue>,
    /// The one `Sec-WebSocket-Protocol` that is left; empty: none is.
    pub protocols: Option<HeaderValue>,
    /// Whether `Authorization` goes.
    pub authorization: bool,
    /// What the answer must select where the instance selects nothing: the client offered nothing
    /// but its token, and a browser closes a socket whose offer was not taken.
    pub selects: Option<HeaderValue>,
}

impl<'a> Carried<'a> {
    /// Looks for them.
    pub fn of(request: &Request<'a>) -> Self {
        let headers = request.headers;
        let parameters = request.uri.query().into_iter().flat_map(|query| query.split('&'));
        let ours = named_crumbs(headers).filter(|(name, _)| is_our_cookie(name.as_bytes()));
        Self {
            query: { parameters }.find_map(|parameter| parameter.strip_prefix(PARAMETER)),
            protocol: protocols(headers).find_map(|protocol| protocol.strip_prefix(PROTOCOL)),
            bearer: own_bearer(headers),
            cookies: ours.map(|(name, value)| (name == INSECURE_COOKIE, value)).collect(),
        }
    }

    /// All that may count, the most deliberate first. The cookie for plain HTTP where it may.
    pub(super) fn tokens(&self, insecure: bool) -> impl Iterator<Item = (Kind, &'a str)> {
        let links = [self.query, self.protocol, self.bearer].into_iter().flatten();
        let cookies = self.cookies.iter().filter(move |(plain, _)| insecure || !plain);
        let links = links.map(|token| (Kind::Link, token));
        links.chain(cookies.map(|(_, token)| (Kind::Cookie, *token)))
    }

    /// The token in its URL.
    pub(super) fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// The same URL without the token, where it is one to be asked for again: a WebSocket follows
    /// no redirect, and a body would be lost.
    pub(super) fn location(&self, request: &Request<'_>) -> Option<String> {
        self.query?;
        let may_repeat = matches!(*request.method, Method::GET | Method::HEAD);
        if request.is_upgrade || !may_repeat {
            return None;
        }
        let target = without_parameter(request.uri);
        // `//evil.test` would be another host to a browser, and so would `/\evil.test`.
        let is_host = target.as_bytes().get(1).is_some_and(|byte| matches!(byte, b'/' | b'\\'));
        Some(if is_host { format!("/.{target}") } else { target })
    }

    /// What is left.
    pub fn without(&self, request: &Request<'_>) -> Without {
        let headers = request.headers;
        let mut without = Without { authorization: self.bearer.is_some(), ..Without::default() };
        if self.query.is_some() {
            let mut parts = request.uri.clone().into_parts();
            parts.path_and_query = PathAndQuery::try_from(without_parameter(request.uri)).ok();
            without.uri = Uri::from_parts(parts).ok();
        }
        if !self.cookies.is_empty() {
            let name = |crumb: &[u8]| crumb.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
            let ours = |crumb: &&[u8]| name(crumb).is_some_and(|name| is_our_cookie(&name));
            let left: Vec<_> = crumbs(headers).filter(|crumb| !ours(crumb)).collect();
            without.cookie = HeaderValue::from_bytes(&left.join(&b"; "[..])).ok();
        }
        if self.protocol.is_some() {
            let is_token = |protocol: &&str| protocol.starts_with(PROTOCOL);
            let left: Vec<_> = protocols(headers).filter(|one| !is_token(one)).collect();
            without.protocols = HeaderValue::try_from(left.join(", ")).ok();
            if left.is_empty() {
                let token = protocols(headers).find(is_token);
                without.selects = token.and_then(|token| HeaderValue::from_str(token).ok());
            }
        }
        without
    }
}

/// The token behind `Bearer`.
pub(super) fn bearer(authorization: &HeaderValue) -> Option<&str> {
    let (scheme, token) = authorization.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Our own token in an `Authorization`, whichever of several that is.
fn own_bearer(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::AUTHORIZATION).iter().filter_map(bearer);
    { all }.find(|token| token.starts_with("dm1"))
}

/// Whether `Authorization` holds a token of ours.
pub(super) fn is_bearer_ours(headers: &HeaderMap) -> bool {
    own_bearer(headers).is_some()
}

/// The values of the cookies of this name.
pub(super) fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    named_crumbs(headers).filter_map(move |(given, value)| (given == name).then_some(value))
}

/// Name and value of every cookie that is text.
fn named_crumbs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let text = crumbs(headers).filter_map(|crumb| std::str::from_utf8(crumb).ok());
    text.filter_map(|crumb| crumb.split_once('=')).map(|(name, value)| (name.trim(), value))
}

/// `NAME=VALUE` of every cookie, as bytes: one that is no text, which a page of a neighbour may have
/// set, hides none of those beside it.
fn crumbs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let all = headers.get_all(header::COOKIE).iter();
    let crumbs = all.flat_map(|cookies| cookies.as_bytes().split(|byte| *byte == b';'));
    crumbs.map(<[u8]>::trim_ascii).filter(|crumb| !crumb.is_empty())
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let all = all.filter_map(|protocols| protocols.to_str().ok());
    all.flat_map(|protocols| protocols.split(',')).map(str::trim)
}

fn is_our_cookie(name: &[u8]) -> bool {
    let name = name.trim_ascii();
    name == COOKIE.as_bytes() || name == INSECURE_COOKIE.as_bytes()
}

fn without_parameter(uri: &Uri) -> String {
    let path = if uri.path().is_empty() { "/" } else { uri.path() };
    let Some(query) = uri.query() else { return path.to_owned() };
    let left: Vec<_> = query.split('&').filter(|one| !one.starts_with(PARAMETER)).collect();
    if left.is_empty() { path.to_owned() } else { format!("{path}?{}", left.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn request<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Request<'a> {
        Request {
            method: &Method::GET,
            uri,
            headers,
            host: "a.test",
            named: "a.test",
            is_secure: true,
            is_upgrade: false,
            address: None,
            certificate: None,
        }
    }

    fn left(uri: &str, all: &[(&'static str, &str)]) -> Without {
        let (uri, headers) = (uri.parse().expect("a URI"), headers(all));
        let request = request(&uri, &headers);
        Carried::of(&request).without(&request)
    }

    fn location(uri: &str) -> Option<String> {
        let (uri, headers) = (uri.parse().expect("a URI"), HeaderMap::new());
        let request = request(&uri, &headers);
        Carried::of(&request).location(&request)
    }

    #[test]
    fn what_carries_nothing_of_ours_stays_as_it_is() {
        let others = [
            ("cookie", "a=1; dormouse2=x; x__Host-dormouse=1"),
            ("authorization", "Bearer eyJ.x.y"),
            ("sec-websocket-protocol", "binary, dormouse"),
        ];
        assert_eq!(left("/p?a=1&xdormouse=2", &others), Without::default());
    }

    #[test]
    fn the_cookie_goes_and_the_others_stay() {
        let one =
            left("/", &[("cookie", "a=1; __Host-dormouse=t;b=2"), ("cookie", "dormouse=t; c=é")]);
        assert_eq!(one.cookie.expect("left").as_bytes(), "a=1; b=2; c=é".as_bytes());
        assert_eq!(left("/", &[("cookie", "__Host-dormouse=t")]).cookie.expect("left"), "");
    }

    #[test]
    fn a_cookie_that_is_no_text_hides_no_other() {
        let mut all = HeaderMap::new();
        let cookies = HeaderValue::from_bytes(b"x=\xff; __Host-dormouse=t; \xfe").expect("a value");
        all.insert(header::COOKIE, cookies);
        let uri = Uri::from_static("/");
        let carried = request(&uri, &all);
        assert_eq!(Carried::of(&carried).cookies, [(false, "t")]);
        let left = Carried::of(&carried).without(&carried).cookie.expect("left");
        assert_eq!(left.as_bytes(), b"x=\xff; \xfe");
    }

    #[test]
    fn the_parameter_goes_and_the_others_stay() {
        for (given, expected) in [
            ("/p?dormouse=t", "/p"),
            ("/p?a=1&dormouse=t&b=%26", "/p?a=1&b=%26"),
            ("/p?dormouse=t&dormouse=u&a", "/p?a"),
            ("http://a.test/p?dormouse=t", "http://a.test/p"),
            ("http://a.test?dormouse=t", "http://a.test/"),
        ] {
            assert_eq!(left(given, &[]).uri.expect("changed"), expected);
        }
    }

    #[test]
    fn the_redirect_never_leaves_the_host() {
        assert_eq!(location("/p?q=1&dormouse=t").as_deref(), Some("/p?q=1"));
        assert_eq!(location("//evil.test/?dormouse=t").as_deref(), Some("/.//evil.test/"));
        assert_eq!(location("/p"), None);
    }

    #[test]
    fn a_protocol_that_is_a_token_is_not_offered_to_the_instance() {
        let both = left("/", &[("sec-websocket-protocol", "binary, dormouse.token.dm1l.x")]);
        assert_eq!(
            (both.protocols.expect("left"), both.selects),
            ("binary".try_into().expect("one"), None)
        );
        let alone = left("/", &[("sec-websocket-protocol", "dormouse.token.dm1l.x")]);
        assert_eq!(alone.protocols.expect("left"), "");
        assert_eq!(alone.selects.expect("one"), "dormouse.token.dm1l.x");
    }
}
