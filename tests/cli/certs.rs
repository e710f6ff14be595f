//! `cert dev`, and what `check` says of certificates.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tempfile::TempDir;

use crate::{
    admin_bed::ROUTE,
    command::{DONE, USAGE, dormouse},
};

const HTTPS: &str = "[listen]\nadmin = \"unix:admin.sock\"\nhttps = [\"127.0.0.1:8443\"]\n";

fn folder(config: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("routes")).unwrap();
    fs::write(folder.path().join("dormouse.toml"), config).unwrap();
    fs::write(folder.path().join("routes/demo.toml"), ROUTE).unwrap();
    folder
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn cert_dev_mints_once_and_says_how_to_trust_it() {
    let folder = folder(HTTPS);
    let first = dormouse(folder.path(), &["cert", "dev"]).await.code(DONE);
    first.says("certs/dev.pem minted: *.localhost").says("--cacert state/dev-ca/ca.pem");
    assert_eq!(mode(&folder.path().join("state/dev-ca/ca.key")), 0o600);
    // As the edge itself makes it.
    assert_eq!(mode(&folder.path().join("state")), 0o700);
    let before = fs::read(folder.path().join("certs/dev.pem")).unwrap();
    let again = dormouse(folder.path(), &["cert", "dev"]).await.code(DONE);
    again.says("certs/dev.pem is still good: *.localhost");
    assert_eq!(fs::read(folder.path().join("certs/dev.pem")).unwrap(), before);

    let args = ["cert", "dev", "*.Desk.test", "ide.test", "--json"];
    let data = dormouse(folder.path(), &args).await.code(DONE).json();
    assert_eq!(data["hosts"], serde_json::json!(["*.desk.test", "ide.test"]));
    assert_eq!((&data["new"], &data["new_authority"]), (&true.into(), &false.into()));
    let check = dormouse(folder.path(), &["check"]).await.code(DONE);
    check.says("1 certificate");
    check.complains("warning: certs/dev.pem: no route serves *.desk.test, ide.test");
    check.complains("routes/demo.toml: {session}.localhost: no certificate is for it");
    for (route, fits) in [
        ("{session}-ide.desk.test", true),
        ("www.desk.test", true),
        ("ide.test", true),
        ("desk.test", false),
        ("{session}.{team}.desk.test", false),
    ] {
        let route = ROUTE.replace("{session}.localhost", route);
        fs::write(folder.path().join("routes/demo.toml"), route).unwrap();
        let check = dormouse(folder.path(), &["check"]).await.code(DONE);
        assert_eq!(!check.err.contains("no route serves"), fits, "{}", check.err);
    }
    let wrong = dormouse(folder.path(), &["cert", "dev", "a b"]).await.code(USAGE);
    wrong.complains("`a b` is no host for a certificate");
}

#[tokio::test]
async fn check_tells_of_certificates_that_are_wrong_or_soon_will_be() {
    let folder = folder(HTTPS);
    let certs = folder.path().join("certs");
    dormouse(folder.path(), &["check"]).await.code(DONE).complains("certs: no certificate");
    dormouse(folder.path(), &["cert", "dev"]).await.code(DONE);

    fs::set_permissions(certs.join("dev.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = dormouse(folder.path(), &["check"]).await.code(DONE);
    exposed.complains("warning: certs/dev.key: others than its owner can read this key");

    let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    fs::write(certs.join("old.pem"), key.serialize_pem() + &certificate).unwrap();
    dormouse(folder.path(), &["check"]).await.code(DONE).complains("certs/old.pem: it ends in -");

    fs::write(certs.join("other.pem"), certificate).unwrap();
    fs::copy(certs.join("dev.key"), certs.join("other.key")).unwrap();
    let wrong = dormouse(folder.path(), &["check"]).await.code(USAGE);
    wrong.complains("certs/other.pem: the key is another certificate's");
    let data = dormouse(folder.path(), &["check", "--json"]).await.code(USAGE).json();
    assert!(data["errors"][0]["file"].as_str().unwrap().ends_with("certs/other.pem"), "{data}");
}

#[tokio::test]
async fn check_tells_of_a_redirect_to_nowhere_and_of_a_client_ca_that_is_none() {
    let folder = folder("[listen]\nadmin = \"unix:admin.sock\"\n");
    let route = format!("{ROUTE}\n[tls]\nredirect = true\n");
    fs::write(folder.path().join("routes/demo.toml"), route).unwrap();
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    ended.complains("routes/demo.toml: tls.redirect, but nothing listens");
    let explained = dormouse(folder.path(), &["explain", "alice.localhost"]).await.code(DONE);
    explained.says("https     plain HTTP is redirected");

    let client_ca = "https = [{ address = \"127.0.0.1:8443\", client_ca = \"ca.pem\" }]";
    let config = HTTPS.replace("https = [\"127.0.0.1:8443\"]", client_ca);
    fs::write(folder.path().join("dormouse.toml"), config).unwrap();
    dormouse(folder.path(), &["check"]).await.code(USAGE).complains("ca.pem: cannot be read");
    fs::write(folder.path().join("ca.pem"), "nothing").unwrap();
    let ended = dormouse(folder.path(), &["check"]).await.code(USAGE);
    ended.complains("ca.pem: there is no certificate in it");
}
