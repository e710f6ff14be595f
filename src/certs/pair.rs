//! A certificate and its key, as files hold them: `NAME.pem` or `NAME.crt` with the chain, and
//! `NAME.key`, or all of it in the one file.

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
    Error as TlsError, InconsistentKeys,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject as _},
    },
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::route::{RouteError, canonical_host};

/// No chain needs more.
const FILE_MAX: u64 = 1024 * 1024;
/// Certificates of one folder.
const FILES_MAX: usize = 100_000;
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

/// The files that certificates are looked for in, in the order of their names.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, RouteError> {
    let wrong = |error: io::Error| {
        let wrong = format!("cannot read the folder of certificates: {error}");
        RouteError::of_file(folder, wrong).with_hint("paths.certs in dormouse.toml names it")
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(wrong)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_cert_file(&name) && !name.ends_with(".key") {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    if FILES_MAX < files.len() {
        let wrong = format!("more than {FILES_MAX} certificates");
        return Err(RouteError::of_file(folder, wrong));
    }
    Ok(files)
}

impl Pair {
    /// The pair that `file` holds the certificate of; `None` if it is gone.
    pub fn read(file: &Path) -> Result<Option<Self>, RouteError> {
        let Some(text) = read(file)? else { return Ok(None) };
        let chain = chain(file, &text)?;
        let (key_file, key) = private_key(file, &text)?;
        let (names, not_after) = meaning(file, &chain)?;
        let key =
            CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
                let wrong = match error {
                    TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                        "the key is another certificate's".to_owned()
                    }
                    other => format!("the key cannot be used: {other}"),
                };
                RouteError::of_file(file, wrong)
                    .with_hint(format!("its key: {}", key_file.display()))
            })?;
        let mode = fs::metadata(&key_file).map_or(0, |metadata| metadata.permissions().mode());
        let exposed = (mode & 0o077 != 0).then_some(key_file);
        Ok(Some(Self { file: file.to_owned(), names, not_after, exposed, key: Arc::new(key) }))
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
fn read(file: &Path) -> Result<Option<Vec<u8>>, RouteError> {
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

fn chain(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, RouteError> {
    let chain: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| not_pem(file, &error))?;
    if chain.is_empty() {
        let wrong = RouteError::of_file(file, "there is no certificate in it");
        return Err(wrong.with_hint("expected PEM: -----BEGIN CERTIFICATE-----"));
    }
    Ok(chain)
}

/// The key, and the file that holds it.
fn private_key(file: &Path, text: &[u8]) -> Result<(PathBuf, PrivateKeyDer<'static>), RouteError> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => return Ok((file.to_owned(), key)),
        Err(PemError::NoItemsFound) => {}
        Err(error) => return Err(not_pem(file, &error)),
    }
    let beside = file.with_extension("key");
    let lost = |wrong: String| {
        let name = beside.file_name().unwrap_or_default().to_string_lossy();
        let hint = format!("put it beside the certificate, as {name}, or into the same file");
        RouteError::of_file(file, wrong).with_hint(hint)
    };
    let text = read(&beside)
        .map_err(|error| lost(format!("its key {}", error.message)))?
        .ok_or_else(|| lost("its key is not there".to_owned()))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| not_pem(&beside, &error));
    // Told as the certificate's error: it is the certificate that is not served.
    let key = key.map_err(|error| lost(format!("its key is {}", error.message)))?;
    Ok((beside, key))
}

fn not_pem(file: &Path, error: &PemError) -> RouteError {
    let wrong = match error {
        PemError::NoItemsFound => "without a key in it".to_owned(),
        other => format!("not PEM: {other}"),
    };
    RouteError::of_file(file, wrong)
}

/// The names of the first certificate, and when it ends.
fn meaning(
    file: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<(Vec<Box<str>>, SystemTime), RouteError> {
    let wrong = |wrong: String| RouteError::of_file(file, wrong);
    let leaf = chain.first().map_or(&[][..], |leaf| leaf.as_ref());
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|error| wrong(format!("not a certificate: {error}")))?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| wrong(format!("its names cannot be read: {error}")))?;
    let names: Vec<Box<str>> =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
    if names.is_empty() {
        let wrong = wrong("it names no host".to_owned());
        return Err(wrong.with_hint("browsers read the subject alternative names alone"));
    }
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or_default();
    Ok((names, UNIX_EPOCH + Duration::from_secs(seconds)))
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
