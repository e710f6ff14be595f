//! The connections that are open: a bound on them, in all and by client, and a drain that ends with
//! the last one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dashmap::{DashMap, Entry};
use tokio::sync::Notify;

use crate::{fleet::Origin, metrics::METRICS};

/// Counts clients' connections, each with whatever requests, streams and sockets it carries.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    per_client: usize,
    open: AtomicUsize,
    /// A client without a connection has no entry, so that there are never more than `max`.
    clients: DashMap<Origin, usize>,
    none_left: Notify,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    client: Option<Origin>,
}

impl Connections {
    /// At most `max` at once, and `per_client` of one client.
    pub fn new(max: usize, per_client: usize) -> Self {
        let (open, clients) = (AtomicUsize::new(0), DashMap::new());
        Self { max, per_client, open, clients, none_left: Notify::new() }
    }

    /// A place for a connection.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let room = |open: usize| (open < self.max).then_some(open + 1);
        if self.open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).is_err() {
            METRICS.connections_refused.inc();
            return None;
        }
        METRICS.connections.inc();
        Some(Place { connections: Arc::clone(self), client: None })
    }

    fn count_in(&self, client: Origin) -> bool {
        let mut open = self.clients.entry(client).or_insert(0);
        let has_room = *open < self.per_client;
        *open += usize::from(has_room);
        has_room
    }

    fn count_out(&self, client: Origin) {
        if let Entry::Occupied(mut open) = self.clients.entry(client) {
            match open.get().saturating_sub(1) {
                0 => drop(open.remove()),
                left => drop(open.insert(left)),
            }
        }
    }

    /// Returns once no connection is open.
    pub async fn none(&self) {
        loop {
            let mut notified = std::pin::pin!(self.none_left.notified());
            // Armed before the look, or a connection that ends in between would be missed.
            notified.as_mut().enable();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Place {
    /// It is known now whose connection it is; whether that client may have one more.
    pub(super) fn is_for(&mut self, client: Origin) -> bool {
        let has_room = self.connections.count_in(client);
        if has_room {
            self.client = Some(client);
        } else {
            METRICS.client_connections_refused.inc();
        }
        has_room
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        METRICS.connections.dec();
        if let Some(client) = self.client {
            self.connections.count_out(client);
        }
        if self.connections.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connections.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn enter(connections: &Arc<Connections>, address: &str) -> Option<Place> {
        let client = address.parse::<IpAddr>().expect("an address").into();
        let mut place = connections.enter()?;
        place.is_for(client).then_some(place)
    }

    #[test]
    fn a_clients_connections_are_its_64s_and_nothing_is_left_of_them() {
        let connections = Arc::new(Connections::new(10, 2));
        let enter = |address| enter(&connections, address);
        let open = [enter("2001:db8::1"), enter("2001:db8::2")];
        assert!(open.iter().all(Option::is_some));
        assert!(enter("2001:db8::3").is_none());
        assert!(enter("2001:db8:0:1::1").is_some(), "the neighbour's /64");
        let [first, second] = open;
        drop(first);
        let third = enter("2001:db8::3");
        assert!(third.is_some() && enter("2001:db8::4").is_none());
        drop((second, third));
        assert!(connections.clients.is_empty());
        assert_eq!(connections.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_is_refused_in_all_is_not_counted_as_a_client() {
        let connections = Arc::new(Connections::new(1, 5));
        let open = enter(&connections, "192.0.2.1");
        assert!(open.is_some() && enter(&connections, "192.0.2.2").is_none());
        assert_eq!(connections.clients.len(), 1);
        drop(open);
        assert!(connections.enter().is_some());
    }
}
