//! HTTP/2 in, HTTP/1.1 out: an instance of HTTP/1.1 understands what it gets in exactly one way.

use std::process::Command;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use serde_json::Value;

use crate::{
    guest::{self, Guest},
    h2::{body, connect, get},
    strict,
    support::{Edge, Setup},
};

const HOST: &str = "alice.test";

fn strict(config: &str) -> Edge {
    Setup::new().config(config).route("demo", &guest::route(Guest::Strict, "")).start()
}

fn request(method: &str, path: &str) -> Request<()> {
    let method: Method = method.parse().expect("a method");
    let uri = format!("http://{HOST}{path}");
    Request::builder().method(method).uri(uri).body(()).expect("a request")
}

/// What is sent of one request's body, frame by frame, and how it ends.
#[derive(Debug)]
struct Sent {
    frames: Vec<usize>,
    ends: Ends,
    says_length: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// The last frame of the body ends the stream.
    Last,
    /// An empty one does.
    Empty,
    Trailers,
}

/// The answer's status, and what the instance says that it got.
async fn ask(
    sender: &mut SendRequest<Bytes>,
    mut request: Request<()>,
    sent: &Sent,
) -> (u16, Value) {
    let length: usize = sent.frames.iter().sum();
    if sent.says_length {
        request.headers_mut().insert("content-length", length.into());
    }
    *sender = sender.clone().ready().await.expect("it is ready");
    let (answer, mut stream) = sender.send_request(request, false).expect("sent");
    let last = sent.frames.len().checked_sub(1).filter(|_| sent.ends == Ends::Last);
    for (at, size) in sent.frames.iter().enumerate() {
        // Bodies that were begun go their way before what follows comes.
        tokio::task::yield_now().await;
        stream.send_data(Bytes::from(vec![b'x'; *size]), Some(at) == last).expect("sent");
    }
    match sent.ends {
        Ends::Last if last.is_some() => {}
        Ends::Last | Ends::Empty => {
            stream.send_data(Bytes::new(), true).expect("sent");
        }
        Ends::Trailers => {
            let trailers = [("x-sum".parse().expect("a name"), "1".parse().expect("a value"))];
            stream.send_trailers(trailers.into_iter().collect()).expect("sent");
        }
    }
    let answer = answer.await.expect("an answer");
    let status = answer.status().as_u16();
    let said = body(answer.into_body()).await;
    (status, serde_json::from_slice(&said).unwrap_or(Value::Null))
}

/// Each of one connection's requests is a body in frames as a seed has them; the next is one without.
#[tokio::test(flavor = "multi_thread")]
async fn any_frames_make_one_body_and_the_next_request_is_in_step() {
    let edge = strict("");
    let mut sender = connect(edge.http).await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below).expect("small")
    };
    let mut kept = 0;
    for round in 0..150 {
        let frames = (0..draw(6)).map(|_| [0, 1, draw(100), draw(20_000)][draw(4)]).collect();
        let ends = [Ends::Last, Ends::Empty, Ends::Trailers][draw(3)];
        let sent = Sent { frames, ends, says_length: draw(3) == 0 };
        let length: usize = sent.frames.iter().sum();
        let (status, said) = ask(&mut sender, request("POST", "/"), &sent).await;
        let got = said["body"].as_str().map(str::len);
        assert_eq!((status, got), (200, Some(length)), "round {round}: {sent:?}: {said}");
        let none = Sent { frames: vec![], ends: Ends::Empty, says_length: false };
        let (status, said) = ask(&mut sender, request("GET", "/next"), &none).await;
        assert_eq!(status, 200, "round {round}, after {sent:?}");
        assert_eq!(said["line"], "GET /next HTTP/1.1");
        assert_eq!(said["body"], "");
        kept += u32::from(said["before"].as_u64() != Some(0));
    }
    assert_eq!(strict::strayed(&edge), None);
    assert!(0 < kept, "no connection to the instance was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_have_no_body_has_none_however_it_is_framed() {
    let edge = strict("");
    let mut sender = connect(edge.http).await;
    let some = Sent { frames: vec![3], ends: Ends::Last, says_length: false };
    for method in ["GET", "HEAD"] {
        let (status, _) = ask(&mut sender, request(method, "/"), &some).await;
        assert_eq!(status, 400, "{method} with a body");
        let later = Sent { frames: vec![0, 0, 5], ends: Ends::Empty, says_length: false };
        assert_eq!(ask(&mut sender, request(method, "/"), &later).await.0, 400, "{method}");
    }
    assert_eq!(edge.starts(HOST), 0, "none of them wakes");
    // None, though the head does not say so.
    for ends in [Ends::Empty, Ends::Trailers] {
        let none = Sent { frames: vec![], ends, says_length: false };
        let (status, said) = ask(&mut sender, request("GET", "/"), &none).await;
        assert_eq!((status, &said["chunks"]), (200, &0.into()), "{ends:?}: {said}");
        let fields = said["fields"].to_string().to_ascii_lowercase();
        assert!(!fields.contains("transfer-encoding"), "{ends:?}: {fields}");
    }
    let (status, said) = ask(&mut sender, request("DELETE", "/"), &some).await;
    assert_eq!((status, &said["body"]), (200, &"xxx".into()));
    assert_eq!(strict::strayed(&edge), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_may_have_a_body_of_unknown_length_where_the_operator_says_so() {
    let edge = strict("[limits]\nget_body = \"pass\"\n");
    let mut sender = connect(edge.http).await;
    let some = Sent { frames: vec![3], ends: Ends::Empty, says_length: false };
    let (status, said) = ask(&mut sender, request("GET", "/"), &some).await;
    assert_eq!((status, &said["body"]), (200, &"xxx".into()));
    assert_eq!(ask(&mut sender, request("HEAD", "/"), &some).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_none_is_refused_with_an_id_and_counted() {
    let edge = strict("");
    let mut sender = connect(edge.http).await;
    let refused = |edge: &Edge| edge.metric(&["dormouse_refused_total", "bad_request"]);
    let mut star = request("OPTIONS", "/");
    *star.uri_mut() = http::Uri::builder()
        .scheme("http")
        .authority(HOST)
        .path_and_query("*")
        .build()
        .expect("a target");
    let ask = async |sender: &mut SendRequest<Bytes>, request| {
        let (answer, _) = sender.send_request(request, true).expect("sent");
        let answer = answer.await.expect("an answer");
        (answer.status().as_u16(), answer.headers().contains_key("x-request-id"))
    };
    let mut get = star.clone();
    *get.method_mut() = Method::GET;
    assert_eq!(ask(&mut sender, get).await, (400, true));
    assert_eq!(refused(&edge), 1.0);
    let connect = Request::connect(HOST).body(()).expect("a request");
    assert_eq!(ask(&mut sender, connect).await, (405, true));
    assert_eq!(refused(&edge), 2.0);
    assert_eq!(edge.starts(HOST), 0, "none of them wakes");
    assert_eq!(ask(&mut sender, star).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_in_several_fields_reach_the_instance_in_one() {
    // A browser sends each as a field of its own, and there may be more of them than headers.
    let edge = strict("[limits]\nheaders = 20\n");
    let mut sender = connect(edge.http).await;
    let mut many = get(HOST, "/");
    for number in 0..60 {
        let cookie = format!("c{number}={number}").parse().expect("a value");
        many.headers_mut().append("cookie", cookie);
    }
    let (answer, _) = sender.send_request(many, true).expect("sent");
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let said: Value = serde_json::from_slice(&body(answer.into_body()).await).expect("JSON");
    let fields: Vec<_> = said["fields"].as_array().expect("fields").iter().collect();
    let is_cookie = |field: &&&Value| {
        field.as_str().is_some_and(|field| field.to_ascii_lowercase().starts_with("cookie:"))
    };
    let cookies: Vec<_> = fields.iter().filter(is_cookie).collect();
    let all: Vec<_> = (0..60).map(|number| format!("c{number}={number}")).collect();
    assert_eq!(cookies.len(), 1, "{cookies:?}");
    let (_, value) = cookies[0].as_str().and_then(|c| c.split_once(": ")).expect("a field");
    assert_eq!(value, all.join("; "));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_goes_to_an_instance_of_http_1_1() {
    let edge = strict("");
    let mut sender = connect(edge.http).await;
    for kind in ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"]
    {
        let mut call = request("POST", "/a.B/C");
        call.headers_mut().insert("content-type", kind.parse().expect("a value"));
        let sent = Sent { frames: vec![5], ends: Ends::Last, says_length: false };
        let (status, said) = ask(&mut sender, call, &sent).await;
        assert_eq!((status, &said["body"]), (200, &"xxxxx".into()), "{kind}");
    }
}

/// Servers of other hands, each of which takes a second end of a body for a bad request.
#[tokio::test(flavor = "multi_thread")]
async fn curl_uploads_of_unknown_length_leave_the_servers_of_others_in_step() {
    let asgi = "async def app(scope, receive, send):
    if scope['type'] != 'http': raise RuntimeError
    body, more = b'', True
    while more:
        event = await receive()
        body, more = body + event.get('body', b''), event.get('more_body', False)
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'got ' + body})
";
    let wsgi = "def app(environ, start_response):
    body = environ['wsgi.input'].read()
    start_response('200 OK', [('Content-Length', str(4 + len(body)))])
    return [b'got ' + body]
";
    let node = "const [host, port] = process.env.AT.split(':');
require('http').createServer((request, answer) => {
  let body = '';
  request.on('data', data => body += data).on('end', () => answer.end('got ' + body));
}).listen(port, host);
";
    let servers = [
        ("hypercorn", "exec hypercorn --bind $AT asgi:app"),
        ("uvicorn", "exec uvicorn --host {host} --port {port} asgi:app"),
        ("gunicorn", "exec gunicorn --threads 2 --bind $AT wsgi:app"),
        ("node", "exec node node.js"),
    ];
    let mut setup = Setup::new().file("asgi.py", asgi).file("wsgi.py", wsgi).file("node.js", node);
    for (name, command) in servers {
        let script = format!("cd $TEST_DIR && {command}");
        setup = setup.route(
            name,
            &format!(
                "host = \"{name}.test\"\nengine = \"local\"\n[instance]\n\
                 command = [\"/bin/sh\", \"-c\", {script:?}]\n\
                 env = {{ TEST_DIR = \"@DIR@\", AT = \"{{address}}\", \
                 PATH = \"/usr/local/bin:/usr/bin:/bin\" }}\n"
            ),
        );
    }
    let edge = setup.start();
    for (name, _) in servers {
        let url = edge.url(&format!("{name}.test"), "/");
        let curl = format!(
            "curl -sS --http2-prior-knowledge --resolve {name}.test:{port}:127.0.0.1 \
             -w ' %{{http_code}}\\n'",
            port = edge.http.port()
        );
        // One connection of the edge to the server carries all of them, one after the other.
        let script =
            format!("for n in 1 2 3 4 5; do printf hello | {curl} -T - {url}; {curl} {url}; done");
        let came = Command::new("/bin/sh").args(["-c", &script]).output().expect("a shell");
        let said = String::from_utf8_lossy(&came.stdout).into_owned();
        assert_eq!(said, "got hello 200\ngot  200\n".repeat(5), "{name}: {came:?}");
    }
}
