//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod daemon;
pub mod http;
pub mod mosquitto;
pub mod proxy;
pub mod stream;
