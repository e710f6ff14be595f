//! The committed schemas and reference, and what an editor makes of them.

use std::{fs, path::Path};

use dormouse::{
    config::Config,
    route::load_dir,
    schema::{SchemaFile, reference},
};
use serde_json::{Value, json};

/// `DORMOUSE_BLESS=1 cargo test --test config` writes them anew.
#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for schema in SchemaFile::ALL {
        let file = Path::new("schema").join(schema.file_name());
        if std::env::var_os("DORMOUSE_BLESS").is_some() {
            fs::write(&file, schema.text()).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap();
        assert!(committed == schema.text(), "stale: {}; set DORMOUSE_BLESS=1", file.display());
    }
}

/// `DORMOUSE_BLESS=1 cargo test --test config` writes it anew.

#[test]
fn the_committed_reference_is_that_of_the_types() {
    if std::env::var_os("DORMOUSE_BLESS").is_some() {
        fs::write("docs/reference.md", reference()).unwrap();
    }
    let committed = fs::read_to_string("docs/reference.md").unwrap();
    assert!(committed == reference(), "stale: docs/reference.md; set DORMOUSE_BLESS=1");
    for key in ["limits", "timeouts", "engines.NAME", "instance.docker", "upstream"] {
        assert!(committed.contains(&format!("### `[{key}]`")), "{key}");
    }
    for key in ["host", "held", "tls_ca", "sleep { to }", "tls { verify }", "set_headers"] {
        assert!(committed.contains(&format!("| `{key}` |")), "{key}");
    }
}

fn as_json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

fn is_valid(schema: SchemaFile, text: &str) -> bool {
    jsonschema::draft7::meta::validate(&schema.generate()).unwrap();
    jsonschema::validator_for(&schema.generate()).unwrap().is_valid(&as_json(text))
}

#[test]
fn the_examples_are_valid_to_an_editor_and_to_us() {
    assert!(is_valid(SchemaFile::Dormouse, &fs::read_to_string("dormouse.toml").unwrap()));
    assert!(is_valid(SchemaFile::Route, &fs::read_to_string("routes/demo.toml").unwrap()));
    let config = Config::load(Some(Path::new("dormouse.toml"))).unwrap();
    let table = load_dir(&config.paths.routes, &config.engine_kinds()).unwrap();
    assert_eq!(&*table.lookup("alice.localhost").unwrap().name, "demo");
    for (file, schema) in
        [("dormouse.toml", "./schema/dormouse"), ("routes/demo.toml", "../schema/route")]
    {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.starts_with(&format!("#:schema {schema}.schema.json\n")), "{file}");
    }
}

#[test]
fn an_editor_accepts_what_we_accept() {
    assert!(is_valid(SchemaFile::Dormouse, ""));
    assert!(is_valid(SchemaFile::Route, "host = \"a.example\""));
    assert!(is_valid(SchemaFile::Route, include_str!("../routes/full.toml")));
}

#[test]
fn an_editor_refuses_what_is_obviously_wrong() {
    for text in [
        "listen.htp = []",
        "listen.https = [{ adress = \"127.0.0.1:443\" }]",
        "listen.https = [{ address = \"127.0.0.1:443\", client_auth = \"maybe\" }]",
        "listen.http = [{ address = \"127.0.0.1:80\", client_ca = \"ca.pem\" }]",
        "listen.trusted_proxies = [\"everybody\"]",
        "tls.min_version = \"1.1\"",
        "listen.http = \"127.0.0.1:80\"",
        "limits.held = 0",
        "limits.held = \"many\"",
        "shutdown.drain = 30",
        "shutdown.drain = \"soon\"",
        "engines.x.kind = \"vm\"",
        "engines.x.owner = \"me\"",
    ] {
        assert!(!is_valid(SchemaFile::Dormouse, text), "{text}");
    }
    for text in [
        "",
        "host = 5",
        "ready.probe = \"http\"",
        "host = \"a\"\nready.prob = \"http\"",
        "host = \"a\"\nready.probe = \"htp\"",
        "host = \"a\"\nwake.page_after = \"1s\"",
        "host = \"a\"\nidle.sleep = []",
        "host = \"a\"\nidle.sleep = [{ after = \"1s\" }]",
        "host = \"a\"\nidle.sleep = [{ after = \"1s\", to = \"asleep\" }]",
        "host = \"a\"\nupstream.tls = { verfy = true }",
        "host = \"a\"\nupstream.tls = \"yes\"",
        "host = \"a\"\ninstance.memory = 512",
        "host = \"a\"\ninstance.docker.publish = 1",
    ] {
        assert!(!is_valid(SchemaFile::Route, text), "{text}");
    }
}

#[test]
fn every_key_of_the_schemas_is_described() {
    fn walk(path: &str, schema: &Value, bare: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                bare.push(path.clone());
            }
            walk(&path, property, bare);
            walk(&path, &property["items"], bare);
            walk(&path, &property["additionalProperties"], bare);
            for one in property["anyOf"].as_array().into_iter().flatten() {
                walk(&path, one, bare);
            }
        }
    }
    let mut bare = Vec::new();
    for schema in SchemaFile::ALL {
        walk(schema.file_name(), &schema.generate(), &mut bare);
    }
    assert_eq!(bare, [""; 0]);
    assert_eq!(
        SchemaFile::Dormouse.generate()["properties"]["limits"]["properties"]["starts"]["default"],
        json!(8)
    );
}
