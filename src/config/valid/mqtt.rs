//! The broker, our place in it, and where answers may go.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use axum::http::Uri;
use rumqttc::v5::mqttbytes::valid_filter;

use super::{Check, Checked, Checked::Given};
use crate::config::{
    Machine, Mqtt,
    file::{MqttKeys, Place, Setting},
};

const NODE_BYTES: usize = 63;
/// Second levels of our topics that mean something else.
const RESERVED_NODES: [&str; 2] = ["clients", "pool"];
const RESPONSE_TOPICS: usize = 64;
const USER_BYTES: usize = 65_535;
/// Seconds. Less is beyond the library; with more a broker that is gone would not be missed for an hour.
const KEEP_ALIVE: RangeInclusive<i64> = 5..=1200;

/// The node's name: as written, else the host's in the alphabet of topics.
pub(super) fn node(setting: Setting<String>, machine: &Machine, check: &mut Check<'_>) -> Option<String> {
    match setting {
        Setting::Bad => None,
        Setting::Given(name, place) => {
            let name = level(name, &place, check)?;
            if RESERVED_NODES.contains(&name.as_str()) {
                check.error(&place, format_args!("`{name}` has another meaning in topics, choose another name"));
                return None;
            }
            Some(name)
        }
        Setting::Absent => {
            let mapped = from_hostname(&machine.hostname);
            if mapped.is_none() {
                check.say(format!(
                    "the host name {:?} cannot be a node name: give `--node NAME`, or `mqtt.node` in the configuration",
                    machine.hostname
                ));
            }
            mapped
        }
    }
}

/// A name that is a level of topics: no `/`, no wildcard, no `$`, and the same for every broker.
fn level(name: String, place: &Place, check: &mut Check<'_>) -> Option<String> {
    let plain = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    if !plain || name.is_empty() || name.len() > NODE_BYTES {
        check.error(place, format_args!("is {name:?}, must be 1 to {NODE_BYTES} of a-z, 0-9 and -"));
        return None;
    }
    Some(name)
}

/// `Edge_Box.local` → `edge-box-local`.
fn from_hostname(hostname: &str) -> Option<String> {
    let mapped: String = hostname
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(NODE_BYTES)
        .collect();
    let name = mapped.trim_matches('-');
    (!name.is_empty() && !RESERVED_NODES.contains(&name)).then(|| name.into())
}

/// `None` without a broker, or where it cannot be made out; the other keys are checked either way.
pub(super) fn mqtt(keys: MqttKeys, flag: Option<String>, node: Option<&str>, check: &mut Check<'_>) -> Option<Mqtt> {
    let broker = match keys.url.overridden(flag, "--mqtt") {
        Setting::Given(url, place) => match broker(&url) {
            Ok(broker) => Some(broker),
            Err(message) => {
                check.error(&place, message);
                None
            }
        },
        _ => None,
    };
    let no_user = keys.user == Setting::Absent;
    let user = match keys.user {
        Setting::Given(user, place) if user.is_empty() || user.len() > USER_BYTES || user.contains('\0') => {
            check.error(&place, format_args!("must have 1 to {USER_BYTES} bytes and no NUL"));
            Checked::Default
        }
        user => user.map(|user| user),
    };
    let password_file = file(keys.password_file, check);
    if let Given(_, place) = &password_file
        && no_user
    {
        check.error(place, "a password needs a user name: set mqtt.user");
    }
    let ca = file(keys.ca, check);
    let (no_cert, no_key) = (keys.cert == Setting::Absent, keys.key == Setting::Absent);
    let identity = match (file(keys.cert, check), file(keys.key, check)) {
        (Given(cert, place), Given(key, _)) => Given((cert, key), place),
        (Given(_, place), _) if no_key => {
            check.error(&place, "a client certificate needs its key: set mqtt.key");
            Checked::Default
        }
        (_, Given(_, place)) if no_cert => {
            check.error(&place, "a key needs its client certificate: set mqtt.cert");
            Checked::Default
        }
        _ => Checked::Default,
    };
    if broker.as_ref().is_some_and(|broker| !broker.tls) {
        let places = [place_of(&ca), place_of(&identity)];
        for place in places.into_iter().flatten() {
            check.error(place, "has no effect over `mqtt://`: write `mqtts://` in mqtt.url, or leave it out");
        }
    }
    let response_topics = response_topics(keys.response_topics, node, check);
    let raw_prompt = keys.raw_prompt.map(|on| on).or(false);
    let pool = match keys.pool {
        Setting::Given(pool, place) => level(pool, &place, check),
        Setting::Absent | Setting::Bad => None,
    };
    let keep_alive = check.number(keys.keep_alive_s, KEEP_ALIVE).or(15_u16);
    let Broker { host, port, tls } = broker?;
    Some(Mqtt {
        host,
        port,
        tls,
        user: user.into(),
        password_file: password_file.into(),
        ca: ca.into(),
        identity: identity.into(),
        response_topics,
        raw_prompt,
        pool,
        keep_alive: Duration::from_secs(keep_alive.into()),
    })
}

fn file(setting: Setting<String>, check: &mut Check<'_>) -> Checked<PathBuf> {
    let Setting::Given(path, place) = setting else { return Checked::Default };
    match check.not_empty(path.into(), &place) {
        Some(path) => Given(path, place),
        None => Checked::Default,
    }
}

fn place_of<T>(checked: &Checked<T>) -> Option<&Place> {
    match checked {
        Given(_, place) => Some(place),
        Checked::Default => None,
    }
}

struct Broker {
    host: String,
    port: u16,
    tls: bool,
}

const URL_FORM: &str = "must be `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`";

/// The error never repeats the address: a part of it may be a password.
fn broker(url: &str) -> Result<Broker, &'static str> {
    if url.contains('@') {
        return Err(
            "user and password must not stand in the address, where other users of this machine see them: set \
                    mqtt.user and mqtt.password_file in the configuration",
        );
    }
    let uri: Uri = url.parse().map_err(|_| URL_FORM)?;
    let (tls, default_port) = match uri.scheme_str() {
        Some("mqtt") => (false, 1883),
        Some("mqtts") => (true, 8883),
        _ => return Err(URL_FORM),
    };
    let authority = uri.authority().ok_or(URL_FORM)?;
    let host = authority.host();
    let rest = authority.as_str().strip_prefix(host).ok_or(URL_FORM)?;
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => default_port,
        None => return Err(URL_FORM),
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err("the port must be 1 to 65535"),
        },
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || url.contains('#') {
        return Err(URL_FORM);
    }
    let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(literal) => literal.parse::<std::net::Ipv6Addr>().map_err(|_| URL_FORM)?.to_string(),
        None if host.is_empty() => return Err(URL_FORM),
        None => host.into(),
    };
    Ok(Broker { host, port, tls })
}

fn response_topics(setting: Setting<Vec<String>>, node: Option<&str>, check: &mut Check<'_>) -> Vec<String> {
    let Setting::Given(filters, place) = setting else {
        let node = node.unwrap_or_default();
        return vec![format!("temperd/v1/{node}/response/#"), "temperd/v1/clients/+/#".into()];
    };
    if filters.is_empty() || filters.len() > RESPONSE_TOPICS {
        check.error(&place, format_args!("has {} filters, must have 1 to {RESPONSE_TOPICS}", filters.len()));
    }
    for filter in &filters {
        if !valid_filter(filter) || filter.len() > USER_BYTES || filter.contains('\0') {
            check.error(&place, format_args!("{filter:?} is no MQTT topic filter"));
        } else if filter.starts_with('$') {
            check.error(&place, format_args!("{filter:?} must not begin with `$`: such topics are the broker's own"));
        } else if matches!(filter.as_str(), "#" | "+/#") {
            check.error(
                &place,
                format_args!("{filter:?} would let a client have us publish anywhere: name the topics of answers"),
            );
        }
    }
    filters
}
