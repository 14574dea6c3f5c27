//! One connection to the broker, from its files to its end: the only place that knows rumqttc, whose event loop is
//! never used a second time.
//!
//! rumqttc 0.25 loses messages, stops or loops when an event loop outlives its connection, when packets are larger
//! than a side takes, or when packet ids are crowded. Hence: a new loop per connection, every poll under a time limit,
//! explicit packet sizes, no topic aliases, no QoS 2, subscriptions before the first publish, manual acks. The caller
//! keeps unacknowledged messages in its own outbox.

use std::{collections::VecDeque, path::PathBuf, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use rumqttc::{
    NetworkOptions, Outgoing, Transport,
    v5::{
        AsyncClient, Event as RumqttcEvent, EventLoop, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{ConnectProperties, Filter, Packet, Publish, RetainForwardRule, SubscribeReasonCode},
        },
    },
};
use zeroize::Zeroizing;

use super::{
    message::{Allowed, Incoming, Message, Qos, Receipt},
    tls,
};

mod lost;
mod packets;

pub use lost::Lost;
use packets::{incoming, last_will, outgoing, quality, receipt};

/// Packets up to this size are taken; the broker is told so and drops larger ones, which would otherwise end the
/// connection again and again.
pub const PACKET_BYTES: u32 = 1024 * 1024;
/// How long the broker keeps our session, with the requests in it, while we are away.
const SESSION_EXPIRY: Duration = Duration::from_secs(86_400);
/// Messages of QoS 1 without their PUBACK, at the most.
const WINDOW: u16 = 8;
/// The library's own limit of messages in flight: packet ids go round within it, so it has to be well above the window.
const PACKET_IDS: u16 = 64;
/// Requests (messages, acks) between us and the event loop.
const CHANNEL: usize = 256;

/// All that a connection is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Host of the broker: a name or an address, IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities to trust; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of the client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The same on every connection: the broker keeps the session under it.
    pub client_id: String,
    /// Whether the broker keeps the session, with the requests in it, while we are away; else it ends with the
    /// connection.
    pub keeps_session: bool,
    /// What the broker publishes when we vanish.
    pub will: Option<Message>,
    /// Requests without our PUBACK.
    pub receive_maximum: u16,
    /// Topic filters in the batches in which they are subscribed.
    pub subscriptions: Vec<Vec<(String, Qos)>>,
    /// Between two signs of life; at least 5 s.
    pub keep_alive: Duration,
}

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed: messages may go out.
    Up(Allowed),
    /// A message for us. May come before [`Event::Up`], where the broker has kept the session.
    Incoming(Incoming),
    /// The oldest published message without a packet id has this one.
    Sent(u16),
    /// The broker's word on a packet id.
    Receipt(u16, Receipt),
    /// Something that concerns nobody but keeps the connection going; there is room in the channel again.
    Progress,
    /// Our DISCONNECT is on its way: this was the last event.
    Left,
}

/// The channel to the event loop is full; there is room again after the next event.
#[derive(Debug)]
pub struct Full;

/// A connection.
pub struct Connection {
    client: AsyncClient,
    events: Pin<Box<dyn Stream<Item = Result<RumqttcEvent, Lost>> + Send>>,
    /// Batches that are still to be subscribed; the first is on its way once `allowed` is known.
    subscriptions: VecDeque<Vec<(String, Qos)>>,
    allowed: Option<Allowed>,
}

impl Connection {
    /// Reads the files and prepares the connection; [`Self::next`] makes it.
    ///
    /// # Errors
    /// Files that cannot be used. They are read at every connection, so a changed password or certificate needs no
    /// restart.
    pub async fn open(settings: Settings) -> Result<Self, Lost> {
        let prepare = tokio::task::spawn_blocking(move || options(&settings).map(|options| (options, settings)));
        let (options, settings) = prepare.await.map_err(|error| Lost::Network(error.to_string()))??;
        let (client, eventloop) = AsyncClient::new(options, CHANNEL);
        Ok(Self {
            client,
            subscriptions: settings.subscriptions.clone().into(),
            events: Box::pin(events(eventloop, settings)),
            allowed: None,
        })
    }

    /// The next event. Cancel-safe.
    ///
    /// # Errors
    /// Why the connection is lost; it must be dropped then.
    pub async fn next(&mut self) -> Result<Event, Lost> {
        let event = self.events.next().await.unwrap_or_else(|| Err(Lost::Network("the connection is over".into())))?;
        match event {
            RumqttcEvent::Outgoing(Outgoing::Publish(packet)) if packet != 0 => Ok(Event::Sent(packet)),
            RumqttcEvent::Outgoing(Outgoing::Disconnect) => Ok(Event::Left),
            RumqttcEvent::Incoming(Packet::ConnAck(ack)) => {
                let properties = ack.properties.as_ref();
                let ids = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX).min(PACKET_IDS);
                let qos = match properties.and_then(|p| p.max_qos) {
                    Some(0) => Qos::AtMostOnce,
                    _ => Qos::AtLeastOnce,
                };
                let allowed = Allowed {
                    window: u64::from(ids.saturating_sub(1).clamp(1, WINDOW)),
                    packet_bytes: properties.and_then(|p| p.max_packet_size),
                    qos,
                    retain: properties.and_then(|p| p.retain_available) != Some(0),
                };
                warn_of(&allowed);
                self.allowed = Some(allowed);
                log::debug!(target: "temperd::mqtt", session_present = ack.session_present; "broker accepted the connection");
                self.subscribe()
            }
            RumqttcEvent::Incoming(Packet::SubAck(ack)) => {
                self.check_subscription(&ack.return_codes)?;
                self.subscribe()
            }
            RumqttcEvent::Incoming(Packet::PubAck(ack)) => Ok(Event::Receipt(ack.pkid, receipt(ack.reason))),
            RumqttcEvent::Incoming(Packet::Publish(publish)) => {
                Ok(incoming(publish).map_or(Event::Progress, Event::Incoming))
            }
            RumqttcEvent::Incoming(_) | RumqttcEvent::Outgoing(_) => Ok(Event::Progress),
        }
    }

    /// Hands a message to the event loop.
    ///
    /// # Errors
    /// No room.
    pub fn publish(&self, message: &Message) -> Result<(), Full> {
        let publish = outgoing(message);
        let properties = publish.properties.unwrap_or_default();
        // What it does not have, a broker takes for an offence, and closes the connection.
        let (qos, retain) = self.allowed.map_or((message.qos, message.retain), |allowed| {
            (message.qos.min(allowed.qos), message.retain && allowed.retain)
        });
        self.client
            .try_publish_with_properties(message.topic.as_str(), quality(qos), retain, publish.payload, properties)
            .map_err(|_| Full)
    }

    /// Acknowledges a delivery.
    ///
    /// # Errors
    /// No room.
    pub fn acknowledge(&self, packet: u16) -> Result<(), Full> {
        let delivered = Publish { qos: QoS::AtLeastOnce, pkid: packet, ..Publish::default() };
        self.client.try_ack(&delivered).map_err(|_| Full)
    }

    /// Takes back a subscription.
    ///
    /// # Errors
    /// No room.
    pub fn unsubscribe(&self, filter: &str) -> Result<(), Full> {
        self.client.try_unsubscribe(filter).map_err(|_| Full)
    }

    /// Says goodbye, so that the broker does not publish the will. After [`Event::Left`] drop the connection: polling
    /// on would connect again.
    ///
    /// # Errors
    /// No room.
    pub fn leave(&self) -> Result<(), Full> {
        self.client.try_disconnect().map_err(|_| Full)
    }

    /// Subscribes the next batch, or tells that there is none. One at a time: the library gives packet ids to
    /// subscriptions without looking whether they are in use.
    fn subscribe(&mut self) -> Result<Event, Lost> {
        match (self.subscriptions.front(), self.allowed) {
            (None, Some(allowed)) => Ok(Event::Up(allowed)),
            (Some(batch), Some(_)) => {
                let filters = batch.iter().map(|(filter, qos)| {
                    let mut filter = Filter::new(filter.as_str(), quality(*qos));
                    // A retained message on a request topic is no request.
                    filter.retain_forward_rule = RetainForwardRule::Never;
                    filter
                });
                self.client.try_subscribe_many(filters).map_err(|error| Lost::Network(error.to_string()))?;
                Ok(Event::Progress)
            }
            (_, None) => Ok(Event::Progress),
        }
    }

    fn check_subscription(&mut self, codes: &[SubscribeReasonCode]) -> Result<(), Lost> {
        let batch = self.subscriptions.pop_front().unwrap_or_default();
        for ((filter, wanted), code) in batch.into_iter().zip(codes) {
            match code {
                SubscribeReasonCode::Success(granted) => {
                    if *granted < quality(wanted) {
                        log::warn!(target: "temperd::mqtt", filter = filter.as_str(); "broker grants QoS 0 only: requests may be lost");
                    }
                }
                code => return Err(Lost::Subscription { filter, code: *code }),
            }
        }
        Ok(())
    }
}

fn warn_of(allowed: &Allowed) {
    if allowed.qos == Qos::AtMostOnce {
        log::warn!(target: "temperd::mqtt", "the broker takes QoS 0 only: it confirms nothing, and requests and answers \
            may be lost; allow QoS 1 in its configuration");
    }
    if !allowed.retain {
        log::warn!(target: "temperd::mqtt", "the broker retains no messages: whoever subscribes later does not see \
            availability, info and state; allow retained messages in its configuration");
    }
}

/// Bytes of the packet that carries a message of QoS 1.
#[must_use]
pub fn packet_bytes(message: &Message) -> usize {
    // The packet id, which is not known yet, counts.
    Publish { pkid: u16::MAX, ..outgoing(message) }.size()
}

/// Polls one event loop until its first error.
fn events(eventloop: EventLoop, settings: Settings) -> impl Stream<Item = Result<RumqttcEvent, Lost>> + Send {
    stream::unfold(Some((eventloop, settings)), |state| async move {
        let (mut eventloop, settings) = state?;
        // The library does not look at the keep-alive while a write is stuck.
        let limit = eventloop.options.keep_alive().mul_f64(2.5).max(Duration::from_secs(10));
        match tokio::time::timeout(limit, eventloop.poll()).await {
            Ok(Ok(event)) => {
                if let RumqttcEvent::Incoming(Packet::ConnAck(_)) = &event
                    && eventloop.options.keep_alive().is_zero()
                {
                    // The broker switches keep-alive off; the library would send pings without a pause.
                    eventloop.options.set_keep_alive(settings.keep_alive);
                }
                Some((Ok(event), Some((eventloop, settings))))
            }
            Ok(Err(error)) => Some((Err(lost::of(error, &settings)), None)),
            Err(_) => Some((Err(Lost::Silent(limit)), None)),
        }
    })
}

fn options(settings: &Settings) -> Result<MqttOptions, Lost> {
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    let mut options = MqttOptions::new(&settings.client_id, host, settings.port);
    let mut properties = ConnectProperties::new();
    let expiry = if settings.keeps_session { SESSION_EXPIRY } else { Duration::ZERO };
    properties.session_expiry_interval = Some(u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
    properties.receive_maximum = Some(settings.receive_maximum.max(1));
    properties.max_packet_size = Some(PACKET_BYTES);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_connect_properties(properties)
        .set_clean_start(!settings.keeps_session)
        .set_manual_acks(true)
        .set_keep_alive(settings.keep_alive.max(Duration::from_secs(5)))
        .set_outgoing_inflight_upper_limit(PACKET_IDS)
        .set_network_options(network);
    if let Some(will) = &settings.will {
        options.set_last_will(last_will(will));
    }
    if let Some(user) = &settings.user {
        let password = settings.password_file.as_ref().map_or(Ok(Zeroizing::default()), password)?;
        options.set_credentials(user, password.as_str());
    }
    if settings.tls {
        let identity = settings.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        options.set_transport(Transport::tls_with_config(tls::client(settings.ca.as_deref(), identity)?.into()));
    }
    Ok(options)
}

/// Reads a password; one trailing newline, which editors add, is not part of it.
fn password(path: &PathBuf) -> Result<Zeroizing<String>, Lost> {
    let mut text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|cause| Lost::Password { path: path.display().to_string(), cause })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_newline_is_no_part_of_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        for (written, read) in
            [("secret\n", "secret"), ("secret\r\n", "secret"), (" se cret\n\n", " se cret\n"), ("", "")]
        {
            std::fs::write(&path, written).unwrap();
            assert_eq!(password(&path).unwrap().as_str(), read);
        }
        let error = password(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.starts_with("mqtt.password_file "), "{error}");
    }
}
