//! `basic`: a name and a password (RFC 7617), held against a file of `USER:HASH` lines.
//!
//! A hash costs tens of milliseconds on purpose: they are made on threads of their own, as many at
//! once as there are processors, and who was right is remembered for a minute.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use argon2::{Argon2, PasswordVerifier as _, password_hash::phc::PasswordHash};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::header;
use ring::hmac;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    Met, Outcome, Refusal, Request,
    remembered::{Kept, Remembered},
};
use crate::route::{Position, Route, RouteError, access::Basic};

/// No file of users is larger.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// How often the file is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a password that was right counts without being hashed again.
const VERIFIED_FOR: Duration = Duration::from_secs(60);
const VERIFIED_MAX: usize = 10_000;
/// Passwords that wait for a thread; the next one is refused.
const WAITING_MAX: usize = 256;
/// What is longer is no name and password.
const CREDENTIALS_MAX: usize = 1024;

/// The users of one file, as it was last read.
#[derive(Debug)]
pub(super) struct Users {
    file: PathBuf,
    known: Mutex<Known>,
    verified: Remembered<()>,
    waiting: AtomicUsize,
    /// Of this process alone: nobody can make or look up what is remembered.
    digest: hmac::Key,
}

#[derive(Debug)]
struct Known {
    looked: Option<Instant>,
    stamp: Stamp,
    users: Arc<HashMap<String, Hash>>,
    /// Counts the contents, so that what was verified by one does not count for the next.
    edition: u64,
}

/// Tells one content of a file from the next.
type Stamp = Option<(u64, i64, i64, u64)>;

/// A hash as it stands in the file.
#[derive(Clone, Debug)]
pub(super) enum Hash {
    Argon2(String),
    Bcrypt(String),
}

impl Users {
    pub(super) fn new(file: &Path) -> Self {
        let mut secret = [0; 32];
        // Without random numbers no password is remembered.
        let random = ring::rand::SystemRandom::new();
        let is_random = ring::rand::SecureRandom::fill(&random, &mut secret).is_ok();
        let verified_for = if is_random { VERIFIED_FOR } else { Duration::ZERO };
        let known = Known { looked: None, stamp: None, users: Arc::default(), edition: 0 };
        Self {
            file: file.to_owned(),
            known: Mutex::new(known),
            verified: Remembered::new(VERIFIED_MAX, verified_for),
            waiting: AtomicUsize::new(0),
            digest: hmac::Key::new(hmac::HMAC_SHA256, &secret),
        }
    }

    /// The users as the file has them, and the edition that they are of. A file that has become
    /// wrong changes nothing.
    fn now(&self) -> (Arc<HashMap<String, Hash>>, u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = known.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN);
        if !is_fresh {
            known.looked = Some(Instant::now());
            let stamp = stamp(&self.file);
            if stamp != known.stamp || stamp.is_none() {
                match read(&self.file) {
                    Ok(users) => {
                        (known.users, known.stamp) = (Arc::new(users), stamp);
                        known.edition += 1;
                    }
                    Err(errors) if stamp != known.stamp || known.edition == 0 => {
                        known.stamp = stamp;
                        for error in errors {
                            tracing::error!(%error, "the users stay as they were");
                        }
                    }
                    Err(_) => {}
                }
            }
        }
        (Arc::clone(&known.users), known.edition)
    }
}

pub(super) async fn ask(
    basic: &Basic,
    files: &Kept<Path, Users>,
    hashing: &Arc<Semaphore>,
    route: &Route,
    request: &Request<'_>,
) -> Outcome {
    let refused = Outcome::Not(Refusal::Unknown { basic: true, bearer: false });
    let Some((name, password)) = credentials(request) else { return refused };
    // A capture is a part of a DNS label: it has no dot and no slash to leave the folder by.
    let file = basic.folder.join(route.render(request.host, &basic.users));
    // Anybody can make up hosts: nothing is kept of those that have no file.
    if basic.is_per_session() && !file.is_file() {
        return refused;
    }
    let users = files.get(&file, Users::new);
    let own = basic.user.as_ref().map(|user| route.render(request.host, user));
    let is_own = own.is_none_or(|own| own == name);
    judge(&users, hashing, name, password, is_own).await
}

/// Whether the password is this user's; `is_own`: the session is.
async fn judge(
    users: &Users,
    hashing: &Arc<Semaphore>,
    name: String,
    password: String,
    is_own: bool,
) -> Outcome {
    let refused = Outcome::Not(Refusal::Unknown { basic: true, bearer: false });
    let (known, edition) = users.now();
    let question = question(&users.digest, edition, &name, &password);
    let met = |user| Outcome::Met(Met { user: Some(user), ..Met::default() });
    if is_own && users.verified.get(&question).is_some() {
        return met(name);
    }
    // Somebody who is not known takes as long as somebody who is.
    let hash = known.get(&name).or_else(|| known.values().next());
    let Some(hash) = hash.cloned() else { return refused };
    let is_known = is_own && known.contains_key(&name);
    match verify(users, hashing, hash, password).await {
        Some(true) if is_known => {
            users.verified.put(question, ());
            met(name)
        }
        Some(_) => refused,
        None => Outcome::Not(Refusal::Undecided),
    }
}

/// `None` where too many wait already.
async fn verify(
    users: &Users,
    hashing: &Arc<Semaphore>,
    hash: Hash,
    password: String,
) -> Option<bool> {
    struct Waits<'a>(&'a AtomicUsize);
    impl Drop for Waits<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let before = users.waiting.fetch_add(1, Ordering::Relaxed);
    let _waits = Waits(&users.waiting);
    if WAITING_MAX <= before {
        return None;
    }
    let place = Arc::clone(hashing).acquire_owned().await.ok()?;
    let verified = tokio::task::spawn_blocking(move || {
        // Kept until it is done, also where the client has left.
        let _place = place;
        hash.is_of(password.as_bytes())
    });
    verified.await.ok()
}

impl Hash {
    fn parse(text: &str) -> Option<Self> {
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).ok()?;
            return hash.hash.is_some().then(|| Self::Argon2(text.to_owned()));
        }
        // `$2y$`, as Apache's htpasswd writes it, is what others call `$2b$`.
        text.parse::<bcrypt::HashParts>().ok().map(|_| Self::Bcrypt(text.to_owned()))
    }

    fn is_of(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2(hash) => {
                Argon2::default().verify_password(password, hash.as_str()).is_ok()
            }
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
        }
    }
}

fn credentials(request: &Request<'_>) -> Option<(String, String)> {
    let given = request.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = given.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || CREDENTIALS_MAX < encoded.len() {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (name, password) = decoded.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

fn question(digest: &hmac::Key, edition: u64, name: &str, password: &str) -> [u8; 32] {
    let mut context = hmac::Context::with_key(digest);
    context.update(&edition.to_le_bytes());
    context.update(&(name.len() as u64).to_le_bytes());
    context.update(name.as_bytes());
    context.update(password.as_bytes());
    context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn stamp(file: &Path) -> Stamp {
    let meta = fs::metadata(file).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

/// Every user, or everything that is wrong with the file. No hash is ever shown.
pub(super) fn read(file: &Path) -> Result<HashMap<String, Hash>, Vec<RouteError>> {
    let unreadable =
        |error: std::io::Error| vec![RouteError::of_file(file, format!("cannot be read: {error}"))];
    let mut text = String::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if FILE_MAX < text.len() as u64 {
        return Err(vec![RouteError::of_file(file, "larger than 4 MiB")]);
    }
    let (mut users, mut errors) = (HashMap::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.trim_start().is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |column: usize, message: &str, hint: &str| RouteError {
            at: Some(Position { line: index + 1, column }),
            ..RouteError::of_file(file, message).with_hint(hint)
        };
        let (name, hash) = line.split_once(':').unwrap_or((line, ""));
        match Hash::parse(hash) {
            _ if name.is_empty() => errors.push(wrong(1, "no name", "expected `USER:HASH`")),
            None => {
                let hint =
                    "expected argon2 (`$argon2id$…`) or bcrypt (`$2y$…`): `htpasswd -B` writes it";
                errors.push(wrong(name.chars().count() + 2, "not a hash that is known here", hint));
            }
            Some(_) if users.contains_key(name) => {
                errors.push(wrong(1, "this user stands here twice", "the first one would count"));
            }
            Some(hash) => drop(users.insert(name.to_owned(), hash)),
        }
    }
    if errors.is_empty() { Ok(users) } else { Err(errors) }
}

#[cfg(test)]
mod tests;
