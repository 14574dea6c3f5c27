//! Findings on the broker: a real connection with the configured login, under a client id of its own and with a clean
//! session, so that a daemon that is connected stays so and nothing is left behind.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path, process, time::Duration};

use rumqttc::{
    Outgoing, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{ConnAck, ConnectReturnCode, Filter, Packet},
        },
    },
};
use tokio::time;
use zeroize::Zeroizing;

use super::Finding;
use crate::{config::Mqtt, serve::mqtt::tls};

const THING: &str = "broker";
/// For all of it: name, TCP, TLS, MQTT.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what many brokers do not tell.
const TOLD_PATIENCE: Duration = Duration::from_secs(1);
/// mosquitto tells these here, as retained messages: its version, and how many messages it has dropped since its start.
const VERSION_TOPIC: &str = "$SYS/broker/version";
const DROPPED_TOPIC: &str = "$SYS/broker/publish/messages/dropped";
/// How the version of a mosquitto begins.
const MOSQUITTO: &str = "mosquitto version ";
/// rumqttc's own limit would end the connection at any larger retained message.
const PACKET_BYTES: u32 = 1024 * 1024;

pub(super) async fn look(mqtt: &Mqtt) -> Vec<Finding> {
    let mut findings: Vec<_> = mqtt.password_file.as_deref().and_then(exposed).into_iter().collect();
    let options = match options(mqtt) {
        Ok(options) => options,
        Err(finding) => {
            findings.push(finding);
            return findings;
        }
    };
    let (client, mut events) = AsyncClient::new(options, 4);
    let shown = address(mqtt);
    match time::timeout(PATIENCE, connected(&mut events)).await {
        Ok(Ok(ack)) => {
            findings.push(Finding::ok(THING, format!("{shown} takes the connection")));
            findings.extend(limits(&ack, mqtt));
            let told = told(&client, &mut events).await;
            findings.extend(told.version.as_deref().and_then(known_faults));
            findings.push(queue(&told));
            findings.extend(mqtt.pool.as_deref().map(|pool| pooled(pool, &told)));
            leave(&client, &mut events).await;
        }
        Ok(Err(error)) => findings.push(Finding::problem(THING, format!("{shown}: {}", remedy(&error)))),
        Err(_) => findings.push(Finding::problem(
            THING,
            format!(
                "{shown} has not answered within {} s; is the address right, and does a firewall let it through?",
                PATIENCE.as_secs()
            ),
        )),
    }
    findings
}

fn address(mqtt: &Mqtt) -> String {
    let scheme = if mqtt.tls { "mqtts" } else { "mqtt" };
    let host = if mqtt.host.contains(':') { format!("[{}]", mqtt.host) } else { mqtt.host.clone() };
    format!("{scheme}://{host}:{}", mqtt.port)
}

fn options(mqtt: &Mqtt) -> Result<MqttOptions, Finding> {
    let mut options = MqttOptions::new(format!("temperd-check-{}", process::id()), mqtt.host.clone(), mqtt.port);
    options.set_keep_alive(PATIENCE).set_clean_start(true).set_max_packet_size(Some(PACKET_BYTES));
    if let Some(user) = &mqtt.user {
        let password = match &mqtt.password_file {
            Some(path) => password(path).map_err(|text| Finding::problem("password", text))?,
            None => Zeroizing::default(),
        };
        options.set_credentials(user.as_str(), password.as_str());
    }
    if mqtt.tls {
        let identity = mqtt.identity.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        let config = tls::client(mqtt.ca.as_deref(), identity)
            .map_err(|error| Finding::problem("certificates", error.to_string()))?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(std::sync::Arc::new(config))));
    }
    Ok(options)
}

fn password(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
        format!("{}: {error}; the user that temperd runs as must be able to read `mqtt.password_file`", path.display())
    })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).into()))
}

fn exposed(password_file: &Path) -> Option<Finding> {
    let mode = fs::metadata(password_file).ok()?.permissions().mode();
    let shown = password_file.display();
    (mode & 0o004 != 0).then(|| Finding::warn("password", format!("every user may read {shown}; `chmod 640 {shown}`")))
}

async fn connected(events: &mut EventLoop) -> Result<ConnAck, ConnectionError> {
    loop {
        if let Event::Incoming(Packet::ConnAck(ack)) = events.poll().await? {
            return Ok(ack);
        }
    }
}

/// What the broker does not do that temperd would make use of.
fn limits(ack: &ConnAck, mqtt: &Mqtt) -> Vec<Finding> {
    let Some(limits) = &ack.properties else { return Vec::new() };
    let mut findings = Vec::new();
    if limits.max_qos == Some(0) {
        let text = "it takes QoS 0 only and confirms nothing: requests and answers may be lost; allow QoS 1 there";
        findings.push(Finding::warn(THING, text));
    }
    if limits.retain_available == Some(0) {
        let text = "it retains no messages: whoever subscribes later sees no availability, info and state";
        findings.push(Finding::warn(THING, text));
    }
    if let Some(bytes) = limits.max_packet_size {
        let text = format!("it takes packets of {bytes} bytes; a longer answer becomes `payload_too_large`");
        findings.push(Finding::ok(THING, text));
    }
    if mqtt.pool.is_some() && limits.shared_subscription_available == Some(0) {
        let text =
            "it has no shared subscriptions, which `mqtt.pool` needs; allow them there, or leave `mqtt.pool` out";
        findings.push(Finding::problem(THING, text));
    }
    findings
}

/// What a broker says of itself.
#[derive(Debug, Default)]
struct Told {
    version: Option<String>,
    /// Messages, since its start.
    dropped: Option<u64>,
}

async fn told(client: &AsyncClient, events: &mut EventLoop) -> Told {
    let mut told = Told::default();
    let filters = [VERSION_TOPIC, DROPPED_TOPIC].map(|topic| Filter::new(topic, QoS::AtMostOnce));
    if client.try_subscribe_many(filters).is_err() {
        return told;
    }
    let listening = async {
        while told.version.is_none() || told.dropped.is_none() {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(message))) => {
                    let Ok(text) = String::from_utf8(message.payload.into()) else { continue };
                    if message.topic == VERSION_TOPIC.as_bytes() {
                        told.version = Some(text);
                    } else if message.topic == DROPPED_TOPIC.as_bytes() {
                        told.dropped = text.trim().parse().ok();
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    };
    // Late or never: what has come counts.
    let _ = time::timeout(TOLD_PATIENCE, listening).await;
    told
}

/// What becomes of requests while temperd is away, or has as many as it takes.
fn queue(told: &Told) -> Finding {
    if !told.version.as_deref().is_some_and(|version| version.starts_with(MOSQUITTO)) {
        let text = "requests wait there while temperd is away, up to the broker's own limit; what exceeds it is lost, and \
                    temperd never hears of it";
        return Finding::ok(THING, text);
    }
    let text = "mosquitto keeps `max_queued_messages` requests (1000 by default) for temperd while that is away, and beyond \
                those that temperd has taken and not answered yet; what exceeds it is dropped without a word to the sender";
    match told.dropped {
        Some(0) => Finding::ok(THING, format!("{text}; none was since it started")),
        Some(dropped) => Finding::warn(
            THING,
            format!("{text}; {dropped} were, of all clients' messages, since it started: raise it"),
        ),
        None => Finding::ok(THING, text),
    }
}

/// What a pool on this broker is worth.
fn pooled(pool: &str, told: &Told) -> Finding {
    let lost = match told.version.as_deref() {
        Some(version) if version.starts_with(MOSQUITTO) => "mosquitto loses the requests of a box that dies",
        _ => "the requests of a box that dies may be lost",
    };
    Finding::ok("pool", format!("{pool}: {lost}, so a client has to ask again; docs/pool.md says how"))
}

/// Says goodbye; a broker that does not listen notices that we have gone.
async fn leave(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_err() {
        return;
    }
    let said = async {
        while let Ok(event) = events.poll().await {
            if matches!(event, Event::Outgoing(Outgoing::Disconnect)) {
                return;
            }
        }
    };
    // Late or not, this is the end.
    let _ = time::timeout(TOLD_PATIENCE, said).await;
}

fn remedy(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => "the login is refused; compare `mqtt.user` and `mqtt.password_file` with the broker's own".into(),
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::UnsupportedProtocolVersion | ConnectReturnCode::RefusedProtocolVersion,
        ) => "it does not speak MQTT 5, which temperd needs; mosquitto does from 1.6 on".into(),
        ConnectionError::ConnectionRefused(code) => format!("it refuses the connection: {code:?}"),
        ConnectionError::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
            "nothing listens there; start the broker, or correct `mqtt.url` or `--mqtt`".into()
        }
        ConnectionError::Tls(error) => {
            format!("TLS: {error}; check `mqtt.ca`, the name in the broker's certificate, `mqtt.cert` and `mqtt.key`")
        }
        ConnectionError::Io(error) => format!("{error}; is the address right, and is the network up?"),
        error => format!("{error}; is it an MQTT broker, and does it speak TLS exactly where `mqtts://` is written?"),
    }
}

/// What is known to go wrong with this version, and what every mosquitto has to be told.
fn known_faults(version: &str) -> Option<Finding> {
    let number = version.strip_prefix(MOSQUITTO)?.trim();
    let mut parts = number.split('.').map_while(|part| part.parse::<u32>().ok());
    if let (Some(2), Some(0), Some(12..=18)) = (parts.next(), parts.next(), parts.next()) {
        return Some(Finding::warn(
            THING,
            format!(
                "mosquitto {number} loses sessions, with the requests in them, where its configuration says \
                 `per_listener_settings true`; take that out, or take a newer mosquitto"
            ),
        ));
    }
    Some(Finding::ok(
        THING,
        format!(
            "mosquitto {number} keeps waiting requests over its own restart only with `persistence true` in its \
             configuration, and writes them every 30 minutes unless `autosave_interval` says otherwise"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Grade;

    #[test]
    fn versions_that_lose_sessions_are_warned_of() {
        let grade = |version| known_faults(version).map(|finding| finding.grade);
        assert_eq!(grade("mosquitto version 2.0.18"), Some(Grade::Warn));
        assert_eq!(grade("mosquitto version 2.0.12"), Some(Grade::Warn));
        assert_eq!(grade("mosquitto version 2.0.11"), Some(Grade::Ok));
        assert_eq!(grade("mosquitto version 2.1.15"), Some(Grade::Ok));
        assert_eq!(grade("mosquitto version next"), Some(Grade::Ok));
        assert_eq!(grade("other broker 1.0"), None);
    }

    #[test]
    fn what_a_broker_drops_is_warned_of() {
        let told = |dropped| Told { version: Some("mosquitto version 2.0.11".into()), dropped };
        for (dropped, grade) in [(None, Grade::Ok), (Some(0), Grade::Ok), (Some(3), Grade::Warn)] {
            let finding = queue(&told(dropped));
            assert!(finding.grade == grade && finding.text.contains("max_queued_messages"), "{finding}");
        }
        assert_eq!(queue(&Told::default()).grade, Grade::Ok);
    }

    #[test]
    fn one_line_end_of_a_password_file_is_not_the_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        for (written, read) in [("secret\n", "secret"), ("secret\r\n", "secret"), ("secret\n\n", "secret\n"), ("", "")]
        {
            fs::write(&path, written).unwrap();
            assert_eq!(password(&path).unwrap().as_str(), read);
        }
        assert!(password(folder.path()).unwrap_err().contains("mqtt.password_file"));
    }

    #[test]
    fn a_password_file_for_all_to_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(exposed(&path), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(exposed(&path).unwrap().grade, Grade::Warn);
    }
}
