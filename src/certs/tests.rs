//! Folders of certificates: what is served, what stays, what is said.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

/// The certificate's and the key's PEM.
fn minted(names: &[&str], year: i32) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().expect("a key");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).expect("written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("private");
}

fn put(folder: &Path, name: &str, (certificate, key): &(String, String)) {
    write(&folder.join(format!("{name}.pem")), certificate);
    write(&folder.join(format!("{name}.key")), key);
}

/// What is served for this name is the certificate in this PEM.
fn serves(certs: &Certs, name: &str, (certificate, _): &(String, String)) -> bool {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let wanted = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
    certs.resolve(name).is_some_and(|offer| offer.keys()[0].cert == [wanted])
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn an_exact_name_beats_a_wildcard_and_a_wildcard_is_one_label() {
    let folder = folder();
    let (wild, exact) = (minted(&["*.Example.com"], 2090), minted(&["a.example.com"], 2080));
    put(folder.path(), "wild", &wild);
    put(folder.path(), "exact", &exact);
    let certs = Certs::load([folder.path().to_owned()]);
    assert_eq!(certs.errors(), []);
    assert!(serves(&certs, "a.example.com", &exact));
    assert!(serves(&certs, "b.example.com", &wild));
    assert!(serves(&certs, "B.EXAMPLE.com.", &wild));
    for other in ["example.com", "a.b.example.com", "example.org", "com", ""] {
        assert!(certs.resolve(other).is_none(), "{other}");
    }
}

#[test]
fn the_names_are_the_certificates_and_not_the_files() {
    let folder = folder();
    put(folder.path(), "other.test", &minted(&["real.test", "127.0.0.1", "::1"], 2090));
    let certs = Certs::load([folder.path().to_owned()]);
    assert!(certs.resolve("other.test").is_none());
    for name in ["real.test", "127.0.0.1", "::1"] {
        assert!(certs.resolve(name).is_some(), "{name}");
    }
}

#[test]
fn the_first_folder_beats_the_second_and_the_later_end_the_sooner() {
    let (ours, acme) = (folder(), folder());
    let (old, new) = (minted(&["a.test"], 2070), minted(&["a.test"], 2080));
    let issued = minted(&["a.test", "b.test"], 2090);
    put(ours.path(), "1", &old);
    put(ours.path(), "2", &new);
    put(acme.path(), "a", &issued);
    let certs = Certs::load([ours.path().to_owned(), acme.path().to_owned()]);
    assert!(serves(&certs, "a.test", &new));
    assert!(serves(&certs, "b.test", &issued));
}

#[test]
fn a_broken_or_mismatched_pair_leaves_the_one_before() {
    let folder = folder();
    let (old, new) = (minted(&["a.test"], 2080), minted(&["a.test"], 2090));
    put(folder.path(), "a", &old);
    let certs = Certs::load([folder.path().to_owned()]);
    let file = folder.path().join("a.pem");
    let key = folder.path().join("a.key");
    let wrongs: [(&Path, &str, &str); 4] = [
        (&file, &new.0, "another certificate's"),
        (&file, "nonsense", "no certificate"),
        (&file, &new.1, "no certificate"),
        (&key, "nonsense", "without a key"),
    ];
    for (place, text, says) in wrongs {
        put(folder.path(), "a", &old);
        write(place, text);
        let errors = certs.reload();
        assert!(errors[0].message.contains(says), "{errors:?}");
        assert_eq!((errors.len(), &errors[0].file), (1, &file));
        assert!(serves(&certs, "a.test", &old));
        assert_eq!(certs.errors(), errors);
    }
    fs::remove_file(&key).expect("removed");
    write(&file, &new.0);
    assert!(certs.reload()[0].message.contains("not there"));
    put(folder.path(), "a", &new);
    assert_eq!(certs.reload(), []);
    assert!(serves(&certs, "a.test", &new));
    fs::remove_file(&file).expect("removed");
    assert_eq!(certs.reload(), []);
    assert!(certs.resolve("a.test").is_none());
}

#[test]
fn one_file_may_hold_both_and_temporary_files_are_passed_over() {
    let folder = folder();
    let (certificate, key) = minted(&["a.test"], 2090);
    write(&folder.path().join("a.pem"), &format!("{key}{certificate}"));
    write(&folder.path().join("b.crt"), &minted(&["b.test"], 2090).0);
    for name in [".c.pem", "#d.pem", "e.pem~", "f.txt", "g.key"] {
        write(&folder.path().join(name), "nonsense");
    }
    let certs = Certs::load([folder.path().to_owned(), folder.path().join("none")]);
    assert!(certs.resolve("a.test").is_some());
    assert!(certs.resolve("b.test").is_none());
    assert_eq!(certs.errors().len(), 1, "b.crt has no key");
}

/// A pair of another kind of key than `minted`'s.
fn ed25519(names: &[&str], year: i32) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

#[test]
fn one_name_has_a_certificate_of_each_kind_and_one_that_is_over_comes_last() {
    use rustls::SignatureScheme::{ECDSA_NISTP256_SHA256, ED25519, RSA_PSS_SHA256};
    let (ours, acme) = (folder(), folder());
    let (ecdsa, other) = (minted(&["a.test"], 2080), ed25519(&["a.test"], 2070));
    put(ours.path(), "1", &ecdsa);
    put(ours.path(), "2", &other);
    put(ours.path(), "over", &minted(&["a.test"], 2020));
    put(acme.path(), "b", &ed25519(&["b.test"], 2090));
    let certs = Certs::load([ours.path().to_owned(), acme.path().to_owned()]);
    let chosen = |schemes: &[rustls::SignatureScheme]| {
        let key = certs.resolve("a.test").expect("served").choose(schemes).expect("one");
        key.cert[0].to_vec()
    };
    let der = |(pem, _): &(String, String)| {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM").to_vec()
    };
    assert_eq!(chosen(&[ED25519, ECDSA_NISTP256_SHA256]), der(&ecdsa));
    assert_eq!(chosen(&[ED25519]), der(&other));
    // Who can check none of them is told so by its own library.
    assert_eq!(chosen(&[RSA_PSS_SHA256]), der(&ecdsa));
    put(ours.path(), "1", &minted(&["a.test"], 2021));
    assert_eq!(certs.reload(), []);
    assert_eq!(chosen(&[ED25519, ECDSA_NISTP256_SHA256]), der(&other));
    // A name belongs to the first folder that has it, all kinds of it.
    put(acme.path(), "a", &ed25519(&["a.test"], 2099));
    certs.reload();
    assert_eq!(chosen(&[ED25519]), der(&other));
}

#[test]
fn a_key_that_others_can_read_and_an_end_that_is_near_are_told() {
    let folder = folder();
    put(folder.path(), "a", &minted(&["a.test"], 2090));
    put(folder.path(), "past", &minted(&["b.test"], 2020));
    let key = folder.path().join("a.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("open");
    let certs = Certs::load([folder.path().to_owned()]);
    let exposed: Vec<_> = certs.pairs().iter().filter_map(|pair| pair.exposed.clone()).collect();
    assert_eq!(exposed, [key]);
    let expiring = certs.expiring();
    assert_eq!(expiring.len(), 1);
    assert!(expiring[0].days_left() < 0);
}

#[test]
fn challenges_are_apart_from_certificates() {
    let folder = folder();
    put(folder.path(), "a", &minted(&["a.test"], 2090));
    let certs = Certs::load([folder.path().to_owned()]);
    let key = Arc::clone(&certs.resolve("a.test").expect("there").keys()[0]);
    assert!(certs.challenge("a.test").is_none());
    certs.answer_challenge("New.test", Arc::clone(&key)).expect("room");
    assert!(certs.challenge("new.TEST").is_some() && certs.resolve("new.test").is_none());
    certs.forget_challenge("new.test");
    assert!(certs.challenge("new.test").is_none());
    for number in 0..CHALLENGES_MAX {
        certs.answer_challenge(&format!("{number}.test"), Arc::clone(&key)).expect("room");
    }
    assert_eq!(certs.answer_challenge("more.test", key), Err(TooManyChallenges));
}

#[test]
fn a_dev_certificate_is_minted_once_and_anew_for_other_names() {
    let (certs, state) = (folder(), folder());
    let mint = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        mint_dev(certs.path(), state.path(), &names).expect("minted")
    };
    let first = mint(&["*.localhost"]);
    assert!(first.new && first.new_authority);
    let mode = |file: &Path| fs::metadata(file).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&state.path().join("dev-ca/ca.key")), 0o600);
    assert_eq!(mode(&certs.path().join("dev.key")), 0o600);
    let served = Certs::load([certs.path().to_owned()]);
    assert_eq!((served.errors(), served.pairs()[0].exposed.clone()), (vec![], None));
    assert!(served.resolve("alice.localhost").is_some());

    let again = mint(&["*.localhost"]);
    assert_eq!((again.new, again.new_authority), (false, false));
    let other = mint(&["*.localhost", "ide.test"]);
    assert_eq!((other.new, other.new_authority), (true, false));
    served.reload();
    assert!(served.resolve("ide.test").is_some());
}

#[test]
fn each_name_under_localhost_gets_a_certificate_of_its_own_from_the_dev_authority() {
    let (certs, state) = (folder(), folder());
    let dev = state.path().join(DEV_FOLDER);
    let served = Certs::load([certs.path().to_owned()]).with_dev(dev);
    assert!(served.resolve("alice.localhost").is_none());
    mint_dev(certs.path(), state.path(), &["*.localhost".to_owned()]).expect("minted");
    served.reload();
    let minted = |name: &str| Arc::clone(&served.resolve(name).expect("minted").keys()[0]);
    let alice = minted("alice.localhost");
    assert!(Arc::ptr_eq(&alice, &minted("ALICE.localhost")), "remembered");
    let bob = minted("bob.localhost");
    assert!(alice.cert != bob.cert);
    for other in ["localhost", "a.b.localhost", "alice.test", "alice.localhost.test"] {
        assert!(served.resolve(other).is_none(), "{other}");
    }
}
