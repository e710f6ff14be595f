//! A folder of routes, and how its changes are noticed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use dormouse::{
    route::{is_route_file, load_dir, load_good},
    watch::watch,
};

use crate::engines;

fn write(dir: &Path, name: &str, host: &str) {
    fs::write(dir.join(name), format!("host = \"{host}\"\ninstance.command = [\"x\"]")).unwrap();
}

#[test]
fn every_toml_file_of_a_folder_is_a_route_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(load_dir(dir.path(), &engines()).unwrap().is_empty());
    write(dir.path(), "one.toml", "one.e");
    write(dir.path(), "README.md", "two.e");
    for hidden in [".hidden.toml", "#edited.toml#", "#edited.toml", "one.toml~", ".one.toml.swp"] {
        fs::write(dir.path().join(hidden), "not a route").unwrap();
    }
    fs::create_dir(dir.path().join("folder.toml")).unwrap();
    symlink("one.toml.real", dir.path().join("two.toml")).unwrap();
    write(dir.path(), "one.toml.real", "two.e");
    let table = load_dir(dir.path(), &engines()).unwrap();
    let names: Vec<_> = table.iter().map(|route| route.name.to_string()).collect();
    assert_eq!(names, ["one", "two"]);
}

/// A hundred thousand of them would not fit otherwise: `cargo bench --bench memory`.
#[test]
fn files_that_differ_in_their_host_alone_share_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.toml", "a.e");
    write(dir.path(), "b.toml", "b.e");
    fs::write(dir.path().join("c.toml"), "host = \"c.e\"\ninstance.command = [\"y\"]").unwrap();
    let table = load_dir(dir.path(), &engines()).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| &table.get(name).unwrap().recipe);
    assert!(Arc::ptr_eq(a, b));
    assert_ne!(a, c);
}

#[test]
fn the_errors_of_all_files_are_told_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(dir.path(), "a.toml", "{x}.e");
    write(dir.path(), "b.toml", "{y}.e");
    write(dir.path(), "good.toml", "good.e");
    write(dir.path(), "Bad_Name.toml", "c.e");
    fs::write(path("c.toml"), "host = 1").unwrap();
    fs::write(path("d.toml"), "host = 2\nx = 3").unwrap();
    fs::write(path("e.toml"), b"host = \"a\"\nengine = \"l\xff\"").unwrap();
    fs::write(path("f.toml"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
    symlink("nowhere", path("g.toml")).unwrap();
    let errors = load_dir(dir.path(), &engines()).unwrap_err();
    let prefix = format!("{}/", dir.path().display());
    let errors: Vec<_> =
        errors.iter().map(|error| error.to_string().replace(&prefix, "")).collect();
    let expected = [
        "Bad_Name.toml: `Bad_Name` is no name of a route; name the file with a-z, 0-9 and `-`, \
         at most 63, no `-` at the ends",
        "c.toml:1:8: invalid type: integer `1`, expected a string",
        "d.toml:1:8: invalid type: integer `2`, expected a string",
        "d.toml:2:1: unknown key `x`; known: `host`, `engine`, `instance`, `ready`, `wake`, \
         `idle`, `tls`, `upstream`, `access`, `limits`, `pool`, `static`",
        "e.toml:2:12: not UTF-8; save the file as UTF-8",
        "f.toml: larger than 1 MiB",
        "g.toml: cannot be read: No such file or directory (os error 2)",
        "b.toml:1:8: the same host as a.toml: `{y}.e`; a host belongs to one route; the \
         captures' names make no difference",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn a_missing_folder_says_what_to_do() {
    let errors = load_dir(Path::new("/nowhere/routes"), &engines()).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "/nowhere/routes: cannot read the folder of routes: No such file or directory (os error \
         2); create it, or set paths.routes in dormouse.toml to where the *.toml files are"
    );
}

/// Reloads whenever the watch says so, until the folder holds exactly these routes.
fn wait_for(changes: &mpsc::Receiver<()>, dir: &Path, names: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        changes.recv_timeout(left).unwrap_or_else(|_| panic!("never told of {names:?}"));
        if let Ok(table) = load_dir(dir, &engines())
            && table.iter().map(|route| &*route.name).eq(names.iter().copied())
        {
            return;
        }
    }
}

#[test]
fn every_kind_of_change_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("routes");
    let (changed, changes) = mpsc::channel();
    let watch = watch(&dir, is_route_file, move || changed.send(()).unwrap_or_default()).unwrap();
    // It appears.
    fs::create_dir(&dir).unwrap();
    write(&dir, "one.toml", "one.e");
    wait_for(&changes, &dir, &["one"]);
    // A file more, in place and by rename.
    write(&dir, "two.toml", "two.e");
    wait_for(&changes, &dir, &["one", "two"]);
    write(&dir, ".three.tmp", "three.e");
    fs::rename(dir.join(".three.tmp"), dir.join("three.toml")).unwrap();
    wait_for(&changes, &dir, &["one", "three", "two"]);
    fs::remove_file(dir.join("two.toml")).unwrap();
    wait_for(&changes, &dir, &["one", "three"]);
    // The folder is replaced: by rename, then removed and made again.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&other, "four.toml", "four.e");
    fs::rename(&dir, folder.path().join("old")).unwrap();
    fs::rename(&other, &dir).unwrap();
    wait_for(&changes, &dir, &["four"]);
    write(&dir, "five.toml", "five.e");
    wait_for(&changes, &dir, &["five", "four"]);
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    write(&dir, "six.toml", "six.e");
    wait_for(&changes, &dir, &["six"]);
    write(&dir, "seven.toml", "seven.e");
    wait_for(&changes, &dir, &["seven", "six"]);
    drop(watch);
    // Its thread has ended, and the sender with it.
    while changes.try_recv().is_ok() {}
    assert_eq!(changes.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn a_config_maps_swap_of_symlinks_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for version in ["..v1", "..v2"] {
        fs::create_dir(path(version)).unwrap();
    }
    write(&path("..v1"), "demo.toml", "one.e");
    write(&path("..v2"), "demo.toml", "two.e");
    symlink("..v1", path("..data")).unwrap();
    symlink("..data/demo.toml", path("demo.toml")).unwrap();
    let host = || {
        let table = load_dir(dir.path(), &engines()).unwrap();
        table.get("demo").unwrap().host.to_string()
    };
    assert_eq!(host(), "one.e");
    let (changed, changes) = mpsc::channel();
    let _watch =
        watch(dir.path(), is_route_file, move || changed.send(()).unwrap_or_default()).unwrap();
    symlink("..v2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while host() != "two.e" || changes.try_recv().is_err() {
        assert!(Instant::now() < deadline, "never told");
        std::thread::yield_now();
    }
}

#[test]
fn a_folder_behind_a_symlink_that_is_turned_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for version in ["v1", "v2"] {
        fs::create_dir(path(version)).unwrap();
        write(&path(version), &format!("{version}.toml"), &format!("{version}.e"));
    }
    symlink("v1", path("routes")).unwrap();
    let (changed, changes) = mpsc::channel();
    let _watch =
        watch(&path("routes"), is_route_file, move || changed.send(()).unwrap_or_default())
            .unwrap();
    symlink("v2", path("tmp")).unwrap();
    fs::rename(path("tmp"), path("routes")).unwrap();
    wait_for(&changes, &path("routes"), &["v2"]);
    write(&path("v2"), "new.toml", "new.e");
    wait_for(&changes, &path("routes"), &["new", "v2"]);
}

#[test]
fn a_watch_may_be_dropped_by_what_it_calls() {
    let dir = tempfile::tempdir().unwrap();
    let slot = Arc::new(std::sync::Mutex::new(None));
    let (dropped, drops) = mpsc::channel();
    let own = slot.clone();
    let watch = watch(dir.path(), is_route_file, move || {
        drop(own.lock().unwrap().take());
        dropped.send(()).unwrap_or_default();
    });
    *slot.lock().unwrap() = Some(watch.unwrap());
    write(dir.path(), "one.toml", "one.e");
    drops.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(slot.lock().unwrap().is_none());
}

#[test]
fn good_files_are_routes_beside_bad_ones_whose_hosts_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "all.toml", "{session}.e");
    write(dir.path(), "good.toml", "good.e");
    write(dir.path(), "twin-a.toml", "twin.e");
    write(dir.path(), "twin-b.toml", "twin.e");
    write(dir.path(), "checked.toml", "checked.e");
    fs::write(dir.path().join("typo.toml"), "host = \"typo.e\"\nengin = \"local\"").unwrap();
    fs::write(dir.path().join("cut.toml"), "host = \"cut.e\"\n[instance\nx =").unwrap();
    // As `check` finds it where a file of passwords is missing.
    let check = |table: &dormouse::route::RouteTable| match table.get("checked") {
        Some(route) => vec![dormouse::route::RouteError {
            file: route.file.clone(),
            at: None,
            message: "no".to_owned(),
            hint: None,
        }],
        None => Vec::new(),
    };
    let loaded = load_good(dir.path(), &engines(), check).unwrap();
    assert!(loaded.table.is_partial());
    let of = |host: &str| loaded.table.lookup(host).map(|route| route.name.to_string());
    assert_eq!(of("good.e").as_deref(), Some("good"));
    assert_eq!(of("alice.e").as_deref(), Some("all"));
    for closed in ["typo.e", "cut.e", "twin.e", "checked.e"] {
        assert_eq!(of(closed), None, "{closed}: the wider pattern may let others in");
    }
    assert!(load_good(Path::new("/nowhere/routes"), &engines(), |_| Vec::new()).is_err());
}
