//! `temperd ask`: one question, the answer as it comes, and the outcome as the exit code.

use std::{
    fs::File,
    io::{self, ErrorKind, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use tokio::signal;

use super::{CliError, client};
use crate::{
    constrain::BYTES,
    wire::{
        self,
        v1::{self, ChatEvent, chat_event::Event, inference_client::InferenceClient},
    },
};

/// Most bytes that are read from standard input: the daemon's own default limit.
const STDIN_BYTES: u64 = 256 * 1024;
/// Largest message of the daemon: an answer of the longest context with its log probabilities.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// The arguments of `temperd ask`.
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    /// Socket of the daemon; by default looked for in /run/temperd and $XDG_RUNTIME_DIR.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Instructions to the model, before the question.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Not available yet.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Not available yet.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// File with a JSON schema that the answer must obey.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Print the whole answer as one line of JSON, with usage and timings.
    #[arg(long)]
    json: bool,
    /// Not available yet.
    #[arg(long, value_name = "FILE.jsonl")]
    batch: Option<PathBuf>,
    /// The question; `-` reads it from standard input.
    #[arg(required_unless_present = "batch")]
    prompt: Option<String>,
}

/// Asks and prints.
///
/// # Errors
/// Every outcome but `completed`.
pub async fn run(args: AskArgs) -> Result<(), CliError> {
    let later = [
        ("--session", args.session.is_some()),
        ("--profile", args.profile.is_some()),
        ("--batch", args.batch.is_some()),
    ];
    if let Some((option, _)) = later.into_iter().find(|(_, given)| *given) {
        return Err(CliError::later(option));
    }
    let prompt = match args.prompt.unwrap_or_default() {
        dash if dash == "-" => read_prompt(io::stdin())?,
        prompt => prompt,
    };
    if prompt.is_empty() {
        return Err(CliError::Usage("the question is empty".into()));
    }
    let request = v1::ChatRequest {
        response_format: args.schema.as_deref().map(schema).transpose()?,
        messages: conversation(args.system, prompt),
        stream: Some(!args.json),
        ..v1::ChatRequest::default()
    };
    let channel = client::connect(args.socket).await?;
    let mut client = InferenceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let mut out = Screen::new(io::stdout(), args.json, io::stdout().is_terminal());
    tokio::select! {
        done = converse(&mut client, request, &mut out) => done,
        // Leaving closes the connection, and that cancels the request.
        _ = signal::ctrl_c() => {
            out.end_line();
            Err(CliError::Cancelled)
        }
    }
}

async fn converse<W: Write>(
    client: &mut InferenceClient<tonic::transport::Channel>,
    request: v1::ChatRequest,
    out: &mut Screen<W>,
) -> Result<(), CliError> {
    let mut events = match client.chat(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return out.last(client::refusal(&status)?),
    };
    loop {
        match events.message().await {
            Ok(Some(ChatEvent { event: Some(Event::Chunk(chunk)) })) => {
                if let Some(ahead) = chunk.ahead {
                    note(format_args!("queued, {ahead} before this one"));
                }
                if out.delta(&chunk.delta).is_break() {
                    return out.written();
                }
            }
            Ok(Some(ChatEvent { event: Some(Event::Final(last)) })) => return out.last(last),
            // An event of a newer daemon.
            Ok(Some(ChatEvent { event: None })) => {}
            Ok(None) => {
                out.end_line();
                return Err(CliError::Failed("the daemon ended the answer without its outcome".into()));
            }
            Err(status) => {
                out.end_line();
                return out.last(client::refusal(&status)?);
            }
        }
    }
}

fn conversation(system: Option<String>, prompt: String) -> Vec<v1::Message> {
    let message = |role: &str, content| v1::Message { role: role.into(), content, ..v1::Message::default() };
    system.map(|text| message("system", text)).into_iter().chain([message("user", prompt)]).collect()
}

/// The daemon says what is wrong with a schema; that it is one text of a size that it takes is found out here.
fn schema(path: &Path) -> Result<v1::ResponseFormat, CliError> {
    let usage = |what: String| CliError::Usage(format!("--schema {}: {what}", path.display()));
    let mut schema = String::new();
    let file = File::open(path).map_err(|error| usage(error.to_string()))?;
    file.take(BYTES as u64 + 1).read_to_string(&mut schema).map_err(|error| usage(error.to_string()))?;
    if schema.len() > BYTES {
        return Err(usage(format!("more than {BYTES} bytes, which is the limit")));
    }
    Ok(v1::ResponseFormat { r#type: "json_schema".into(), schema: Some(schema) })
}

/// As a shell's `$(…)`, without the newline at the end.
fn read_prompt(input: impl Read) -> Result<String, CliError> {
    let mut text = String::new();
    match input.take(STDIN_BYTES + 1).read_to_string(&mut text) {
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(CliError::Usage("standard input is not UTF-8 text".into()))
        }
        Err(error) => Err(CliError::Failed(format!("cannot read standard input: {error}"))),
        Ok(bytes) if bytes as u64 > STDIN_BYTES => {
            Err(CliError::Usage(format!("standard input has more than {STDIN_BYTES} bytes, which is the limit")))
        }
        Ok(_) => {
            let end = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
            Ok(end.map(String::from).unwrap_or(text))
        }
    }
}

/// A remark for a person; a program that reads our errors is spared.
fn note(message: impl std::fmt::Display) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Not worth failing for.
        let _ = writeln!(stderr, "temperd: {message}");
    }
}

/// Standard output: pieces of the answer, or one line of JSON. A reader that has gone away ends it quietly.
struct Screen<W> {
    out: W,
    json: bool,
    /// On a terminal control characters of an answer are left out: they could rewrite what is shown.
    terminal: bool,
    /// Bytes of the answer that have been taken.
    taken: usize,
    line_open: bool,
    gone: Option<io::Error>,
}

impl<W: Write> Screen<W> {
    fn new(out: W, json: bool, terminal: bool) -> Self {
        Self { out, json, terminal, taken: 0, line_open: false, gone: None }
    }

    /// Breaks off where nobody reads any more.
    fn delta(&mut self, text: &str) -> std::ops::ControlFlow<()> {
        if self.json || text.is_empty() {
            return std::ops::ControlFlow::Continue(());
        }
        self.taken += text.len();
        self.line_open = !text.ends_with('\n');
        if self.terminal {
            let plain: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
            self.write(&plain);
        } else {
            self.write(text);
        }
        if self.gone.is_some() { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    }

    /// Prints what the final brings and says how it ended.
    fn last(&mut self, last: v1::Final) -> Result<(), CliError> {
        if self.json {
            let line = wire::to_json(&last);
            self.write(&String::from_utf8_lossy(&line));
            self.write("\n");
        } else {
            // The final carries the whole answer, so pieces that did not come cost nothing.
            let content = last.message.as_ref().map_or("", |message| message.content.as_str());
            if let Some(rest) = content.get(self.taken..) {
                let _ = self.delta(rest);
            }
            self.end_line();
            if last.finish_reason.as_deref() == Some("length") {
                note("the answer has reached its limit of tokens");
            }
        }
        if self.gone.is_some() { self.written() } else { client::verdict(&last) }
    }

    /// A reader that has gone, such as `head`, wants no more; any other reason is an error.
    fn written(&mut self) -> Result<(), CliError> {
        match self.gone.take() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(CliError::Failed(format!("cannot write the answer: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn end_line(&mut self) {
        if self.line_open {
            self.line_open = false;
            self.write("\n");
        }
    }

    fn write(&mut self, text: &str) {
        if self.gone.is_none() {
            self.gone = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(content: &str) -> v1::Final {
        v1::Final {
            outcome: "completed".into(),
            message: Some(v1::Message { content: content.into(), ..v1::Message::default() }),
            ..v1::Final::default()
        }
    }

    fn shown(json: bool, terminal: bool, deltas: &[&str], last: v1::Final) -> String {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, json, terminal);
        for delta in deltas {
            assert!(screen.delta(delta).is_continue());
        }
        screen.last(last).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pieces_and_one_newline() {
        assert_eq!(shown(false, false, &["Par", "is."], completed("Paris.")), "Paris.\n");
        assert_eq!(shown(false, false, &["Paris.\n"], completed("Paris.\n")), "Paris.\n");
    }

    #[test]
    fn pieces_that_did_not_come_are_made_good_by_the_final() {
        assert_eq!(shown(false, false, &["Par"], completed("Paris.")), "Paris.\n");
        assert_eq!(shown(false, false, &[], completed("Paris.")), "Paris.\n");
    }

    #[test]
    fn an_answer_cannot_steer_the_terminal() {
        assert_eq!(shown(false, true, &["a\u{1b}[2Jb\tc\n"], completed("a\u{1b}[2Jb\tc\n")), "a[2Jb\tc\n");
        assert_eq!(shown(false, false, &["a\u{1b}"], completed("a\u{1b}")), "a\u{1b}\n");
    }

    #[test]
    fn json_is_the_final_alone_in_one_line() {
        let text = shown(true, false, &["Par"], completed("Paris.\n"));
        let last: v1::Final = wire::from_json(text.trim_end().as_bytes()).unwrap();
        assert_eq!(last, completed("Paris.\n"));
        assert_eq!(text.matches('\n').count(), 1);
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_ends_it_quietly() {
        let mut screen = Screen::new(Closed, false, false);
        assert!(screen.delta("Paris").is_break());
        screen.last(completed("Paris.")).unwrap();
    }

    #[test]
    fn standard_input_is_bounded_and_must_be_text() {
        assert_eq!(read_prompt(&b"Why?\r\n"[..]).unwrap(), "Why?");
        assert_eq!(read_prompt(&b"\xff"[..]).unwrap_err().exit_code(), 2);
        let limit = usize::try_from(STDIN_BYTES).unwrap();
        assert_eq!(read_prompt(io::repeat(b'x').take(STDIN_BYTES)).unwrap().len(), limit);
        assert_eq!(read_prompt(io::repeat(b'x')).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_system_text_comes_first() {
        let roles = |system| conversation(system, "q".into()).into_iter().map(|m| m.role).collect::<Vec<_>>();
        assert_eq!(roles(None), ["user"]);
        assert_eq!(roles(Some("s".into())), ["system", "user"]);
    }
}
