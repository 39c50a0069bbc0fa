//! The `Host` of requests: an address, or a name that is configured.
//!
//! A web page can have its own name resolve to this node's address ("DNS rebinding"), and may then read and
//! write here as if the node were its own server. Such requests carry the page's name in `Host`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
};

use axum::http::{HeaderMap, header};

/// A name that always means this machine.
const LOOPBACK_NAME: &str = "localhost";

/// The names that are trusted in `Host`.
#[derive(Debug, Default)]
pub(super) struct HostNames {
    any: bool,
    exact: HashSet<String>,
    /// Each with its leading dot.
    suffixes: Vec<String>,
}

impl HostNames {
    /// Trusts these names, as [`HttpConfig::host_names`](super::HttpConfig) describes them.
    pub(super) fn new(names: &[String]) -> Self {
        let mut hosts = Self { suffixes: vec![format!(".{LOOPBACK_NAME}")], ..Self::default() };
        hosts.exact.insert(LOOPBACK_NAME.to_owned());
        for name in names {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix('*') {
                Some("") => hosts.any = true,
                Some(suffix) => hosts.suffixes.push(suffix.to_owned()),
                None => drop(hosts.exact.insert(name)),
            }
        }
        hosts
    }

    /// Whether every `Host` of a request is trusted. A request without one is of no browser.
    pub(super) fn trust(&self, headers: &HeaderMap) -> bool {
        headers.get_all(header::HOST).iter().all(|host| host.to_str().is_ok_and(|host| self.trust_name(host)))
    }

    fn trust_name(&self, host: &str) -> bool {
        if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.any
            || name.parse::<IpAddr>().is_ok()
            || self.exact.contains(&name)
            || self.suffixes.iter().any(|suffix| name.ends_with(suffix))
    }
}

/// Whether a setting names a host, all names below one, or all names.
pub(super) fn is_host_name(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    name == "*" || (!rest.is_empty() && rest.len() <= 253 && rest.bytes().all(is_part))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn hosts(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::HOST, HeaderValue::from_str(value).expect("a header value"))).collect()
    }

    #[test]
    fn addresses_loopback_names_and_told_names_are_trusted() {
        let names = HostNames::new(&["db.example".to_owned(), "*.flotilla.svc".to_owned()]);
        for host in [
            "127.0.0.1:7111",
            "10.1.2.3",
            "[::1]:7111",
            "[2001:db8::1]",
            "localhost:7111",
            "LocalHost.",
            "a.localhost",
            "DB.example:80",
            "n1.flotilla.svc",
        ] {
            assert!(names.trust(&hosts(&[host])), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:7111",
            "evil-localhost",
            "db.example.evil",
            "flotilla.svc",
            "[evil]",
            "127.0.0.1.evil.example",
            "",
            "db.example:x",
        ] {
            assert!(!names.trust(&hosts(&[host])), "{host}");
        }
        assert!(!names.trust(&hosts(&["localhost", "evil.example"])), "each of several must be trusted");
        assert!(names.trust(&hosts(&[])));
        assert!(HostNames::new(&["*".to_owned()]).trust(&hosts(&["evil.example"])));
    }

    #[test]
    fn a_setting_is_a_name_without_a_port() {
        assert!(["*", "*.a.b", "db-1.example", "localhost"].iter().all(|name| is_host_name(name)));
        assert!(["", "*.", "a:1", "http://a", "a b", "**"].iter().all(|name| !is_host_name(name)));
    }
}
