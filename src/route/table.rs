//! Which route a host belongs to. Built once per reload and never changed: readers need no lock.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use super::{HostPattern, Route, host::HOST_MAX};

/// All routes, by host and by name.
///
/// A host belongs to the route with its exact name; otherwise, of the patterns that match it, to
/// the one with the longer literal end, then the longer literal start, then more literal
/// characters between its captures, then the one whose pattern (without the captures' names) is
/// first in the alphabet. No two routes have the same pattern, so there is always one answer.
#[derive(Default)]
pub struct RouteTable {
    /// In the order of their names.
    named: Box<[Arc<Route>]>,
    exact: HashMap<Arc<str>, Arc<Route>>,
    tails: HashMap<Box<str>, Heads>,
    /// The lengths of the tails that start within a label; the others start at a dot.
    tails_in_label: Lengths,
    /// Hosts of files that cannot be used: no wider pattern takes them over.
    closed: Vec<HostPattern>,
    is_partial: bool,
}

/// The patterns with one tail, by what they start with.
#[derive(Default)]
struct Heads {
    lengths: Vec<usize>,
    /// The best first.
    routes: HashMap<Box<str>, Vec<Arc<Route>>>,
}

/// Two routes that one table cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("routes `{}` and `{}` have the same {what}", first.name, second.name)]
pub struct Clash {
    /// The one in the table.
    pub first: Arc<Route>,
    /// The one that has no place any more.
    pub second: Arc<Route>,
    what: &'static str,
}

impl RouteTable {
    /// Fails on routes with the same name, or with hosts that differ in nothing but the names of
    /// their captures.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Result<Self, Vec<Clash>> {
        let (table, clashes) = Self::with_clashes(routes);
        if clashes.is_empty() { Ok(table) } else { Err(clashes) }
    }

    /// The first of two that clash has its place.
    pub(super) fn with_clashes(routes: impl IntoIterator<Item = Route>) -> (Self, Vec<Clash>) {
        let mut table = Self::default();
        let mut names: BTreeMap<Arc<str>, Arc<Route>> = BTreeMap::new();
        let mut shapes: HashMap<String, Arc<Route>> = HashMap::new();
        let mut clashes = Vec::new();
        for route in routes {
            let second = Arc::new(route);
            let shape = second.host.shape();
            if let Some(first) = names.get(&second.name).cloned() {
                clashes.push(Clash { first, second, what: "name" });
            } else if let Some(first) = shapes.get(&shape).cloned() {
                clashes.push(Clash { first, second, what: "host" });
            } else {
                shapes.insert(shape, second.clone());
                names.insert(second.name.clone(), second.clone());
                table.add(second);
            }
        }
        table.named = names.into_values().collect();
        for heads in table.tails.values_mut() {
            heads.sort();
        }
        (table, clashes)
    }

    fn add(&mut self, route: Arc<Route>) {
        let host = &route.host;
        if host.is_exact() {
            self.exact.insert(Arc::clone(host.text()), route);
            return;
        }
        if !host.tail().starts_with('.') {
            self.tails_in_label.insert(host.tail().len());
        }
        let heads = self.tails.entry(host.tail().into()).or_default();
        heads.routes.entry(host.head().into()).or_default().push(route);
    }

    /// The same without some of them, whose hosts are closed, with those of `closed`.
    pub(super) fn closing(&self, bad: &[Arc<str>], closed: Vec<HostPattern>) -> Self {
        let mut table = Self { closed, is_partial: true, ..Self::default() };
        let (bad, good): (Vec<_>, Vec<_>) =
            self.named.iter().cloned().partition(|route| bad.contains(&route.name));
        table.closed.extend(bad.iter().map(|route| route.host.clone()));
        for route in &good {
            table.add(Arc::clone(route));
        }
        table.named = good.into();
        table.tails.values_mut().for_each(Heads::sort);
        table
    }

    pub(super) fn closed(&self) -> &[HostPattern] {
        &self.closed
    }

    /// Whether files were left out: then nobody knows what else is routed.
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// The route of a canonical host ([`super::canonical_host`]).
    ///
    /// None for a host that a file which was left out has: a wider pattern may let others in.
    pub fn lookup(&self, host: &str) -> Option<&Arc<Route>> {
        let route = self.find(host)?;
        let closed = self.closed.iter().filter(|closed| closed.values(host).is_some());
        closed.map(rank).max().is_none_or(|closed| closed < rank(&route.host)).then_some(route)
    }

    /// Allocates nothing. One hash look-up per label and per length of a tail that starts within
    /// a label (`-ide.example.com`), however many routes there are.
    fn find(&self, host: &str) -> Option<&Arc<Route>> {
        if let Some(route) = self.exact.get(host) {
            return Some(route);
        }
        if host.len() > HOST_MAX || !host.is_ascii() {
            return None;
        }
        // From the left, so that the longest tail is tried first.
        (1..=host.len())
            .filter(|&start| {
                host.as_bytes().get(start) == Some(&b'.')
                    || self.tails_in_label.contains(host.len() - start)
            })
            .find_map(|start| {
                let (front, tail) = host.split_at(start);
                self.tails.get(tail)?.lookup(front)
            })
    }

    /// The route of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Route>> {
        let at = self.named.binary_search_by(|route| (*route.name).cmp(name)).ok()?;
        self.named.get(at)
    }

    /// All routes, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Route>> {
        self.named.iter()
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// Of two patterns that match a host, the one with the higher rank has it.
fn rank(host: &HostPattern) -> (bool, usize, usize, usize) {
    (host.is_exact(), host.tail().len(), host.head().len(), host.middle_len())
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|route| (&route.name, &route.host))).finish()
    }
}

impl Heads {
    fn sort(&mut self) {
        self.lengths = self.routes.keys().map(|head| head.len()).collect();
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.lengths.dedup();
        for routes in self.routes.values_mut() {
            routes.sort_by_cached_key(|route| {
                (std::cmp::Reverse(route.host.middle_len()), route.host.shape())
            });
        }
    }

    fn lookup(&self, front: &str) -> Option<&Arc<Route>> {
        self.lengths.iter().filter(|&&length| length < front.len()).find_map(|&length| {
            let (head, between) = front.split_at(length);
            self.routes.get(head)?.iter().find(|route| route.host.fits(between))
        })
    }
}

/// A set of lengths of hosts' ends.
#[derive(Default)]
struct Lengths([u64; 4]);

impl Lengths {
    fn insert(&mut self, length: usize) {
        self.0[length / 64] |= 1 << (length % 64);
    }

    fn contains(&self, length: usize) -> bool {
        self.0[length / 64] & (1 << (length % 64)) != 0
    }
}
