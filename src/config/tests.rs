//! `config.example.toml` against the code: every key is there, every default is the one in force, nothing is unknown.

use std::collections::BTreeSet;

use super::*;

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// Keys that have no default; the file says so of each.
const WITHOUT_DEFAULT: [&str; 22] = [
    "engine.model",
    "engine.threads",
    "engine.threads_batch",
    "engine.step_target_ms",
    "engine.idle_unload_s",
    "engine.path",
    "adapter.name",
    "adapter.path",
    "system_prompt.name",
    "system_prompt.text",
    "socket.group",
    "socket.allow_uids",
    "mqtt.url",
    "mqtt.user",
    "mqtt.password_file",
    "mqtt.ca",
    "mqtt.cert",
    "mqtt.key",
    "mqtt.pool",
    "governor.reserve_mib",
    "governor.critical_mib",
    "governor.set_point_c",
];

/// The machine whose defaults the file shows.
fn machine() -> Machine {
    Machine {
        hostname: "Edge_Box".into(),
        default_socket: Some(PathBuf::from("/run/temperd/temperd.sock")),
        state_directory: None,
    }
}

/// A comment of words goes on with a space, a key that is commented out does not.
fn uncommented() -> String {
    EXAMPLE.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

fn shown() -> BTreeSet<String> {
    let table: toml::Table = uncommented().parse().unwrap();
    table.iter().flat_map(|(section, keys)| table_of(keys).keys().map(move |key| format!("{section}.{key}"))).collect()
}

/// A section, or the only one of several.
fn table_of(section: &toml::Value) -> &toml::Table {
    section.as_table().unwrap_or_else(|| section[0].as_table().unwrap())
}

#[test]
fn the_example_as_it_stands_sets_nothing() {
    let table: toml::Table = EXAMPLE.parse().unwrap();
    assert!(table.values().all(|section| section.as_table().unwrap().is_empty()));
}

#[test]
fn the_example_shows_every_known_key_and_no_other() {
    let (_, known) = file::read("", &mut Vec::new()).unwrap();
    assert_eq!(shown(), known.into_iter().collect());
}

#[test]
fn the_example_is_valid_with_every_key_set() {
    let config = parse(&uncommented(), Overrides::default(), &machine()).unwrap();
    assert_eq!(config.engine.model, Path::new("/var/lib/temperd/models/model.gguf"));
    assert_eq!(config.mqtt.unwrap().host, "broker.example");
}

#[test]
fn every_default_in_the_example_is_the_one_in_force() {
    let all = parse(&uncommented(), Overrides::default(), &machine()).unwrap();
    assert!(!all.engine.adapters.is_empty());
    for name in shown().iter().filter(|name| !WITHOUT_DEFAULT.contains(&name.as_str())) {
        let (section, key) = name.split_once('.').unwrap();
        let mut table: toml::Table = uncommented().parse().unwrap();
        let place = &mut table[section];
        let keys = if place.is_array() { &mut place[0] } else { place };
        keys.as_table_mut().unwrap().remove(key).unwrap();
        let without = parse(&table.to_string(), Overrides::default(), &machine()).unwrap();
        assert_eq!(without, all, "{name} is shown with another value than its default");
    }
}

#[test]
fn each_key_without_a_default_has_no_effect_unless_it_is_written() {
    let config = parse("[engine]\nmodel = \"m\"", Overrides::default(), &machine()).unwrap();
    assert_eq!((config.mqtt, config.engine.path, config.engine.idle_unload), (None, None, None));
    assert_eq!((config.engine.threads, config.engine.threads_batch), (None, None));
    assert_eq!((config.socket.group, config.socket.allow_uids), (None, None));
    assert_eq!((config.governor.reserve, config.governor.critical, config.governor.set_point), (None, None, None));
}
