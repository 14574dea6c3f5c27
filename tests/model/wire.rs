//! A connection and the broker at its other end, which keeps what we have not acknowledged.

use std::collections::VecDeque;

use super::daemon::Letter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToBroker {
    Final { packet: u16, letter: Letter },
    Ack { packet: u16 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToDaemon {
    Request {
        ask: usize,
        packet: u16,
        dup: bool,
    },
    /// `taken`: else the final is refused for good.
    Receipt {
        packet: u16,
        taken: bool,
    },
}

/// The present connection. Both directions keep their order, and nothing outlives it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Wire {
    pub up: bool,
    pub to_broker: VecDeque<ToBroker>,
    pub to_daemon: VecDeque<ToDaemon>,
    /// Packet id of the last final on this connection.
    pub last: u16,
    /// How many of them the outbox does not know of.
    untold: u16,
}

impl Wire {
    pub fn publish(&mut self, letter: Letter, forgotten: &[Letter]) -> bool {
        if !self.up {
            return false;
        }
        self.last += 1;
        self.untold += 1;
        if !forgotten.contains(&letter) {
            self.to_broker.push_back(ToBroker::Final { packet: self.last, letter });
        }
        true
    }

    /// Packet ids of what was published since it was asked last, in order.
    pub fn sent(&mut self) -> impl Iterator<Item = u16> + use<> {
        let first = self.last - std::mem::take(&mut self.untold) + 1;
        first..=self.last
    }

    /// Ends the connection. What is on its way is lost; gives back finals whose receipts have not come.
    pub fn cut(&mut self) -> Vec<Letter> {
        let flying = self.to_broker.iter().filter_map(|packet| match packet {
            ToBroker::Final { letter, .. } => Some(*letter),
            ToBroker::Ack { .. } => None,
        });
        let flying = flying.collect();
        *self = Self::default();
        flying
    }
}

/// A request that the broker keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kept {
    pub ask: usize,
    /// `None` until it was sent once: it keeps its packet id.
    pub packet: Option<u16>,
    /// It was sent on the present connection.
    pub here: bool,
}

/// Our session with the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Broker {
    pub kept: Vec<Kept>,
    /// There is a session: it was made by our subscription.
    pub subscribed: bool,
    /// The last packet id that it gave. Ids go round in a circle that is longer than any of these explorations.
    pub last: u16,
}

impl Broker {
    /// Sends all that was not sent on this connection.
    pub fn deliver(&mut self, wire: &mut Wire) {
        if !wire.up {
            return;
        }
        for at in 0..self.kept.len() {
            if self.kept[at].here {
                continue;
            }
            let dup = self.kept[at].packet.is_some();
            let kept = &mut self.kept[at];
            let packet = kept.packet.unwrap_or(self.last + 1);
            self.last = self.last.max(packet);
            (kept.packet, kept.here) = (Some(packet), true);
            wire.to_daemon.push_back(ToDaemon::Request { ask: kept.ask, packet, dup });
        }
    }

    /// Takes an acknowledgement; `None` where it is for nothing or not for the first that is open.
    pub fn acknowledged(&mut self, packet: u16) -> Option<(Kept, bool)> {
        let at = self.kept.iter().position(|kept| kept.packet == Some(packet) && kept.here)?;
        let is_first = !self.kept[..at].iter().any(|kept| kept.here);
        Some((self.kept.remove(at), is_first))
    }

    pub fn disconnected(&mut self) {
        self.kept.iter_mut().for_each(|kept| kept.here = false);
    }

    pub fn has(&self, ask: usize) -> bool {
        self.kept.iter().any(|kept| kept.ask == ask)
    }

    /// Forgets all of us, and gives back what it kept.
    pub fn lose(&mut self) -> Vec<Kept> {
        std::mem::take(self).kept
    }
}
