//! Why a connection to the broker is none any more, and what to do about it.

use std::{io::ErrorKind, time::Duration};

use rumqttc::v5::{
    ConnectionError, StateError,
    mqttbytes::{
        Error as PacketError,
        v5::{ConnectReturnCode, DisconnectReasonCode, SubscribeReasonCode},
    },
};

use super::Settings;
use crate::serve::mqtt::tls::TlsError;

/// Why a connection ended or did not come up. The text is for the log: it names the remedy and no secret.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The password file.
    #[error("mqtt.password_file {path}: {cause}")]
    Password {
        /// The file.
        path: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The TLS files.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The broker knows us not.
    #[error(
        "the broker refuses the login of user {user} ({code:?}): check mqtt.user and mqtt.password_file, or the client \
         certificate, against the broker's own"
    )]
    Login {
        /// The user name, or that there is none.
        user: String,
        /// The broker's code.
        code: ConnectReturnCode,
    },
    /// The broker retains no last will.
    #[error(
        "the broker retains no last will, and gets one that is not retained next: whoever subscribes after temperd has \
         vanished does not learn of it; allow retained messages in the broker's configuration"
    )]
    WillRetained,
    /// The broker takes no last will of QoS 1.
    #[error("the broker takes no last will of QoS 1, and gets one of QoS 0 next; allow QoS 1 in its configuration")]
    WillQos,
    /// The broker does not want the connection.
    #[error("the broker refuses the connection: {0:?}; temperd needs a broker that speaks MQTT 5")]
    Refused(ConnectReturnCode),
    /// A subscription that the broker does not grant.
    #[error("the broker refuses the subscription to {filter} ({code:?}): {}", remedy(*code))]
    Subscription {
        /// The topic filter.
        filter: String,
        /// The broker's code.
        code: SubscribeReasonCode,
    },
    /// Another client came with our client id.
    #[error(
        "another client took over the session of client id {0}: two daemons use one node name; give one of them another \
         mqtt.node"
    )]
    TakenOver(String),
    /// The broker ended the connection.
    #[error("the broker closed the connection: {0}")]
    Closed(String),
    /// The broker, or something on the way to it, ended the connection without a word.
    #[error("the connection was closed without a word")]
    ClosedSilently,
    /// TLS failed.
    #[error("TLS: {0}; check mqtt.ca, the host name in the broker's certificate, mqtt.cert and mqtt.key")]
    Tls(String),
    /// No sign of life, or a peer that stopped reading.
    #[error("no progress for {} s", .0.as_secs())]
    Silent(Duration),
    /// A message was never acknowledged.
    #[error("the broker has not acknowledged a message for {} s", .0.as_secs())]
    NoReceipt(Duration),
    /// Requests were left with the broker, which delivers them on a new connection only.
    #[error("requests that were too many are delivered again on a new connection")]
    Renewed,
    /// Everything else that the network or the library says.
    #[error("{0}")]
    Network(String),
}

fn remedy(code: SubscribeReasonCode) -> &'static str {
    match code {
        SubscribeReasonCode::SharedSubscriptionsNotSupported => {
            "a pool needs shared subscriptions; leave mqtt.pool out, or allow them in the broker's configuration"
        }
        SubscribeReasonCode::WildcardSubscriptionsNotSupported => "temperd needs wildcards; allow them there",
        SubscribeReasonCode::QuotaExceeded => "raise the broker's limit of subscriptions",
        _ => "give this login read access to it in the ACL",
    }
}

/// What an error of the library means.
pub(super) fn of(error: ConnectionError, settings: &Settings) -> Lost {
    match error {
        ConnectionError::ConnectionRefused(
            code @ (ConnectReturnCode::BadUserNamePassword
            | ConnectReturnCode::NotAuthorized
            | ConnectReturnCode::BadAuthenticationMethod),
        ) => Lost::Login { user: settings.user.clone().unwrap_or_else(|| "(none)".into()), code },
        ConnectionError::ConnectionRefused(ConnectReturnCode::RetainNotSupported) => Lost::WillRetained,
        ConnectionError::ConnectionRefused(ConnectReturnCode::QoSNotSupported) => Lost::WillQos,
        ConnectionError::ConnectionRefused(code) => Lost::Refused(code),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => match reason_code {
            DisconnectReasonCode::SessionTakenOver => Lost::TakenOver(settings.client_id.clone()),
            code => Lost::Closed(reason_string.map_or_else(|| format!("{code:?}"), |text| format!("{code:?}, {text}"))),
        },
        ConnectionError::MqttState(StateError::ConnectionAborted) => Lost::ClosedSilently,
        // A close with something unread on the other side arrives as a reset.
        ConnectionError::MqttState(StateError::Io(cause) | StateError::Deserialization(PacketError::Io(cause)))
            if matches!(cause.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
        {
            Lost::ClosedSilently
        }
        ConnectionError::Tls(error) => Lost::Tls(error.to_string()),
        // The library's own text would quote the packet.
        ConnectionError::NotConnAck(_) => Lost::Network("the peer does not answer as an MQTT 5 broker does".into()),
        ConnectionError::Timeout(_) => Lost::Network("no answer to the connect in time".into()),
        other => {
            let text = other.to_string();
            if settings.tls && text.contains("alert") { Lost::Tls(text) } else { Lost::Network(text) }
        }
    }
}
