//! What needs no edge: check, explain from files alone, schema, completions, and wrong usage.

use std::{fs, path::Path, process::Stdio};

use tempfile::TempDir;

use crate::{
    admin_bed::{ROUTE, TOKEN},
    command::{DONE, FAILED, UNKNOWN, UNREACHABLE, USAGE, command, dormouse},
};

/// A folder as an operator has it. Nobody listens on its admin socket.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("routes")).unwrap();
    write(folder.path(), "dormouse.toml", "[listen]\nadmin = \"unix:admin.sock\"\n");
    write(folder.path(), "routes/demo.toml", ROUTE);
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

#[tokio::test]
async fn check_is_content_with_good_files() {
    let folder = folder();
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    ended.says("ok: 1 route of routes").says("engines docker, local (dormouse.toml)");
    assert_eq!(ended.err, "");
    let data = dormouse(folder.path(), &["check", "--json"]).await.code(DONE).json();
    assert_eq!((&data["ok"], &data["routes"][0]), (&true.into(), &"demo".into()));

    fs::remove_file(folder.path().join("dormouse.toml")).unwrap();
    dormouse(folder.path(), &["check"]).await.code(DONE).says("no file, the defaults");
    let named = dormouse(folder.path(), &["check", "--config", "dormouse.toml"]).await;
    named.code(USAGE).complains("dormouse.toml: there is no such file");
}

#[tokio::test]
async fn check_tells_every_error_with_its_place_and_a_hint() {
    let folder = folder();
    write(folder.path(), "routes/a.toml", "host = \"a.example\"\nengine = \"lcal\"\n");
    write(folder.path(), "routes/b.toml", "host = \"b.example\"\nengin = \"local\"\n");
    let ended = dormouse(folder.path(), &["check"]).await.code(USAGE);
    ended.complains("routes/a.toml:2:10: ").complains("routes/b.toml:2:1: ");
    ended.complains("\n    hint: ").complains("\n2 errors");
    assert_eq!(ended.out, "");
    let data = dormouse(folder.path(), &["check", "--json"]).await.code(USAGE).json();
    assert_eq!((&data["ok"], data["errors"].as_array().unwrap().len()), (&false.into(), 2));
    assert_eq!((&data["errors"][0]["line"], &data["errors"][0]["column"]), (&2.into(), &10.into()));

    write(folder.path(), "dormouse.toml", "[limits]\nheld = 0\n");
    let config = dormouse(folder.path(), &["check"]).await.code(USAGE);
    config.complains("dormouse.toml:2:8: ");
}

#[tokio::test]
async fn what_an_engine_s_name_means_can_be_swapped_for_one_run() {
    let folder = folder();
    write(
        folder.path(),
        "dormouse.toml",
        "[engines.main]\nkind = \"process\"\nrunning = 3\n[listen]\nadmin = \"unix:admin.sock\"\n",
    );
    let route = "host = \"{session}.example\"\nengine = \"main\"\n[instance]\ncommand = [\"x\"]\n\
                 [idle]\nsleep = [{ after = \"1m\", to = \"paused\" }]\n";
    write(folder.path(), "routes/demo.toml", route);
    let check = async |more: &[&str]| dormouse(folder.path(), &[&["check"], more].concat()).await;
    check(&[]).await.code(DONE);
    let docker = check(&["--engine", "main=docker"]).await.code(USAGE);
    docker.complains("routes/demo.toml:3:1: nothing says which container");
    let pods = check(&["--engine", "main=kubernetes"]).await.code(USAGE);
    pods.complains("nothing says what the Pod runs");
    check(&["--engine", "main=fly"]).await.code(USAGE).complains("[engines.main.fly]");
    let unknown = check(&["--engine", "man=docker"]).await.code(USAGE);
    unknown.complains("no engine is called `man`").complains("did you mean `main`?");
    check(&["--engine", "main"]).await.code(USAGE).complains("expected NAME=KIND");
    check(&["--engine", "main=dokcer"]).await.code(USAGE).complains("dokcer");
}

#[tokio::test]
async fn check_reads_what_access_rests_on_and_explain_says_who_may_enter() {
    let folder = folder();
    let access = "[access]\nlink = true\nbasic = { users = \"users\" }\nrequire = \"any\"\n";
    write(folder.path(), "routes/demo.toml", &format!("{ROUTE}{access}"));
    let settings = "[links]\nkeys = { a = \"a.key\" }\n";
    write(folder.path(), "dormouse.toml", settings);
    write(folder.path(), "a.key", "short");
    write(folder.path(), "routes/users", "# who\nalice:open sesame\n");
    let ended = dormouse(folder.path(), &["check"]).await.code(USAGE);
    ended.complains("a.key: a key of 5 bytes").complains("routes/users:2:7: not a hash");
    ended.complains("\n2 errors");
    assert!(!format!("{ended:?}").contains("sesame"), "{ended:?}");

    write(folder.path(), "a.key", "0123456789 0123456789 0123456789");
    write(folder.path(), "routes/users", "");
    dormouse(folder.path(), &["check"]).await.code(DONE);
    let explained = dormouse(folder.path(), &["explain", "alice.localhost"]).await.code(DONE);
    explained
        .says("access    link or basic; refused otherwise, and nothing wakes; WebSockets from");
    write(folder.path(), "routes/demo.toml", ROUTE);
    let explained = dormouse(folder.path(), &["explain", "alice.localhost"]).await.code(DONE);
    explained.says("access    open: everybody may enter; WebSockets from the session's own pages");
}

#[tokio::test]
async fn check_warns_of_what_was_hardly_meant() {
    let folder = folder();
    write(folder.path(), "routes/demo.toml", &ROUTE.replace("1h", "10s").replace("1s", "2m"));
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    ended.complains("warning: routes/demo.toml: idle.after is 10s, but idle.min_awake");
    fs::remove_file(folder.path().join("routes/demo.toml")).unwrap();
    let empty = dormouse(folder.path(), &["check"]).await.code(DONE);
    empty.complains("warning: routes: no routes").says("ok: 0 routes");

    let fly = "[engines.away]\nkind = \"fly\"\nfly.app = \"desks\"\n";
    let public = format!("{fly}fly.public = \"https://desks.fly.dev\"\n");
    write(folder.path(), "dormouse.toml", &public);
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    ended.complains("warning: engines.away.fly.public: whoever knows desks.fly.dev reaches");
    write(folder.path(), "dormouse.toml", fly);
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    assert!(!ended.err.contains("public"), "{}", ended.err);
}

#[tokio::test]
async fn check_reads_the_token_and_never_prints_it() {
    let folder = folder();
    write(folder.path(), "dormouse.toml", "[admin]\ntoken_file = \"token\"\n");
    dormouse(folder.path(), &["check"]).await.code(USAGE).complains("token: cannot be read");
    write(folder.path(), "token", "short-secret\n");
    let ended = dormouse(folder.path(), &["check"]).await.code(USAGE);
    ended.complains("token: the token has 12 characters");
    assert!(!ended.err.contains("short-secret"), "{ended:?}");
    write(folder.path(), "token", TOKEN);
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    assert!(!(ended.out + &ended.err).contains(TOKEN));
}

#[tokio::test]
async fn explain_tells_what_a_url_gets_without_an_edge() {
    let folder = folder();
    for url in ["http://Alice.localhost:8080/a?b", "alice.localhost", "https://alice.localhost."] {
        let ended = dormouse(folder.path(), &["explain", url]).await.code(DONE);
        ended.says("session   alice.localhost\n").says("route     demo (routes/demo.toml)");
        ended.says("captures  session = alice\n").says("engine    local (kind process)");
        ended.says("sleeps    stopped after 1h without use").says("unknown: no edge answers");
        assert!(!ended.out.contains("hunter2"), "{ended:?}");
    }
    let ended = dormouse(folder.path(), &["explain", "alice.localhost", "--json"]).await;
    let data = ended.code(DONE).json();
    assert_eq!(data["captures"]["session"], "alice");
    assert_eq!(data["wake"]["timeout"], "30s");
    assert!(data["live"].is_null() && data["live_error"].is_string(), "{data}");
    assert!(!data.to_string().contains("hunter2"), "{data}");
}

#[tokio::test]
async fn explain_says_what_is_wrong() {
    let folder = folder();
    let none = dormouse(folder.path(), &["explain", "http://alice.example/"]).await.code(UNKNOWN);
    none.complains("no route of routes has the host alice.example")
        .complains("{session}.localhost");
    for wrong in ["http://", "/path", "http://-.localhost/", "two words"] {
        dormouse(folder.path(), &["explain", wrong]).await.code(USAGE);
    }
    write(folder.path(), "routes/a.toml", "host = 1");
    let broken = dormouse(folder.path(), &["explain", "alice.localhost"]).await.code(USAGE);
    broken.complains("routes/a.toml:1:8: ");
}

#[tokio::test]
async fn the_schema_is_the_committed_one() {
    let folder = folder();
    for (kind, file) in [("dormouse", "dormouse.schema.json"), ("route", "route.schema.json")] {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema").join(file);
        let ended = dormouse(folder.path(), &["schema", kind]).await.code(DONE);
        assert_eq!(ended.out, fs::read_to_string(committed).unwrap());
    }
    dormouse(folder.path(), &["schema", "other"]).await.code(USAGE);
}

#[tokio::test]
async fn shells_complete_every_command() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish"] {
        let ended = dormouse(folder.path(), &["completions", shell]).await.code(DONE);
        ended.says("explain").says("sessions").says("paused");
    }
    dormouse(folder.path(), &["completions", "sh"]).await.code(USAGE);
}

#[tokio::test]
async fn wrong_usage_is_told_apart_from_help() {
    let folder = folder();
    let help = dormouse(folder.path(), &["--help"]).await.code(DONE);
    help.says("Exit codes:").says("3  the edge cannot be reached").says("Examples:");
    for command in ["check", "explain", "sessions", "wake", "sleep", "reload"] {
        let help = dormouse(folder.path(), &[command, "--help"]).await.code(DONE);
        help.says("Examples:").says("--json");
    }
    let wrong: [&[&str]; 6] = [
        &[],
        &["wkae"],
        &["wake"],
        &["wake", "not a host"],
        &["sleep", "alice.localhost", "--to", "deep"],
        &["sessions", "--admin", "localhost"],
    ];
    for args in wrong {
        let ended = dormouse(folder.path(), args).await.code(USAGE);
        assert_eq!(ended.out, "", "{args:?}");
        assert_ne!(ended.err, "", "{args:?}");
    }
}

#[tokio::test]
async fn without_an_edge_the_code_says_so() {
    let folder = folder();
    let commands: [&[&str]; 4] = [
        &["sessions"],
        &["wake", "alice.localhost"],
        &["sleep", "alice.localhost"],
        &["reload", "--json"],
    ];
    for args in commands {
        let ended = dormouse(folder.path(), args).await.code(UNREACHABLE);
        ended.complains("admin.sock cannot be reached").complains("`dormouse run`");
        assert_eq!(ended.out, "", "{args:?}");
    }
}

#[tokio::test]
async fn nobody_reading_is_no_failure() {
    let folder = folder();
    let long: [&[&str]; 4] =
        [&["completions", "bash"], &["schema", "route"], &["check"], &["explain", "a.localhost"]];
    for args in long {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(folder.path(), args);
        command.stdout(writer).stderr(Stdio::piped());
        let ended = end_with_closed_stdout(command).await;
        assert_eq!((ended.0, ended.1.as_str()), (DONE, ""), "{args:?}");
    }
}

/// `Command::output` would open a pipe of its own.
async fn end_with_closed_stdout(mut command: tokio::process::Command) -> (i32, String) {
    let child = command.spawn().unwrap();
    let output = child.wait_with_output().await.unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn chmod(file: &Path, mode: u32) {
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn check_tells_of_secrets_that_everybody_can_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for made in ["routes/users", "state"] {
        fs::create_dir_all(path(made)).unwrap();
    }
    let config = "[listen]\nadmin = \"unix:admin.sock\"\n[admin]\ntoken_file = \"token\"\n\
                  [links]\ncurrent = \"a\"\nkeys = { a = \"a.key\" }\n";
    fs::write(path("dormouse.toml"), config).unwrap();
    let hash = bcrypt::hash("x", 4).unwrap();
    let access = |users: &str| {
        format!("{ROUTE}[access]\nbasic = {{ users = {users:?}, user = \"{{session}}\" }}\n")
    };
    fs::write(path("routes/one.toml"), access("people")).unwrap();
    let own = access("users/{session}.htpasswd").replace("{session}.localhost", "{session}.test");
    fs::write(path("routes/own.toml"), own).unwrap();
    let secrets = ["token", "a.key", "routes/people", "routes/users/alice.htpasswd"].map(path);
    for (file, text) in secrets.iter().zip(["0123456789abcdef", "0123456789abcdef0123456789abcdef"])
    {
        fs::write(file, text).unwrap();
    }
    for file in &secrets[2..] {
        fs::write(file, format!("alice:{hash}\n")).unwrap();
    }
    chmod(folder.path(), 0o755);
    chmod(&path("state"), 0o755);
    let told = |text: &str| text.matches("everybody on this machine can read it").count();
    for (mode, count) in [(0o644, 4), (0o640, 0), (0o600, 0)] {
        secrets.iter().for_each(|file| chmod(file, mode));
        let check = dormouse(folder.path(), &["check"]).await.code(DONE);
        assert_eq!(told(&check.err), count, "{mode:o}: {}", check.err);
        check.complains("state: everybody can look into it");
    }
    // A folder that keeps others out is enough.
    secrets.iter().for_each(|file| chmod(file, 0o644));
    chmod(folder.path(), 0o700);
    chmod(&path("state"), 0o700);
    let check = dormouse(folder.path(), &["check"]).await.code(DONE);
    assert_eq!(check.err, "");
    // A session's own file that cannot be read keeps the others from nothing.
    fs::write(path("routes/users/bob.htpasswd"), "bob:plain\n").unwrap();
    let check = dormouse(folder.path(), &["check"]).await.code(DONE);
    check.complains("bob.htpasswd:1:5: not a hash");
}

#[tokio::test]
async fn check_tells_of_access_that_one_user_has_to_all_sessions() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("routes")).unwrap();
    fs::write(folder.path().join("dormouse.toml"), "[listen]\nadmin = \"unix:admin.sock\"\n")
        .unwrap();
    let hash = bcrypt::hash("x", 4).unwrap();
    let users = folder.path().join("routes/users");
    fs::write(&users, format!("alice:{hash}\n")).unwrap();
    chmod(&users, 0o600);
    let jwt = |claims: &str| {
        format!("jwt = {{ jwks = \"https://id.test/\", algorithm = \"RS256\", claims = {claims} }}")
    };
    for (access, told) in [
        ("basic = { users = \"users\" }".to_owned(), "basic binds no user"),
        ("basic = { users = \"users\", user = \"alice\" }".into(), "basic binds no user"),
        ("basic = { users = \"users\", user = \"{session}\" }".into(), ""),
        ("basic = { users = \"users/{session}\" }".into(), ""),
        (jwt("{}"), "jwt binds no user"),
        (jwt("{ team = \"a\" }"), "jwt binds no user"),
        (jwt("{ sub = \"{session}\" }"), ""),
        ("mtls = {}".into(), "mtls binds no user"),
        ("mtls = { san = [\"{session}.test\", \"*.test\"] }".into(), "mtls binds no user"),
        ("mtls = { san = [\"{session}.test\"] }".into(), ""),
        // Whoever has a link as well was let into this session.
        ("link = true\nbasic = { users = \"users\" }".into(), ""),
        (
            "require = \"any\"\nlink = true\nbasic = { users = \"users\" }".into(),
            "basic binds no user",
        ),
        ("addresses = { allow = [\"10.0.0.0/8\"] }".into(), ""),
    ] {
        fs::write(folder.path().join("routes/demo.toml"), format!("{ROUTE}[access]\n{access}\n"))
            .unwrap();
        let check = dormouse(folder.path(), &["check"]).await.code(DONE);
        match told {
            "" => assert_eq!(check.err, "", "{access}"),
            told => drop(check.complains(told).complains("may enter all of them")),
        }
    }
    let exact = ROUTE.replace("{session}.localhost", "alice.localhost");
    let text = format!("{exact}[access]\nbasic = {{ users = \"users\" }}\n");
    fs::write(folder.path().join("routes/demo.toml"), text).unwrap();
    assert_eq!(dormouse(folder.path(), &["check"]).await.code(DONE).err, "");
}

#[tokio::test]
async fn check_notes_what_the_engine_does_otherwise() {
    let folder = folder();
    let route = "host = \"{session}.example\"\n[instance]\ncommand = [\"serve\", \"--port=$PORT\"]\n\
                 memory = \"64MiB\"\n[idle]\nsleep = [{ after = \"2m\", to = \"suspended\" }]\n";
    write(folder.path(), "routes/demo.toml", route);
    let ended = dormouse(folder.path(), &["check"]).await.code(DONE);
    ended
        .complains("note: routes/demo.toml:3:21: `$PORT` stays as it is")
        .complains("hint: write `{port}`")
        .complains("note: routes/demo.toml:4:10: `memory` does nothing")
        .complains("an engine of kind process has no `suspended`: the session goes to `stopped`");
    let data = dormouse(folder.path(), &["check", "--json"]).await.code(DONE).json();
    assert_eq!(data["notes"].as_array().unwrap().len(), 3, "{data}");
}

/// What stops a start is said once, with the file or the address that it is about.
#[tokio::test]
async fn a_start_that_fails_says_why_and_where() {
    let folder = folder();
    let missing = "[listen]\nadmin = \"unix:admin.sock\"\n[admin]\ntoken_file = \"nope\"\n";
    write(folder.path(), "dormouse.toml", missing);
    let ended = dormouse(folder.path(), &["run"]).await.code(FAILED);
    ended.complains("/nope (admin.token_file): cannot be read: No such file or directory");
    assert_eq!(ended.err.matches("No such file").count(), 1, "{}", ended.err);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|at| (taken, at)).unwrap();
    let listen = |at: &str| format!("[listen]\nhttp = [\"{at}\"]\nadmin = \"unix:admin.sock\"\n");
    write(folder.path(), "dormouse.toml", &listen(&taken.1.to_string()));
    let ended = dormouse(folder.path(), &["run"]).await.code(FAILED);
    ended.complains("(listen.http)").complains("is something else listening there?");
    write(folder.path(), "dormouse.toml", &listen("192.0.2.1:8080"));
    let ended = dormouse(folder.path(), &["run"]).await.code(FAILED);
    ended.complains("cannot listen on 192.0.2.1:8080 (listen.http)");
    ended.complains("no interface has this address");
    assert!(!ended.err.contains("something else"), "{}", ended.err);
}
