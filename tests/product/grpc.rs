//! gRPC: unary and streaming calls, the first of which wakes their session.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    guest::{self, Guest},
    support::{Edge, Setup},
};

fn edge() -> Edge {
    Setup::new().route("demo", &guest::route(Guest::Grpc, "[ready]\nprobe = \"tcp\"\n")).start()
}

fn channel(edge: &Edge, host: &str) -> Channel {
    let origin = format!("http://{host}").parse().expect("a URI");
    let endpoint = Endpoint::from_shared(format!("http://{}", edge.http)).expect("an endpoint");
    endpoint.origin(origin).connect_lazy()
}

fn asks(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_call_wakes_and_is_answered_with_its_trailers() {
    let edge = edge();
    let mut client = HealthClient::new(channel(&edge, "alice.test"));
    let answer = client.check(asks("demo")).await.expect("an answer");
    let status = answer.metadata().get("grpc-status").expect("trailers");
    assert_eq!(status, "0");
    assert!(answer.metadata().contains_key("server-timing"), "it was held");
    assert_eq!(answer.get_ref().status(), ServingStatus::Serving);
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_unary_call_is_the_instances_own() {
    let edge = edge();
    let mut client = HealthClient::new(channel(&edge, "alice.test"));
    let error = client.check(asks("nobody")).await.expect_err("no such service");
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(error.message(), "service not registered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stream_stays_open_and_keeps_its_session_awake() {
    let mut edge = Setup::new()
        .config("[timeouts]\nclient_head = \"1s\"\nclient_body = \"1s\"\nanswer = \"1s\"\n")
        .route(
            "demo",
            &guest::route(Guest::Grpc, "[idle]\nafter = \"100ms\"\nmin_awake = \"0s\"\n"),
        )
        .start();
    let mut client = HealthClient::new(channel(&edge, "alice.test"));
    let mut watch = client.watch(asks("demo")).await.expect("an answer").into_inner();
    let first = watch.message().await.expect("open").expect("a message");
    assert_eq!(first.status(), ServingStatus::Serving);
    // No event tells of a timeout that does not come: twice the longest of them.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(edge.session("alice.test")["leases"], 1);
    assert_eq!(edge.state("alice.test"), "awake");
    // Another call of the same connection, and the stream is as it was.
    client.check(asks("demo")).await.expect("an answer");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(edge.session("alice.test")["leases"], 1, "another call's end has cut the stream");
    drop((watch, client));
    edge.wait_state("alice.test", "asleep");
    assert_eq!(edge.starts("alice.test"), 1);
}

type Replies = tonic::Streaming<ServerReflectionResponse>;

/// The bidirectional call of the reflection service.
async fn reflect(channel: Channel) -> (mpsc::Sender<ServerReflectionRequest>, Replies) {
    let mut client = server_reflection_client::ServerReflectionClient::new(channel);
    let (questions, receiver) = mpsc::channel(4);
    // Asked before there is an answer: an instance may want a question first.
    questions.send(symbol("grpc.health.v1.Health")).await.expect("room");
    let stream = client.server_reflection_info(ReceiverStream::new(receiver)).await;
    (questions, stream.expect("an answer").into_inner())
}

fn symbol(name: &str) -> ServerReflectionRequest {
    let asked = MessageRequest::FileContainingSymbol(name.to_owned());
    ServerReflectionRequest { host: String::new(), message_request: Some(asked) }
}

fn found(reply: &ServerReflectionResponse) -> bool {
    matches!(reply.message_response, Some(MessageResponse::FileDescriptorResponse(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bidirectional_stream_wakes_and_goes_back_and_forth() {
    let edge = edge();
    let (questions, mut replies) = reflect(channel(&edge, "alice.test")).await;
    assert!(found(&replies.message().await.expect("open").expect("a reply")));
    for _ in 0..20 {
        // Each is asked only after the one before was answered: nothing is buffered.
        questions.send(symbol("grpc.health.v1.Health")).await.expect("room");
        assert!(found(&replies.message().await.expect("open").expect("a reply")));
    }
    drop(questions);
    assert!(replies.message().await.expect("a good end").is_none());
    let trailers = replies.trailers().await.expect("a good end").expect("trailers");
    assert_eq!(trailers.get("grpc-status").expect("a status"), "0");
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_messages_travels_in_the_trailers() {
    let edge = edge();
    let (questions, mut replies) = reflect(channel(&edge, "alice.test")).await;
    assert!(found(&replies.message().await.expect("open").expect("a reply")));
    questions.send(symbol("no.such.Thing")).await.expect("room");
    let error = replies.message().await.expect_err("no such symbol");
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("no.such.Thing"), "{error}");
}
