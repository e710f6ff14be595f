//! How instances ended by themselves, for the operator whose wake failed by it.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::signal::Exit;
use crate::session::SessionId;

/// Sessions whose latest end is remembered.
const KEPT_MAX: usize = 256;

/// The latest ends, a sentence each.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<VecDeque<(SessionId, String)>>);

impl Ends {
    pub(super) fn note(&self, session: &SessionId, words: String) {
        self.forget(session);
        let mut ends = self.lock();
        if ends.len() == KEPT_MAX {
            ends.pop_front();
        }
        ends.push_back((session.clone(), words));
    }

    pub(super) fn of(&self, session: &SessionId) -> Option<String> {
        let ends = self.lock();
        ends.iter().find(|(of, _)| of == session).map(|(_, words)| words.clone())
    }

    /// A new life begins.
    pub(super) fn forget(&self, session: &SessionId) {
        self.lock().retain(|(of, _)| of != session);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(SessionId, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the operator is told of an end, of how many processes it left, and of where its output is.
pub(super) fn describe(exit: Option<Exit>, left: usize, log: &Path) -> String {
    let how = match exit {
        Some(Exit::Code(code)) => format!("its command ended with exit code {code}"),
        Some(Exit::Signal(signal)) => format!("its command was ended by signal {signal}"),
        None => "its command ended".to_owned(),
    };
    let log = log.display();
    match left {
        0 => format!("{how}; what it printed is in {log}"),
        _ => format!(
            "{how} and left {left} in the background, which ended with it: a command must stay in \
             the foreground for as long as its instance lives; what it printed is in {log}"
        ),
    }
}
