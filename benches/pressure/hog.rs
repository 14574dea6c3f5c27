//! The helper that eats memory: a process of its own, so that its memory is nobody else's.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The helper's side: each line names bytes, which are taken and touched, and answered by a line.
pub fn eat() -> Result<()> {
    // Were there too little memory for all, this process is the one to end. Anyone may say so of himself.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let mut eaten = Vec::new();
    for line in std::io::stdin().lines() {
        eaten.push(vec![1_u8; line?.trim().parse()?]);
        println!("{}", eaten.len());
    }
    Ok(())
}

/// Its memory is free again when this is dropped.
pub struct Hog {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Hog {
    pub fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--hog")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the helper")?;
        let (to, from) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Takes so many bytes more, and returns once they are touched.
    pub fn eat(&mut self, bytes: u64) -> Result<()> {
        writeln!(self.to, "{bytes}")?;
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "the helper has ended");
        Ok(())
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ended_before = self.child.kill();
        let _ended_before = self.child.wait();
    }
}
