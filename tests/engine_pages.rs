//! Each kind of engine has a row in `docs/engines.md` and a page whose settings and route work as
//! they stand there.

use std::{fs, path::Path};

use dormouse::{config::Config, route::Route};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");

/// The blocks of a page that begin with `# NAME`.
fn blocks<'p>(page: &'p str, name: &str) -> Vec<&'p str> {
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.trim_start_matches("# ").starts_with(name)).collect()
}

#[test]
fn every_kind_has_a_row_and_a_page_with_a_route_that_works() {
    let table = fs::read_to_string(format!("{DOCS}/engines.md")).unwrap();
    let schema = fs::read_to_string(format!("{DOCS}/../schema/dormouse.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let of_engine = &schema["properties"]["engines"];
    let kinds = of_engine.pointer("/additionalProperties/properties/kind/enum");
    let kinds = kinds.and_then(|kinds| kinds.as_array()).unwrap();
    assert!(!kinds.is_empty());
    for kind in kinds {
        let kind = kind.as_str().unwrap();
        assert!(table.contains(&format!("(engines/{kind}.md)")), "no row for {kind}");
        let page = fs::read_to_string(format!("{DOCS}/engines/{kind}.md")).unwrap();
        let settings = blocks(&page, "dormouse.toml");
        assert!(!settings.is_empty(), "{kind}: no dormouse.toml");
        let config = Config::parse(Path::new("/etc/dormouse.toml"), settings[0], |_| None).unwrap();
        // A route says the same to both.
        let of_routes = if kind == "podman" { "docker" } else { kind };
        assert!(
            config.engine_kinds().values().any(|known| known.as_str() == of_routes),
            "{kind}: another kind in its dormouse.toml"
        );
        let routes = blocks(&page, "routes/");
        assert!(!routes.is_empty(), "{kind}: no route");
        for route in routes {
            let parsed =
                Route::parse("page", Path::new("page.toml"), route, &config.engine_kinds());
            parsed.unwrap_or_else(|errors| panic!("{kind}: {}\n{route}", errors[0]));
        }
    }
}

/// The guide from an empty host: its two files are indented, as they stand in its steps.
#[test]
fn the_guide_of_firecracker_has_a_route_that_works() {
    let guide = fs::read_to_string(format!("{DOCS}/firecracker.md")).unwrap();
    let plain = guide.replace("\n   ", "\n");
    let config =
        Config::parse(Path::new("/etc/dormouse.toml"), blocks(&plain, "dormouse.toml")[0], |_| {
            None
        })
        .unwrap();
    let route = blocks(&plain, "routes/")[0];
    let parsed = Route::parse("guide", Path::new("guide.toml"), route, &config.engine_kinds());
    parsed.unwrap_or_else(|errors| panic!("{}\n{route}", errors[0]));
}
