//! What a route says besides its host: how its sessions are made, when they are ready, when they
//! sleep, how they are spoken to. Many routes that differ in their hosts alone share one.

use std::{collections::HashSet, fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::{
    ClientTls, Protocol, Rate, WakeOn,
    access::Access,
    local::{Ignore, Statics},
};
use crate::session::{Policy, Pool, Probe, RouteLimits, Spec};

/// A route without its name and its host.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// The engine's name: `NAME` of `[engines.NAME]`.
    pub engine: Arc<str>,
    /// When its sessions sleep, how long a wake may take, how many requests are held.
    pub policy: Policy,
    /// What its sessions may take together.
    pub limits: RouteLimits,
    /// What is made ahead for sessions that do not exist yet.
    pub pool: Option<Pool>,
    /// How often they may be woken together.
    pub wakes: Option<Rate>,
    /// Whom they do not wake for.
    pub ignore: Ignore,
    pub(super) statics: Statics,
    /// HTTP/1.1 or HTTP/2 to the instance.
    pub protocol: Protocol,
    /// Who may enter.
    pub access: Access,
    /// What clients are told about HTTPS.
    pub client_tls: ClientTls,
    /// What a wake begins with.
    pub wake_on: WakeOn,
    pub(super) tls: Option<Tls>,
    pub(super) set_headers: Vec<SetHeader>,
    /// The path is a template.
    pub(super) probe: Probe,
    /// Every string is a template.
    pub(super) spec: Spec,
}

impl fmt::Debug for Recipe {
    /// Without the environment and the headers: there are secrets in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipe").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// TLS to the instance.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) verify: bool,
    /// A template; the session's host when not given.
    pub(super) sni: Option<String>,
}

/// A header that every request to the instance carries.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct SetHeader {
    pub(super) name: HeaderName,
    /// As the operator spelled it: some instances look for `Authorization` letter by letter.
    pub(super) spelled: Bytes,
    pub(super) value: SetValue,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum SetValue {
    /// The same for every session, so it costs a warm request no allocation.
    Fixed(HeaderValue),
    Template(String),
}

/// The recipes of one folder, each of them once: without that, each of 100,000 routes would hold some
/// two kilobytes (`cargo bench --bench memory`).
#[derive(Default)]
pub(super) struct Recipes(HashSet<Arc<Recipe>>);

impl Recipes {
    /// Puts the one that is known in the place of an equal one.
    pub(super) fn share(&mut self, recipe: &mut Arc<Recipe>) {
        match self.0.get(recipe) {
            Some(same) => *recipe = Arc::clone(same),
            None => drop(self.0.insert(Arc::clone(recipe))),
        }
    }
}
