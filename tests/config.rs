//! What the configuration accepts, what it refuses, and in which words.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;
use temperd::{
    config::{Config, ConfigErrors, KvType, Machine, Overrides, load, parse},
    governor::{Bytes, Celsius, Step},
};

fn machine() -> Machine {
    Machine {
        hostname: "box".into(),
        default_socket: Some(PathBuf::from("/run/temperd/temperd.sock")),
        state_directory: None,
    }
}

fn with_model() -> Overrides {
    Overrides { model: Some("model.gguf".into()), ..Overrides::default() }
}

fn good(text: &str) -> Config {
    parse(text, with_model(), &machine()).unwrap()
}

fn errors(text: &str) -> Vec<String> {
    let ConfigErrors(errors) = parse(text, with_model(), &machine()).unwrap_err();
    errors
}

/// The one error of a text.
fn error(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.concat()
}

#[test]
fn a_model_is_enough() {
    let config = good("");
    assert_eq!(config.engine.model, PathBuf::from("model.gguf"));
    assert_eq!((config.engine.threads, config.engine.threads_batch), (None, None));
    assert_eq!(config.node, "box");
    assert_eq!(config.mqtt, None);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_key_and_line() {
    let found = errors(
        "[engine]\n\
         contxt = 4096\n\
         parallel = \"many\"\n\
         context = 100\n\
         step_target_ms = 0\n\
         [sockett]\n\
         [limits]\n\
         kv_type = \"f16\"\n\
         queue = 0\n\
         [mqtt]\n\
         url = \"mqtt://broker\"\n\
         response_topics = [\"#\", \"$SYS/x\", \"a/b#\"]\n\
         pool = \"a/+\"\n\
         inbox = \"disk\"\n\
         keep_alive_s = 4\n\
         [[profile]]\n\
         name = \"x\"\n",
    );
    let expected = [
        "engine.contxt: unknown key; did you mean `engine.context`? (line 2)",
        "engine.parallel: must be a whole number of at most 64 bits, is a string (line 3)",
        "sockett: unknown section or key; did you mean `[socket]`? (line 6)",
        "limits.kv_type: unknown key; did you mean `engine.kv_type`? (line 8)",
        "mqtt.inbox: not available yet; leave it out (line 14)",
        "profile: not available yet; leave it out (line 16)",
        "engine.context: is 100, must be 256 to 1048576 (line 4)",
        "engine.step_target_ms: is 0, must be 1 to 10000 (line 5)",
        "mqtt.response_topics: \"#\" would let a client have us publish anywhere: name the topics of answers (line 12)",
        "mqtt.response_topics: \"$SYS/x\" must not begin with `$`: such topics are the broker's own (line 12)",
        "mqtt.response_topics: \"a/b#\" is no MQTT topic filter (line 12)",
        "mqtt.pool: is \"a/+\", must be 1 to 63 of a-z, 0-9 and - (line 13)",
        "mqtt.keep_alive_s: is 4, must be 5 to 1200 (line 15)",
        "limits.queue: is 0, must be 1 to 4096 (line 9)",
    ];
    assert_eq!(found, expected);
}

#[test]
fn text_that_is_no_toml_is_said_line_by_line() {
    let found = errors("[engine]\nmodel = \nthreads = 4\n[engine\n");
    assert!(found.len() >= 2, "{found:?}");
    assert!(found.iter().all(|error| error.starts_with("malformed TOML: ")), "{found:?}");
    assert!(found.iter().any(|error| error.ends_with("(line 2)")), "{found:?}");
    assert!(found.iter().any(|error| error.ends_with("(line 4)")), "{found:?}");
}

#[test]
fn no_model_says_where_to_name_one() {
    let error = parse("", Overrides::default(), &machine()).unwrap_err().to_string();
    assert!(error.contains("--model") && error.contains("engine.model"), "{error}");
}

#[test]
fn a_model_file_that_is_not_there_is_no_configuration_error() {
    good("[engine]\nmodel = \"/nowhere/at/all.gguf\"");
}

#[test]
fn features_to_come_say_so() {
    for text in ["[mqtt]\ninbox = \"disk\"", "[telemetry]\nhome_assistant = true", "[http]\nlisten = \"127.0.0.1:80\""]
    {
        let error = error(text);
        assert!(error.contains("not available yet"), "{error}");
    }
}

#[test]
fn what_does_not_go_together() {
    for (text, expected) in [
        ("[engine]\nn_batch = 64\nn_ubatch = 128", "engine.n_ubatch: is 128, must not be over engine.n_batch, 64"),
        ("[engine]\ncontext = 256\nn_batch = 512", "engine.n_batch: is 512, must not be over engine.context, 256"),
        ("[engine]\nparallel = 16\nn_batch = 8", "engine.n_batch: is 8, must be at least engine.parallel, 16"),
        ("[engine]\nkv_type = \"q8_0\"\nflash_attention = \"off\"", "engine.kv_type: V in q8_0 needs flash attention"),
        ("[engine]\ncontext = 512\n[limits]\nmax_tokens = 600", "limits.max_tokens: is 600, must not be over"),
        ("[socket]\nallow_uids = [1]\ngateways = [1, 2]", "socket.gateways: uid 2 could never connect"),
        ("[mqtt]\nurl = \"mqtt://b\"\npassword_file = \"p\"", "mqtt.password_file: a password needs a user name"),
        ("[mqtt]\nurl = \"mqtts://b\"\ncert = \"c\"", "mqtt.cert: a client certificate needs its key"),
        ("[mqtt]\nurl = \"mqtts://b\"\nkey = \"k\"", "mqtt.key: a key needs its client certificate"),
        ("[mqtt]\nurl = \"mqtt://b\"\nca = \"c\"", "mqtt.ca: has no effect over `mqtt://`"),
        (
            "[governor]\nreserve_mib = 512\ncritical_mib = 512",
            "governor.critical_mib: is 512, must be below governor.reserve_mib, 512 (line 3)",
        ),
        (
            "[engine]\nbatch_invariant = true\n[[adapter]]\nname = \"a\"\npath = \"a.gguf\"",
            "engine.batch_invariant: does not hold with adapters",
        ),
    ] {
        let error = error(text);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn batch_invariance_has_its_conditions() {
    let config = parse("[engine]\nbatch_invariant = true", with_model(), &machine()).expect("fine by default");
    assert_eq!((config.engine.kv_type.as_str(), config.engine.gpu_layers), ("f16/q8_0", Some(0)));
    for (more, expected) in [
        ("kv_type = \"f16\"", "engine.kv_type: is \"f16\", with engine.batch_invariant must be"),
        ("flash_attention = \"off\"", "engine.batch_invariant: needs flash attention"),
        ("gpu_layers = 3", "engine.batch_invariant: holds on a CPU only"),
    ] {
        let error = error(&format!("[engine]\nbatch_invariant = true\n{more}"));
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn single_values_out_of_range() {
    for (text, expected) in [
        ("[socket]\nmode = \"0999\"", "socket.mode: is \"0999\", must be octal"),
        ("[socket]\nmode = \"1777\"", "socket.mode: is \"1777\", must be octal"),
        ("[socket]\nmode = 660", "socket.mode: must be a text in quotes, is an integer"),
        ("[socket]\npath = \"\"", "socket.path: must not be empty"),
        ("[socket]\nallow_uids = [-1]", "socket.allow_uids: is -1, must be 0 to"),
        ("[engine]\ngpu_layers = \"all\"", "engine.gpu_layers: is \"all\", must be \"auto\" or a whole number"),
        ("[engine]\ngpu_layers = -1", "engine.gpu_layers: is -1, must be 0 to 1000"),
        ("[engine]\nkv_type = \"q4_0\"", "engine.kv_type: is \"q4_0\", must be one of \"f16\", \"q8_0\", \"f16/q8_0\""),
        ("[engine]\nthreads = 9223372036854775808", "engine.threads: must be a whole number"),
        ("[engine]\nidle_unload_s = 0", "engine.idle_unload_s: is 0, must be 1 to 604800"),
        ("[governor]\nreserve_mib = 1", "governor.reserve_mib: is 1, must be 64 to"),
        ("[governor]\nset_point_c = 99", "governor.set_point_c: is 99, must be 40 to 98"),
        ("[governor]\ninterval_ms = 50", "governor.interval_ms: is 50, must be 100 to 10000"),
        ("[governor]\nmemory_ladder = \"trim\"", "governor.memory_ladder: must be a list of texts in quotes"),
        ("[telemetry]\nqos = 2", "telemetry.qos: is 2, must be 0 to 1"),
        ("[log]\nlevel = \"verbose\"", "log.level: is \"verbose\", must be one of"),
        ("[mqtt]\nresponse_topics = []", "mqtt.response_topics: has 0 filters"),
        ("engine = 3", "engine: must be a section, `[engine]`, is an integer"),
        ("queue = 3", "queue: unknown section or key; did you mean `limits.queue`?"),
    ] {
        let error = error(text);
        assert!(error.starts_with(expected), "{error}");
    }
    let long = format!("/{}", "x".repeat(107));
    let flag = Overrides { socket: Some(long.into()), ..with_model() };
    let error = parse("", flag, &machine()).unwrap_err().to_string();
    assert_eq!(error, "--socket: has 108 bytes, a socket's path must have at most 107");
}

#[test]
fn broker_addresses() {
    let broker = |url: &str| {
        let flag = Overrides { mqtt: Some(url.into()), ..with_model() };
        parse("", flag, &machine()).map(|config| {
            let mqtt = config.mqtt.unwrap();
            (mqtt.host, mqtt.port, mqtt.tls)
        })
    };
    assert_eq!(broker("mqtt://broker"), Ok(("broker".into(), 1883, false)));
    assert_eq!(broker("mqtts://broker.lan"), Ok(("broker.lan".into(), 8883, true)));
    assert_eq!(broker("mqtt://127.0.0.1:11883"), Ok(("127.0.0.1".into(), 11883, false)));
    assert_eq!(broker("mqtts://[::1]:2883"), Ok(("::1".into(), 2883, true)));
    assert_eq!(broker("mqtt://[fe80::1]/"), Ok(("fe80::1".into(), 1883, false)));
    for bad in [
        "broker",
        "tcp://broker",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://b:0",
        "mqtt://b:99999",
        "mqtt://b:x",
        "mqtt://b/x",
        "mqtt://b?x",
        "mqtt://b#x",
        "mqtt://[::1",
        "mqtt://[x]",
        "mqtt://a b",
        "",
    ] {
        let error = broker(bad).expect_err(bad).to_string();
        assert!(error.starts_with("--mqtt: "), "{bad}: {error}");
    }
}

#[test]
fn a_password_in_the_address_is_refused_and_not_repeated() {
    for url in ["mqtt://user:hunter2@broker", "mqtt://hunter2@broker", "mqtt://u:hun/ter2@b", "mqtt://u:h#unter2@b"] {
        for (text, flag) in [(format!("[mqtt]\nurl = \"{url}\""), None), (String::new(), Some(url.into()))] {
            let overrides = Overrides { mqtt: flag, ..with_model() };
            let error = parse(&text, overrides, &machine()).unwrap_err().to_string();
            assert!(error.contains("mqtt.password_file") && !error.contains("unter2"), "{error}");
        }
    }
}

#[test]
fn node_names() {
    let node = |hostname: &str| {
        parse("", with_model(), &Machine { hostname: hostname.into(), ..machine() }).map(|config| config.node)
    };
    assert_eq!(node("Edge_Box.local"), Ok("edge-box-local".into()));
    assert_eq!(node("küche"), Ok("k-che".into()));
    assert_eq!(node(&"x".repeat(80)), Ok("x".repeat(63)));
    for hostname in ["", "___", "clients", "Pool"] {
        let error = node(hostname).unwrap_err().to_string();
        assert!(error.contains("--node"), "{error}");
    }
    for bad in ["", "Upper", "a/b", "clients", "pool", &"x".repeat(64)] {
        let flag = Overrides { node: Some(bad.into()), ..with_model() };
        assert!(parse("", flag, &machine()).is_err(), "{bad}");
    }
    assert_eq!(
        good("[mqtt]\nnode = \"kiosk-7\"\nurl = \"mqtt://b\"").mqtt.unwrap().response_topics,
        ["temperd/v1/kiosk-7/response/#", "temperd/v1/clients/+/#",]
    );
}

#[test]
fn pool_names_are_one_level_of_topics_without_wildcards() {
    for bad in ["", "a/b", "a+", "#", "$share", "Upper", &"x".repeat(64)] {
        assert!(error(&format!("[mqtt]\npool = {bad:?}")).starts_with("mqtt.pool: is "), "{bad}");
    }
    let mqtt = good("[mqtt]\nurl = \"mqtt://b\"\npool = \"plant-7\"").mqtt.unwrap();
    assert_eq!((mqtt.pool.as_deref(), mqtt.keep_alive), (Some("plant-7"), Duration::from_secs(15)));
}

#[test]
fn a_flag_wins_over_the_file() {
    let text =
        "[engine]\nmodel = \"file.gguf\"\n[socket]\npath = \"/file.sock\"\n[mqtt]\nurl = \"nonsense\"\nnode = \"f\"";
    let flags = Overrides {
        model: Some("flag.gguf".into()),
        socket: Some("/flag.sock".into()),
        mqtt: Some("mqtt://flag".into()),
        node: Some("flag".into()),
        board_root: Some("/board".into()),
    };
    let config = parse(text, flags, &machine()).unwrap();
    assert_eq!(config.engine.model, PathBuf::from("flag.gguf"));
    assert_eq!(config.socket.path, PathBuf::from("/flag.sock"));
    assert_eq!(config.mqtt.unwrap().host, "flag");
    assert_eq!(config.node, "flag");
    assert_eq!(config.board_root, PathBuf::from("/board"));
}

#[test]
fn defaults_follow_what_they_depend_on() {
    let config = good("[engine]\ncontext = 256\nthreads = 3\nkv_type = \"f16/q8_0\"");
    assert_eq!((config.engine.n_batch, config.engine.n_ubatch), (256, 256));
    assert_eq!(config.limits.max_tokens, 256);
    assert_eq!(config.engine.threads_batch, Some(3));
    assert_eq!(config.engine.kv_type, KvType::F16Q8_0);
}

#[test]
fn ladders_go_down_and_serve_their_purpose() {
    let config = good(
        "[governor]\nreserve_mib = 900\nset_point_c = 80\nmemory_ladder = [\"context 50\", \"unload\"]\n\
         thermal_ladder = []",
    );
    assert_eq!(config.governor.reserve, Some(Bytes::mib(900)));
    assert_eq!(config.governor.set_point, Some(Celsius(80.0)));
    assert_eq!(config.governor.memory_ladder.steps(), [Step::Context(50), Step::Unload]);
    assert_eq!(config.governor.thermal_ladder.steps(), []);
    for (key, steps, expected) in [
        ("memory_ladder", "\"context\"", "\"context\" is no step: there are \"trim\", \"context 75\""),
        ("memory_ladder", "\"context 100\"", "\"context 100\" is no step"),
        ("memory_ladder", "\"context 0\"", "\"context 0\" is no step"),
        ("memory_ladder", "\"context 50\", \"context 50\"", "\"context 50\" must go below what comes before it"),
        ("memory_ladder", "\"context 50\", \"trim\"", "\"trim\" must go below what comes before it"),
        ("memory_ladder", "\"hold\", \"layers 0\"", "\"layers 0\" must go below what comes before it"),
        ("memory_ladder", "\"unload\", \"hold\"", "\"hold\" must go below what comes before it"),
        ("memory_ladder", "\"pace\"", "\"pace\" does not free memory"),
        ("thermal_ladder", "\"layers 50\", \"pace\"", "\"pace\" must go below what comes before it"),
        ("thermal_ladder", "\"context 50\"", "\"context 50\" does not cool"),
        ("thermal_ladder", "\"unload\"", "\"unload\" does not cool"),
    ] {
        let error = error(&format!("[governor]\n{key} = [{steps}]"));
        assert!(error.starts_with(&format!("governor.{key}: {expected}")), "{error}");
    }
    let both = errors("[governor]\nmemory_ladder = [\"cache\", \"layer 0\"]\ninterval_ms = 0");
    assert_eq!(both.len(), 3, "{both:?}");
}

#[test]
fn no_place_for_the_socket_says_what_to_do() {
    let homeless = Machine { default_socket: None, ..machine() };
    let error = parse("", with_model(), &homeless).unwrap_err().to_string();
    assert!(error.contains("--socket") && error.contains("XDG_RUNTIME_DIR"), "{error}");
}

#[test]
fn a_file_is_read_from_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("temperd.toml");
    let error = load(Some(&path), with_model(), &machine()).unwrap_err().to_string();
    assert!(error.contains("temperd.toml") && error.contains("No such file"), "{error}");
    fs::write(&path, "[limits]\nqueue = 5").unwrap();
    assert_eq!(load(Some(&path), with_model(), &machine()).unwrap().limits.queue, 5);
    fs::write(&path, b"[log]\nlevel = \"\xff\"").unwrap();
    assert!(load(Some(&path), with_model(), &machine()).is_err());
}

/// Text that is nearly a configuration: known and unknown names, values of every type.
fn nearly() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        prop::sample::select(vec![
            "engine",
            "socket",
            "mqtt",
            "limits",
            "governor",
            "memory_ladder",
            "log",
            "model",
            "context",
            "url",
            "mode",
            "group",
            "node",
            "queue",
            "response_topics",
            "allow_uids",
            "gpu_layers",
            "[profile]",
        ])
        .prop_map(String::from),
        "\"[^\"\\\\]{0,8}\"",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        "\"[^\"\\\\\n]{0,12}\"",
        "\\[(\"[a-z$#+/]{0,6}\", ){0,3}\\]",
        "\\[(-?[0-9]{1,12}, ){0,3}\\]",
        Just("true".into()),
        Just("1.5".into()),
        Just("{ a = 1 }".into()),
        "\"mqtts?://[a-z0-9:@/\\[\\]#?]{0,12}\"",
    ];
    let line = prop_oneof![
        1 => name.clone().prop_map(|name| format!("[{name}]")),
        3 => (name, value).prop_map(|(name, value)| format!("{name} = {value}")),
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn nothing_written_makes_it_panic(text in prop_oneof![nearly(), any::<String>()]) {
        if let Err(ConfigErrors(errors)) = parse(&text, with_model(), &machine()) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.iter().all(|error| !error.contains('\n')), "{errors:?}");
        }
    }
}

#[test]
fn system_prompts_have_a_name_of_their_own_and_a_text() {
    let one = "[[system_prompt]]\nname = \"a-1\"\ntext = \"Be kind.\"\n";
    let config = good(&format!("{one}[[system_prompt]]\nname = \"b\"\ntext = \"Be brief.\""));
    let names: Vec<_> = config.engine.system_prompts.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["a-1", "b"]);
    assert!(!format!("{config:?}").contains("kind"), "no text of a prompt where settings are shown");
    let many: String = (0..17).map(|nth| one.replace("a-1", &format!("a{nth}"))).collect();
    for (toml, expected) in [
        (
            format!("{one}{one}"),
            "system_prompt.name: is \"a-1\", which another system prompt is called already (line 5)",
        ),
        (
            "[[system_prompt]]\ntext = \"a\"".into(),
            "system_prompt: needs a `name`, after which its image is called (line 1)",
        ),
        (
            "[[system_prompt]]\nname = \"a\"".into(),
            "system_prompt: needs a `text`, the system message as requests send it",
        ),
        (one.replace("a-1", "../a"), "system_prompt.name: is \"../a\", must be 1 to 64 of"),
        (one.replace("Be kind.", ""), "system_prompt.text: has 0 bytes, must have 1 to 65536 (line 3)"),
        (many, "system_prompt: is one too many, at most 16 are taken (line 49)"),
        (
            format!("{one}[engine]\nshare_prefix = \"client\""),
            "system_prompt: is of use to nobody with engine.share_prefix",
        ),
        (
            "system_prompt = 1".into(),
            "system_prompt: must be sections, `[[system_prompt]]`, one for each system prompt",
        ),
    ] {
        let found = errors(&toml);
        assert!(found.iter().any(|error| error.contains(expected)), "{toml}: {found:?}");
    }
}

#[test]
fn adapters_have_a_name_of_their_own_a_file_and_a_scale() {
    let one = "[[adapter]]\nname = \"a-1\"\npath = \"a.gguf\"\n";
    let config = good(&format!("{one}scale = 1\n[[adapter]]\nname = \"b\"\npath = \"b.gguf\"\nscale = -0.25"));
    let adapters: Vec<_> = config.engine.adapters.iter().map(|one| (one.name.as_str(), one.scale)).collect();
    assert_eq!(adapters, [("a-1", 1.0), ("b", -0.25)]);
    assert_eq!(good(one).engine.adapters[0].path, Path::new("a.gguf"));
    for (text, expected) in [
        (format!("{one}{one}"), "adapter.name: is \"a-1\", which another adapter is called already (line 5)"),
        ("[[adapter]]\npath = \"a\"".into(), "adapter: needs a `name`, by which requests choose it (line 1)"),
        ("[[adapter]]\nname = \"a\"".into(), "adapter: needs a `path`: its GGUF file (line 1)"),
        (one.replace("a-1", "a b"), "adapter.name: is \"a b\", must be 1 to 64 of"),
        (one.replace("a-1", "model"), "adapter.name: is \"model\", which the model is called"),
        (format!("{one}scale = nan"), "adapter.scale: is nan, must be a number from -16 to 16 (line 4)"),
        (format!("{one}scale = \"1\""), "adapter.scale: must be a number, is a string (line 4)"),
        (format!("{one}weight = 1"), "adapter.weight: unknown key"),
        (
            "[adapter]\nname = \"a\"".into(),
            "adapter: must be sections, `[[adapter]]`, one for each adapter, is a table",
        ),
    ] {
        let error = error(&text);
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}
