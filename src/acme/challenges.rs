//! What is shown to the ACME server right now. Files for http-01 are here: the edge asks before it
//! looks for a route. Certificates for tls-alpn-01 are put where the listeners look.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use crate::certs::{Certs, TooManyChallenges};

/// Where http-01 looks.
const PREFIX: &str = "/.well-known/acme-challenge/";

/// All that is shown: no more than there are orders at once.
#[derive(Debug)]
pub(super) struct Challenges {
    files: RwLock<HashMap<String, String>>,
    certs: Arc<Certs>,
}

/// Keeps something shown; dropping it takes it down.
#[must_use]
pub(super) struct Shown {
    challenges: Arc<Challenges>,
    what: What,
}

enum What {
    File(String),
    Certificate(String),
}

/// Why a challenge has no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotShown {
    #[error(transparent)]
    Made(#[from] rcgen::Error),
    #[error(transparent)]
    Signs(#[from] rustls::Error),
    #[error(transparent)]
    Full(#[from] TooManyChallenges),
}

impl Challenges {
    pub(super) fn new(certs: Arc<Certs>) -> Arc<Self> {
        Arc::new(Self { files: RwLock::default(), certs })
    }

    /// What stands at this path; `None` for a path that http-01 never asks for, `Some(None)` for a
    /// token that is not known.
    pub(super) fn file(&self, path: &str) -> Option<Option<String>> {
        let token = path.strip_prefix(PREFIX)?;
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        Some(files.get(token).cloned())
    }

    pub(super) fn show_file(self: &Arc<Self>, token: &str, content: &str) -> Shown {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(token.to_owned(), content.to_owned());
        Shown { challenges: Arc::clone(self), what: What::File(token.to_owned()) }
    }

    /// RFC 8737: the digest stands in an extension of a certificate that nobody signed.
    pub(super) fn show_certificate(
        self: &Arc<Self>,
        host: &str,
        digest: &[u8],
    ) -> Result<Shown, NotShown> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let pair = CertifiedKey::new(vec![certificate], any_ecdsa_type(&key)?);
        self.certs.answer_challenge(host, Arc::new(pair))?;
        Ok(Shown { challenges: Arc::clone(self), what: What::Certificate(host.to_owned()) })
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let Challenges { files, certs } = &*self.challenges;
        match &self.what {
            What::File(token) => {
                files.write().unwrap_or_else(PoisonError::into_inner).remove(token);
            }
            What::Certificate(host) => certs.forget_challenge(host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_for_as_long_as_it_is_shown() {
        let challenges = Challenges::new(Arc::new(Certs::load([])));
        let shown = challenges.show_file("token", "token.thumb");
        let path = "/.well-known/acme-challenge/token";
        assert_eq!(challenges.file(path), Some(Some("token.thumb".to_owned())));
        assert_eq!(challenges.file("/.well-known/acme-challenge/other"), Some(None));
        assert_eq!(challenges.file("/.well-known/acme-challengetoken"), None);
        drop(shown);
        assert_eq!(challenges.file(path), Some(None));
    }

    #[test]
    fn a_challenge_certificate_is_its_hosts_alone_and_names_the_digest() {
        let challenges = Challenges::new(Arc::new(Certs::load([])));
        let shown = challenges.show_certificate("a.test", &[7; 32]).expect("a certificate");
        let pair = challenges.certs.challenge("a.test").expect("shown");
        let (_, leaf) = x509_parser::parse_x509_certificate(&pair.cert[0]).expect("X.509");
        let identifier = leaf
            .extensions()
            .iter()
            .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
            .expect("id-pe-acmeIdentifier");
        assert!(identifier.critical);
        assert!(identifier.value.ends_with(&[7; 32]));
        assert!(challenges.certs.challenge("b.test").is_none());
        drop(shown);
        assert!(challenges.certs.challenge("a.test").is_none());
    }
}
