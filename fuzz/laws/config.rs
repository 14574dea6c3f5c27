//! A configuration file.

use std::path::PathBuf;

use temperd::config::{self, Config, ConfigErrors, Machine, Overrides};

/// Reads a configuration for a machine that brings all defaults.
pub fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let machine = Machine {
        hostname: "edge-box".into(),
        default_socket: Some(PathBuf::from("/run/temperd/temperd.sock")),
        state_directory: None,
    };
    let read = |text: &str| config::parse(text, Overrides::default(), &machine);
    let first = read(&text);
    assert_eq!(first, read(&text), "read twice");
    match first {
        Ok(config) => {
            is_within_limits(&config);
            let strange = read(&format!("{text}\n[surely_no_section]\n"));
            assert!(strange.is_err(), "a section that nobody knows is an error");
        }
        Err(ConfigErrors(errors)) => {
            assert!(!errors.is_empty(), "an error without a reason");
            let lines = errors.iter().find(|error| error.is_empty() || error.contains(['\n', '\r']));
            assert_eq!(lines, None, "each is one line");
        }
    }
}

fn is_within_limits(config: &Config) {
    let Config { engine, socket, mqtt, node, limits, governor, .. } = config;
    assert!(!engine.model.as_os_str().is_empty() && engine.context > 0 && engine.parallel > 0, "{engine:?}");
    assert!(engine.n_ubatch <= engine.n_batch && engine.adapters.iter().all(|one| one.scale.is_finite()), "{engine:?}");
    assert!((1..=107).contains(&socket.path.as_os_str().len()) && socket.mode <= 0o777, "{socket:?}");
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    assert!((1..=63).contains(&node.len()) && node.chars().all(plain), "{node:?}");
    assert!(limits.max_tokens <= engine.context && limits.queue >= 1 && limits.connections >= 1, "{limits:?}");
    assert!((1024..=1_000_000).contains(&limits.payload_bytes) && (1..=100).contains(&limits.share), "{limits:?}");
    if let (Some(critical), Some(reserve)) = (governor.critical, governor.reserve) {
        assert!(critical < reserve, "{governor:?}");
    }
    if let Some(mqtt) = mqtt {
        assert!(!mqtt.host.is_empty() && mqtt.port != 0 && !mqtt.response_topics.is_empty(), "{mqtt:?}");
        let wide = mqtt.response_topics.iter().find(|one| matches!(one.as_str(), "" | "#" | "+/#"));
        assert_eq!(wide, None, "anywhere at all");
    }
}
