//! The programs that the docs give away, run for real: a machine that a real Wake-on-LAN packet
//! wakes (a process here), and libvirt's own test driver.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use dormouse::{
    engine::{Engine as _, Error, Health, InstanceState},
    session::{Address, Depth, Generation, Spec},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    contract::{answers, refuses},
    lab::{DORMOUSE, Lab, session},
};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/engines/examples");
const MAC: [u8; 6] = [0x02, 0x00, 0x5e, 0x10, 0x00, 0x01];
/// What the machine's sshd would do; `on` holds its boot id.
const SSH: &str = r#"#!/bin/sh
cd "$(dirname "$0")/.." || exit 1
[ -e on ] || exit 255
for last; do :; done
case $last in
*boot_id) cat on ;;
*poweroff) rm on; kill -KILL "$(cat machine.pid)" ;;
esac
"#;

/// A machine that is off: only its network card listens.
struct Machine {
    card: SocketAddr,
    address: SocketAddr,
    folder: PathBuf,
    unplugged: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    fn plug_in(folder: &Path) -> Self {
        fs::create_dir(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/ssh"), SSH).unwrap();
        fs::set_permissions(folder.join("bin/ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        let card = UdpSocket::bind("127.0.0.1:0").unwrap();
        card.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let unplugged = Arc::new(AtomicBool::new(false));
        let (ends, folder) = (unplugged.clone(), folder.to_owned());
        let (at, place) = (card.local_addr().unwrap(), folder.clone());
        let thread = thread::spawn(move || listen(&card, address, &place, &ends));
        Self { card: at, address, folder, unplugged, thread: Some(thread) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.unplugged.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if let Some(pid) = fs::read_to_string(self.folder.join("machine.pid")).ok()
            && self.folder.join("on").exists()
        {
            let _ = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL);
        }
        assert!(ended.is_ok() || thread::panicking(), "the network card got something else");
    }
}

/// The first packet is lost, as datagrams may be.
fn listen(card: &UdpSocket, address: SocketAddr, folder: &Path, unplugged: &AtomicBool) {
    let (mut packets, mut machine) = (0, None);
    while !unplugged.load(Ordering::Relaxed) {
        let mut packet = [0; 256];
        let Ok((length, _)) = card.recv_from(&mut packet) else { continue };
        let magic: Vec<u8> = [0xff; 6].into_iter().chain(MAC.repeat(16)).collect();
        assert_eq!(packet[..length], magic, "the packet is a magic one");
        packets += 1;
        if packets == 1 || folder.join("on").exists() {
            continue;
        }
        let listens = ["demo-session", "--listen", &address.to_string()].map(String::from);
        let child = Command::new(DORMOUSE).args(listens).spawn().unwrap();
        fs::write(folder.join("machine.pid"), child.id().to_string()).unwrap();
        fs::write(folder.join("booting"), format!("boot-{}", child.id())).unwrap();
        fs::rename(folder.join("booting"), folder.join("on")).unwrap();
        machine = Some(child);
    }
    drop(machine); // a zombie ends with us
}

#[tokio::test]
async fn wake_on_lan_wakes_a_machine_and_ssh_shuts_it_down() {
    let mut lab = Lab::script("");
    let folder = lab.folder.path().to_owned();
    let machine = Machine::plug_in(&folder);
    let path = format!("PATH={}/bin:{}", folder.display(), std::env::var("PATH").unwrap());
    lab.config.run = vec!["env".into(), path, format!("{EXAMPLES}/wake-on-lan.sh")];
    lab.config.depths = &[Depth::Stopped];
    let engine = lab.engine();
    let host = session("workshop");

    let error = engine.start(&host, &Spec::default(), Generation(1)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(said) if said.contains("parameters.mac")), "{error:?}");

    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let mut spec = Spec::default();
    for (name, value) in [
        ("mac", mac),
        ("address", machine.address.to_string()),
        ("ssh", "root@workshop".into()),
        ("broadcast", machine.card.ip().to_string()),
        ("wol_port", machine.card.port().to_string()),
    ] {
        spec.parameters.insert(name.into(), value);
    }
    engine.sleep(&host, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(engine.list().await.unwrap(), []);

    let started = engine.start(&host, &spec, Generation(7)).await.unwrap();
    assert_eq!(started.address, Address::Tcp(machine.address));
    answers(&started.address).await;
    assert_eq!(engine.start(&host, &spec, Generation(8)).await.unwrap(), started);
    let listed = engine.list().await.unwrap();
    assert_eq!(engine.inspect(&host, &spec).await.unwrap().as_ref(), listed.first());
    assert_eq!(listed[0].state, InstanceState::Running(Health::Unchecked));
    assert_eq!((&listed[0].life, listed[0].generation.0), (&Some(started.life.clone()), 8));

    engine.sleep(&host, &spec, Some(&started.life), Depth::Stopped).await.unwrap();
    refuses(&started.address).await;
    let listed = engine.list().await.unwrap();
    assert_eq!(listed[0].state, InstanceState::Asleep(Depth::Stopped));
    let again = engine.start(&host, &spec, Generation(9)).await.unwrap();
    assert_ne!(again.life, started.life);
    engine.sleep(&host, &spec, Some(&again.life), Depth::Stopped).await.unwrap();
}

/// Its one domain runs anew for every connection, so nothing can be seen to change; but every call
/// is one that libvirt takes.
#[tokio::test]
async fn libvirt_takes_every_call_of_its_example() {
    let mut lab = Lab::script("");
    lab.config.run = vec![format!("{EXAMPLES}/libvirt.sh")];
    lab.config.depths = &[Depth::Paused, Depth::Suspended, Depth::Stopped];
    let engine = lab.engine();
    let of = |domain: &str| {
        let mut spec = Spec::default();
        for (name, value) in
            [("domain", domain), ("port", "80"), ("uri", "test:///default"), ("grace", "1")]
        {
            spec.parameters.insert(name.into(), value.into());
        }
        spec
    };
    let started = engine.start(&session("a"), &of("test"), Generation(1)).await.unwrap();
    assert!(started.address.to_string().ends_with(":80"), "{started:?}");
    let inspected = engine.inspect(&session("a"), &of("test")).await.unwrap().unwrap();
    assert_eq!(inspected.life, Some(started.life.clone()));
    assert_eq!(inspected.state, InstanceState::Running(Health::Unchecked));
    for &depth in engine.depths() {
        // virsh 9.0 misses the end of its own save now and then, and waits for ever. The fleet asks
        // again, too.
        let mut slept = Err(Error::Failed("not asked".into()));
        for _ in 0..4 {
            slept = engine.sleep(&session("a"), &of("test"), Some(&started.life), depth).await;
            if !matches!(slept, Err(Error::Timeout { .. })) {
                break;
            }
        }
        slept.unwrap();
    }
    let error = engine.start(&session("a"), &of("nothing"), Generation(1)).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(said) if said.contains("'nothing'")), "{error:?}");
}
