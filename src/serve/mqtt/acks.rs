//! When to acknowledge an incoming request: once its answer is safe with the broker, and in the order of arrival, which
//! MQTT demands (MQTT-4.6.0-2). Until then the broker keeps the request, so a crash of ours loses nothing. Pure.

use std::collections::VecDeque;

/// On which of our links to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// The node's own.
    Own,
    /// The pool's.
    Pool,
}

/// One delivery, unique over all connections of all links: an old one can never acknowledge a new message that happens to
/// carry the same packet id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Delivery(Line, u64);

/// Deliveries of a link's present connection that are not acknowledged yet. Bounded by the Receive Maximum that we
/// announce.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Acks {
    line: Line,
    open: VecDeque<Open>,
    next: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Open {
    delivery: Delivery,
    packet: u16,
    answered: bool,
}

impl Acks {
    /// Those of a link; nothing has come.
    #[must_use]
    pub fn new(line: Line) -> Self {
        Self { line, open: VecDeque::new(), next: 0 }
    }

    /// Notes a delivery.
    pub fn arrived(&mut self, packet: u16) -> Delivery {
        let delivery = Delivery(self.line, self.next);
        self.next += 1;
        self.open.push_back(Open { delivery, packet, answered: false });
        delivery
    }

    /// The packet id of a delivery that waits.
    #[must_use]
    pub fn packet(&self, delivery: Delivery) -> Option<u16> {
        let at = self.open.binary_search_by_key(&delivery, |open| open.delivery).ok()?;
        self.open.get(at).map(|open| open.packet)
    }

    /// The answer to a delivery is safe. One of an earlier connection is ignored: the broker delivers it again. So is one
    /// of another link.
    pub fn answered(&mut self, delivery: Delivery) {
        if let Ok(at) = self.open.binary_search_by_key(&delivery, |open| open.delivery)
            && let Some(open) = self.open.get_mut(at)
        {
            open.answered = true;
        }
    }

    /// Hands over the packet ids to acknowledge now, in order, for as long as `send` takes them.
    pub fn release(&mut self, mut send: impl FnMut(u16) -> bool) {
        while let Some(first) = self.open.front() {
            if !first.answered || !send(first.packet) {
                return;
            }
            self.open.pop_front();
        }
    }

    /// A new connection: packet ids of the old one mean nothing any more.
    pub fn reset(&mut self) {
        self.open.clear();
    }

    /// Deliveries that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn released(acks: &mut Acks) -> Vec<u16> {
        let mut packets = Vec::new();
        acks.release(|packet| {
            packets.push(packet);
            true
        });
        packets
    }

    #[test]
    fn a_late_head_holds_back_the_rest() {
        let mut acks = Acks::new(Line::Own);
        let [a, b, c] = [11, 12, 13].map(|packet| acks.arrived(packet));
        acks.answered(c);
        acks.answered(b);
        assert_eq!(released(&mut acks), Vec::<u16>::new());
        acks.answered(a);
        assert_eq!(released(&mut acks), [11, 12, 13]);
    }

    #[test]
    fn a_delivery_of_an_old_connection_acknowledges_nothing() {
        let mut acks = Acks::new(Line::Own);
        let old = acks.arrived(7);
        acks.reset();
        acks.arrived(7);
        acks.answered(old);
        assert_eq!(released(&mut acks), Vec::<u16>::new());
    }

    #[test]
    fn a_delivery_on_another_link_acknowledges_nothing_here() {
        let (mut own, mut pool) = (Acks::new(Line::Own), Acks::new(Line::Pool));
        let (on_own, on_pool) = (own.arrived(7), pool.arrived(7));
        own.answered(on_pool);
        pool.answered(on_own);
        assert_eq!((released(&mut own), released(&mut pool)), (vec![], vec![]));
        pool.answered(on_pool);
        assert_eq!((released(&mut own), released(&mut pool)), (vec![], vec![7]));
    }

    #[test]
    fn what_the_channel_does_not_take_stays() {
        let mut acks = Acks::new(Line::Own);
        let a = acks.arrived(1);
        acks.answered(a);
        acks.release(|_| false);
        assert_eq!(released(&mut acks), [1]);
    }

    proptest! {
        #[test]
        fn acknowledged_in_order_of_arrival_each_once(order in Just((0u16..20).collect::<Vec<_>>()).prop_shuffle()) {
            let mut acks = Acks::new(Line::Own);
            let deliveries: Vec<_> = (0..20).map(|packet| acks.arrived(packet)).collect();
            let mut sent = Vec::new();
            for at in order {
                acks.answered(deliveries[usize::from(at)]);
                sent.extend(released(&mut acks));
                prop_assert!(sent.iter().copied().eq(0..u16::try_from(sent.len()).unwrap()));
            }
            prop_assert_eq!(sent.len(), 20);
        }
    }
}
