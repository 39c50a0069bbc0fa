//! The arguments of each command, as `COMMAND DOCS` describes them to clients that complete or check
//! commands.
//!
//! They are written as in Redis's own documentation: `[…]` is optional, `A|B` one of them, `…` repeated,
//! `(…)` a group; words in capitals stand for themselves, and one directly before a name belongs to it.

use crate::Reply;

/// Name, first version of Redis that had it, and arguments of each command, sorted by name.
const USAGES: &[(&str, &str, &str)] = &[
    ("append", "2.0.0", "key value"),
    ("auth", "1.0.0", "[username] password"),
    ("bitcount", "2.6.0", "key [start end [BYTE|BIT]]"),
    ("bitfield", "3.2.0", "key [GET encoding offset|SET encoding offset value|INCRBY encoding offset increment]..."),
    ("bitfield_ro", "6.0.0", "key [GET encoding offset]..."),
    ("bitop", "2.6.0", "(AND|OR|XOR|NOT) destkey key..."),
    ("bitpos", "2.8.7", "key bit [start [end [BYTE|BIT]]]"),
    ("client", "2.4.0", "subcommand [arg]..."),
    ("command", "2.8.13", "[subcommand [arg]...]"),
    ("config", "2.0.0", "subcommand [arg]..."),
    ("copy", "6.2.0", "source destination [DB destination-db] [REPLACE]"),
    ("dbsize", "1.0.0", ""),
    ("decr", "1.0.0", "key"),
    ("decrby", "1.0.0", "key decrement"),
    ("del", "1.0.0", "key..."),
    ("discard", "2.0.0", ""),
    ("dump", "2.6.0", "key"),
    ("echo", "1.0.0", "message"),
    ("eval", "2.6.0", "script numkeys [key]... [arg]..."),
    ("eval_ro", "7.0.0", "script numkeys [key]... [arg]..."),
    ("evalsha", "2.6.0", "sha1 numkeys [key]... [arg]..."),
    ("evalsha_ro", "7.0.0", "sha1 numkeys [key]... [arg]..."),
    ("exec", "1.2.0", ""),
    ("exists", "1.0.0", "key..."),
    ("expire", "1.0.0", "key seconds [NX|XX|GT|LT]"),
    ("expireat", "1.2.0", "key unix-time-seconds [NX|XX|GT|LT]"),
    ("expiretime", "7.0.0", "key"),
    ("flushall", "1.0.0", "[ASYNC|SYNC]"),
    ("flushdb", "1.0.0", "[ASYNC|SYNC]"),
    ("get", "1.0.0", "key"),
    ("getbit", "2.2.0", "key offset"),
    ("getdel", "6.2.0", "key"),
    ("getex", "6.2.0", "key [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|PERSIST]"),
    ("getrange", "2.4.0", "key start end"),
    ("getset", "1.0.0", "key value"),
    ("hello", "6.0.0", "[protover [AUTH username password] [SETNAME clientname]]"),
    ("incr", "1.0.0", "key"),
    ("incrby", "1.0.0", "key increment"),
    ("incrbyfloat", "2.6.0", "key increment"),
    ("info", "1.0.0", "[section]..."),
    ("keys", "1.0.0", "pattern"),
    ("lcs", "7.0.0", "key1 key2 [LEN] [IDX] [MINMATCHLEN min-match-len] [WITHMATCHLEN]"),
    ("memory", "4.0.0", "subcommand [arg]..."),
    ("mget", "1.0.0", "key..."),
    ("move", "1.0.0", "key db"),
    ("mset", "1.0.1", "(key value)..."),
    ("msetnx", "1.0.1", "(key value)..."),
    ("multi", "1.2.0", ""),
    ("object", "2.2.3", "subcommand [arg]..."),
    ("persist", "2.2.0", "key"),
    ("pexpire", "2.6.0", "key milliseconds [NX|XX|GT|LT]"),
    ("pexpireat", "2.6.0", "key unix-time-milliseconds [NX|XX|GT|LT]"),
    ("pexpiretime", "7.0.0", "key"),
    ("ping", "1.0.0", "[message]"),
    ("psetex", "2.6.0", "key milliseconds value"),
    ("pttl", "2.6.0", "key"),
    ("quit", "1.0.0", ""),
    ("randomkey", "1.0.0", ""),
    ("rename", "1.0.0", "key newkey"),
    ("renamenx", "1.0.0", "key newkey"),
    ("reset", "6.2.0", ""),
    ("restore", "2.6.0", "key ttl serialized-value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]"),
    ("scan", "2.8.0", "cursor [MATCH pattern] [COUNT count] [TYPE type]"),
    ("script", "2.6.0", "subcommand [arg]..."),
    ("select", "1.0.0", "index"),
    (
        "set",
        "1.0.0",
        "key value [NX|XX] [GET] [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|KEEPTTL]",
    ),
    ("setbit", "2.2.0", "key offset value"),
    ("setex", "2.0.0", "key seconds value"),
    ("setnx", "1.0.0", "key value"),
    ("setrange", "2.2.0", "key offset value"),
    ("strlen", "2.2.0", "key"),
    ("substr", "1.0.0", "key start end"),
    ("swapdb", "4.0.0", "index1 index2"),
    ("time", "2.6.0", ""),
    ("touch", "3.2.1", "key..."),
    ("ttl", "1.0.0", "key"),
    ("type", "1.0.0", "key"),
    ("unlink", "4.0.0", "key..."),
    ("unwatch", "2.2.0", ""),
    ("watch", "2.2.0", "key..."),
];

/// The first version of Redis with a command, and its arguments as a reply.
pub(crate) fn usage_of(name: &str) -> Option<(&'static str, Vec<Reply>)> {
    let at = USAGES.binary_search_by_key(&name, |(name, ..)| name).ok()?;
    let (_, since, usage) = USAGES[at];
    Some((since, arguments(usage).iter().map(Argument::reply).collect()))
}

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Argument {
    name: String,
    kind: &'static str,
    /// The word that stands before it, or that it is.
    token: Option<String>,
    is_optional: bool,
    is_multiple: bool,
    parts: Vec<Self>,
}

impl Argument {
    fn new(name: String, kind: &'static str, token: Option<String>) -> Self {
        Self { name, kind, token, is_optional: false, is_multiple: false, parts: Vec::new() }
    }

    /// Arguments that belong together, or of which one is given.
    fn of(kind: &'static str, mut parts: Vec<Self>) -> Self {
        match parts.len() {
            1 => parts.remove(0),
            _ => Self { parts, ..Self::new(if kind == "block" { "data" } else { "option" }.to_owned(), kind, None) },
        }
    }

    fn named(name: &str, token: Option<&str>) -> Self {
        let kind = match name {
            "key" | "key1" | "key2" | "newkey" | "source" | "destination" | "destkey" => "key",
            "pattern" => "pattern",
            "unix-time-seconds" | "unix-time-milliseconds" => "unix-time",
            "seconds" | "milliseconds" | "offset" | "start" | "end" | "count" | "cursor" | "numkeys" | "index"
            | "index1" | "index2" | "ttl" | "bit" | "db" | "destination-db" | "decrement" | "increment"
            | "frequency" | "min-match-len" | "protover" => "integer",
            _ => "string",
        };
        Self::new(name.to_owned(), kind, token.map(str::to_owned))
    }

    fn reply(&self) -> Reply {
        let flags = [("optional", self.is_optional), ("multiple", self.is_multiple)];
        let flags: Vec<_> = flags.into_iter().filter(|(_, is)| *is).map(|(flag, _)| Reply::Simple(flag)).collect();
        let mut fields = vec![("name", Reply::text(self.name.clone())), ("type", Reply::text(self.kind))];
        if self.kind == "key" {
            fields.push(("key_spec_index", Reply::Integer(0)));
        }
        fields.extend(self.token.as_ref().map(|token| ("token", Reply::text(token.clone()))));
        if !flags.is_empty() {
            fields.push(("flags", Reply::Set(flags)));
        }
        if !self.parts.is_empty() {
            fields.push(("arguments", Reply::Array(self.parts.iter().map(Self::reply).collect())));
        }
        Reply::Map(fields.into_iter().map(|(name, value)| (Reply::text(name), value)).collect())
    }
}

/// The arguments that a usage describes.
fn arguments(usage: &'static str) -> Vec<Argument> {
    Usage { rest: usage }.sequence()
}

/// The rest of a usage.
struct Usage {
    rest: &'static str,
}

impl Usage {
    fn take(&mut self, sign: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self) -> Option<&'static str> {
        let rest = self.rest.trim_start();
        let end = rest.find(|sign: char| !sign.is_ascii_alphanumeric() && sign != '-').unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        (!word.is_empty()).then(|| {
            self.rest = rest;
            word
        })
    }

    /// The name that follows, unless it is a word that stands for itself.
    fn name(&mut self) -> Option<&'static str> {
        let before = self.rest;
        let name = self.word().filter(|word| !is_token(word));
        if name.is_none() {
            self.rest = before;
        }
        name
    }

    fn sequence(&mut self) -> Vec<Argument> {
        let mut all = Vec::new();
        loop {
            let mut argument = if self.take("[") {
                Argument { is_optional: true, ..self.choice("]") }
            } else if self.take("(") {
                self.choice(")")
            } else {
                match self.word() {
                    Some(token) if is_token(token) => match self.name() {
                        Some(name) => Argument::named(name, Some(token)),
                        None => Argument::new(token.to_ascii_lowercase(), "pure-token", Some(token.to_owned())),
                    },
                    Some(name) => Argument::named(name, None),
                    None => return all,
                }
            };
            argument.is_multiple |= self.take("...");
            all.push(argument);
        }
    }

    /// Alternatives up to a closing sign.
    fn choice(&mut self, closing: &str) -> Argument {
        let mut alternatives = vec![Argument::of("block", self.sequence())];
        while self.take("|") {
            alternatives.push(Argument::of("block", self.sequence()));
        }
        // The table is tested: every group is closed.
        self.take(closing);
        Argument::of("oneof", alternatives)
    }
}

fn is_token(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TABLE;

    #[test]
    fn every_command_has_a_usage_that_is_read_to_its_end() {
        let names: Vec<_> = USAGES.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, TABLE.iter().map(|spec| spec.name).collect::<Vec<_>>());
        for (name, _, usage) in USAGES {
            let mut rest = Usage { rest: usage };
            let arguments = rest.sequence();
            assert_eq!(rest.rest, "", "{name}");
            let signs = |sign| usage.matches(sign).count();
            assert_eq!((signs('['), signs('(')), (signs(']'), signs(')')), "{name}");
            // As many as the command needs at least.
            let spec = TABLE.iter().find(|spec| spec.name == *name).expect("a command");
            let words = |argument: &Argument| if argument.kind == "block" { argument.parts.len() } else { 1 };
            let needed: usize = arguments.iter().filter(|argument| !argument.is_optional).map(words).sum();
            assert_eq!(needed + 1, spec.arity.unsigned_abs() as usize, "{name}");
            assert!(!arguments.is_empty() || spec.arity.abs() == 1, "{name}");
        }
    }

    #[test]
    fn tokens_choices_and_groups_are_told_apart() {
        let set = arguments("key value [NX|XX] [GET] [EX seconds|KEEPTTL]");
        let shapes: Vec<_> =
            set.iter().map(|argument| (&argument.name[..], argument.kind, argument.is_optional)).collect();
        assert_eq!(
            shapes,
            [
                ("key", "key", false),
                ("value", "string", false),
                ("option", "oneof", true),
                ("get", "pure-token", true),
                ("option", "oneof", true),
            ]
        );
        let expiry = &set[4].parts;
        assert_eq!(
            (expiry[0].token.as_deref(), &expiry[0].name[..], expiry[0].kind),
            (Some("EX"), "seconds", "integer")
        );
        assert_eq!((expiry[1].token.as_deref(), expiry[1].kind), (Some("KEEPTTL"), "pure-token"));
        let mset = arguments("(key value)...");
        assert_eq!(
            (mset[0].kind, mset[0].is_multiple, mset[0].is_optional, mset[0].parts.len()),
            ("block", true, false, 2)
        );
        let nested = arguments("key [start end [BYTE|BIT]]");
        assert_eq!((nested[1].kind, nested[1].parts[2].kind, nested[1].parts[2].is_optional), ("block", "oneof", true));
    }
}
