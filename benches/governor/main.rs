//! The governor against a kernel on its own, a fixed safe point and simple on/off control, in virtual time: the table of
//! all scenarios, pictures, and how long a step and a look at the board take. Run by
//! `scripts/bench --governor simulation`. No model, no board.

use std::{fs, path::PathBuf};

use anyhow::Result;

mod pictures;
#[path = "../../tests/governor/sim.rs"]
mod sim;
mod table;
mod timing;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/board/tree.rs"]
mod tree;

use sim::{
    board::{BOARDS, NX},
    scenario::all,
};

fn main() -> Result<()> {
    // `cargo test --benches` runs this too; it is not a test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder)?;
    let mut table = table::Table::default();
    for scenario in BOARDS.into_iter().flat_map(all) {
        let runs = table::Runs::of(&scenario);
        table.row(&scenario, &runs);
    }
    pictures::all(&folder, NX)?;
    let text = format!("{}\n{}\n{}\n", table.markdown(), timing::step(), timing::looks());
    fs::write(folder.join("governor.md"), &text)?;
    println!("{text}\ntable and pictures: {}", folder.display());
    Ok(())
}
