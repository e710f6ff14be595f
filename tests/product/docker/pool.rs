//! Spares that are containers.

use serde_json::json;

use super::{Yard, hello};
use crate::pool::{instance, wait_for_spares};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_takes_a_paused_container_and_removes_it_in_the_end() {
    let ladder = "[pool]\nready = 2\n[idle]\nmin_awake = \"0s\"\n\
                  sleep = [{ after = \"1h\", to = \"stopped\" }, { after = \"2h\", to = \"removed\" }]\n";
    let mut yard = Yard::new(&hello(ladder));
    let waiting = wait_for_spares(&mut yard.edge);
    let paused = waiting.iter().all(|spare| yard.status(spare) == "paused");
    assert!(paused && yard.crew.containers().len() == 2);

    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    let hers = instance(&yard.edge, "alice.test");
    assert!(waiting.contains(&hers));
    assert_eq!((yard.status(&hers), yard.status("alice.test")), ("running".into(), "none".into()));
    yard.put_to_sleep("alice.test", "removed");
    assert_eq!(yard.status(&hers), "none");
    assert_eq!(yard.edge.session("alice.test")["instance"], json!(null), "the next is another");
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    wait_for_spares(&mut yard.edge);
}
