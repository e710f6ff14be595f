//! `dormouse link` and `dormouse link revoke`: signed links into sessions.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use http::Uri;
use serde::Deserialize;

use super::{
    client::Target,
    exit::{Exit, Failure, Outcome, print, print_json, remark},
    sessions::{brief, read},
};
use crate::route::canonical_host;

/// Makes a signed link into a session, whose route says link = true in [access].
///
/// Whoever has the link may enter until it expires: the first time, it becomes a cookie and
/// disappears from the URL. Nothing is kept of it but its id in the log, which takes it back.
#[derive(Clone, Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  dormouse link alice.desk.example.com --expires 8h
  dormouse link https://alice.desk.example.com/vnc.html?autoconnect=1 --expires 30m --user alice
  dormouse link alice.desk.example.com --expires 7d --address 203.0.113.7 --json | jq -r .url
  dormouse link revoke 8f3c2a9b01d4e5f60718
  dormouse link revoke --key 2026-01"
)]
pub(super) struct Link {
    #[command(subcommand)]
    revoke: Option<Taken>,
    /// The session's host, or the URL in it that the link is to open.
    #[arg(value_name = "HOST", required = true)]
    place: Option<String>,
    /// How long it counts: 30m, 8h, 7d. At most links.expires_max.
    #[arg(long, value_name = "TIME", required = true)]
    expires: Option<String>,
    /// Who the instance is told it is.
    #[arg(long)]
    user: Option<String>,
    /// The only client address that may use it.
    #[arg(long)]
    address: Option<IpAddr>,
    /// The key to sign it with [default: links.current].
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Debug, Subcommand)]
enum Taken {
    Revoke(Revoke),
}

/// Takes a link back, and the cookie that it became. Or all links of a key.
#[derive(Clone, Debug, Args)]
struct Revoke {
    /// The link's id.
    #[arg(value_name = "ID", required_unless_present = "key")]
    link: Option<String>,
    /// A key's id: none of its links counts any more.
    #[arg(long, value_name = "ID", conflicts_with = "link")]
    key: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Deserialize)]
struct Made {
    id: String,
    expires: u64,
    url: String,
}

impl Link {
    pub(super) async fn run(self) -> Outcome {
        let Self { revoke, place, expires, user, address, key, target } = self;
        if let Some(Taken::Revoke(revoke)) = revoke {
            return revoke.run().await;
        }
        let (place, expires) = (place.unwrap_or_default(), expires.unwrap_or_default());
        let (host, url) = split(&place).map_err(|wrong| Failure::new(Exit::Usage, wrong))?;
        let address = address.map(|address| address.to_string());
        let mut query = vec![("expires", expires.as_str())];
        let more = [("user", &user), ("address", &address), ("key", &key), ("url", &url)];
        query.extend(more.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
        let path = ["v1", "sessions", host.as_str(), "links"];
        let answer = target.client()?.post(&path, &query).await?;
        if target.json {
            return print_json(&answer.body);
        }
        let Made { id, expires, url } = read(answer.body)?;
        print(&url)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = brief(Duration::from_secs(expires).saturating_sub(now));
        remark(&format!("link {id}: counts for {left}; `dormouse link revoke {id}` takes it back"));
        Ok(())
    }
}

impl Revoke {
    async fn run(self) -> Outcome {
        let Self { link, key, target } = self;
        let client = target.client()?;
        let (answer, what) = match (&key, &link) {
            (Some(key), _) => {
                let path = ["v1", "links", "keys", key.as_str(), "revoke"];
                (client.post(&path, &[]).await?, format!("all links of the key {key} are revoked"))
            }
            (None, link) => {
                let link = link.as_deref().unwrap_or_default();
                let path = ["v1", "links", link, "revoke"];
                (client.post(&path, &[]).await?, format!("link {link} is revoked"))
            }
        };
        if target.json { print_json(&answer.body) } else { print(&what) }
    }
}

/// The session's host, and the URL if it is one.
fn split(place: &str) -> Result<(String, Option<String>), String> {
    let is_url = place.contains("://");
    let uri: Uri = place.parse().map_err(|error| format!("`{place}` is no URL: {error}"))?;
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = canonical_host(authority.unwrap_or(place)).map(|host| host.into_owned());
    let host = host.ok_or_else(|| format!("`{place}` has no host, such as alice.localhost"))?;
    Ok((host, is_url.then(|| place.to_owned())))
}
