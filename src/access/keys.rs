//! The keys that links are signed with: files, each with an id. One is current and signs; all of
//! them verify, so that a key can be changed without a link that dies.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{hmac, rand::SecureRandom as _};

use crate::{config::Links, route::RouteError};

/// Shorter ones can be guessed.
const LENGTH_MIN: usize = 32;
/// What is longer is another file.
const LENGTH_MAX: u64 = 4096;
/// The id of the key that we make ourselves.
const OWN: &str = "own";
/// Its file in the state folder.
const OWN_FILE: &str = "links.key";

/// All keys that count.
pub struct Keys {
    current: String,
    keys: BTreeMap<String, hmac::Key>,
}

impl Keys {
    /// Reads the configured keys; without any, our own in `state`, which is made when it is missing.
    pub fn open(links: &Links, state: &Path) -> Result<Self, RouteError> {
        if let Some(current) = &links.current {
            return Ok(Self { current: current.clone(), keys: read_all(links)? });
        }
        let file = state.join(OWN_FILE);
        make(&file)
            .map_err(|error| RouteError::of_file(&file, format!("cannot be made: {error}")))?;
        let keys = BTreeMap::from([(OWN.to_owned(), read(&file)?)]);
        Ok(Self { current: OWN.into(), keys })
    }

    /// The id of the key that signs.
    pub fn current(&self) -> &str {
        &self.current
    }

    /// The key of this id.
    pub(super) fn get(&self, id: &str) -> Option<&hmac::Key> {
        self.keys.get(id)
    }

    /// These, and the one that signs.
    pub(super) fn of<'k>(
        current: &str,
        keys: impl IntoIterator<Item = (&'k str, &'k [u8])>,
    ) -> Self {
        let key = |bytes| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let keys = keys.into_iter().map(|(id, bytes)| (id.to_owned(), key(bytes))).collect();
        Self { current: current.into(), keys }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("current", &self.current).finish_non_exhaustive()
    }
}

/// All that are configured.
pub(super) fn read_all(links: &Links) -> Result<BTreeMap<String, hmac::Key>, RouteError> {
    links.keys.iter().map(|(id, file)| Ok((id.clone(), read(file)?))).collect()
}

/// The white space around a key is an editor's.
fn read(file: &Path) -> Result<hmac::Key, RouteError> {
    let wrong = |wrong: String| {
        RouteError::of_file(file, wrong).with_hint("make one with `openssl rand -base64 32`")
    };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let read = opened.take(LENGTH_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if LENGTH_MAX < bytes.len() as u64 {
        return Err(wrong(format!("more than {LENGTH_MAX} bytes: that is no key")));
    }
    let key = bytes.trim_ascii();
    if key.len() < LENGTH_MIN {
        return Err(wrong(format!(
            "a key of {} bytes: at least {LENGTH_MIN} are needed",
            key.len()
        )));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, key))
}

/// Complete or not at all, and never over one that is there: links were signed with it.
fn make(file: &Path) -> io::Result<()> {
    if file.exists() {
        return Ok(());
    }
    let mut secret = [0; 48];
    let random = ring::rand::SystemRandom::new();
    random.fill(&mut secret).map_err(|_| io::Error::other("the system has no random numbers"))?;
    let unfinished = file.with_extension(format!("new-{}", std::process::id()));
    // What a process of this number has left behind.
    let _ = fs::remove_file(&unfinished);
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    new.write_all(STANDARD.encode(secret).as_bytes())?;
    new.sync_all()?;
    let linked = fs::hard_link(&unfinished, file);
    fs::remove_file(&unfinished)?;
    match linked {
        // Another edge was faster: its key counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_of_our_own_is_made_once_and_is_nobody_elses_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keys::open(&Links::default(), folder.path()).unwrap();
        assert_eq!(first.current(), OWN);
        let file = folder.path().join(OWN_FILE);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let before = fs::read(&file).unwrap();
        Keys::open(&Links::default(), folder.path()).unwrap();
        assert_eq!(fs::read(&file).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_short_key_and_a_missing_one_are_told_with_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.key");
        let links = Links {
            current: Some("a".into()),
            keys: BTreeMap::from([("a".into(), file.clone())]),
            ..Links::default()
        };
        let error = || Keys::open(&links, folder.path()).unwrap_err().to_string();
        assert!(error().contains("a.key: cannot be read"), "{}", error());
        fs::write(&file, "short\n").unwrap();
        assert!(error().contains("a.key: a key of 5 bytes"), "{}", error());
        fs::write(&file, [b'x'; 40]).unwrap();
        Keys::open(&links, folder.path()).unwrap();
    }
}
