//! A real mosquitto on a free loopback port, and devices to talk to it. Included by tests with `#[path]`.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rumqttc::v5::{
    AsyncClient, Event, MqttOptions,
    mqttbytes::{
        QoS,
        v5::{ConnectProperties, Packet, Publish, PublishProperties},
    },
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};

/// How long anything may take before a test gives up; nothing waits this long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The broker; killed on drop.
pub struct Mosquitto {
    child: Option<Child>,
    folder: TempDir,
    port: u16,
}

impl Mosquitto {
    /// Starts a broker that lets everybody in.
    pub fn start() -> Self {
        Self::with(|_| vec!["allow_anonymous true".into()])
    }

    /// Starts a broker with the lines that `config` makes for its folder.
    pub fn with(config: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let mut broker = Self::prepared(config);
        broker.run();
        broker
    }

    /// As [`Self::with`], but [`Self::run`] starts it.
    pub fn prepared(config: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let mut lines = vec![format!("listener {port} 127.0.0.1")];
        lines.extend(config(folder.path()));
        lines.push("persistence true".into());
        lines.push(format!("persistence_location {}/", folder.path().display()));
        // Started as root, it would change to a user who cannot read the folder.
        lines.push("user root".into());
        std::fs::write(folder.path().join("mosquitto.conf"), lines.join("\n") + "\n").expect("a configuration");
        Self { child: None, folder, port }
    }

    /// Starts it and waits until it takes connections.
    pub fn run(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log");
        let child = Command::new(binary("mosquitto"))
            .arg("-v")
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("mosquitto starts");
        self.child = Some(child);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "mosquitto does not listen:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it in good order: sessions are written to its folder.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
            child.wait().expect("it ends");
        }
    }

    /// Kills it: what it had not written down is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Debian puts the broker where only root's PATH leads.
pub fn binary(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; apt-get install mosquitto mosquitto-clients"))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// An MQTT 5 client; its connection ends with it.
pub struct Device {
    client: AsyncClient,
    messages: mpsc::Receiver<Publish>,
    subscribed: mpsc::Receiver<()>,
    published: mpsc::Receiver<()>,
    task: JoinHandle<()>,
}

impl Device {
    pub async fn connect(port: u16, id: &str, login: Option<(&str, &str)>) -> Self {
        Self::with(port, id, |options| {
            if let Some((user, password)) = login {
                options.set_credentials(user, password);
            }
        })
        .await
    }

    pub async fn with(port: u16, id: &str, set: impl FnOnce(&mut MqttOptions)) -> Self {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        let mut properties = ConnectProperties::new();
        properties.max_packet_size = Some(4 * 1024 * 1024);
        options.set_connect_properties(properties);
        set(&mut options);
        let (client, mut eventloop) = AsyncClient::new(options, 100);
        let (to_messages, messages) = mpsc::channel(1000);
        let (to_subscribed, subscribed) = mpsc::channel(10);
        let (to_published, published) = mpsc::channel(1000);
        let (to_connected, mut connected) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            while let Ok(event) = eventloop.poll().await {
                let gone = match event {
                    Event::Incoming(Packet::ConnAck(_)) => to_connected.send(()).await.is_err(),
                    Event::Incoming(Packet::Publish(publish)) => to_messages.send(publish).await.is_err(),
                    Event::Incoming(Packet::SubAck(_)) => to_subscribed.send(()).await.is_err(),
                    Event::Incoming(Packet::PubAck(_)) => to_published.send(()).await.is_err(),
                    _ => false,
                };
                if gone {
                    return;
                }
            }
        });
        within("CONNACK", connected.recv()).await.expect("the broker takes the device");
        Self { client, messages, subscribed, published, task }
    }

    pub async fn subscribe(&mut self, filter: &str) {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.expect("the client runs");
        within("SUBACK", self.subscribed.recv()).await.expect("the connection lives");
    }

    /// Publishes at QoS 1 and waits for the broker's PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>, properties: PublishProperties) {
        self.client
            .publish_with_properties(topic, QoS::AtLeastOnce, false, payload.into(), properties)
            .await
            .expect("the client runs");
        within("PUBACK", self.published.recv()).await.expect("the connection lives");
    }

    /// The next message.
    pub async fn next(&mut self) -> Publish {
        within("a message", self.messages.recv()).await.expect("the connection lives")
    }

    /// The next message on a topic; others are passed over.
    pub async fn next_on(&mut self, topic: &str) -> Publish {
        loop {
            let message = self.next().await;
            if message.topic == topic {
                return message;
            }
        }
    }

    /// The next message on a topic with this payload.
    pub async fn wait_for(&mut self, topic: &str, payload: &str) {
        while self.next_on(topic).await.payload != payload {}
    }

    /// What has come so far.
    pub fn pending(&mut self) -> Vec<Publish> {
        std::iter::from_fn(|| self.messages.try_recv().ok()).collect()
    }

    pub fn is_connected(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits, but not for ever.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"))
}
