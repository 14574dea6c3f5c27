//! Findings on the broker: a real connection with the configured login, under a client id of its own and with a clean
//! session, so that a daemon that is connected stays so and nothing is left behind.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path, process, time::Duration};

use rumqttc::{
    Outgoing, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{ConnectReturnCode, Packet},
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
/// For the version, which many brokers do not tell.
const VERSION_PATIENCE: Duration = Duration::from_secs(1);
/// mosquitto tells its version here, as a retained message.
const VERSION_TOPIC: &str = "$SYS/broker/version";
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
        Ok(Ok(())) => {
            findings.push(Finding::ok(THING, format!("{shown} takes the connection")));
            findings.extend(version(&client, &mut events).await.as_deref().and_then(known_faults));
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

async fn connected(events: &mut EventLoop) -> Result<(), ConnectionError> {
    loop {
        if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
            return Ok(());
        }
    }
}

/// What the broker says it is, where it does.
async fn version(client: &AsyncClient, events: &mut EventLoop) -> Option<String> {
    client.try_subscribe(VERSION_TOPIC, QoS::AtMostOnce).ok()?;
    let told = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(message))) if message.topic == VERSION_TOPIC.as_bytes() => {
                    return String::from_utf8(message.payload.into()).ok();
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    };
    time::timeout(VERSION_PATIENCE, told).await.ok().flatten()
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
    let _ = time::timeout(VERSION_PATIENCE, said).await;
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
    let number = version.strip_prefix("mosquitto version ")?.trim();
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
