//! The guest's side of a layer: the init that `docs/engines/firecracker.md` shows, in a Linux that QEMU
//! boots, over a layer that the engine made. Firecracker itself has no part in it.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use super::{bed::with_layer, *};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/engines/firecracker.md");

/// Puts the root where Firecracker's kernel would mount it. `devtmpfs` is in its environment if it is
/// a word of the kernel's command line: there are kernels that mount it by themselves.
const INITRD: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /root
mount -t devtmpfs dev /dev
modules='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk overlay'
for module in $modules; do insmod /modules/$module.ko; done
mount -t ext4 -o ro /dev/vda /root
[ -z \"$devtmpfs\" ] || mount --move /dev /root/dev
exec switch_root /root /sbin/overlay-init
";

/// Counts in a new file, changes one of the image, deletes another, and says what it sees.
const INIT: &str = "#!/bin/busybox sh
mount -t proc proc /proc
echo $(($(cat /count 2>/dev/null) + 1)) >/count
echo more >>/kept
rm -f /gone
[ -b /dev/vda ] && dev=dev
echo x 2>/dev/null >/rom/kept || rom=read-only
echo \"SEES count=$(cat /count) kept=$(wc -l </kept) gone=$(ls /gone 2>/dev/null) $dev $rom\"
umount -a -r 2>/dev/null
sync
poweroff -f
";

fn script() -> String {
    let page = fs::read_to_string(PAGE).unwrap();
    let block = page.split("```sh\n").find(|block| block.contains("/sbin/overlay-init"));
    block.and_then(|block| block.split("```").next()).expect("the page's script").to_owned()
}

fn program(at: &Path, text: &str) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, text).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(command: &mut Command) -> String {
    let ran = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&ran.stderr));
    said
}

/// The image that all share: busybox, the page's init, and that which it goes on with.
fn root(bed: &Bed) {
    let root = bed.path("root");
    for folder in ["bin", "dev", "proc", "mnt", "overlay"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "mount", "umount", "mkdir", "pivot_root", "cat", "rm", "wc", "ls", "sync"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::os::unix::fs::symlink("busybox", root.join("bin/poweroff")).unwrap();
    program(&root.join("sbin/overlay-init"), &script());
    program(&root.join("sbin/init"), INIT);
    fs::write(root.join("kept"), "the image\'s\n").unwrap();
    fs::write(root.join("gone"), "").unwrap();
    let image = bed.path("base.img");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let mkfs = ["-q", "-F", "-d"];
    run(Command::new("/usr/sbin/mkfs.ext4").args(mkfs).args([root, image]));
}

/// The kernel takes archives one behind the other.
fn initrd(bed: &Bed) {
    program(&bed.path("more/try"), INITRD);
    let pack = "echo try | cpio --quiet -o -H newc | gzip -1 | cat \"$0\" - >../initrd";
    let initrd = vm::image().join("initrd");
    run(Command::new("bash").current_dir(bed.path("more")).args(["-c", pack]).arg(initrd));
}

/// What the guest says of itself, in one boot.
fn boot(bed: &Bed, layer: &Path, more: &str) -> String {
    let drive =
        |file: &Path, how: &str| format!("file={},format=raw,if=virtio,{how}", file.display());
    let mut qemu = Command::new("timeout");
    qemu.args(["120", "qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-m", "256"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio", "-append"]);
    qemu.arg(format!("console=ttyS0 quiet panic=-1 rdinit=/try {more}"));
    qemu.arg("-kernel").arg(vm::image().join("vmlinuz"));
    qemu.arg("-initrd").arg(bed.path("initrd"));
    qemu.args(["-drive", &drive(&bed.path("base.img"), "readonly=on")]);
    qemu.args(["-drive", &drive(layer, "cache=unsafe")]);
    let said = run(&mut qemu);
    let line = said.lines().find_map(|line| line.split_once("SEES "));
    line.unwrap_or_else(|| panic!("it said nothing: {said}")).1.trim().to_owned()
}

#[tokio::test]
async fn the_pages_init_lays_what_a_session_writes_over_the_root_that_all_share() {
    let (bed, alice) = (Bed::new(), alice());
    root(&bed);
    initrd(&bed);
    let (engine, mut spec) = (bed.engine(), with_layer());
    spec.firecracker.layer = Some(64 << 20);
    let started = engine.start(&alice, &spec, G1).await.unwrap();
    engine.sleep(&alice, &spec, Some(&started.life), Depth::Stopped).await.unwrap();
    let (one, two) = (bed.file("layer"), bed.path("two"));
    fs::copy(&one, &two).unwrap();
    let image = fs::read(bed.path("base.img")).unwrap();

    let first = "count=1 kept=2 gone= dev read-only";
    assert_eq!(boot(&bed, &one, "devtmpfs=1"), first);
    assert_eq!(boot(&bed, &one, ""), "count=2 kept=3 gone= dev read-only");
    assert_eq!(boot(&bed, &two, ""), first, "another session sees nothing of it");
    assert!(fs::read(bed.path("base.img")).unwrap() == image, "the image is as it was");
    run(Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(&one));
    engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();
}
