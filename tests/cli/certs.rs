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

fn openssl(folder: &Path, args: &str) {
    let command =
        std::process::Command::new("openssl").args(args.split(' ')).current_dir(folder).output();
    let ended = command.unwrap();
    assert!(ended.status.success(), "{args}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// An authority in `made/`, and a certificate by it for `*.localhost`, as openssl makes them.
fn made(folder: &Path, key: &str) {
    let made = folder.join("made");
    fs::create_dir_all(&made).unwrap();
    openssl(
        &made,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out chain.pem -subj /CN=ca -days 99",
    );
    openssl(
        &made,
        &format!(
            "req -x509 -CA chain.pem -CAkey ca.key -newkey {key} -nodes -keyout privkey.pem -out cert.pem -subj /CN=a -addext subjectAltName=DNS:*.localhost -addext basicConstraints=critical,CA:FALSE -days 99"
        ),
    );
    let text = |name: &str| fs::read_to_string(made.join(name)).unwrap();
    fs::write(made.join("fullchain.pem"), text("cert.pem") + &text("chain.pem")).unwrap();
}

const CERTBOT: [&str; 4] = ["cert.pem", "chain.pem", "fullchain.pem", "privkey.pem"];

#[tokio::test]
async fn the_files_of_certbot_are_one_certificate_beside_each_other_and_in_folders() {
    let folder = folder(HTTPS);
    let path = |name: &str| folder.path().join(name);
    made(folder.path(), "rsa:2048");
    fs::create_dir(path("certs")).unwrap();
    for name in CERTBOT {
        fs::copy(path("made").join(name), path("certs").join(name)).unwrap();
    }
    let check = dormouse(folder.path(), &["check"]).await.code(DONE);
    check.says(", 1 certificate (");
    assert_eq!(check.err, "");

    // `certs` is certbot's `live`.
    fs::remove_dir_all(path("certs")).unwrap();
    fs::create_dir_all(path("certs/a.test")).unwrap();
    fs::write(path("certs/README"), "This directory contains your keys and certificates.\n")
        .unwrap();
    for name in CERTBOT {
        let target = Path::new("../../made").join(name);
        std::os::unix::fs::symlink(target, path("certs/a.test").join(name)).unwrap();
    }
    let check = dormouse(folder.path(), &["check"]).await.code(DONE);
    check.says(", 1 certificate (");
    assert_eq!(check.err, "");
    // A folder that is no certificate's is nobody's.
    fs::create_dir_all(path("certs/old")).unwrap();
    fs::write(path("certs/old/x.pem"), "nonsense").unwrap();
    dormouse(folder.path(), &["check"]).await.code(DONE).says(", 1 certificate (");
}

#[tokio::test]
async fn what_cannot_be_served_is_told_with_its_file_its_cause_and_what_to_do() {
    let folder = folder(HTTPS);
    let path = |name: &str| folder.path().join(name);
    let put = |name: &str, text: &str| {
        fs::create_dir_all(path("certs")).unwrap();
        fs::write(path("certs").join(name), text).unwrap();
    };
    let text = |name: &str| fs::read_to_string(path("made").join(name)).unwrap();
    let told = async |parts: &[&str]| {
        let check = dormouse(folder.path(), &["check"]).await.code(USAGE);
        for part in parts {
            check.complains(part);
        }
        check.complains("1 error");
        fs::remove_dir_all(path("certs")).unwrap();
    };
    made(folder.path(), "rsa:2048");
    put("a.pem", &(text("chain.pem") + &text("cert.pem")));
    put("a.key", &text("privkey.pem"));
    let order = "certs/a.pem: the host's own certificate is number 2 in it, and must be the first";
    told(&[order, "cat cert.pem chain.pem"]).await;
    // Also where the key is found by what it signs.
    put("a.pem", &(text("chain.pem") + &text("cert.pem")));
    put("b.pem", &text("privkey.pem"));
    told(&[order]).await;

    let made_dir = path("made");
    openssl(&made_dir, "pkey -in privkey.pem -aes256 -passout pass:x -out closed.pem");
    openssl(&made_dir, "rsa -in privkey.pem -aes256 -traditional -passout pass:x -out older.pem");
    for closed in ["closed.pem", "older.pem"] {
        for key in ["a.key", "privkey.pem"] {
            put("a.pem", &text("fullchain.pem"));
            put(key, &text(closed));
            let is = format!("{key} is encrypted, and nobody is there to type its passphrase");
            told(&["certs/a.pem: its key", &is, "openssl pkey -in"]).await;
        }
    }
    put("a.pem", &text("fullchain.pem"));
    told(&["certs/a.pem: its key is not there", "a.key for example"]).await;

    for (key, what) in [
        ("ec -pkeyopt ec_paramgen_curve:P-521", "of the curve P-521"),
        ("rsa:1024", "RSA of 1024 bits"),
        ("ed448", "of another kind"),
    ] {
        made(folder.path(), key);
        put("a.pem", &text("fullchain.pem"));
        put("a.key", &text("privkey.pem"));
        let wrong = format!("certs/a.pem: its key is {what}: this edge cannot sign with it");
        told(&[&wrong, "P-256, P-384, Ed25519, and RSA of 2048 to 4096 bits"]).await;
    }
    for key in ["ec -pkeyopt ec_paramgen_curve:P-384", "ed25519"] {
        made(folder.path(), key);
        put("a.pem", &text("fullchain.pem"));
        put("a.key", &text("privkey.pem"));
        let check = dormouse(folder.path(), &["check"]).await.code(DONE);
        check.says(", 1 certificate (");
    }
}
