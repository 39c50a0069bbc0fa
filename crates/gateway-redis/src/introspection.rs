//! Replies that need no store: `COMMAND`, `HELLO` and `CONFIG GET`.
//!
//! `CONFIG GET` has a few settings that clients and benchmarks request. They describe this server's behaviour
//! in Redis's terms and cannot be changed.

use bytes::Bytes;

use crate::{CommandFilter, Glob, Introspection, Protocol, Reply, Spec, TABLE, usage::usage_of};

/// The reply to `COMMAND …`.
#[must_use]
pub fn introspection_reply(query: &Introspection) -> Reply {
    match query {
        Introspection::Count => Reply::Integer(TABLE.len() as i64),
        Introspection::List(filter) => {
            let listed = TABLE.iter().filter(|spec| is_listed(spec, filter));
            Reply::Array(listed.map(|spec| text(spec.name)).collect())
        }
        Introspection::GetKeys { request, with_flags } => keys_of(request, *with_flags),
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
    (
        "client",
        &[
            ("GETNAME", "The name of this connection."),
            ("GETREDIR", "Always -1: nothing is tracked."),
            ("ID", "The number of this connection."),
            ("INFO", "Describes this connection."),
            ("KILL <ip:port>", "Ends the connection from an address."),
            ("KILL <option> <value> [...]", "Ends connections by ID, ADDR, LADDR, TYPE, USER, MAXAGE, SKIPME."),
            ("LIST [TYPE normal] [ID <id> [<id> ...]]", "Describes the connections to this node."),
            ("NO-EVICT ON|OFF", "No effect: clients are not evicted."),
            ("NO-TOUCH ON|OFF", "No effect: reads leave no trace."),
            ("PAUSE <milliseconds> [WRITE|ALL]", "Holds back requests to this node."),
            ("REPLY ON|OFF|SKIP", "Whether requests are answered."),
            ("SETINFO LIB-NAME|LIB-VER <value>", "Names the client library."),
            ("SETNAME <name>", "Names this connection."),
            ("UNPAUSE", "Ends a pause."),
        ],
    ),
    (
        "command",
        &[
            ("", "Describes all commands."),
            ("COUNT", "The number of commands."),
            ("DOCS [<name> ...]", "Their documentation."),
            ("GETKEYS <command> [<arg> ...]", "The keys in a request."),
            ("GETKEYSANDFLAGS <command> [<arg> ...]", "The keys in a request, with their flags."),
            ("INFO [<name> ...]", "Describes some commands."),
            ("LIST [FILTERBY MODULE|ACLCAT|PATTERN <value>]", "Their names."),
        ],
    ),
    ("config", &[("GET <pattern> [<pattern> ...]", "Settings whose names match; they cannot be changed.")]),
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

fn is_listed(spec: &Spec, filter: &CommandFilter) -> bool {
    match filter {
        CommandFilter::All => true,
        CommandFilter::Module => false,
        CommandFilter::Category(category) => {
            spec.categories().iter().any(|name| name.as_bytes()[1..].eq_ignore_ascii_case(category))
        }
        CommandFilter::Pattern(glob) => glob.matches(spec.name.as_bytes()),
    }
}

/// The reply to `COMMAND GETKEYS` of this request.
fn keys_of(request: &[Bytes], with_flags: bool) -> Reply {
    let Some(spec) = request.first().and_then(|name| Spec::find(name)) else {
        return Reply::Error("ERR Invalid command specified".into());
    };
    if !spec.accepts(request.len()) {
        return Reply::Error("ERR Invalid number of arguments specified for command".into());
    }
    let keys = spec.keys_in(request);
    if keys.is_empty() {
        return Reply::Error("ERR The command has no key arguments".into());
    }
    let reply = |key: &Bytes| match with_flags {
        false => Reply::Bulk(key.clone()),
        true => Reply::Array(vec![Reply::Bulk(key.clone()), key_flags(spec)]),
    };
    Reply::Array(keys.into_iter().map(reply).collect())
}

fn key_flags(spec: &Spec) -> Reply {
    Reply::Set(vec![Reply::Simple(if spec.writes() { "RW" } else { "RO" }), Reply::Simple("ACCESS")])
}

/// Where keys are in a request, in the form of Redis 7.
fn key_specs(spec: &Spec) -> Reply {
    let (first, last, step) = spec.keys;
    let field = |name, value| (text(name), value);
    let number = |number: i32| Reply::Integer(number.into());
    let (begin, begin_at) = if spec.flags.contains(&"movablekeys") { (2, "keynum") } else { (first, "range") };
    if begin == 0 {
        return Reply::Array(Vec::new());
    }
    let find = match begin_at {
        "range" => {
            let last = if last < 0 { last } else { last - first };
            vec![field("lastkey", number(last)), field("keystep", number(step)), field("limit", number(0))]
        }
        _ => vec![field("keynumidx", number(0)), field("firstkey", number(1)), field("keystep", number(1))],
    };
    let search = |kind, spec| Reply::Map(vec![field("type", text(kind)), field("spec", Reply::Map(spec))]);
    Reply::Array(vec![Reply::Map(vec![
        field("flags", key_flags(spec)),
        field("begin_search", search("index", vec![field("index", number(begin))])),
        field("find_keys", search(begin_at, find)),
    ])])
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
    ("databases", "16"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("notify-keyspace-events", ""),
    ("proto-max-bulk-len", "4194304"),
    ("save", ""),
    ("tcp-keepalive", "60"),
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
        Reply::Set(spec.categories().into_iter().map(Reply::Simple).collect()),
        empty(),
        key_specs(spec),
        empty(),
    ])
}

fn docs(spec: &Spec) -> (Reply, Reply) {
    let mut facts = vec![(text("summary"), text(spec.summary))];
    let (since, arguments) = usage_of(spec.name).unwrap_or_default();
    facts.push((text("since"), text(since)));
    facts.push((text("group"), text(spec.group())));
    if !arguments.is_empty() {
        facts.push((text("arguments"), Reply::Array(arguments)));
    }
    (text(spec.name), Reply::Map(facts))
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
    fn keys_of_a_request_are_found_and_specified() {
        let words = |line: &str| line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let keys =
            |line: &str| introspection_reply(&Introspection::GetKeys { request: words(line), with_flags: false });
        let list = |keys: &[&str]| Reply::Array(keys.iter().map(|key| Reply::text(*key)).collect());
        assert_eq!(keys("MSET a 1 b 2"), list(&["a", "b"]));
        assert_eq!(keys("EVAL s 2 a b c"), list(&["a", "b"]));
        assert_eq!(keys("BITOP AND d a b"), list(&["d", "a", "b"]));
        for (line, refusal) in [
            ("NOPE a", "ERR Invalid command specified"),
            ("GET", "ERR Invalid number of arguments specified for command"),
            ("PING", "ERR The command has no key arguments"),
        ] {
            assert_eq!(keys(line), Reply::Error(refusal.into()), "{line}");
        }
        let listed = |filter| match introspection_reply(&Introspection::List(filter)) {
            Reply::Array(names) => names.len(),
            _ => panic!("not a list"),
        };
        assert_eq!((listed(CommandFilter::All), listed(CommandFilter::Module)), (TABLE.len(), 0));
        assert_eq!(listed(CommandFilter::Category(Bytes::from_static(b"transaction"))), 5);
        assert_eq!(listed(CommandFilter::Pattern(Glob::new(Bytes::from_static(b"eval*")))), 4);
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
