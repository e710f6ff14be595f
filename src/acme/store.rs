//! What survives a crash: the account's key, orders under way, certificates. Files of `state/acme`,
//! for our eyes only, each written beside its place, synced and renamed, so that there is a whole
//! one or none.
//!
//! Knows files; not ACME's rules, not who asks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use instant_acme::AccountCredentials;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use x509_parser::parse_x509_certificate;

/// A file that is being written; what a crash leaves of it is of no use.
const HALF: &str = ".half";
/// A host cannot have an underscore in a certificate, so no host's file is called like this.
const WILDCARD: &str = "_wildcard";
/// Nothing of ours is longer.
const FILE_MAX: u64 = 1 << 20;

/// The folder of one ACME server: what one server gave is never shown as another's.
#[derive(Debug)]
pub(super) struct Store {
    orders: PathBuf,
    certs: PathBuf,
    account: PathBuf,
}

/// An order that is under way: all that it takes to come back to it.
#[derive(Deserialize, Serialize)]
pub(super) struct KeptOrder {
    /// Whom the certificate is for.
    pub(super) name: String,
    /// The order's address at the server.
    pub(super) url: String,
    /// The account that it belongs to.
    pub(super) account: String,
    /// The key that the certificate will be for, PEM.
    pub(super) key: String,
}

/// From when to when a certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

impl Store {
    /// Makes the folders where they are missing, closes them to others, and clears away what a
    /// crash left half-written.
    pub(super) fn open(server: &Path) -> io::Result<Self> {
        let root = server.parent().unwrap_or(server);
        let (orders, certs) = (server.join("orders"), server.join("certs"));
        for folder in [root, server, &orders, &certs] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        }
        let store = Self { account: server.join("account.json"), orders, certs };
        for folder in [server, &store.orders, &store.certs] {
            clear_halves(folder)?;
        }
        Ok(store)
    }

    pub(super) fn account(&self) -> io::Result<Option<AccountCredentials>> {
        read_json(&self.account)
    }

    pub(super) fn keep_account(&self, account: &AccountCredentials) -> io::Result<()> {
        write(&self.account, &serde_json::to_vec(account)?)
    }

    /// The account is not the server's any more.
    pub(super) fn forget_account(&self) -> io::Result<()> {
        remove(&self.account)
    }

    pub(super) fn order(&self, name: &str) -> io::Result<Option<KeptOrder>> {
        let order: Option<KeptOrder> = read_json(&self.order_path(name))?;
        Ok(order.filter(|order| order.name == name))
    }

    /// The names of all orders that are under way.
    pub(super) fn ordered(&self) -> io::Result<Vec<String>> {
        names_in(&self.orders, "json")
    }

    pub(super) fn keep_order(&self, order: &KeptOrder) -> io::Result<()> {
        write(&self.order_path(&order.name), &serde_json::to_vec(order)?)
    }

    pub(super) fn forget_order(&self, name: &str) -> io::Result<()> {
        remove(&self.order_path(name))
    }

    fn order_path(&self, name: &str) -> PathBuf {
        self.orders.join(format!("{}.json", stem(name)))
    }

    fn certificate_path(&self, name: &str) -> PathBuf {
        self.certs.join(format!("{}.pem", stem(name)))
    }

    /// Puts a certificate in the place of the one before. Key and chain are one file, so that no
    /// crash leaves one without the other.
    pub(super) fn keep_certificate(
        &self,
        name: &str,
        key: &str,
        chain: &str,
    ) -> io::Result<Validity> {
        let file = format!("{}\n{}\n", key.trim_end(), chain.trim_end());
        let validity = validity(file.as_bytes())?;
        write(&self.certificate_path(name), file.as_bytes())?;
        Ok(validity)
    }

    /// When the certificate of `name` counts; `None` where there is none, or none that can be read.
    pub(super) fn certificate(&self, name: &str) -> Option<Validity> {
        let path = self.certificate_path(name);
        let read = read(&path).and_then(|file| file.map(|file| validity(&file)).transpose());
        read.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "a certificate that cannot be used");
            None
        })
    }

    /// The names of all certificates.
    pub(super) fn certified(&self) -> io::Result<Vec<String>> {
        names_in(&self.certs, "pem")
    }

    pub(super) fn forget_certificate(&self, name: &str) -> io::Result<()> {
        remove(&self.certificate_path(name))
    }
}

/// `*.example.com` → `_wildcard.example.com`.
fn stem(name: &str) -> String {
    name.strip_prefix('*').map_or_else(|| name.to_owned(), |rest| format!("{WILDCARD}{rest}"))
}

fn names_in(folder: &Path, extension: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let Some(name) = name.filter(|_| path.extension().is_some_and(|is| is == extension)) else {
            continue;
        };
        names.push(match name.strip_prefix(WILDCARD) {
            Some(rest) => format!("*{rest}"),
            None => name.to_owned(),
        });
    }
    Ok(names)
}

/// The dates of the first certificate, which the key must be beside.
fn validity(pem: &[u8]) -> io::Result<Validity> {
    let broken = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| broken("there is no key in it"))?;
    let leaf = CertificateDer::from_pem_slice(pem);
    let leaf = leaf.map_err(|_| broken("there is no certificate in it"))?;
    let (_, leaf) = parse_x509_certificate(&leaf).map_err(|_| broken("not a certificate"))?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    let dates = leaf.validity();
    let (from, until) = (time(dates.not_before.timestamp()), time(dates.not_after.timestamp()));
    if until <= from { Err(broken("it never counts")) } else { Ok(Validity { from, until }) }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(meta) if FILE_MAX < meta.len() => {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, "far longer than any of ours"))
        }
        Ok(_) => fs::read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What cannot be read is put aside, and said; it is not needed to go on.
fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(text) = read(path)? else { return Ok(None) };
    if let Ok(value) = serde_json::from_slice(&text) {
        return Ok(Some(value));
    }
    // serde's own error would quote the key.
    let aside = path.with_extension("broken");
    tracing::warn!(path = %path.display(), aside = %aside.display(), "not readable: put aside");
    fs::rename(path, aside)?;
    Ok(None)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let no_place = || io::Error::from(io::ErrorKind::InvalidInput);
    let (folder, name) = (path.parent().ok_or_else(no_place)?, path.file_name());
    let name = name.and_then(|name| name.to_str()).ok_or_else(no_place)?;
    let half = folder.join(format!(".{name}{HALF}"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&half, path)?;
    // The name itself must be on the disk, too.
    File::open(folder)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn clear_halves(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| *extension == HALF[1..]) {
            tracing::warn!(path = %path.display(), "left half-written by a crash: removed");
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(&folder.join("acme/server")).expect("a store")
    }

    fn order(name: &str) -> KeptOrder {
        let [url, account, key] = ["https://a/1", "https://a/me", "a key"].map(str::to_owned);
        KeptOrder { name: name.to_owned(), url, account, key }
    }

    fn pair(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        (key.serialize_pem(), certificate.pem())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn everything_is_for_our_eyes_only() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("acme")).expect("a folder");
        let store = store(folder.path());
        store.keep_order(&order("*.a.test")).expect("kept");
        let (key, chain) = pair("a.test");
        store.keep_certificate("a.test", &key, &chain).expect("kept");
        assert_eq!(mode(&folder.path().join("acme")), 0o700);
        assert_eq!(mode(&store.orders), 0o700);
        assert_eq!(mode(&store.order_path("*.a.test")), 0o600);
        assert_eq!(mode(&store.certificate_path("a.test")), 0o600);
    }

    #[test]
    fn names_come_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        for name in ["a.test", "*.a.test"] {
            store.keep_order(&order(name)).expect("kept");
            let kept = store.order(name).expect("read").expect("there");
            assert_eq!((kept.name.as_str(), kept.key.as_str()), (name, "a key"));
        }
        let mut ordered = store.ordered().expect("listed");
        ordered.sort();
        assert_eq!(ordered, ["*.a.test", "a.test"]);
        store.forget_order("a.test").expect("forgotten");
        store.forget_order("a.test").expect("forgotten before");
        assert!(store.order("a.test").expect("read").is_none());
    }

    #[test]
    fn a_half_written_file_is_ignored_and_the_whole_one_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, chain) = pair("a.test");
        let first = store(folder.path());
        let kept = first.keep_certificate("a.test", &key, &chain).expect("kept");
        let half = first.certs.join(".a.test.pem.half");
        fs::write(&half, &key[..20]).expect("written");
        let second = store(folder.path());
        assert!(!half.exists());
        assert_eq!(second.certificate("a.test"), Some(kept));
        assert_eq!(second.certified().expect("listed"), ["a.test"]);
    }

    #[test]
    fn an_order_that_cannot_be_read_is_put_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        fs::write(store.order_path("a.test"), "{\"name\": \"a.t").expect("written");
        assert!(store.order("a.test").expect("read").is_none());
        assert!(store.ordered().expect("listed").is_empty());
        assert!(store.orders.join("a.test.broken").exists());
    }

    #[test]
    fn a_chain_that_is_none_takes_nothing_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let (key, chain) = pair("a.test");
        let kept = store.keep_certificate("a.test", &key, &chain).expect("kept");
        store.keep_certificate("a.test", &key, "nonsense").expect_err("no chain");
        assert_eq!(store.certificate("a.test"), Some(kept));
    }
}
