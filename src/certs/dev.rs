//! Certificates for names right under `localhost`, made when they are asked for. Most clients take
//! no `*.localhost`, as they take no `*.com`, so the authority of `dormouse cert dev` signs each
//! name. Such a name never leaves the machine.

use std::{
    collections::HashMap,
    fmt, fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::{Issuer, KeyPair};
use rustls::{
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use super::mint::{authority_params, leaf_params};

/// Names that are remembered; all are forgotten when there are more.
const NAMES_MAX: usize = 1000;

/// The authority of `dormouse cert dev`.
pub(super) struct Dev {
    key: KeyPair,
    minted: Mutex<HashMap<Box<str>, Arc<CertifiedKey>>>,
}

impl Dev {
    /// The authority in this folder; `None` where there is none to sign with.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let pem = fs::read_to_string(folder.join("ca.key")).ok()?;
        let key = KeyPair::from_pem(&pem).ok()?;
        Some(Self { key, minted: Mutex::default() })
    }

    /// A certificate for a name right under `localhost`, and for no other.
    pub(super) fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let (_, parent) = name.split_once('.')?;
        if parent != "localhost" {
            return None;
        }
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = minted.get(name) {
            return Some(Arc::clone(key));
        }
        let key = Arc::new(self.mint(name)?);
        if NAMES_MAX <= minted.len() {
            minted.clear();
        }
        minted.insert(name.into(), Arc::clone(&key));
        Some(key)
    }

    fn mint(&self, name: &str) -> Option<CertifiedKey> {
        let key = KeyPair::generate().ok()?;
        let authority = authority_params();
        let issuer = Issuer::from_params(&authority, &self.key);
        let leaf = leaf_params(&[name.to_owned()]).ok()?.signed_by(&key, &issuer).ok()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(vec![leaf.der().clone()], key, &ring::default_provider()).ok()
    }
}

impl fmt::Debug for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dev")
    }
}
