//! Between messages and the library's packets.

use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{LastWill, LastWillProperties, PubAckReason, Publish, PublishProperties},
};

use crate::serve::mqtt::message::{Incoming, Message, Qos, Receipt};

pub(super) fn last_will(message: &Message) -> LastWill {
    let properties = LastWillProperties {
        // Some brokers get wills wrong unless this and the session's expiry are both given.
        delay_interval: Some(0),
        payload_format_indicator: Some(u8::from(message.utf8)),
        message_expiry_interval: None,
        content_type: Some(message.content_type.into()),
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    LastWill::new(
        message.topic.as_str(),
        message.payload.to_vec(),
        quality(message.qos),
        message.retain,
        Some(properties),
    )
}

pub(super) fn quality(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

pub(super) fn outgoing(message: &Message) -> Publish {
    let properties = PublishProperties {
        payload_format_indicator: message.utf8.then_some(1),
        message_expiry_interval: message.seconds_left(Instant::now()).map(|seconds| seconds.max(1)),
        correlation_data: message.correlation.clone(),
        user_properties: message.user.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        content_type: Some(message.content_type.into()),
        ..PublishProperties::default()
    };
    Publish::new(message.topic.as_str(), quality(message.qos), message.payload.clone(), Some(properties))
}

pub(super) fn incoming(publish: Publish) -> Option<Incoming> {
    let properties = publish.properties.unwrap_or_default();
    Some(Incoming {
        topic: String::from_utf8(publish.topic.to_vec()).ok()?,
        payload: publish.payload,
        packet: (publish.qos == QoS::AtLeastOnce).then_some(publish.pkid),
        again: publish.dup,
        retained: publish.retain,
        content_type: properties.content_type,
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
        expiry: properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
    })
}

pub(super) fn receipt(reason: PubAckReason) -> Receipt {
    match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Receipt::Taken,
        PubAckReason::UnspecifiedError => Receipt::Busy("unspecified error"),
        PubAckReason::ImplementationSpecificError => Receipt::Busy("implementation specific error"),
        PubAckReason::NotAuthorized => Receipt::Forbidden("not authorized: the ACL lets this login not write there"),
        PubAckReason::PacketIdentifierInUse => Receipt::Busy("packet identifier in use"),
        PubAckReason::QuotaExceeded => Receipt::Busy("quota exceeded"),
        PubAckReason::TopicNameInvalid => Receipt::Never("topic name invalid"),
        PubAckReason::PayloadFormatInvalid => Receipt::Never("payload format invalid"),
    }
}
