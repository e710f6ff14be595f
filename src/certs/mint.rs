//! A local authority and a certificate by it, so that HTTPS works on a laptop. Never for anybody
//! else: whoever has the authority's key can be every host to whoever trusts it.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::{Pair, keys::Keys};

/// The authority's folder within the state folder.
pub const DEV_FOLDER: &str = "dev-ca";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// As long as a public one may be at most, and shorter than what any client takes.
const LEAF_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const AUTHORITY_AGE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// What ends sooner is made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A clock that is a little behind is no reason to distrust.
const SKEW: Duration = DAY;

/// Why nothing was minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A file.
    #[error("{}: {error}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// A name that no certificate can have, or a key that is none.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

/// What there is after minting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minted {
    /// The authority's certificate, to be trusted.
    pub authority: PathBuf,
    /// Whether it was made now.
    pub new_authority: bool,
    /// The certificate.
    pub file: PathBuf,
    /// Whether it was made now.
    pub new: bool,
}

/// Sees to it that there is an authority in `state` and a certificate by it for `names` in `certs`.
/// What is there already, is for these names, and does not end soon, stays.
pub fn mint_dev(certs: &Path, state: &Path, names: &[String]) -> Result<Minted, MintError> {
    let folder = state.join(DEV_FOLDER);
    make_folder(certs, 0o755)?;
    make_folder(state, 0o700)?;
    make_folder(&folder, 0o700)?;
    let (authority, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
    let (key, new_authority) = authority_key(&authority, &key_file)?;
    let params = authority_params();
    if new_authority {
        let certificate = params.self_signed(&key)?;
        write(&key_file, &key.serialize_pem(), 0o600)?;
        write(&authority, &certificate.pem(), 0o644)?;
    }
    let (file, leaf_key_file) = (certs.join("dev.pem"), certs.join("dev.key"));
    let new = new_authority || !still_good(&file, names);
    if new {
        let leaf_key = KeyPair::generate()?;
        let leaf = leaf_params(names)?.signed_by(&leaf_key, &Issuer::from_params(&params, &key))?;
        write(&leaf_key_file, &leaf_key.serialize_pem(), 0o600)?;
        write(&file, &leaf.pem(), 0o644)?;
    }
    Ok(Minted { authority, new_authority, file, new })
}

/// The key that is there with its certificate, or a new one.
fn authority_key(certificate: &Path, key: &Path) -> Result<(KeyPair, bool), MintError> {
    let wrong = |error| MintError::File { file: key.to_owned(), error };
    if !certificate.exists() {
        return Ok((KeyPair::generate()?, true));
    }
    match fs::read_to_string(key) {
        Ok(pem) => Ok((KeyPair::from_pem(&pem)?, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((KeyPair::generate()?, true)),
        Err(error) => Err(wrong(error)),
    }
}

/// The same but for its dates each time, so that the certificate need not be read to sign by it.
pub(super) fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Dormouse local development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_age(&mut params, AUTHORITY_AGE);
    params
}

pub(super) fn leaf_params(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Dormouse local development");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    set_age(&mut params, LEAF_AGE);
    Ok(params)
}

fn set_age(params: &mut CertificateParams, age: Duration) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since.saturating_sub(SKEW);
    params.not_after = epoch + since + age.saturating_sub(SKEW);
}

/// Whether what is there is for all the names, and does not end soon.
fn still_good(file: &Path, names: &[String]) -> bool {
    let Ok(Some(pair)) = Pair::read(file, &Keys::of(&[])) else { return false };
    let is_for = |name: &String| pair.names.iter().any(|other| **other == **name);
    names.iter().all(is_for) && SystemTime::now() + RENEW_BEFORE < pair.not_after
}

fn make_folder(folder: &Path, mode: u32) -> Result<(), MintError> {
    let wrong = |error| MintError::File { file: folder.to_owned(), error };
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(wrong)
}

/// Whole or not at all, and never readable by others for a moment.
fn write(file: &Path, text: &str, mode: u32) -> Result<(), MintError> {
    let wrong = |error| MintError::File { file: file.to_owned(), error };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}.tmp"));
    // What a crash has left may have another mode.
    let _ = fs::remove_file(&temporary);
    let open = || File::options().write(true).create_new(true).mode(mode).open(&temporary);
    open()
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, file))
        .map_err(wrong)
}
