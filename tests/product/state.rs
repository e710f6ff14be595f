//! What an edge keeps in its state folder, and what the page for operators says of it.

use std::{fs, path::Path};

use crate::support::{Setup, client, witnessed};

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_the_state_folder_is_in_the_list_of_what_to_back_up() {
    let route = witnessed(
        "",
        "[access]\nrequire = \"any\"\nlink = true\naddresses = { allow = [\"127.0.0.1\"] }\n",
    );
    let mut edge = Setup::new().route("demo", &route).start();
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md"));
    let page = page.expect("the page");
    let (_, list) = page.split_once("### The state folder").expect("the list");
    let list = list.split("\n## ").next().expect("the list");
    let (_, link) = edge.admin_post("/v1/sessions/alice.test/links?expires=1h");
    let id = link["id"].as_str().expect("an id");
    assert_eq!(edge.admin_post(&format!("/v1/links/{id}/revoke")).0, 200);
    client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    edge.wait_state("alice.test", "idle");
    let entries = fs::read_dir(edge.path("state")).expect("the state folder");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort_unstable();
    // Those that hold what nobody could make again.
    for kept in ["links.key", "revoked.json"] {
        assert!(names.iter().any(|name| name == kept), "no {kept} in {names:?}");
        assert!(list.contains(&format!("| `{kept}` | ")), "{kept} is not in the list");
    }
    for name in names {
        let is_said = list.contains(&format!("`{name}`")) || list.contains(&format!("`{name}/"));
        assert!(is_said, "docs/operations.md does not say what state/{name} is");
    }
}
