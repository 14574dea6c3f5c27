//! The governor's shell on a copied board's tree: orders, status and events, without a daemon around it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "other tests use more of it")]
#[path = "board/tree.rs"]
mod tree;

use std::{path::Path, sync::Arc, time::Duration};

use temperd::{
    config::{self, Machine, Overrides},
    dispatch::{self, Demand},
    engine::operate::{Orders, Vitals},
    governor::{Admit, Failure},
    keeper::{self, Handle, report::Readings},
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::{engine::Ready, v1},
};
use tokio::sync::{broadcast, watch};
use tree::Tree;

const PATIENCE: Duration = Duration::from_secs(60);
const TJ: &str = "sys/class/thermal/thermal_zone8/temp";

struct Rig {
    keeper: Handle,
    status: StatusBoard,
    metrics: Arc<Metrics>,
    vitals: watch::Sender<Vitals>,
    demand: watch::Sender<Demand>,
    orders: watch::Receiver<Orders>,
    events: broadcast::Receiver<v1::Event>,
    readings: watch::Receiver<Readings>,
}

impl Rig {
    fn start(root: &Path, toml: &str) -> Self {
        let machine =
            Machine { hostname: "test".into(), default_socket: Some("/tmp/socket".into()), state_directory: None };
        let overrides = Overrides { model: Some("model.gguf".into()), ..Overrides::default() };
        let config = config::parse(&format!("[governor]\ninterval_ms = 100\n{toml}"), overrides, &machine).unwrap();
        let status = StatusBoard::new(dispatch::initial_status(&config));
        let metrics = Arc::new(Metrics::new());
        let (vitals, vitals_out) = watch::channel(Vitals::default());
        let (demand, demand_out) = watch::channel(Demand::default());
        let (orders_in, orders) = watch::channel(Orders::full(&config.engine));
        let (events_in, events) = broadcast::channel(64);
        let (readings_in, readings) = watch::channel(Readings::default());
        let keeper = keeper::start(keeper::Parts {
            engine: config.engine,
            governor: config.governor,
            board_root: root.into(),
            status: status.clone(),
            metrics: metrics.clone(),
            vitals: vitals_out,
            demand: demand_out,
            orders: orders_in,
            events: events_in,
            readings: readings_in,
        });
        Self { keeper: keeper.unwrap(), status, metrics, vitals, demand, orders, events, readings }
    }

    async fn orders(&mut self, so: impl Fn(&Orders) -> bool) -> Orders {
        let found = tokio::time::timeout(PATIENCE, self.orders.wait_for(|orders| so(orders))).await;
        *found.expect("it comes to be").expect("the shell lives")
    }

    async fn event(&mut self, so: impl Fn(&v1::Event) -> bool) -> v1::Event {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the shell lives");
                if so(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("it happens")
    }

    fn point(&self) -> v1::OperatingPoint {
        self.status.get().operating_point.expect("always")
    }
}

fn paced(event: &v1::Event) -> f32 {
    event.operating_point.as_ref().expect("always").pace
}

#[tokio::test]
async fn heat_lowers_the_pace_says_why_and_gives_it_back() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let mut rig = Rig::start(&tree.root(), "");
    let first = rig.orders(|orders| orders.spare.0 > 0).await;
    assert_eq!((first.point.pace, first.point.admit), (1.0, Admit::Run));
    assert_eq!(first.point.gpu_layers, u32::MAX, "nobody knows how many there are");
    tree.write(TJ, "95000\n");
    let event = rig.event(|event| paced(event) < 0.5).await;
    let [reason, ..] = &event.reasons[..] else { panic!("{event:?}") };
    assert_eq!((reason.code.as_str(), reason.source.as_deref()), ("hot", Some("tj-thermal")));
    assert_eq!((reason.limit, event.kind.as_str()), (Some(87.0), "operating_point"));
    assert!(event.previous.is_some_and(|point| point.pace >= 0.5) && reason.since > 1e9);
    rig.orders(|orders| orders.point.pace < 0.1).await;
    assert_eq!(rig.status.get().reason.expect("a reason").code, "hot");
    assert!(rig.metrics.render().contains("temperd_temperature_celsius{zone=\"tj-thermal\"} 95.0"));
    let board = rig.readings.borrow().board.clone();
    assert_eq!(
        (board.zone.as_deref(), board.temperature_c, board.power_w),
        (Some("tj-thermal"), Some(95.0), Some(4.304))
    );
    assert_eq!((board.fan_rpm, board.power_mode.as_deref(), board.throttled), (Some(0), Some("40W"), false));
    tree.write(TJ, "45000\n");
    rig.event(|event| paced(event) >= 1.0).await;
    assert!(rig.status.get().reason.is_none() && rig.point().pace >= 1.0);
}

#[tokio::test]
async fn a_pin_is_in_force_when_it_is_answered_and_layers_become_known() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let mut rig = Rig::start(&tree.root(), "");
    let half = v1::Pin { pace: Some(0.5), admit: Some("hold".into()), ..v1::Pin::default() };
    let status = rig.keeper.set_pin(&half).await.unwrap();
    let code = status.reason.as_ref().map(|reason| reason.code.as_str());
    assert_eq!((status.pinned, code), (true, Some("pinned")), "{status:?}");
    let orders = *rig.orders.borrow();
    assert_eq!((orders.point.pace, orders.point.admit), (0.5, Admit::Hold));
    rig.keeper
        .set_pin(&v1::Pin { context: Some(100), ..v1::Pin::default() })
        .await
        .expect_err("below the least context");
    assert!(rig.status.get().pinned, "a bad one changes nothing");
    let status = rig.keeper.set_pin(&v1::Pin::default()).await.unwrap();
    assert_eq!((status.pinned, status.reason, rig.point().pace), (false, None, 1.0));

    let ready = Ready { layers: 33, gpu_layers: 20, ..Ready::default() };
    rig.vitals.send_modify(|vitals| vitals.is_ready(&ready, Duration::from_secs(5), u32::MAX));
    assert_eq!(rig.orders(|orders| orders.point.gpu_layers != u32::MAX).await.point.gpu_layers, 33);
    let fewer = v1::Pin { gpu_layers: Some(12), ..v1::Pin::default() };
    let status = rig.keeper.set_pin(&fewer).await.unwrap();
    assert_eq!(status.operating_point.expect("always").gpu_layers, 12);
}

#[tokio::test]
async fn a_failed_load_is_answered_with_less_at_once() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let mut rig = Rig::start(&tree.root(), "");
    rig.vitals.send_modify(|vitals| {
        vitals.layers = 32;
        vitals.failed(Failure::Load { gpu_layers: 32, context: 8192 });
    });
    assert_eq!(rig.orders(|orders| orders.point.gpu_layers < 32).await.point.gpu_layers, 24);
    assert_eq!(rig.event(|event| !event.reasons.is_empty()).await.reasons[0].code, "load_failed");
}

#[tokio::test]
async fn it_sleeps_where_nobody_asks_and_wakes_at_once() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let mut rig = Rig::start(&tree.root(), "[engine]\nidle_unload_s = 1\n");
    rig.orders(|orders| orders.asleep).await;
    rig.demand.send_replace(Demand { requests: 1, admitted: 1 });
    rig.orders(|orders| !orders.asleep).await;
}

#[tokio::test]
async fn a_machine_without_anything_to_read_stays_at_the_full_point() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(folder.path(), "");
    let status = rig.keeper.set_pin(&v1::Pin::default()).await.unwrap();
    let point = status.operating_point.expect("always");
    assert_eq!((point.context, point.pace, point.admit.as_str(), status.reason), (8192, 1.0, "run", None));
    let orders = rig.orders(|_| true).await;
    assert_eq!((orders.point.admit, orders.grow_to), (Admit::Run, 8192));
}
