//! The log on a terminal: one line an event, for people or as JSON. Fields are key-values of the `log` crate.

use std::io::Write;

use log::kv::{Error, Key, Value, VisitSource};

use crate::config::{Log, LogFormat};

/// Installs the logger. Lines go to standard error.
///
/// Called twice in one process the second call does nothing.
pub fn init(config: Log) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Warn).filter_module("temperd", config.level);
    if config.format == LogFormat::Json {
        builder.format(|out, record| {
            let line = json_line(record, &out.timestamp_millis().to_string());
            writeln!(out, "{line}")
        });
    } else {
        builder.format_timestamp_millis().format_target(true);
    }
    let _already_installed = builder.try_init();
}

fn json_line(record: &log::Record<'_>, time: &str) -> serde_json::Value {
    let mut fields = Fields(serde_json::Map::new());
    let _infallible = record.key_values().visit(&mut fields);
    let mut line = fields.0;
    line.insert("time".into(), time.into());
    line.insert("level".into(), record.level().as_str().to_lowercase().into());
    line.insert("target".into(), record.target().into());
    line.insert("message".into(), record.args().to_string().into());
    line.into()
}

struct Fields(serde_json::Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = match (value.to_u64(), value.to_f64(), value.to_bool()) {
            (Some(n), ..) => n.into(),
            (_, Some(n), _) => n.into(),
            (.., Some(b)) => b.into(),
            _ => value.to_string().into(),
        };
        self.0.insert(key.as_str().into(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_holds_message_and_fields() {
        let pairs = [("code", Value::from("queue_full")), ("depth", Value::from(64_u64))];
        let record = log::Record::builder()
            .args(format_args!("refused"))
            .level(log::Level::Warn)
            .target("temperd::dispatch")
            .key_values(&pairs)
            .build();
        let line = json_line(&record, "2026-01-01T00:00:00.000Z");
        assert_eq!(
            line,
            serde_json::json!({"time": "2026-01-01T00:00:00.000Z", "level": "warn", "target": "temperd::dispatch",
                "message": "refused", "code": "queue_full", "depth": 64})
        );
    }
}
