//! The shape of answers over HTTP and of the command line: tokens, allowed methods, encodings, errors.

use std::{net::SocketAddr, process::Command};

use flotilla_tests::support::{binary, start};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// An answer: its status, its head in lower case, and its body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

async fn call(at: SocketAddr, method: &str, path: &str, body: &[u8]) -> Answer {
    call_with(at, method, path, &[], body).await
}

async fn call_with(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("a request is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

#[tokio::test]
async fn writes_and_reads_carry_a_token_and_a_binary_record_costs_no_page() {
    let cluster = start(1).await;
    let at = cluster.node(1).expect("node 1").http;
    for (key, value) in [("text", &b"plain"[..]), ("binary", b"\xff\0")] {
        let put = call(at, "PUT", &format!("/v1/kv/default/{key}"), value).await;
        let token = put.json()["token"].as_str().expect("a token").to_owned();
        let read = call(at, "GET", &format!("/v1/kv/default/{key}?token={token}"), b"").await;
        assert!(!token.is_empty() && read.status == 200);
        assert_eq!(read.header("flotilla-token"), Some(token.to_ascii_lowercase().as_str()));
    }
    let page = call(at, "GET", "/v1/kv/default", b"").await.json();
    let items = page["items"].as_array().expect("items");
    let facts = |item: &Value| ["key", "value", "encoding"].map(|name| item[name].as_str().map(str::to_owned));
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(facts(&items[0]), [some("YmluYXJ5"), some("/wA="), some("base64")]);
    assert_eq!(facts(&items[1]), [some("text"), some("plain"), None]);
    let refused = call(at, "GET", "/v1/kv/default?encoding=utf8", b"").await;
    assert!(refused.status == 400 && refused.json()["type"] == "not_utf8", "{}", refused.body);
    let removed = call(at, "DELETE", "/v1/kv/default/text", b"").await.json();
    assert!(removed["token"].as_str().is_some_and(|token| !token.is_empty()), "{removed}");
}

#[tokio::test]
async fn a_client_sends_and_gets_only_what_it_lacks() {
    let cluster = start(3).await;
    let at = |i| cluster.node(i).expect("a node").http;
    let path = "/v1/kv/default/page";
    let put = call(at(1), "PUT", path, b"0123456789").await;
    let tag = put.header("etag").expect("a tag").to_owned();
    let get = async |i, headers: &[(&str, &str)]| call_with(at(i), "GET", path, headers, b"").await;

    let whole = get(2, &[("if-none-match", "\"other\"")]).await;
    assert_eq!((whole.status, whole.body.as_str(), whole.header("etag")), (200, "0123456789", Some(tag.as_str())));
    let unchanged = get(3, &[("if-none-match", &tag)]).await;
    assert_eq!((unchanged.status, unchanged.body.as_str(), unchanged.header("etag")), (304, "", Some(tag.as_str())));
    let head = call(at(2), "HEAD", path, b"").await;
    assert_eq!(
        (head.status, head.header("etag"), head.header("content-length")),
        (200, Some(tag.as_str()), Some("10"))
    );
    let part = get(1, &[("range", "bytes=7-"), ("if-range", &tag)]).await;
    assert_eq!((part.status, part.body.as_str(), part.header("content-range")), (206, "789", Some("bytes 7-9/10")));
    let outside = get(1, &[("range", "bytes=10-")]).await;
    assert_eq!((outside.status, outside.header("content-range")), (416, Some("bytes */10")));
    assert_eq!(outside.json()["type"], "range_not_satisfiable");

    let put = async |i, name, tags: &str, body: &[u8]| call_with(at(i), "PUT", path, &[(name, tags)], body).await;
    let stale = put(2, "if-match", "\"other\"", b"x").await;
    assert!(stale.status == 412 && stale.json()["type"] == "condition_failed", "{}", stale.body);
    assert_eq!(put(2, "if-none-match", "*", b"x").await.status, 412);
    assert_eq!(put(2, "if-none-match", &tag, b"x").await.status, 412);
    let changed = put(3, "if-match", &tag, b"new").await;
    assert_eq!((changed.status, changed.header("etag") == Some(tag.as_str())), (200, false));
    assert_eq!(get(1, &[("if-match", &tag)]).await.status, 412);
    assert_eq!(get(1, &[("range", "bytes=7-"), ("if-range", &tag)]).await.body, "new", "it is another value");
    let delete = async |tags: &str| call_with(at(1), "DELETE", path, &[("if-match", tags)], b"").await.status;
    assert_eq!(delete(&tag).await, 412);
    assert_eq!(delete("*").await, 200);
    assert_eq!(put(1, "if-match", "*", b"x").await.status, 412, "there is no record");
    assert_eq!(put(1, "if-none-match", "*", b"x").await.status, 200);
    let both = call_with(at(1), "PUT", &format!("{path}?if_absent"), &[("if-match", "*")], b"x").await;
    assert_eq!(both.json()["type"], "invalid_argument");
    assert_eq!(get(1, &[("if-none-match", "no tag")]).await.status, 400);
}

/// Writers that each add one to a value, by the tag that they have read, lose no addition.
#[tokio::test]
async fn tags_make_a_change_of_a_value_atomic() {
    const WRITERS: usize = 4;
    const ADDITIONS: u32 = 10;
    let cluster = start(3).await;
    let path = "/v1/kv/default/count";
    let first = cluster.node(1).expect("node 1").http;
    assert_eq!(call(first, "PUT", path, b"0").await.status, 200);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let at = cluster.node(writer % 3 + 1).expect("a node").http;
        writers.spawn(async move {
            let mut added = 0;
            while added < ADDITIONS {
                let read = call(at, "GET", path, b"").await;
                let next = read.body.parse::<u32>().expect("a number") + 1;
                let tag = [("if-match", read.header("etag").expect("a tag"))];
                match call_with(at, "PUT", path, &tag, next.to_string().as_bytes()).await {
                    Answer { status: 200, .. } => added += 1,
                    Answer { status: 412, .. } => {}
                    other => panic!("{} {}", other.status, other.body),
                }
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("a writer");
    }
    let count = call(first, "GET", path, b"").await.body;
    assert_eq!(count, (WRITERS as u32 * ADDITIONS).to_string());
}

#[tokio::test]
async fn a_refused_method_is_told_which_are_allowed() {
    let cluster = start(1).await;
    let at = cluster.node(1).expect("node 1").http;
    for (method, path, allowed) in [
        ("PATCH", "/v1/kv/default/k", &["get", "head", "put", "delete"][..]),
        ("POST", "/v1/kv/default", &["get"]),
        ("PUT", "/v1/batch", &["post"]),
        ("POST", "/v1/cluster/status", &["get"]),
        ("PATCH", "/v1/collections", &["get", "post", "delete"]),
    ] {
        let answer = call(at, method, path, b"{}").await;
        assert!(answer.status == 405 && answer.json()["type"] == "method_not_allowed", "{method} {path}");
        let said = answer.header("allow").unwrap_or_else(|| panic!("{method} {path}: {}", answer.head));
        let said: Vec<_> = said.split(',').map(str::trim).collect();
        assert!(allowed.iter().all(|method| said.contains(method)), "{method} {path}: {said:?}");
        assert!(!said.contains(&method.to_ascii_lowercase().as_str()), "{method} {path}: {said:?}");
    }
}

#[tokio::test]
async fn failures_of_the_command_line_are_json_where_data_is() {
    let cluster = start(1).await;
    let at = cluster.node(1).expect("node 1").http.to_string();
    for (arguments, kind, code) in [
        (&["kv", "get", "none"][..], "not_found", 3),
        (&["kv", "get", "k", "--collection", "none"], "collection_not_found", 3),
        (&["kv", "gett"], "usage", 2),
    ] {
        let command = |format: &str| {
            let output = Command::new(binary()).args(["--addr", &at, "-o", format]).args(arguments).output();
            output.expect("the command runs")
        };
        let json = command("json");
        let failure: Value = serde_json::from_slice(&json.stderr).expect("JSON on stderr");
        assert!(failure["type"] == kind && failure["exit_code"] == code, "{arguments:?}: {failure}");
        assert!(json.status.code() == Some(code) && json.stdout.is_empty(), "{arguments:?}");
        let text = command("table");
        assert_eq!(text.status.code(), Some(code));
        assert!(text.stderr.starts_with(b"error: "), "{arguments:?}");
    }
}
