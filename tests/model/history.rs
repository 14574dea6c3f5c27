//! What an onlooker who sees everything notes, and what must never be. Nothing here acts on the rest.

use super::setup::{Ask, Setup};

/// What a final says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Body {
    /// The answer to a payload. Each decode gives another one: nothing may rest on two being the same.
    Answer {
        payload: u8,
        decode: u8,
    },
    Cancelled,
    Expired,
    /// Engines kept dying.
    EnginePoison,
    /// Daemons kept dying.
    Poison,
    QueueFull,
    AlreadyAnswered,
    Conflict,
}

impl Body {
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Answer { .. })
    }

    /// Whether it is the outcome of an accepted request, and no refusal.
    pub fn is_outcome(self) -> bool {
        !matches!(self, Self::QueueFull | Self::AlreadyAnswered | Self::Conflict)
    }
}

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// The broker was sent an acknowledgement out of turn, or for nothing.
    AckOutOfTurn,
    /// A device got the answer to another question.
    AnswerOfAnother,
    /// Two different outcomes of one key, the second without `redecoded`.
    SecondOutcomeUnmarked,
    /// Two different outcomes of one key, and no daemon had died between the two PUBACKs without the record.
    SecondOutcomeOutsideTheWindow,
    /// A key that is recorded as finished was decoded.
    DecodedThoughFinished,
    /// One key was decoded twice by one daemon.
    DecodedTwiceAtOnce,
    /// A request ran in a third daemon after two had died while it ran.
    RanInAThirdDaemon,
    /// A request is given up for daemons that did not die while it ran.
    FalselyAccused,
    /// A step that was to bring the end nearer did not.
    NoProgress,
}

/// Of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OfKey {
    /// Different outcomes that the broker took, in order.
    pub outcomes: Vec<Body>,
    /// What was asked where it has an outcome, taken or given up.
    payload: Option<u8>,
    /// The last final was a refusal that leaves all as it was.
    refused: bool,
    /// Decodes that began.
    pub decodes: u8,
    /// A daemon died between the two PUBACKs without the record.
    pub window: bool,
    /// We have acknowledged it, having answered it.
    pub acknowledged: bool,
    /// Daemons that died while it ran.
    pub deaths: u8,
    /// Those, those that died when it was about to run, and those that died so soon after its outcome that this was not on
    /// disk.
    pub accusations: u8,
}

/// Of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OfAsk {
    /// It was asked.
    pub asked: bool,
    /// It was asked when it was not with the broker, and the broker has taken no final for it since.
    pub owed: bool,
}

/// All that happened, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct History {
    pub keys: Vec<OfKey>,
    pub asks: Vec<OfAsk>,
    pub wrong: Option<Wrong>,
}

impl History {
    pub fn new(setup: &Setup) -> Self {
        Self { keys: vec![OfKey::default(); setup.keys()], asks: vec![OfAsk::default(); setup.asks.len()], wrong: None }
    }

    pub fn wrong(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }

    /// The broker has taken a final.
    pub fn taken(&mut self, setup: &Setup, to: usize, body: Body, redecoded: bool) {
        let ask = setup.asks[to];
        if let Body::Answer { payload, .. } = body
            && payload != ask.payload
        {
            self.wrong(Wrong::AnswerOfAnother);
        }
        self.pay(setup, ask);
        let key = &mut self.keys[ask.key];
        key.refused = body == Body::QueueFull;
        // A request without a mark is a new question each time.
        if !ask.marked || !body.is_outcome() || key.outcomes.contains(&body) {
            return;
        }
        let is_second = !key.outcomes.is_empty();
        key.outcomes.push(body);
        key.payload = Some(ask.payload);
        let window = key.window;
        if is_second && !redecoded {
            self.wrong(Wrong::SecondOutcomeUnmarked);
        } else if is_second && !window {
            self.wrong(Wrong::SecondOutcomeOutsideTheWindow);
        }
    }

    /// A device asks; `is_open`: the broker has it from before.
    pub fn asks(&mut self, at: usize, ask: Ask, is_open: bool) {
        // One that sends a mark again of which there is an answer is owed nothing: where the broker has to deliver that twice,
        // it is acknowledged without a word.
        let is_answered = ask.marked && self.keys[ask.key].payload == Some(ask.payload);
        let state = &mut self.asks[at];
        state.asked = true;
        state.owed |= !is_open && !is_answered;
    }

    /// We send the acknowledgement of this request.
    pub fn acknowledges(&mut self, ask: Ask) {
        let key = &mut self.keys[ask.key];
        key.acknowledged |= !key.refused && key.payload == Some(ask.payload);
    }

    /// The daemon is dead. `running`: without an outcome; `accused`: its beginning may be on disk, and no outcome; `finished`:
    /// that it is finished is on disk.
    pub fn died(&mut self, key: usize, running: bool, accused: bool, finished: bool) {
        let key = &mut self.keys[key];
        key.deaths += u8::from(running);
        key.accusations += u8::from(running || accused);
        key.window |= !key.outcomes.is_empty() && !key.acknowledged && !finished;
    }

    /// The broker will not have this final: its time is over, or the broker refused it.
    pub fn given_up(&mut self, setup: &Setup, to: usize, body: Body) {
        let ask = setup.asks[to];
        let key = &mut self.keys[ask.key];
        key.refused = body == Body::QueueFull;
        if body.is_outcome() {
            key.payload = Some(ask.payload);
        }
        self.pay(setup, ask);
    }

    /// Nothing is owed any more to those who asked this: the same of the same key.
    pub fn pay(&mut self, setup: &Setup, ask: Ask) {
        for (other, state) in setup.asks.iter().zip(&mut self.asks) {
            state.owed &= other.key != ask.key || other.payload != ask.payload;
        }
    }

    /// A request runs.
    pub fn starts(&mut self, ask: Ask, is_finished: bool) {
        let key = &mut self.keys[ask.key];
        key.decodes += 1;
        if !ask.marked {
            return;
        }
        if is_finished || key.acknowledged {
            self.wrong(Wrong::DecodedThoughFinished);
        } else if key.deaths >= temperd::request::seen::POISON {
            self.wrong(Wrong::RanInAThirdDaemon);
        }
    }
}
