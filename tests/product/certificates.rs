//! Certificates as openssl and certbot make them, asked for by `openssl s_client`.

use std::{fs, path::Path, process::Stdio};

use tokio::process::Command;

use crate::{
    support::{Edge, PATIENCE, Setup, witnessed},
    tls::HTTPS,
};

async fn openssl(args: &str, folder: &Path) -> String {
    let mut command = Command::new("openssl");
    command
        .args(args.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("in time");
    let ended = ended.expect("openssl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&ended.stdout) + &text(&ended.stderr)
}

/// An authority, and certificates by it for `alice.test`: of an RSA key and of an ECDSA one.
async fn made(folder: &Path) {
    let curve = "ec -pkeyopt ec_paramgen_curve:P-256";
    let authority = format!(
        "req -x509 -newkey {curve} -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 99"
    );
    openssl(&authority, folder).await;
    for (name, key) in [("rsa", "rsa:2048"), ("ecdsa", curve)] {
        let leaf = format!(
            "req -x509 -CA ca.pem -CAkey ca.key -newkey {key} -nodes -keyout {name}.key -out {name}.crt \
             -subj /CN={name} -addext subjectAltName=DNS:alice.test \
             -addext basicConstraints=critical,CA:FALSE -days 90"
        );
        openssl(&leaf, folder).await;
    }
}

/// What a client gets that offers no more than this.
async fn met(edge: &Edge, folder: &Path, more: &str) -> String {
    let args = format!(
        "s_client -connect {} -servername alice.test -CAfile ca.pem -verify_return_error -verify_hostname alice.test {more}",
        edge.https
    );
    openssl(&args, folder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_may_have_a_certificate_of_each_kind_of_key() {
    let folder = tempfile::tempdir().expect("a folder");
    made(folder.path()).await;
    let mut setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", ""));
    for file in ["rsa.crt", "rsa.key", "ecdsa.crt", "ecdsa.key"] {
        let text = fs::read_to_string(folder.path().join(file)).expect("made");
        setup = setup.file(&format!("certs/{file}"), &text);
    }
    let mut edge = setup.start();
    for (more, kind) in [
        ("", "ecdsa"),
        ("-tls1_2", "ecdsa"),
        ("-sigalgs ECDSA+SHA256", "ecdsa"),
        ("-sigalgs RSA-PSS+SHA256", "rsa"),
        ("-sigalgs RSA-PSS+SHA256:ECDSA+SHA256", "ecdsa"),
        ("-tls1_2 -sigalgs RSA+SHA256", "rsa"),
        ("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "rsa"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", "ecdsa"),
    ] {
        let met = met(&edge, folder.path(), more).await;
        let is_met =
            met.contains("Verification: OK") && met.contains(&format!("subject=CN = {kind}"));
        assert!(is_met, "{more}: {met}");
    }
    // Where one of them is gone, every client gets the other.
    fs::remove_file(edge.path("certs/ecdsa.crt")).expect("removed");
    edge.wait_until("it is gone", |edge| 0 < edge.log_count(&["certificate removed", "ecdsa.crt"]));
    let met = met(&edge, folder.path(), "").await;
    assert!(met.contains("Verification: OK") && met.contains("subject=CN = rsa"), "{met}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certbots_files_are_served_with_their_chain_also_after_a_renewal() {
    let folder = tempfile::tempdir().expect("a folder");
    made(folder.path()).await;
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).expect("made");
    let files = |kind: &str| {
        let (cert, chain) = (text(&format!("{kind}.crt")), text("ca.pem"));
        [
            ("cert.pem", cert.clone()),
            ("chain.pem", chain.clone()),
            ("fullchain.pem", cert + &chain),
            ("privkey.pem", text(&format!("{kind}.key"))),
        ]
    };
    for below in ["", "alice.test/"] {
        let mut setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", ""));
        for (name, text) in files("rsa") {
            setup = setup.file(&format!("certs/{below}{name}"), &text);
        }
        let mut edge = setup.start();
        // Between two of the files it is no pair: the one before stays.
        edge.announce("the certificate before stays");
        let served = met(&edge, folder.path(), "-showcerts").await;
        assert!(served.contains("subject=CN = rsa"), "{served}");
        let chain = served.contains(" 0 s:CN = rsa") && served.contains(" 1 s:CN = ca");
        assert!(chain && !served.contains(" 2 s:"), "the leaf and its issuer: {served}");
        for (name, text) in files("ecdsa") {
            edge.write_file(&format!("certs/{below}{name}"), &text);
        }
        // What is below is read by the next reload.
        assert_eq!(edge.admin_post("/v1/reload").0, 200);
        let served = met(&edge, folder.path(), "").await;
        assert!(served.contains("subject=CN = ecdsa"), "{served}");
    }
}
