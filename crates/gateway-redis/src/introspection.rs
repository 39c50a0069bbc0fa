//! Replies that need no store: `COMMAND`, `HELLO` and `CONFIG GET`.
//!
//! `CONFIG GET` has a few settings that clients and benchmarks request. They describe this server's behaviour
//! in Redis's terms and cannot be changed.

use bytes::Bytes;

use crate::{Glob, Introspection, Protocol, Reply, Spec, TABLE};

/// The reply to `COMMAND …`.
#[must_use]
pub fn introspection_reply(query: &Introspection) -> Reply {
    match query {
        Introspection::Count => Reply::Integer(TABLE.len() as i64),
        Introspection::List => Reply::Array(TABLE.iter().map(|spec| text(spec.name)).collect()),
        Introspection::Info(names) if names.is_empty() => Reply::Array(TABLE.iter().map(info).collect()),
        Introspection::Info(names) => {
            Reply::Array(names.iter().map(|name| Spec::find(name).map_or(Reply::Null, info)).collect())
        }
        Introspection::Docs(names) if names.is_empty() => Reply::Map(TABLE.iter().map(docs).collect()),
        Introspection::Docs(names) => Reply::Map(names.iter().filter_map(|name| Spec::find(name)).map(docs).collect()),
    }
}

/// The subcommands of commands that have some, with their summaries.
const SUBCOMMANDS: &[(&str, &[(&str, &str)])] = &[
    ("memory", &[("USAGE <key> [SAMPLES <count>]", "Bytes of key, value and header.")]),
    (
        "object",
        &[
            ("ENCODING <key>", "How Redis would store the value."),
            ("FREQ <key>", "Not counted; an error."),
            ("IDLETIME <key>", "Seconds since the last write."),
            ("REFCOUNT <key>", "Always 1."),
        ],
    ),
    (
        "script",
        &[
            ("EXISTS <sha1> [<sha1> ...]", "Which scripts this node knows."),
            ("FLUSH [ASYNC|SYNC]", "Forgets all scripts."),
            ("KILL", "Nothing to do: scripts end by themselves."),
            ("LOAD <script>", "Remembers a script on this node."),
        ],
    ),
];

/// The reply to `… HELP`.
#[must_use]
pub fn help_reply(command: &str) -> Reply {
    let line = |line: &str| Reply::text(line);
    let mut lines = vec![line(&format!("{} <subcommand> [<arg> ...]. Subcommands are:", command.to_ascii_uppercase()))];
    let subcommands = SUBCOMMANDS.iter().filter(|(name, _)| *name == command).flat_map(|(_, subcommands)| *subcommands);
    for (usage, summary) in subcommands.chain(&[("HELP", "Prints this help.")]) {
        lines.extend([line(usage), line(&format!("    {summary}"))]);
    }
    Reply::Array(lines)
}

/// The reply to `HELLO` on a connection that now speaks `protocol`. `version` is the version of Redis to
/// report.
#[must_use]
pub fn hello_reply(version: &'static str, protocol: Protocol, connection: u64) -> Reply {
    Reply::Map(vec![
        (text("server"), text("redis")),
        (text("version"), text(version)),
        (text("proto"), Reply::Integer(protocol.number())),
        (text("id"), Reply::Integer(i64::try_from(connection).unwrap_or(i64::MAX))),
        (text("mode"), text("standalone")),
        (text("role"), text("master")),
        (text("modules"), Reply::Array(Vec::new())),
    ])
}

/// Settings under Redis's names.
const SETTINGS: &[(&str, &str)] = &[
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("databases", "1"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("proto-max-bulk-len", "4194304"),
    ("save", ""),
    ("timeout", "0"),
];

/// The reply to `CONFIG GET pattern …`.
#[must_use]
pub fn config_reply(patterns: &[Bytes]) -> Reply {
    let globs: Vec<_> = patterns.iter().map(|pattern| Glob::new(pattern.to_ascii_lowercase().into())).collect();
    let matches = |name: &str| globs.iter().any(|glob| glob.matches(name.as_bytes()));
    let pairs = SETTINGS.iter().filter(|(name, _)| matches(name)).map(|(name, value)| (text(name), text(value)));
    Reply::Map(pairs.collect())
}

fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

fn info(spec: &Spec) -> Reply {
    let (first, last, step) = spec.keys;
    let empty = || Reply::Array(Vec::new());
    Reply::Array(vec![
        text(spec.name),
        Reply::Integer(spec.arity.into()),
        Reply::Set(spec.flags.iter().map(|flag| Reply::Simple(flag)).collect()),
        Reply::Integer(first.into()),
        Reply::Integer(last.into()),
        Reply::Integer(step.into()),
        Reply::Set(Vec::new()),
        empty(),
        empty(),
        empty(),
    ])
}

fn docs(spec: &Spec) -> (Reply, Reply) {
    let group = if spec.keys.0 > 0 { "string" } else { "connection" };
    (text(spec.name), Reply::Map(vec![(text("summary"), text(spec.summary)), (text("group"), text(group))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_null_in_info_and_absent_in_docs() {
        let names = vec![Bytes::from_static(b"nope"), Bytes::from_static(b"GET")];
        let Reply::Array(infos) = introspection_reply(&Introspection::Info(names.clone())) else { panic!() };
        assert!(infos[0] == Reply::Null && matches!(&infos[1], Reply::Array(fields) if fields[0] == text("get")));
        assert!(matches!(introspection_reply(&Introspection::Docs(names)), Reply::Map(pairs) if pairs.len() == 1));
    }

    #[test]
    fn settings_are_found_by_patterns() {
        let found = |pattern: &'static str| match config_reply(&[Bytes::from_static(pattern.as_bytes())]) {
            Reply::Map(pairs) => pairs.len(),
            _ => panic!("not a map"),
        };
        assert_eq!((found("SAVE"), found("append*"), found("nothing"), found("*")), (1, 2, 0, SETTINGS.len()));
    }
}
