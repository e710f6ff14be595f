use std::{collections::BTreeMap, fs};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    access::unix_now,
    route::{EngineKind, Engines},
};

/// A key of OpenSSL's, and tokens that OpenSSL has signed with it.
const N: &str = "wyZBMzMbxHMhTWBOFdowvp5dne7cgkPaPNvgAO2licM6c2ekJ8rQ9sqHNOnHsB9B_ORJYbwmTVVr2y2F\
    fsKgnvwEGQZB_Y5_2nkHjB612PspY92dPSZfF0OMpkyscEH3NlY1RDJyEM9T_B6EyiZG8oDpwhClOuex\
    FE4obtBMS1NPqjpf3jKqSO4wfWlmHOLmmI0E2AdihswsYDhGuDwfpPOhIFuPXvqkGfLis1mxwhV9uDBv\
    XDtktGCcxxNVVKBe_jOIgIEIW26SyHABQ5gYlmUiu5vFZOTDt2krFzGywWzg2B3mjA3l--peYn1t3OQU\
    Kgrij4wjrarxY5GO7mPmgQ";
const RS256: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.F\
    72SFSVBKET1tKRtMm1yrBFPcaG5slNUvCaeSzuVSxXcufQnQlaig3hruftgWJea1lwZcQPPJXKyazg9x\
    ej9Z4uqKp063IlnzvTCgWGZaQzqZaEE7dCtird4ZMy2i4iQpGGXxCFwa7U981F7hl3N2MQo_7O4VmJP_\
    QDljfEJO1iQpiXtHEoDKp2AJ75fEhHiHNExt-_BjSqUA6mnsom--AFUfVxjCtgeZmgJBKBETzjURMIDC\
    3IbcZ2BEzqroYNsx0HeR31KmiOzn9ilEY17DbdRzCipaqacIfU5BgfjPgeXYxOZ-oS_GSx5oeVnPvDiW\
    j60H56xTNUtGFlNT3ZKmw";
const PS256: &str = "eyJhbGciOiJQUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.P\
    gKNgJNl8NoVJMHeWdkBqb5o72hBtSd46IMA1El1fInnI3Tkm0IXV7O8ckKRvhK-fpxpMnw3w0ctLiAIZ\
    hV1PL2xOT3-oe7hfTWatnIers7lfpAzTajhvuvmwG7A8b9GIzHsZtA4BtqJhm8bCROBK8oZHwFtrnmAy\
    SpJX9nz5h0zDyXcGUGHvoII3F2Qae_nbN_0AduZNyKV5VpUxqDPLdrtdxKvPhfcI3BFcDnnX4oKCTIT4\
    4HzF8irIl6jYHGf5p4p7j2Yct4whPiEoh2TnuQ6B3NUQwK04nmWpvBC6NpcI6T8XPCEGWC42BOb0Twh3\
    oDYqzlXp1Nk6vTBMAgOgQ";

struct Bed {
    folder: TempDir,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Bed {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ec =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random);
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let bed = Self { folder: tempfile::tempdir().unwrap(), ec: ec.unwrap(), ed };
        let point = bed.ec.public_key().as_ref();
        bed.write(&json!({ "keys": [
            { "kty": "RSA", "kid": "r", "n": N, "e": "AQAB" },
            { "kty": "EC", "crv": "P-256", "kid": "e", "x": text(&point[1..33]), "y": text(&point[33..]) },
            { "kty": "OKP", "crv": "Ed25519", "kid": "d", "x": text(bed.ed.public_key()) },
            { "kty": "oct", "kid": "h", "k": text("a secret that both sides know, 32") },
            { "kty": "something new", "kid": "n" },
        ]}));
        bed
    }

    fn write(&self, set: &Value) {
        fs::write(self.folder.path().join("keys.json"), set.to_string()).unwrap();
    }

    fn jwt(&self, algorithm: &str) -> Jwt {
        Jwt {
            jwks: access::KeySet {
                at: KeySetAt::File(self.folder.path().join("keys.json")),
                refresh: Duration::from_secs(600),
            },
            algorithm: algorithm.into(),
            issuer: None,
            audience: Vec::new(),
            claims: BTreeMap::new(),
            user: "sub".into(),
            cookie: Some("token".into()),
            leeway: Duration::from_secs(5),
        }
    }

    fn es256(&self, claims: &Value) -> String {
        let signed = signed(&json!({ "alg": "ES256", "kid": "e" }), claims);
        let signature = self.ec.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", text(signature))
    }
}

fn signed(header: &Value, claims: &Value) -> String {
    format!("{}.{}", text(header.to_string()), text(claims.to_string()))
}

fn good() -> Value {
    json!({ "sub": "alice", "exp": unix_now() + 100 })
}

async fn asked(jwt: &Jwt, headers: &[(header::HeaderName, String)]) -> Outcome {
    let route = "host = \"{session}.test\"\n[instance]\ncommand = [\"x\"]\n";
    let engines = Engines::from([("local".to_owned(), EngineKind::Process)]);
    let route = Route::parse("r", Path::new("r.toml"), route, &engines).unwrap();
    let headers =
        headers.iter().map(|(name, value)| (name.clone(), HeaderValue::try_from(value).unwrap()));
    let headers = HeaderMap::from_iter(headers);
    let request = Request {
        method: &Method::GET,
        uri: &Uri::from_static("/"),
        headers: &headers,
        host: "alice.test",
        named: "alice.test",
        is_secure: true,
        is_upgrade: false,
        address: None,
        certificate: None,
    };
    ask(jwt, &KeySet::new(&jwt.jwks), &Fetch::new(), &route, &request).await
}

async fn enters(jwt: &Jwt, token: &str) -> bool {
    let bearer = [(header::AUTHORIZATION, format!("Bearer {token}"))];
    matches!(asked(jwt, &bearer).await, Outcome::Met(Met { user: Some(user), .. }) if user == "alice")
}

#[tokio::test]
async fn each_algorithm_that_is_pinned_counts_and_no_other() {
    let bed = Bed::new();
    let eddsa = signed(&json!({ "alg": "EdDSA", "kid": "d" }), &good());
    let eddsa = format!("{eddsa}.{}", text(bed.ed.sign(eddsa.as_bytes())));
    let hs256 = signed(&json!({ "alg": "HS256", "kid": "h" }), &good());
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret that both sides know, 32");
    let hs256 = format!("{hs256}.{}", text(hmac::sign(&key, hs256.as_bytes())));
    let es256 = bed.es256(&good());
    let all = [
        ("RS256", RS256),
        ("PS256", PS256),
        ("ES256", &*es256),
        ("EdDSA", &*eddsa),
        ("HS256", &*hs256),
    ];
    for (pinned, _) in all {
        for (algorithm, token) in all {
            assert_eq!(
                enters(&bed.jwt(pinned), token).await,
                pinned == algorithm,
                "{pinned} {algorithm}"
            );
        }
    }
}

/// The public key is known to everybody: as a secret it would let everybody in.
#[tokio::test]
async fn a_token_cannot_choose_its_algorithm() {
    let bed = Bed::new();
    let point = bed.ec.public_key().as_ref();
    let rsa = URL_SAFE_NO_PAD.decode(N).unwrap();
    for (kid, secret) in [("e", point), ("e", &point[1..]), ("r", &rsa), ("r", N.as_bytes())] {
        let forged = signed(&json!({ "alg": "HS256", "kid": kid }), &good());
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let forged = format!("{forged}.{}", text(hmac::sign(&key, forged.as_bytes())));
        for pinned in ["RS256", "ES256", "HS256"] {
            assert!(!enters(&bed.jwt(pinned), &forged).await, "{kid} {pinned}");
        }
    }
    for none in ["none", "None", "NONE", ""] {
        let forged = signed(&json!({ "alg": none, "kid": "e" }), &good());
        for end in ["", ".", ".AA"] {
            assert!(!enters(&bed.jwt("ES256"), &format!("{forged}{end}")).await);
        }
    }
}

#[tokio::test]
async fn a_changed_token_does_not_count() {
    let bed = Bed::new();
    let token = bed.es256(&good());
    assert!(enters(&bed.jwt("ES256"), &token).await);
    for index in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(!enters(&bed.jwt("ES256"), &changed).await, "{index}");
    }
}

#[tokio::test]
async fn times_issuer_audience_and_claims_are_checked() {
    let bed = Bed::new();
    let now = unix_now();
    let strict = Jwt {
        issuer: Some("us".into()),
        audience: vec!["desks".into(), "more".into()],
        claims: BTreeMap::from([
            ("sub".into(), "{session}".into()),
            ("groups".into(), "ops".into()),
        ]),
        ..bed.jwt("ES256")
    };
    let right = json!({
        "sub": "alice", "iss": "us", "aud": ["x", "desks"], "exp": now + 100, "nbf": now - 1,
        "groups": ["dev", "ops"],
    });
    assert!(enters(&strict, &bed.es256(&right)).await);
    for (claim, value) in [
        ("exp", json!(now - 6)),
        ("exp", Value::Null),
        ("exp", json!("tomorrow")),
        ("nbf", json!(now + 60)),
        ("nbf", json!("yesterday")),
        ("iss", json!("them")),
        ("iss", Value::Null),
        ("aud", json!("other")),
        ("aud", Value::Null),
        ("sub", json!("bob")),
        ("sub", json!("alice2")),
        ("groups", json!(["dev"])),
        ("groups", Value::Null),
    ] {
        let mut wrong = right.clone();
        wrong[claim] = value;
        assert!(!enters(&strict, &bed.es256(&wrong)).await, "{wrong}");
    }
    let mut nearly = right.clone();
    nearly["exp"] = json!(now - 2);
    assert!(enters(&strict, &bed.es256(&nearly)).await, "within the leeway");
}

#[tokio::test]
async fn what_does_not_fit_is_forbidden_and_what_is_no_token_is_unknown() {
    let bed = Bed::new();
    let claims = BTreeMap::from([("sub".to_owned(), "{session}".to_owned())]);
    let jwt = Jwt { claims, ..bed.jwt("ES256") };
    let bearer = |token: String| [(header::AUTHORIZATION, format!("Bearer {token}"))];
    let bob = json!({ "sub": "bob", "exp": unix_now() + 100 });
    let refused = asked(&jwt, &bearer(bed.es256(&bob))).await;
    assert!(matches!(refused, Outcome::Not(Refusal::NotAllowed)), "{refused:?}");
    for headers in [&[][..], &bearer("x".into()), &bearer(String::new())] {
        let refused = asked(&jwt, headers).await;
        assert!(
            matches!(refused, Outcome::Not(Refusal::Unknown { bearer: true, .. })),
            "{refused:?}"
        );
    }
    let cookie = [(header::COOKIE, format!("a=1; token={}", bed.es256(&good())))];
    assert!(matches!(asked(&jwt, &cookie).await, Outcome::Met(_)));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_new_is_read_and_one_that_is_gone_does_not_count() {
    let (old, new) = (Bed::new(), Bed::new());
    let set = KeySet::new(&old.jwt("ES256").jwks);
    let (jwt, fetch) = (old.jwt("ES256"), Fetch::new());
    let count = async |id: &str| set.keys(Some(id), &jwt, &fetch).await.map(|keys| keys.len());
    assert_eq!(count("e").await, Some(1));
    let point = new.ec.public_key().as_ref();
    old.write(&json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "kid": "e2", "x": text(&point[1..33]), "y": text(&point[33..]) },
    ]}));
    // One reading for an unknown key, and then none for a while.
    assert_eq!(count("e2").await, Some(0));
    tokio::time::advance(AGAIN_AFTER).await;
    assert_eq!(count("e2").await, Some(1));
    assert_eq!(count("e").await, Some(0));
    // A set that cannot be read any more counts for a day.
    old.write(&json!("nonsense"));
    tokio::time::advance(Duration::from_secs(601)).await;
    set.refresh_if_due(&fetch).await;
    assert_eq!(count("e2").await, Some(1));
    tokio::time::advance(STALE_AFTER).await;
    assert_eq!(count("e2").await, None);
}

#[test]
fn what_is_no_key_set_is_told() {
    for (text, expected) in [
        ("", "no JSON"),
        ("[]", "no key set"),
        ("{\"keys\": 1}", "no key set"),
        ("{\"keys\": []}", "no key in it can be used"),
        ("{\"keys\": [{\"kty\": \"RSA\"}]}", "no key in it can be used"),
    ] {
        assert!(parse(text.as_bytes()).unwrap_err().contains(expected), "{text}");
    }
}
