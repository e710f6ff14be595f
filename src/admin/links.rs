//! `/v1/links`: signed links are made and taken back. A link's token goes to whoever asked for it,
//! and nowhere else.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, Uri},
};
use humantime_serde::re::humantime::parse_duration;
use serde::{Deserialize, Serialize};

use super::{
    Shared,
    problem::Problem,
    sessions::{Asked, asked, canonical},
};
use crate::{
    access::{LinkError, NewLink, RevokeError},
    route::{access::Policy, canonical_host},
};

/// No id is longer.
const ID_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkQuery {
    expires: String,
    user: Option<String>,
    address: Option<IpAddr>,
    key: Option<String>,
    url: Option<String>,
}

#[derive(Serialize)]
pub(super) struct LinkAnswer {
    /// For taking it back.
    id: String,
    key: String,
    session: String,
    /// Seconds since 1970.
    expires: u64,
    /// For `Sec-WebSocket-Protocol: dormouse.token.TOKEN` or `Authorization: Bearer TOKEN`.
    token: String,
    /// For browsers.
    url: String,
}

pub(super) async fn make(
    State(shared): State<Arc<Shared>>,
    Path(host): Path<String>,
    query: Asked<LinkQuery>,
) -> Result<(StatusCode, Json<LinkAnswer>), Problem> {
    let host = canonical(&host)?;
    let LinkQuery { expires, user, address, key, url } = asked(query)?;
    let table = shared.admin.table.load_full();
    let route = table.lookup(&host).ok_or_else(|| Problem::no_route(&host))?;
    let access = &route.recipe.access;
    if !access.asks(Policy::Link) {
        let detail =
            format!("the route `{}` takes no links: add link = true to its [access]", route.name);
        return Err(Problem::new(StatusCode::CONFLICT, "no_links", "No links", detail));
    }
    let expires_in = parse_duration(&expires);
    let expires_in =
        expires_in.map_err(|_| Problem::bad_request(format!("`{expires}` is no duration")))?;
    let url = url.unwrap_or_else(|| shared.admin.ways_in.url(&host, access.insecure_cookie));
    let base = base(&url, &host)?;
    let new = NewLink { host: host.clone(), expires_in: whole(expires_in), user, address, key };
    let link = shared.admin.door.link(new).map_err(Problem::of_link)?;
    tracing::info!(
        link = link.id,
        key = link.key,
        session = host,
        expires = link.expires,
        "a link was made"
    );
    let url = format!("{base}dormouse={}", link.token);
    let answer = LinkAnswer {
        id: link.id,
        key: link.key,
        session: host,
        expires: link.expires,
        token: link.token,
        url,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

#[derive(Serialize)]
pub(super) struct Revoked {
    revoked: String,
}

pub(super) async fn revoke(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Revoked>, Problem> {
    let is_id = |byte: u8| byte.is_ascii_alphanumeric();
    if id.is_empty() || ID_MAX < id.len() || !id.bytes().all(is_id) {
        return Err(Problem::bad_request(
            "not the id of a link: `dormouse link` says it".to_owned(),
        ));
    }
    shared.admin.door.revoke_link(&id).map_err(Problem::of_revoke)?;
    tracing::info!(link = id, "a link was revoked");
    Ok(Json(Revoked { revoked: id }))
}

pub(super) async fn revoke_key(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Revoked>, Problem> {
    if !shared.admin.door.has_key(&id) {
        let detail = format!("no key is called `{id}`: see [links] in dormouse.toml");
        return Err(Problem::new(StatusCode::NOT_FOUND, "no_such_key", "No such key", detail));
    }
    shared.admin.door.revoke_key(&id).map_err(Problem::of_revoke)?;
    tracing::info!(key = id, "a key of links was revoked");
    Ok(Json(Revoked { revoked: id }))
}

impl Problem {
    fn of_link(error: LinkError) -> Self {
        let detail = error.to_string();
        match error {
            LinkError::NoKey(_) => {
                Self::new(StatusCode::NOT_FOUND, "no_such_key", "No such key", detail)
            }
            LinkError::RevokedKey(_) => {
                Self::new(StatusCode::CONFLICT, "revoked_key", "Revoked", detail)
            }
            LinkError::Expiry(_) | LinkError::User => Self::bad_request(detail),
            LinkError::Random => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
            }
        }
    }

    fn of_revoke(error: RevokeError) -> Self {
        let detail = error.to_string();
        match error {
            RevokeError::Full => Self::new(StatusCode::CONFLICT, "revoked_full", "Full", detail),
            RevokeError::Unwritten(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "unwritten", "Not revoked", detail)
            }
        }
    }
}

/// A URL of this session, up to where a parameter can follow.
fn base(url: &str, host: &str) -> Result<String, Problem> {
    let wrong = || Problem::bad_request(format!("`{url}` is no URL of {host}"));
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https" | "ws" | "wss"));
    let named = uri.authority().and_then(|authority| canonical_host(authority.as_str()));
    if !is_web || named.as_deref() != Some(host) || url.contains('#') {
        return Err(wrong());
    }
    // As `Uri` writes it, there is always a path.
    let join = if uri.query().is_some() { '&' } else { '?' };
    Ok(format!("{uri}{join}"))
}

/// A part of a second is one: an answer of nothing would be refused.
fn whole(time: Duration) -> u64 {
    time.as_secs() + u64::from(0 < time.subsec_nanos())
}
