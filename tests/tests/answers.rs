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
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
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
