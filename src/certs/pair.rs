//! A certificate and its key, as files hold them: `NAME.pem` or `NAME.crt` with the chain, and its key
//! in the same file, in `NAME.key`, or in any other file of the folder.

use std::{
    fmt, fs,
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    pki_types::{CertificateDer, pem::PemObject as _},
    sign::{CertifiedKey, SigningKey},
};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _,
    public_key::PublicKey,
};

use super::keys::{self, Keys, NoKey};
use crate::route::{RouteError, canonical_host};

/// No chain needs more.
const FILE_MAX: u64 = 1024 * 1024;
/// Certificates of one folder.
const FILES_MAX: usize = 100_000;
/// The chain and the key of a folder of one certificate.
pub(super) const CERTBOT: [&str; 2] = ["fullchain.pem", "privkey.pem"];
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const DAY: u64 = 24 * 60 * 60;

/// A certificate that can be served.
pub struct Pair {
    /// The file of the certificate.
    pub file: PathBuf,
    /// The names that it is for, canonical: hosts, `*.example.com`, IP addresses.
    pub names: Vec<Box<str>>,
    /// When it ends.
    pub not_after: SystemTime,
    /// The file of the key, where others than its owner can read it.
    pub exposed: Option<PathBuf>,
    /// The chain and the key.
    pub key: Arc<CertifiedKey>,
}

/// Whether a file of this name may be about a certificate. Editors' temporary files are not.
pub fn is_cert_file(name: &str) -> bool {
    !name.starts_with(['.', '#'])
        && [".pem", ".crt", ".key"].iter().any(|ending| name.ends_with(ending))
}

/// What stands in one folder, in the order of the names.
#[derive(Default)]
pub(super) struct Files {
    /// Those that may hold a certificate.
    pub(super) certificates: Vec<PathBuf>,
    /// Those that may hold a key.
    pub(super) keys: Vec<PathBuf>,
    /// The folders of one certificate each, as certbot makes them: `live/NAME`.
    pub(super) below: Vec<PathBuf>,
}

/// Looks through a folder. One that is not there is empty.
pub(super) fn files(folder: &Path) -> Result<Files, RouteError> {
    let wrong = |error: io::Error| {
        let wrong = format!("cannot read the folder of certificates: {error}");
        RouteError::of_file(folder, wrong).with_hint("paths.certs in dormouse.toml names it")
    };
    let mut files = Files::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(wrong(error)),
    };
    for entry in entries {
        let entry = entry.map_err(wrong)?;
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if is_cert_file(&name) {
            if !name.ends_with(".key") {
                files.certificates.push(path.clone());
            }
            files.keys.push(path);
        } else if !name.starts_with(['.', '#']) && CERTBOT.iter().all(|it| path.join(it).is_file())
        {
            files.below.push(path);
        }
    }
    files.certificates.sort_unstable();
    files.keys.sort_unstable();
    files.below.sort_unstable();
    if FILES_MAX < files.certificates.len() + files.below.len() {
        let wrong = format!("more than {FILES_MAX} certificates");
        return Err(RouteError::of_file(folder, wrong));
    }
    Ok(files)
}

impl Pair {
    /// The pair that `file` holds the certificate of, whose key may be one of `keys`; `None` if it is
    /// gone, or holds only what belongs to other certificates: a key, their issuers.
    pub(super) fn read(file: &Path, keys: &Keys<'_>) -> Result<Option<Self>, RouteError> {
        let Some(text) = read(file)? else { return Ok(None) };
        // Otherwise it is no certificate's, and what it is may be closed by a passphrase.
        let begins = text.windows(BEGIN.len()).any(|window| window == BEGIN);
        let own = if begins { &text[..] } else { &[] };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(own).collect();
        let chain: Vec<CertificateDer<'static>> =
            chain.map_err(|error| RouteError::of_file(file, format!("not PEM: {error}")))?;
        let Some(first) = chain.first() else {
            return if matches!(keys::load(&text), Err(NoKey::Missing)) {
                Err(none(file))
            } else {
                Ok(None)
            };
        };
        let leaf = parse(file, first)?;
        let names = hosts(&leaf);
        let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or_default();
        let not_after = UNIX_EPOCH + Duration::from_secs(seconds);
        let found = private_key(file, &text, &chain, keys);
        if names.is_empty() && leaf.is_ca() && matches!(found, Ok(None)) && !names_hosts(&chain) {
            return Ok(None);
        }
        if let Some(wrong) = unusable(file, &leaf) {
            return Err(wrong);
        }
        let Some((key_file, key)) = found? else { return Err(lost(file, keys)) };
        check_order(file, &chain, &*key, &key_file)?;
        if names.is_empty() {
            let wrong = RouteError::of_file(file, "it names no host");
            return Err(wrong.with_hint("browsers read the subject alternative names alone"));
        }
        let mode = fs::metadata(&key_file).map_or(0, |metadata| metadata.permissions().mode());
        let exposed = (mode & 0o077 != 0).then_some(key_file);
        let key = Arc::new(CertifiedKey::new(chain, key));
        Ok(Some(Self { file: file.to_owned(), names, not_after, exposed, key }))
    }

    /// The certificate itself.
    pub(super) fn leaf(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |leaf| leaf.as_ref())
    }

    /// Whole days until it ends; negative once it has.
    pub fn days_left(&self) -> i64 {
        let days = |span: Duration| i64::try_from(span.as_secs() / DAY).unwrap_or(i64::MAX);
        match self.not_after.duration_since(SystemTime::now()) {
            Ok(left) => days(left),
            Err(over) => -1 - days(over.duration()),
        }
    }

    /// Whether it is the same certificate with the same key, in a file that is as private.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert && self.exposed == other.exposed
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("file", &self.file)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// A file's bytes; `None` if it is gone, or is a folder.
pub(super) fn read(file: &Path) -> Result<Option<Vec<u8>>, RouteError> {
    let wrong = |error: io::Error| RouteError::of_file(file, format!("cannot be read: {error}"));
    let kind = match fs::metadata(file) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => {
            return Ok(None);
        }
        Err(error) => return Err(wrong(error)),
    };
    if kind.is_dir() {
        return Ok(None);
    }
    if !kind.is_file() {
        // To open a pipe would wait for somebody to write.
        return Err(RouteError::of_file(file, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(wrong)?;
    opened.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if FILE_MAX < bytes.len() as u64 {
        return Err(RouteError::of_file(file, "larger than 1 MiB"));
    }
    Ok(Some(bytes))
}

/// A file that was to hold a certificate holds none.
pub(super) fn none(file: &Path) -> RouteError {
    let wrong = RouteError::of_file(file, "there is no certificate in it");
    wrong.with_hint(
        "expected PEM: -----BEGIN CERTIFICATE-----; openssl x509 -inform der -in FILE makes it of DER",
    )
}

type Key = (PathBuf, Arc<dyn SigningKey>);

/// The key, and the file that holds it: this file, the one beside it, or any other that fits.
fn private_key(
    file: &Path,
    text: &[u8],
    chain: &[CertificateDer<'_>],
    keys: &Keys<'_>,
) -> Result<Option<Key>, RouteError> {
    match keys::load(text) {
        Ok(key) => return Ok(Some((file.to_owned(), key))),
        Err(NoKey::Missing) => {}
        Err(wrong) => return Err(no_key(file, file, &wrong)),
    }
    let beside = file.with_extension("key");
    // Told as the certificate's error: it is the certificate that is not served.
    let unread =
        |error: RouteError| RouteError::of_file(file, format!("its key {}", error.message));
    if let Some(text) = read(&beside).map_err(unread)? {
        return match keys::load(&text) {
            Ok(key) => Ok(Some((beside, key))),
            Err(wrong) => Err(no_key(file, &beside, &wrong)),
        };
    }
    Ok(chain.iter().find_map(|certificate| keys.of_certificate(certificate)).cloned())
}

fn no_key(file: &Path, key: &Path, wrong: &NoKey) -> RouteError {
    let (wrong, hint) = match wrong {
        NoKey::Missing => ("is without a key in it".to_owned(), EXPECTED_KEY.to_owned()),
        NoKey::NotPem(error) => (format!("is not PEM: {error}"), EXPECTED_KEY.to_owned()),
        NoKey::Encrypted => {
            let hint = format!(
                "openssl pkey -in {} -out {}.new writes it without",
                key.display(),
                key.display()
            );
            ("is encrypted, and nobody is there to type its passphrase".to_owned(), hint)
        }
        NoKey::Unusable => ("cannot be used".to_owned(), USABLE.to_owned()),
    };
    RouteError::of_file(file, format!("its key {} {wrong}", key.display())).with_hint(hint)
}

const EXPECTED_KEY: &str = "expected PEM: -----BEGIN PRIVATE KEY-----";
const USABLE: &str = "what can: P-256, P-384, Ed25519, and RSA of 2048 to 4096 bits";

/// There is no key that fits.
fn lost(file: &Path, keys: &Keys<'_>) -> RouteError {
    if let Some(encrypted) = keys.encrypted() {
        return no_key(file, encrypted, &NoKey::Encrypted);
    }
    let name = file.with_extension("key");
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let hint =
        format!("put it beside the certificate, as {name} for example, or into the same file");
    RouteError::of_file(file, "its key is not there").with_hint(hint)
}

/// The key belongs to the first certificate, which is the one that clients check by the host.
fn check_order(
    file: &Path,
    chain: &[CertificateDer<'_>],
    key: &dyn SigningKey,
    key_file: &Path,
) -> Result<(), RouteError> {
    let Some(public) = key.public_key() else { return Ok(()) };
    let is_its = |one: &CertificateDer<'_>| keys::public_key(one).is_some_and(|it| it == *public);
    match chain.iter().position(is_its) {
        Some(0) => Ok(()),
        Some(at) => {
            let wrong = format!(
                "the host's own certificate is number {} in it, and must be the first",
                at + 1
            );
            let hint =
                "put it first and each issuer behind what it has signed: cat cert.pem chain.pem";
            Err(RouteError::of_file(file, wrong).with_hint(hint))
        }
        None => {
            let wrong = RouteError::of_file(file, "the key is another certificate's");
            Err(wrong.with_hint(format!("its key: {}", key_file.display())))
        }
    }
}

/// What is said of a certificate whose key nobody here could sign with, whatever file it is in.
fn unusable(file: &Path, leaf: &X509Certificate<'_>) -> Option<RouteError> {
    /// secp256r1 and secp384r1.
    const CURVES: [&str; 2] = ["1.2.840.10045.3.1.7", "1.3.132.0.34"];
    let public = leaf.public_key();
    let what = match public.parsed() {
        Ok(PublicKey::RSA(key)) if (2048..=4096).contains(&key.key_size()) => return None,
        Ok(PublicKey::RSA(key)) => format!("RSA of {} bits", key.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = public.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
            match curve.map(|curve| curve.to_id_string()).as_deref() {
                Some(curve) if CURVES.contains(&curve) => return None,
                Some("1.3.132.0.35") => "of the curve P-521".to_owned(),
                curve => format!("of the curve {}", curve.unwrap_or("without a name")),
            }
        }
        _ if public.algorithm.algorithm.to_id_string() == "1.3.101.112" => return None,
        _ => "of another kind".to_owned(),
    };
    let wrong = format!("its key is {what}: this edge cannot sign with it");
    Some(RouteError::of_file(file, wrong).with_hint(USABLE))
}

fn parse<'a>(
    file: &Path,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, RouteError> {
    let parsed = X509Certificate::from_der(certificate);
    let wrong = |error| RouteError::of_file(file, format!("not a certificate: {error}"));
    parsed.map(|(_, certificate)| certificate).map_err(wrong)
}

/// Whether any of them is a host's.
fn names_hosts(chain: &[CertificateDer<'_>]) -> bool {
    let is_named = |one: &CertificateDer<'_>| {
        X509Certificate::from_der(one).is_ok_and(|(_, one)| !hosts(&one).is_empty())
    };
    chain.iter().any(is_named)
}

/// The hosts that a certificate is for.
fn hosts(certificate: &X509Certificate<'_>) -> Vec<Box<str>> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect()
}

/// The one spelling of a subject alternative name; `None` for what is no host.
fn name(name: &GeneralName<'_>) -> Option<Box<str>> {
    match name {
        GeneralName::DNSName(name) => match name.strip_prefix("*.") {
            Some(parent) => Some(format!("*.{}", canonical_host(parent)?).into()),
            None => Some(canonical_host(name)?.into()),
        },
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            Some(address.ok()?.to_string().into())
        }
        _ => None,
    }
}
