use std::fs;

use http::{HeaderMap, HeaderValue, Method, Uri};

use super::*;

/// The cheapest that there are: these tests are about who, not about how long.
const BCRYPT: &str = "$2y$04$8YjjkHhBpqTxVaLfyxZq5uhbNBzUaHF5lqDKXu2pMzRQ.7EUoa8Hy";

fn argon2(password: &str) -> String {
    use argon2::{Params, PasswordHasher as _};
    let params = Params::new(Params::MIN_M_COST, 1, 1, None).unwrap();
    let hasher = Argon2::from(params);
    hasher.hash_password_with_salt(password.as_bytes(), b"salt and pepper").unwrap().to_string()
}

async fn asked(users: &Arc<Users>, name: &str, password: &str) -> Outcome {
    let given = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
    let headers =
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::try_from(given).unwrap())]);
    let request = Request {
        method: &Method::GET,
        uri: &Uri::from_static("/"),
        headers: &headers,
        host: "a.test",
        named: "a.test",
        is_secure: true,
        is_upgrade: false,
        address: None,
        certificate: None,
    };
    let hashing = Arc::new(Semaphore::new(1));
    match credentials(&request) {
        Some((name, password)) => judge(users, &hashing, name, password, true).await,
        None => Outcome::Not(Refusal::Unknown { basic: true, bearer: false }),
    }
}

async fn enters(users: &Arc<Users>, name: &str, password: &str) -> bool {
    matches!(asked(users, name, password).await, Outcome::Met(Met { user: Some(user), .. }) if user == name)
}

#[tokio::test]
async fn the_right_password_of_the_right_user_enters() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let bcrypt =
        bcrypt::hash_with_result("b:ö", 4).unwrap().format_for_version(bcrypt::Version::TwoY);
    fs::write(&file, format!("# who\n\nalice:{}\nbob:{bcrypt}\n", argon2("a"))).unwrap();
    let users = Arc::new(Users::new(&file));
    // Twice: the second time it is remembered.
    for _ in 0..2 {
        assert!(enters(&users, "alice", "a").await);
        assert!(enters(&users, "bob", "b:ö").await);
        for (name, password) in
            [("alice", "b:ö"), ("bob", "a"), ("eve", "a"), ("alice", ""), ("", "a")]
        {
            assert!(!enters(&users, name, password).await, "{name}:{password}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_counts_also_for_what_is_remembered_and_a_broken_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    fs::write(&file, format!("alice:{}\n", argon2("old"))).unwrap();
    let users = Arc::new(Users::new(&file));
    assert!(enters(&users, "alice", "old").await);
    fs::write(&file, format!("alice:{}\n# changed\n", argon2("new"))).unwrap();
    tokio::time::advance(LOOK_AGAIN).await;
    assert!(!enters(&users, "alice", "old").await);
    assert!(enters(&users, "alice", "new").await);
    fs::write(&file, "alice:nonsense").unwrap();
    tokio::time::advance(LOOK_AGAIN).await;
    assert!(enters(&users, "alice", "new").await);
    fs::remove_file(&file).unwrap();
    tokio::time::advance(LOOK_AGAIN).await;
    assert!(enters(&users, "alice", "new").await);
}

#[test]
fn mistakes_are_told_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let good = argon2("x");
    fs::write(&file, format!("a:{good}\nb:secret\nc\n:{good}\na:{good}\nd:$apr1$x$y\n")).unwrap();
    let errors = read(&file).unwrap_err();
    let places: Vec<_> =
        errors.iter().map(|e| e.at.map(|at| (at.line, at.column)).unwrap()).collect();
    assert_eq!(places, [(2, 3), (3, 3), (4, 1), (5, 1), (6, 3)]);
    let told = errors.iter().map(ToString::to_string).collect::<String>();
    assert!(!told.contains("secret") && !told.contains("apr1$x"), "{told}");
}

#[test]
fn what_htpasswd_writes_is_read() {
    assert!(matches!(Hash::parse(BCRYPT), Some(Hash::Bcrypt(_))));
    for wrong in ["", "x", "$argon2id$v=19$m=8", "$2y$04$short", "{SHA}x"] {
        assert!(Hash::parse(wrong).is_none(), "{wrong}");
    }
}
