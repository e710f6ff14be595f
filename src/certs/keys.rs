//! The private keys of one folder that stand in files of their own, by the public key that belongs to
//! each: certbot's `privkey.pem`, `NAME-key.pem` and the like need no rule for their names.

use std::{
    cell::OnceCell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::SigningKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::pair::read;

/// What the files of one folder hold. Read when a certificate asks for it: most name their keys.
pub(super) struct Keys<'a> {
    files: &'a [PathBuf],
    found: OnceCell<Found>,
}

#[derive(Default)]
struct Found {
    by_public: HashMap<Vec<u8>, (PathBuf, Arc<dyn SigningKey>)>,
    /// Those that a passphrase closes.
    encrypted: Vec<PathBuf>,
}

impl<'a> Keys<'a> {
    /// `files` are all that may hold a key.
    pub(super) fn of(files: &'a [PathBuf]) -> Self {
        Self { files, found: OnceCell::new() }
    }

    /// The key of this certificate, and its file.
    pub(super) fn of_certificate(
        &self,
        certificate: &CertificateDer<'_>,
    ) -> Option<&(PathBuf, Arc<dyn SigningKey>)> {
        self.found().by_public.get(&public_key(certificate)?)
    }

    /// A file whose key nobody can read without a passphrase.
    pub(super) fn encrypted(&self) -> Option<&Path> {
        self.found().encrypted.first().map(PathBuf::as_path)
    }

    fn found(&self) -> &Found {
        self.found.get_or_init(|| {
            let mut found = Found::default();
            for file in self.files {
                // What is wrong with it is told where a certificate names it.
                let Ok(Some(text)) = read(file) else { continue };
                if is_encrypted(&text) {
                    found.encrypted.push(file.clone());
                } else if let Ok(key) = load(&text)
                    && let Some(public) = key.public_key()
                {
                    found.by_public.insert(public.to_vec(), (file.clone(), key));
                }
            }
            found
        })
    }
}

/// The key in a file.
pub(super) fn load(text: &[u8]) -> Result<Arc<dyn SigningKey>, NoKey> {
    if is_encrypted(text) {
        return Err(NoKey::Encrypted);
    }
    let key = PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => NoKey::Missing,
        other => NoKey::NotPem(other.to_string()),
    })?;
    any_supported_type(&key).map_err(|_| NoKey::Unusable)
}

/// Why a file has no key to sign with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// There is none in it.
    Missing,
    /// It is broken.
    NotPem(String),
    /// It is closed by a passphrase, and nobody is there to type it.
    Encrypted,
    /// It is of a kind that TLS here does not sign with.
    Unusable,
}

/// PKCS#8's own way, and the older one of OpenSSL.
fn is_encrypted(text: &[u8]) -> bool {
    let has = |part: &[u8]| text.windows(part.len()).any(|window| window == part);
    has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"\nProc-Type: 4,ENCRYPTED")
}

/// A certificate's public key, as it stands in it.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.public_key().raw.to_vec())
}
