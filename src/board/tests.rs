use proptest::prelude::*;

use super::*;

#[test]
fn lists_of_cpus() {
    assert_eq!(ranges("0-7"), Some(8));
    assert_eq!(ranges("0"), Some(1));
    assert_eq!(ranges("0-3,6,8-9"), Some(7));
    for bad in ["", "a", "3-1", "0-4294967295", "-"] {
        assert_eq!(ranges(bad), None, "{bad}");
    }
}

#[test]
fn a_board_can_be_read_on_a_thread_of_its_own() {
    fn assert_send<T: Send>() {}
    assert_send::<Board>();
    assert_send::<Sample>();
}

/// Runs every parser; a panic is the failure.
fn parse_all(bytes: &[u8]) {
    let _kind = identity::kind(bytes);
    let Ok(text) = file::text(bytes) else { return };
    let _l4t = identity::l4t(text);
    let _meminfo = memory::meminfo(text).map(|meminfo| meminfo.available());
    let _vmstat = memory::vmstat(text);
    let _pressure = memory::pressure(text);
    let _limit = memory::cgroup::limit(text);
    let _entry = memory::cgroup::entry(text, "inactive_file");
    let _zone = thermal::kind(text);
    let _trip = thermal::trips::kind(text);
    let _power = gpu::power(text);
    let _mode = modes::id(text);
    let _modes = modes::names(text);
    let _cpus = ranges(text);
}

/// What the files are made of, so that inputs come near to real ones.
const WORDS: &[&str] = &[
    "MemTotal:",
    "MemAvailable:",
    "CmaFree:",
    "SwapFree:",
    "kB",
    "pgmajfault",
    "allocstall_normal",
    "pswpout",
    "some",
    "full",
    "avg10=",
    "avg60=",
    "total=",
    "max",
    "inactive_file",
    "pmode:",
    "<",
    "POWER_MODEL",
    "ID=",
    "NAME=",
    ">",
    "# R36 (release),",
    "REVISION:",
    "nvidia,p3767-0000",
    "nvidia,tegra234",
    "\0",
    "+",
    "-",
    ",",
    " ",
    "\n",
    "0",
    "1",
    "18446744073709551615",
    "-9223372036854775808",
    "1e999",
    "NaN",
    ".",
];

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        parse_all(&bytes);
    }

    #[test]
    fn no_text_like_the_real_one_makes_a_parser_panic(
        words in prop::collection::vec(prop::sample::select(WORDS), 0..64),
    ) {
        parse_all(words.concat().as_bytes());
    }

    #[test]
    fn no_temperature_is_a_surprise(millidegrees in any::<i32>()) {
        let reading = thermal::temperature(millidegrees);
        prop_assert_eq!(reading.is_ok(), millidegrees > -256_000);
    }
}
