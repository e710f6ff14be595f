//! A real name server that takes signed updates: BIND's named.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::pebble::wait_for;
use crate::support::free_port;

const SECRET: &str = "c2VjcmV0IG9mIHRoZSB0ZXN0LCBmb3IgYSBURklHIGtleQ==";

/// Primary server of the zone `test`.
pub(super) struct Named {
    folder: TempDir,
    pub(super) address: SocketAddr,
    child: Child,
}

impl Named {
    pub(super) fn start() -> Self {
        let (folder, address) = (tempfile::tempdir().expect("a folder"), free_port());
        let path = folder.path().display();
        let config = format!(
            "options {{ directory \"{path}\"; pid-file none; session-keyfile none;\n\
               lock-file none; managed-keys-directory \"{path}\";\n\
               listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n\
               recursion no; dnssec-validation no; notify no; }};\n\
             controls {{ }};\n\
             key \"dormouse\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
             zone \"test\" {{ type primary; file \"zone\"; allow-update {{ key dormouse; }}; }};\n",
            port = address.port(),
        );
        let zone = "$TTL 1\n@ SOA ns hostmaster 1 60 60 60 1\n@ NS ns\nns A 127.0.0.1\n";
        fs::write(folder.path().join("named.conf"), config).expect("written");
        fs::write(folder.path().join("zone"), zone).expect("written");
        fs::write(folder.path().join("tsig.key"), format!("{SECRET}\n")).expect("written");
        let child = Command::new("/usr/sbin/named")
            .args(["-f", "-c"])
            .arg(folder.path().join("named.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package bind9 is installed");
        let named = Self { folder, address, child };
        wait_for(named.address);
        named
    }

    /// `[acme.dns_update]`, to stand at the end of `[acme]`.
    pub(super) fn toml(&self, key_name: &str) -> String {
        format!(
            "[acme.dns_update]\nserver = '{}'\nzone = 'test'\nkey_name = '{key_name}'\n\
             key_file = '{}/tsig.key'\n",
            self.address,
            self.folder.path().display()
        )
    }

    /// Whether it has a record of this name and kind.
    pub(super) fn has(&self, name: &str, kind: &str) -> bool {
        let mut nsupdate = Command::new("nsupdate")
            .args(["-v", "-y", &format!("hmac-sha256:dormouse:{SECRET}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package bind9-dnsutils is installed");
        // An update of nothing, on the condition that there is none.
        let port = self.address.port();
        let script =
            format!("server 127.0.0.1 {port}\nzone test\nprereq nxrrset {name} {kind}\nsend\n");
        nsupdate.stdin.take().expect("piped").write_all(script.as_bytes()).expect("written");
        !nsupdate.wait().expect("it ends").success()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
