use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::serve::mqtt::message::Qos;

const ALLOWED: Allowed = Allowed { window: 8, packet_bytes: None, qos: Qos::AtLeastOnce, retain: true };

fn message(topic: &str) -> Message {
    Message {
        topic: topic.into(),
        payload: Bytes::from_static(b"payload"),
        qos: Qos::AtLeastOnce,
        retain: false,
        content_type: "application/json",
        utf8: true,
        correlation: None,
        user: Vec::new(),
        expires: None,
    }
}

fn size(message: &Message) -> usize {
    message.payload.len()
}

/// Offers and returns the topics that were sent.
fn offered(outbox: &mut Outbox, now: Instant) -> Vec<String> {
    let mut sent = Vec::new();
    let gone = outbox.offer(now, size, |message| {
        sent.push(message.topic.clone());
        true
    });
    assert!(gone.is_empty());
    sent
}

#[test]
fn the_window_counts_from_the_oldest_open_message() {
    let now = Instant::now();
    let mut outbox = Outbox::new(10);
    outbox.connected(Allowed { window: 3, ..ALLOWED });
    for job in 0..6 {
        assert!(outbox.push(Kind::Answer(job), message(&job.to_string())));
    }
    assert_eq!(offered(&mut outbox, now), ["0", "1", "2"]);
    for packet in 1..=3 {
        outbox.sent(packet);
    }
    // The second and third are taken first: the ids 2 and 3 are free, but 1 is not, so nothing more goes out.
    assert_eq!(outbox.receipt(2, Receipt::Taken, now).unwrap().kind, Kind::Answer(1));
    assert_eq!(outbox.receipt(3, Receipt::Taken, now).unwrap().kind, Kind::Answer(2));
    assert_eq!(offered(&mut outbox, now), Vec::<String>::new());
    assert_eq!(outbox.receipt(1, Receipt::Taken, now).unwrap().kind, Kind::Answer(0));
    assert_eq!(offered(&mut outbox, now), ["3", "4", "5"]);
}

#[test]
fn what_is_not_acknowledged_is_sent_again_in_order_after_the_births() {
    let now = Instant::now();
    let mut outbox = Outbox::new(10);
    outbox.connected(ALLOWED);
    for job in 0..3 {
        assert!(outbox.push(Kind::Answer(job), message(&job.to_string())));
    }
    offered(&mut outbox, now);
    outbox.sent(1);
    outbox.receipt(1, Receipt::Taken, now);
    outbox.disconnected();
    assert_eq!(offered(&mut outbox, now), Vec::<String>::new());
    outbox.connected(ALLOWED);
    outbox.push_first(Kind::Latest, ["online", "info"].map(message).into_iter());
    assert_eq!(offered(&mut outbox, now), ["online", "info", "1", "2"]);
    assert_eq!(outbox.receipt(1, Receipt::Taken, now), None, "a packet id of the old connection");
}

#[test]
fn what_a_busy_broker_does_not_take_is_tried_again_until_it_expires_or_for_long() {
    let start = Instant::now();
    let life = Duration::from_secs(100);
    for (expires, until) in [(Some(start + life), life), (None, BUSY_PATIENCE)] {
        let mut now = start;
        let mut outbox = Outbox::new(10);
        outbox.connected(ALLOWED);
        assert!(outbox.push(Kind::Answer(1), Message { expires, ..message("a") }));
        let mut packet = 0;
        let end = loop {
            if let [gone] = outbox.offer(now, size, |_| true).as_slice() {
                break gone.end;
            }
            packet += 1;
            outbox.sent(packet);
            if let Some(gone) = outbox.receipt(packet, Receipt::Busy("quota exceeded"), now) {
                break gone.end;
            }
            now = outbox.due(now).expect("it is tried again");
        };
        assert_eq!(end, if expires.is_some() { End::Expired } else { End::Refused("quota exceeded") });
        assert!(now >= start + until && now <= start + until + BUSY_RETRY, "{:?}", now - start);
        assert!(outbox.is_empty());
    }
}

#[test]
fn a_broker_that_confirms_nothing_is_sent_each_message_once() {
    let now = Instant::now();
    let mut outbox = Outbox::new(10);
    outbox.connected(Allowed { qos: Qos::AtMostOnce, ..ALLOWED });
    for job in 0..20 {
        assert!(outbox.push(Kind::Answer(job), message("a")));
    }
    // A channel that is full takes the rest later.
    let mut room = 15;
    let mut send = |_: &Message| {
        room -= 1;
        room >= 0
    };
    let gone = outbox.offer(now, size, &mut send);
    assert!(gone.len() == 15 && gone.iter().all(|gone| gone.end == End::Unconfirmed));
    assert_eq!((outbox.offer(now, size, |_| true).len(), outbox.len()), (5, 0));
}

#[test]
fn a_forbidden_message_is_tried_again_a_few_times() {
    let mut now = Instant::now();
    let mut outbox = Outbox::new(10);
    outbox.connected(ALLOWED);
    assert!(outbox.push(Kind::Answer(1), message("a")));
    for (packet, wait) in (1..).zip(RETRIES) {
        assert_eq!(offered(&mut outbox, now), ["a"]);
        outbox.sent(packet);
        assert_eq!(outbox.receipt(packet, Receipt::Forbidden("not authorized"), now), None);
        assert_eq!(offered(&mut outbox, now), Vec::<String>::new());
        assert_eq!(outbox.due(now), Some(now + wait));
        now += wait;
    }
    offered(&mut outbox, now);
    outbox.sent(9);
    let gone = outbox.receipt(9, Receipt::Forbidden("not authorized"), now).unwrap();
    assert_eq!(gone.end, End::Refused("not authorized"));
    assert!(outbox.is_empty());
}

#[test]
fn a_message_beyond_the_brokers_limit_is_never_sent() {
    let now = Instant::now();
    let mut outbox = Outbox::new(10);
    outbox.connected(Allowed { packet_bytes: Some(5), ..ALLOWED });
    assert!(outbox.push(Kind::Answer(1), message("a")));
    let gone = outbox.offer(now, size, |_| panic!("it is too large"));
    assert_eq!((gone[0].kind, gone[0].end), (Kind::Answer(1), End::TooLarge(5)));
}

#[test]
fn expired_messages_leave_unless_they_are_in_flight() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let mut outbox = Outbox::new(10);
    let mut short = message("short");
    short.expires = Some(now + second);
    assert!(outbox.push(Kind::Answer(1), short.clone()));
    assert_eq!(outbox.due(now), Some(now + second));
    let gone = outbox.offer(now + second, size, |_| panic!("nobody is connected"));
    assert_eq!(gone[0].end, End::Expired);
    outbox.connected(ALLOWED);
    assert!(outbox.push(Kind::Answer(2), short));
    assert_eq!(offered(&mut outbox, now), ["short"]);
    assert!(outbox.offer(now + second, size, |_| true).is_empty());
    assert_eq!(outbox.len(), 1);
}

#[test]
fn only_the_latest_word_on_a_topic_waits() {
    let now = Instant::now();
    let mut outbox = Outbox::new(1);
    let mut old = message("state");
    old.payload = Bytes::from_static(b"old");
    assert!(outbox.push(Kind::Latest, old.clone()));
    assert!(outbox.push(Kind::Latest, message("state")));
    assert_eq!(outbox.len(), 1);
    assert!(!outbox.push(Kind::Optional, message("telemetry")), "there is no room");
    // An older word that was in flight when the connection broke does not come back behind a newer one.
    let mut outbox = Outbox::new(1);
    outbox.connected(ALLOWED);
    assert!(outbox.push(Kind::Latest, old));
    offered(&mut outbox, now);
    assert!(outbox.push(Kind::Latest, message("state")));
    outbox.disconnected();
    assert_eq!(outbox.len(), 1);
}

proptest! {
    /// Under any mix of sends, acknowledgements in any order, refusals and lost connections every answer leaves exactly
    /// once, and never are more than `window` packet ids in use at a time, counted from the oldest.
    #[test]
    fn no_answer_is_lost(steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 1..300), window in 1u64..9) {
        let mut now = Instant::now();
        let mut outbox = Outbox::new(0);
        let allowed = Allowed { window, ..ALLOWED };
        outbox.connected(allowed);
        let mut open: Vec<u16> = Vec::new();
        let (mut packet, mut pushed, mut left) = (0u16, 0u64, Vec::new());
        for (what, index) in steps {
            match what {
                0 => {
                    prop_assert!(outbox.push(Kind::Answer(pushed), message("a")));
                    pushed += 1;
                }
                1 => {
                    let mut sent = 0;
                    prop_assert_eq!(outbox.offer(now, size, |_| { sent += 1; true }), []);
                    for _ in 0..sent {
                        packet += 1;
                        outbox.sent(packet);
                        open.push(packet);
                    }
                    let span = open.first().map_or(0, |oldest| u64::from(packet - oldest) + 1);
                    prop_assert!(span <= window);
                }
                2 | 3 if !open.is_empty() => {
                    let packet = open.remove(index.index(open.len()));
                    let receipt = if what == 2 { Receipt::Taken } else { Receipt::Busy("busy") };
                    left.extend(outbox.receipt(packet, receipt, now).map(|gone| gone.kind));
                }
                4 => {
                    outbox.connected(allowed);
                    open.clear();
                }
                _ => now += Duration::from_secs(5),
            }
            prop_assert_eq!(usize::try_from(pushed).unwrap(), outbox.len() + left.len());
        }
        for _ in 0..=outbox.len() * 5 {
            now += Duration::from_secs(60);
            outbox.connected(allowed);
            outbox.offer(now, size, |_| true);
            outbox.sent(1);
            left.extend(outbox.receipt(1, Receipt::Taken, now).map(|gone| gone.kind));
        }
        prop_assert!(outbox.is_empty());
        let mut jobs: Vec<_> = left.iter().map(|kind| match kind { Kind::Answer(job) => *job, _ => u64::MAX }).collect();
        jobs.sort_unstable();
        prop_assert!(jobs.into_iter().eq(0..pushed));
    }
}
