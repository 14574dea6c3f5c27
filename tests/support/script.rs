//! A broker that does what a test says, packet by packet, for what no real one can be made to do. Included by tests with
//! `#[path]`, beside `mosquitto.rs`.

#![allow(dead_code, reason = "each test file uses its own part")]

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    Error, QoS,
    v5::{
        ConnAck, ConnAckProperties, Connect, ConnectReturnCode, LastWill, Packet, PingResp, PubAck, PubAckReason,
        Publish, PublishProperties, SubAck, SubscribeReasonCode,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::mosquitto::within;

/// Messages that a node publishes when it is connected: availability, info, state.
const BIRTHS: usize = 3;

pub struct Script {
    listener: TcpListener,
}

impl Script {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a port") }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().expect("it is bound").port()
    }

    /// The next connection, up to its CONNECT.
    pub async fn connect(&self) -> Peer {
        let (stream, _) = within("a connection", self.listener.accept()).await.expect("accepted");
        let mut peer = Peer { stream, buffer: BytesMut::new(), connect: None, will: None, next: 0 };
        match peer.read().await {
            Packet::Connect(connect, will, _) => (peer.connect, peer.will) = (Some(connect), will),
            other => panic!("{other:?} in place of a CONNECT"),
        }
        peer
    }

    /// The next connection with these limits, subscribed, with its births acknowledged; and the births.
    pub async fn up(&self, session_present: bool, limits: ConnAckProperties) -> (Peer, Vec<Publish>) {
        let mut peer = self.connect().await;
        peer.accept(session_present, limits).await;
        let mut births = Vec::new();
        while births.len() < BIRTHS {
            let birth = peer.publish().await;
            peer.taken(&birth).await;
            births.push(birth);
        }
        (peer, births)
    }
}

/// A broker's limits: none.
pub fn limits() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

/// The broker's end of a connection.
pub struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
    pub connect: Option<Connect>,
    pub will: Option<LastWill>,
    /// The last packet id that was given to a delivery.
    next: u16,
}

impl Peer {
    /// Refuses the CONNECT.
    pub async fn refuse(mut self, code: ConnectReturnCode) {
        self.write(Packet::ConnAck(ConnAck { session_present: false, code, properties: None })).await;
    }

    /// Takes it, and grants what is subscribed.
    pub async fn accept(&mut self, session_present: bool, limits: ConnAckProperties) {
        let code = ConnectReturnCode::Success;
        self.write(Packet::ConnAck(ConnAck { session_present, code, properties: Some(limits) })).await;
        // Jobs, then the rest.
        for _ in 0..2 {
            let Packet::Subscribe(asked) = self.read().await else { panic!("not a SUBSCRIBE") };
            let granted = asked.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos)).collect();
            self.write(Packet::SubAck(SubAck { pkid: asked.pkid, return_codes: granted, properties: None })).await;
        }
    }

    /// The next packet; pings are answered.
    pub async fn read(&mut self) -> Packet {
        loop {
            match Packet::read(&mut self.buffer, None) {
                Ok(Packet::PingReq(_)) => self.write(Packet::PingResp(PingResp)).await,
                Ok(packet) => return packet,
                Err(Error::InsufficientBytes(_)) => {
                    let read = within("a packet", self.stream.read_buf(&mut self.buffer)).await.expect("open");
                    assert!(read > 0, "the node closed the connection");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn write(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).expect("a valid packet");
        self.stream.write_all(&bytes).await.expect("open");
    }

    /// The next packet, which is a message.
    pub async fn publish(&mut self) -> Publish {
        match self.read().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} in place of a PUBLISH"),
        }
    }

    /// The next packet, which is the word on a delivery; its packet id.
    pub async fn puback(&mut self) -> u16 {
        match self.read().await {
            Packet::PubAck(ack) => ack.pkid,
            other => panic!("{other:?} in place of a PUBACK"),
        }
    }

    /// Takes every message until the node ends the connection.
    pub async fn serve(mut self) {
        loop {
            match Packet::read(&mut self.buffer, None) {
                Ok(Packet::Publish(message)) => self.taken(&message).await,
                Ok(_) => {}
                Err(Error::InsufficientBytes(_)) => {
                    // A reset is an end too.
                    if within("the end", self.stream.read_buf(&mut self.buffer)).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Says that a message is taken.
    pub async fn taken(&mut self, message: &Publish) {
        if message.qos == QoS::AtLeastOnce {
            self.answer(message, PubAckReason::Success).await;
        }
    }

    /// Says something else of it.
    pub async fn answer(&mut self, message: &Publish, reason: PubAckReason) {
        self.write(Packet::PubAck(PubAck { pkid: message.pkid, reason, properties: None })).await;
    }

    /// Delivers a message of QoS 1; its packet id.
    pub async fn deliver(&mut self, again: bool, topic: &str, payload: &str, properties: PublishProperties) -> u16 {
        self.next += 1;
        let message = Publish::new(topic, QoS::AtLeastOnce, payload.to_owned(), Some(properties));
        self.write(Packet::Publish(Publish { dup: again, pkid: self.next, ..message })).await;
        self.next
    }
}
