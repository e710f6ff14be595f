//! A root that all sessions read, and what each writes over it.

use std::{
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    process::Command,
    time::Duration,
};

use dormouse::session::SessionId;

use super::{bed::with_layer, tmpfs::Tmpfs, *};

const SIZE: u64 = 4 << 20;

/// What stands for `mkfs.ext4`.
fn mkfs(bed: &mut Bed, script: &str) {
    bed.mkfs = bed.path("mkfs");
    fs::write(&bed.mkfs, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&bed.mkfs, fs::Permissions::from_mode(0o755)).unwrap();
}

fn inode(file: &Path) -> u64 {
    file.metadata().unwrap().ino()
}

/// Where ext4 says that it is one.
fn is_ext4(file: &Path) -> bool {
    fs::read(file).unwrap()[1080..1082] == [0x53, 0xEF]
}

#[tokio::test]
async fn the_contract_with_a_layer() {
    for bed in [Bed::new(), Bed::jailed()] {
        contract::run(Arc::new(bed.engine()), |_| with_layer()).await;
    }
}

#[tokio::test]
async fn all_sessions_read_one_root_and_each_keeps_its_own_layer_until_it_is_removed() {
    for bed in [Bed::new(), Bed::jailed()] {
        let (engine, spec) = (bed.engine(), with_layer());
        for host in ["alice.test", "bob.test"] {
            let of = SessionId::new(host);
            let mut started = engine.start(&of, &spec, G1).await.unwrap();
            assert_eq!(get(&started, "root").await, "0", "the image itself, to read alone");
            assert_eq!(get(&started, "disk").await, "1", "{host}: a layer of its own");
            let layer = bed.file("layer");
            assert!(is_ext4(&layer));
            let is = layer.metadata().unwrap();
            assert_eq!((is.len(), is.mode() & 0o777), (SIZE, 0o600));
            assert!(is.blocks() * 512 < SIZE, "sparse");
            assert!(!bed.has("disk") && !bed.has("layer.part") && !bed.has("base.part"));

            let depths = [Depth::Paused, Depth::Suspended, Depth::Stopped];
            for (turn, depth) in (2..).zip(depths) {
                engine.sleep(&of, &spec, Some(&started.life), depth).await.unwrap();
                started = engine.start(&of, &spec, G2).await.unwrap();
                assert_eq!(get(&started, "disk").await, turn.to_string(), "{depth:?}");
            }
            engine.sleep(&of, &spec, Some(&started.life), Depth::Removed).await.unwrap();
            assert!(!layer.exists());
            assert_eq!(fs::read_dir(bed.path("s/fc")).unwrap().count(), 0);
        }
        assert_eq!(fs::read_to_string(bed.path("base.img")).unwrap(), "0");
    }
}

#[tokio::test]
async fn in_a_jail_the_root_is_the_image_itself_where_its_user_can_only_read_it() {
    let (bed, alice, spec) = (Bed::jailed(), alice(), with_layer());
    let (engine, image) = (bed.engine(), bed.path("base.img"));
    let is_link = |owner: (u32, u32), mode: u32| {
        let (engine, bed, alice, spec, image) = (&engine, &bed, &alice, &spec, &image);
        async move {
            chown(image, Some(owner.0), Some(owner.1)).unwrap();
            fs::set_permissions(image, fs::Permissions::from_mode(mode)).unwrap();
            let started = engine.start(alice, spec, G1).await.unwrap();
            assert_eq!(get(&started, "root").await, "0");
            engine.sleep(alice, spec, Some(&started.life), Depth::Stopped).await.unwrap();
            let root = bed.file("base");
            assert!(!bed.has("base.part"));
            let is_link = inode(&root) == inode(image);
            // Its user must be able to read it.
            assert!(is_link || root.metadata().unwrap().uid() == 4000);
            is_link
        }
    };
    for (owner, mode, expected) in [
        ((0, 4000), 0o640, true),
        ((1000, 1000), 0o444, true),
        // It could not read it.
        ((0, 0), 0o640, false),
        ((0, 4000), 0o604, false),
        // It could write it, or let itself.
        ((0, 0), 0o646, false),
        ((0, 4000), 0o660, false),
        ((0, 0), 0o664, false),
        ((4000, 0), 0o444, false),
    ] {
        // What was one is none by that alone.
        assert!(is_link((0, 0), 0o644).await);
        assert_eq!(is_link(owner, mode).await, expected, "{owner:?} {mode:o}");
    }
    // A copy is made once, and again of another image.
    let copy = inode(&bed.file("base"));
    assert!(!is_link((4000, 0), 0o444).await);
    assert_eq!(inode(&bed.file("base")), copy);
    fs::write(&image, "00").unwrap();
    let started = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(get(&started, "root").await, "00");
    engine.sleep(&alice, &spec, Some(&started.life), Depth::Removed).await.unwrap();

    // A link to an image is followed here, not in the jail.
    chown(&image, Some(0), Some(0)).unwrap();
    fs::rename(&image, bed.path("base-2.img")).unwrap();
    symlink("base-2.img", &image).unwrap();
    let started = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(inode(&bed.file("base")), inode(&bed.path("base-2.img")));
    assert_eq!(get(&started, "root").await, "00");
    engine.sleep(&alice, &spec, Some(&started.life), Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_exists_keeps_its_size_and_a_root_that_is_another_is_booted() {
    let (bed, alice, mut spec) = (Bed::new(), alice(), with_layer());
    let engine = bed.engine();
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!((&*get(&first, "count").await, &*get(&first, "disk").await), ("1", "1"));
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();

    spec.firecracker.layer = Some(2 * SIZE);
    let second = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!((&*get(&second, "count").await, &*get(&second, "disk").await), ("2", "2"));
    assert_eq!(bed.file("layer").metadata().unwrap().len(), SIZE);
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Suspended).await.unwrap();

    // Its memory holds what it read of the one before.
    fs::write(bed.path("base.img"), "another").unwrap();
    let third = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!((&*get(&third, "count").await, &*get(&third, "disk").await), ("1", "3"));
    engine.sleep(&alice, &spec, Some(&third.life), Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn a_session_that_gets_a_layer_keeps_its_disk_and_the_other_way_round() {
    for bed in [Bed::new(), Bed::jailed()] {
        let (engine, alice) = (bed.engine(), alice());
        for (spec, expected) in
            [(with_disk(), "1"), (with_layer(), "1"), (with_disk(), "2"), (with_layer(), "2")]
        {
            let started = engine.start(&alice, &spec, G1).await.unwrap();
            assert_eq!(get(&started, "disk").await, expected);
            engine.sleep(&alice, &spec, Some(&started.life), Depth::Stopped).await.unwrap();
        }
        engine.sleep(&alice, &with_disk(), None, Depth::Removed).await.unwrap();
    }
}

#[tokio::test]
async fn a_layer_goes_with_a_golden_memory_and_holes_stay_holes() {
    for bed in [Bed::new(), Bed::jailed()] {
        let (engine, alice, mut spec) = (bed.engine(), alice(), with_layer());
        let first = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!((&*get(&first, "count").await, &*get(&first, "disk").await), ("1", "1"));
        engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
        let golden = bed.path("golden");
        gild(&bed, &golden);
        assert!(!golden.join("disk").exists(), "the root is not in it");
        let end = fs::File::options().write(true).open(golden.join("layer")).unwrap();
        end.set_len(1 << 30).unwrap();
        engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();

        spec.firecracker.golden = Some("golden".into());
        for host in ["bob.test", "carol.test"] {
            let of = SessionId::new(host);
            let started = engine.start(&of, &spec, G1).await.unwrap();
            assert_eq!((&*get(&started, "count").await, &*get(&started, "disk").await), ("2", "2"));
            let layer = bed.file("layer").metadata().unwrap();
            assert_eq!(layer.len(), 1 << 30);
            assert!(layer.blocks() * 512 < 2 * SIZE, "{} blocks", layer.blocks());
            engine.sleep(&of, &spec, Some(&started.life), Depth::Removed).await.unwrap();
        }
        // Without its layer a memory is of no use, and a fresh one would be spoilt by it.
        fs::remove_file(golden.join("layer")).unwrap();
        let error = engine.start(&alice, &spec, G1).await.unwrap_err();
        assert!(matches!(&error, Error::Missing(text) if text.contains("golden/layer")), "{error}");
        assert_eq!(engine.list().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_host_that_is_full_makes_no_layer_until_there_is_room() {
    let (bed, full, alice) = (Bed::new(), Tmpfs::mount("32k"), alice());
    symlink(full.path(), bed.path("s")).unwrap();
    let engine = bed.engine();
    let error = engine.start(&alice, &with_layer(), G1).await.unwrap_err();
    let expected = "cannot be formatted: mkfs.ext4: No space left on device";
    assert!(matches!(&error, Error::Failed(text) if text.contains(expected)), "{error}");
    assert_eq!(fs::read_dir(bed.path("s/fc")).unwrap().count(), 0, "nothing takes its room");

    let grow = ["-o", "remount,size=64m"];
    assert!(Command::new("mount").args(grow).arg(full.path()).status().unwrap().success());
    let started = engine.start(&alice, &with_layer(), G1).await.unwrap();
    assert_eq!(get(&started, "disk").await, "1");
    engine.sleep(&alice, &with_layer(), Some(&started.life), Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_cannot_be_made_is_said_and_leaves_nothing() {
    let mut bed = Bed::new();
    mkfs(&mut bed, "echo this is not a disk >&2; exit 1");
    let error = bed.engine().start(&alice(), &with_layer(), G1).await.unwrap_err();
    let expected = "cannot be formatted: this is not a disk";
    assert!(matches!(&error, Error::Failed(text) if text.contains(expected)), "{error}");
    assert_eq!(fs::read_dir(bed.path("s/fc")).unwrap().count(), 0);

    bed.mkfs = "no-such-mkfs".into();
    let error = bed.engine().start(&alice(), &with_layer(), G1).await.unwrap_err();
    let expected = "cannot run no-such-mkfs of e2fsprogs";
    assert!(matches!(&error, Error::Missing(text) if text.contains(expected)), "{error}");
    assert_eq!(fs::read_dir(bed.path("s/fc")).unwrap().count(), 0);

    mkfs(&mut bed, "exec sleep 1000");
    bed.call_timeout = Duration::from_millis(50);
    let error = bed.engine().start(&alice(), &with_layer(), G1).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { call: "mkfs.ext4", .. }), "{error}");
    assert_eq!(fs::read_dir(bed.path("s/fc")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_layer_that_cannot_be_made_takes_nothing_from_a_session_that_exists() {
    let (mut bed, alice) = (Bed::jailed(), alice());
    let engine = bed.engine();
    let first = engine.start(&alice, &with_disk(), G1).await.unwrap();
    assert_eq!(get(&first, "disk").await, "1");
    engine.sleep(&alice, &with_disk(), Some(&first.life), Depth::Stopped).await.unwrap();

    mkfs(&mut bed, "exit 1");
    bed.engine().start(&alice, &with_layer(), G1).await.unwrap_err();
    assert!(!bed.has("layer") && !bed.has("layer.part"));
    // Nor does one that an edge died over, or a link that its user laid there.
    fs::write(bed.path("not-the-guests"), "safe").unwrap();
    symlink(bed.path("not-the-guests"), bed.file("layer.part")).unwrap();
    let second = engine.start(&alice, &with_layer(), G1).await.unwrap();
    assert_eq!(get(&second, "disk").await, "1");
    assert!(is_ext4(&bed.file("layer")) && !bed.has("layer.part"));
    assert_eq!(fs::read_to_string(bed.path("not-the-guests")).unwrap(), "safe");
    engine.sleep(&alice, &with_layer(), Some(&second.life), Depth::Stopped).await.unwrap();

    let third = engine.start(&alice, &with_disk(), G1).await.unwrap();
    assert_eq!(get(&third, "disk").await, "2");
    engine.sleep(&alice, &with_disk(), Some(&third.life), Depth::Stopped).await.unwrap();
    // A record that nobody can read makes no new session of it.
    fs::write(bed.ours("machine.json"), "{").unwrap();
    fs::remove_file(bed.path("vmlinux")).unwrap();
    engine.start(&alice, &with_disk(), G1).await.unwrap_err();
    assert_eq!(fs::read_to_string(bed.file("disk")).unwrap(), "2\n");
}
