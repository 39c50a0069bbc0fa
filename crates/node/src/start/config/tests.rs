//! Tests of the configuration: precedence, defaults, and what is refused.

use flotilla_hostile::{attack, extreme_u64, mutated};
use proptest::prelude::*;

use super::*;

#[test]
fn flags_override_the_file_and_the_file_overrides_defaults() {
    let file: Settings = toml::from_str("name = \"file\"\ntick_ms = 20\n").unwrap();
    let flags = Settings { name: Some("flag".to_owned()), ..Settings::default() };
    let config = flags.or(file).resolve().unwrap();
    assert_eq!((config.name.as_str(), config.host.tick_ms, config.listen), ("flag", 20, LISTEN_DEFAULT));
}

#[test]
fn the_scrub_has_a_rate_and_a_pause() {
    let scrub = |rate: Option<u64>, pause: Option<&str>| {
        let settings =
            Settings { scrub_bytes_per_second: rate, scrub_pause: pause.map(str::to_owned), ..Settings::default() };
        settings.resolve().ok().map(|config| (config.host.scrub.bytes_per_second, config.host.scrub.pause_ms))
    };
    assert_eq!(scrub(None, None), Some((5_000_000, 6 * 3_600_000)));
    assert_eq!(scrub(Some(7), Some("0s")), Some((7, 0)));
    assert_eq!(scrub(None, Some("1h 30m")), Some((5_000_000, 5_400_000)));
    for (rate, pause) in [(Some(0), None), (None, Some("soon")), (None, Some("366days"))] {
        assert_eq!(scrub(rate, pause), None, "{rate:?} {pause:?}");
    }
}

#[test]
fn the_memory_for_indexes_is_a_setting_of_the_view_that_has_them() {
    let view = |view: Option<View>, index_bytes: Option<u64>| {
        Settings { view, index_bytes, ..Settings::default() }.resolve().ok().map(|config| config.view)
    };
    assert_eq!(view(None, None), Some(ViewOptions::Objects { index_bytes: 64 << 20 }));
    assert_eq!(view(Some(View::Objects), Some(7)), Some(ViewOptions::Objects { index_bytes: 7 }));
    assert!(matches!(view(Some(View::Sled), None), Some(ViewOptions::Sled { .. })));
    assert_eq!([view(Some(View::Sled), Some(7)), view(None, Some(0))], [None, None]);
}

#[test]
fn a_mistyped_setting_is_refused() {
    assert!(toml::from_str::<Settings>("tick_mss = 20").is_err());
}

#[test]
fn a_name_or_locality_that_a_terminal_would_obey_is_refused() {
    let hostile = || Some("zone=a\u{1b}[2J".to_owned());
    assert!(Settings { name: hostile(), ..Settings::default() }.resolve().is_err());
    assert!(Settings { locality: hostile(), ..Settings::default() }.resolve().is_err());
}

#[test]
fn a_role_and_a_weight_fit_together_and_what_is_founded() {
    let role = |text: &str, founds: bool| {
        let settings: Settings = toml::from_str(text).map_err(anyhow::Error::from)?;
        Settings { bootstrap: founds, ..settings }.resolve().map(|config| config.role)
    };
    assert_eq!(role("", true).unwrap(), NodeRole::Storage { weight: 1 });
    assert_eq!(role("role = \"storage\"\nweight = 0", true).unwrap(), NodeRole::Storage { weight: 0 });
    assert_eq!(role("role = \"gateway\"", false).unwrap(), NodeRole::Gateway);
    for (text, founds, why) in [
        ("role = \"gateway\"", true, "cannot found"),
        ("role = \"gateway\"\nweight = 1", false, "--weight is for nodes"),
        ("weight = 1001", false, "0 to 1000"),
        ("role = \"witness\"", false, "no nodes with the role witness"),
        ("role = \"reader\"", false, "no nodes with the role reader"),
        ("role = \"Gateway\"", false, "the roles are"),
    ] {
        let refused = format!("{:#}", role(text, founds).expect_err(text));
        assert!(refused.contains(why), "{text}: {refused}");
    }
}

#[test]
fn a_budget_for_clients_below_the_largest_requests_is_refused() {
    let small = Settings { client_bytes: Some(CLIENT_BYTES_MIN - 1), ..Settings::default() };
    assert!(small.resolve().is_err());
}

#[test]
fn addresses_of_other_nodes_are_hints_with_and_without_a_token() {
    let settings = |token: Option<&str>| Settings {
        join: Some(vec![LISTEN_DEFAULT.into(), "db-1:7110".parse().unwrap()]),
        token: token.map(str::to_owned),
        ..Settings::default()
    };
    let (joins, resumes) = (settings(Some("t")).resolve().unwrap(), settings(None).resolve().unwrap());
    assert_eq!((joins.origin, resumes.origin), (Origin::Join { token: "t".to_owned() }, Origin::Resume));
    assert_eq!((joins.hints.len(), &joins.hints), (2, &resumes.hints));
    assert!(Settings { join: Some(vec!["0.0.0.0:1".parse().unwrap()]), ..Settings::default() }.resolve().is_err());
    assert!(Settings { bootstrap: true, ..settings(None) }.resolve().is_err());
}

#[test]
fn a_wildcard_needs_an_address_for_others() {
    let wildcard = || Settings { listen: Some("0.0.0.0:7110".parse().unwrap()), ..Settings::default() };
    let refused = wildcard().resolve().unwrap_err().to_string();
    assert!(refused.contains("--advertise"), "{refused}");
    let named = Settings { advertise: Some("db-1:7110".parse().unwrap()), ..wildcard() }.resolve().unwrap();
    assert_eq!((named.listen.to_string(), named.advertise.to_string()), ("0.0.0.0:7110".into(), "db-1:7110".into()));
}

#[test]
fn a_name_to_listen_on_is_what_others_are_told() {
    let named = || Some("localhost:7000".parse().unwrap());
    let settings = Settings { listen: named(), http: named(), redis: named(), ..Settings::default() };
    let config = settings.resolve().unwrap();
    assert!(config.listen.ip().is_loopback() && config.clients == ClientMode::Open);
    let told = (config.advertise.to_string(), config.advertise_http.unwrap(), config.advertise_redis.unwrap());
    assert_eq!(told, ("localhost:7000".into(), "localhost:7000".into(), "localhost:7000".into()));
}

#[test]
fn an_empty_name_is_refused() {
    for name in ["", " "] {
        assert!(Settings { name: Some(name.to_owned()), ..Settings::default() }.resolve().is_err());
    }
    assert_eq!(Settings::default().resolve().unwrap().given_name(), None);
    let named = Settings { name: Some("a".to_owned()), ..Settings::default() };
    assert_eq!(named.resolve().unwrap().given_name(), Some("a"));
}

#[test]
fn a_filter_that_names_no_level_is_refused() {
    for (filter, fits) in [
        ("info", true),
        ("WARN", true),
        ("off", true),
        ("info,flotilla_control=debug", true),
        ("info, flotilla_control=debug", true),
        ("", false),
        ("inf", false),
        ("info,", false),
        ("info,flotilla_control", false),
        ("flotilla_control=verbose", false),
        ("=debug", false),
    ] {
        let settings = Settings { log: Some(filter.to_owned()), ..Settings::default() };
        assert_eq!(settings.resolve().is_ok(), fits, "{filter}");
    }
}

#[test]
fn a_heartbeat_interval_too_long_for_elections_is_refused() {
    let settings = Settings { heartbeat_ticks: Some(7), ..Settings::default() };
    assert!(settings.resolve().is_err());
}

#[test]
fn huge_tick_counts_are_refused_without_overflow() {
    for huge in [usize::MAX, usize::MAX / 3] {
        let settings = Settings { heartbeat_ticks: Some(huge), ..Settings::default() };
        assert!(settings.resolve().is_err());
        let settings = Settings { election_ticks: Some(huge), ..Settings::default() };
        assert!(settings.resolve().is_err());
    }
    let settings = Settings { tick_ms: Some(u64::MAX), ..Settings::default() };
    assert!(settings.resolve().is_err());
}

/// The command line of `start`.
#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: StartArgs,
}

#[test]
fn help_states_the_defaults_in_force() {
    use clap::CommandFactory as _;

    let config = Settings::default().resolve().unwrap();
    let help = Line::command().render_long_help().to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, default) in [
        ("--data-dir", config.data_dir.display().to_string()),
        ("--listen", config.listen.to_string()),
        ("--http", config.http.to_string()),
        ("--redis", config.redis.to_string()),
        ("--shards", config.shards.to_string()),
        ("--tick-ms", config.host.tick_ms.to_string()),
        ("--election-ticks", config.host.raft.election_ticks.to_string()),
        ("--heartbeat-ticks", config.host.raft.heartbeat_ticks.to_string()),
        ("--memtable-bytes", config.host.memtable_bytes_max.to_string()),
        ("--log-bytes", config.host.log_bytes_max.to_string()),
        ("--log-tail-entries", config.host.log_tail_entries.to_string()),
        ("--read-threads", "as many as processors, 2 to 8".to_owned()),
        ("--unapplied-bytes", config.host.unapplied_bytes_max.to_string()),
        ("--ballast-bytes", config.ballast_bytes.to_string()),
        ("--client-bytes", config.client_bytes.to_string()),
        ("--log", LOG_DEFAULT.to_owned()),
    ] {
        let (_, after) = help.split_once(&format!("{flag} <")).expect(flag);
        let (_, stated) = after.split_once("[default: ").expect(flag);
        assert!(stated.starts_with(&format!("{default}]")), "{flag}: {default}");
    }
}

#[test]
fn hostile_files_and_flags_are_refused_or_within_bounds() {
    use clap::Parser as _;

    let valid =
        (extreme_u64(), extreme_u64(), extreme_u64(), any::<bool>()).prop_map(|(tick, election, bytes, file)| {
            let text = format!(
                "name=n\nlisten=127.0.0.1:7110\nhttp=[::1]:80\nlocality=zone=a\njoin=10.0.0.1:1\ntoken=flt1.x\n\
             tick_ms={tick}\nelection_ticks={election}\nheartbeat_ticks={tick}\nmemtable_bytes={bytes}\nlog_format=json"
            );
            if !file {
                return text.lines().map(|line| format!("--{}\n", line.replacen('_', "-", 1))).collect();
            }
            let quoted = |line: &str| match line.split_once('=') {
                Some((name @ "join", value)) => format!("{name}=[\"{value}\"]\n"),
                Some((name, value)) if value.parse::<u64>().is_err() => format!("{name}=\"{value}\"\n"),
                _ => format!("{line}\n"),
            };
            text.lines().map(quoted).collect::<String>()
        });
    let nested = (0..20_000_usize).prop_map(|times| format!("name={}", "[".repeat(times)).into_bytes());
    attack(300, prop_oneof![9 => mutated(valid), 1 => nested], |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let file = toml::from_str::<Settings>(&text).ok();
        let line = Line::try_parse_from(std::iter::once("start").chain(text.lines())).ok();
        for settings in file.into_iter().chain(line.map(|line| line.args.settings)) {
            if let Ok(config) = settings.resolve() {
                assert!(config.host.tick_ms <= 60_000 && config.host.raft.election_ticks <= 100_000);
            }
        }
    });
}
