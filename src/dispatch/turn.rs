//! Whose turn it is: requests that another engine began, then the queue. Pure.

use super::slots::{Paused, Resume, Room, Slots, Suspect};
use crate::request::queue::{Entry, Queue};

/// A request that may need leave before it runs for the first time.
pub trait Gated {
    /// Comes once leave is given.
    type Leave;

    /// Whether it may run.
    fn may_run(&self) -> bool;

    /// Its turn has come. `None` where it needs no leave, or where it was asked for before.
    fn knock(&mut self) -> Option<Self::Leave>;
}

/// What follows from whose turn it is.
#[derive(Debug)]
pub struct Turn<J: Gated> {
    /// What is waited for before these requests may run.
    pub leaves: Vec<(u64, J::Leave)>,
    /// It starts now, and was taken out.
    pub starts: Option<(u64, Paused<J>)>,
}

/// Takes the next one out, if there is room for it. Unless `admits`, only what has begun goes on. `cells` is what a request
/// needs of the KV cache; `None` while nobody knows, and then it is not passed over.
pub fn next<J: Gated + Suspect>(
    queue: &mut Queue<J>,
    slots: &mut Slots<J>,
    room: Room,
    admits: bool,
    cells: impl Fn(&J) -> Option<u32>,
) -> Turn<J> {
    match slots.resume(room) {
        Resume::Take(key, paused) => return Turn { leaves: Vec::new(), starts: Some((key, *paused)) },
        Resume::Nobody if admits => {}
        Resume::Wait | Resume::Nobody => return Turn { leaves: Vec::new(), starts: None },
    }
    let leaves = knock(queue, room, &cells);
    let first = queue.pop_ready_of(
        |entry| cells(&entry.payload).is_none_or(|cells| cells <= room.context),
        |entry| cells(&entry.payload).is_some_and(|cells| room.fits(cells)) && entry.payload.may_run(),
    );
    let starts = first.map(|Entry { key, client, payload: job, .. }| {
        let cells = cells(&job).unwrap_or(0);
        (key, Paused { client, cells, job })
    });
    Turn { leaves, starts }
}

/// Asks for leave for all that would start now, at once: what they wait for may be one and the same. None behind them
/// starts before they do.
fn knock<J: Gated>(queue: &mut Queue<J>, mut room: Room, cells: impl Fn(&J) -> Option<u32>) -> Vec<(u64, J::Leave)> {
    let mut leaves = Vec::new();
    for (key, job) in queue.payloads_mut() {
        let Some(cells) = cells(job) else { break };
        if cells > room.context {
            continue;
        }
        if !room.fits(cells) {
            break;
        }
        room = room.less(cells);
        leaves.extend(job.knock().map(|leave| (key, leave)));
    }
    leaves
}
