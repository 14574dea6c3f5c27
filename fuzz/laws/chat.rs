//! A conversation and the model's template: nothing that a client writes becomes a control token. The first byte chooses
//! template and whether there is a system prompt, then come the messages, each ended by a record separator.

use temperd::{
    chat::Prompter,
    request::{Role, Turn},
    wire::engine::{ControlToken, Segment, Vocabulary},
};

macro_rules! template {
    ($name:literal, $($token:literal),*) => {
        (include_str!(concat!("../../tests/templates/", $name, ".jinja")), &[$($token),*])
    };
}

/// Templates, each with its model's control tokens: the beginning and the end of a text first.
const TEMPLATES: [(&str, &[&str]); 7] = [
    template!("chatml", "<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    template!("smollm2", "<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    template!("qwen25", "<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    template!("llama3", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    template!("gemma", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    template!("phi3", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    template!(
        "mistral_new",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]"
    ),
];
/// Ends a message.
const SEPARATOR: char = '\u{1e}';
/// Messages that are looked at.
const MESSAGES: usize = 8;

/// Renders a conversation, and once more with harmless texts in its place.
pub fn holds(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let (template, tokens) = TEMPLATES[usize::from(*choice) % TEMPLATES.len()];
    let user_defined = choice & 0x80 != 0;
    let prompter = Prompter::new(&vocabulary(template, tokens, user_defined)).expect("tokens can be searched for");

    let text = String::from_utf8_lossy(text);
    let contents: Vec<&str> = text.split(SEPARATOR).take(MESSAGES).collect();
    let system = usize::from(choice & 0x40 != 0);
    let role = |place: usize| match place.checked_sub(system) {
        None => Role::System,
        Some(turn) if turn % 2 == 0 => Role::User,
        Some(_) => Role::Assistant,
    };
    // Templates may trim what is at the edges.
    let turns = |says: &dyn Fn(&str) -> String| -> Vec<Turn> {
        let turns =
            contents.iter().enumerate().map(|(place, content)| Turn { role: role(place), content: says(content) });
        turns.collect()
    };
    let guarded = |content: &str| format!("x{content}x");
    let (written, harmless) = (prompter.chat(&turns(&guarded)), prompter.chat(&turns(&|_| "xx".into())));
    match (&written, &harmless) {
        (Ok(written), Ok(harmless)) => {
            assert_eq!(special(written), special(harmless), "a client has written a control token");
            let plain = plain(written);
            for (place, content) in contents.iter().enumerate().filter(|(place, _)| role(*place) == Role::User) {
                assert!(plain.contains(&guarded(content)), "message {place} is not in the prompt as it was written");
            }
        }
        (Err(written), Err(harmless)) => {
            assert_eq!(written, harmless, "a refusal depends on what is said");
        }
        _ => panic!("whether it is rendered depends on what is said: {:?}, {:?}", written.err(), harmless.err()),
    }

    let raw: String = prompter.raw(&text).into_iter().map(|segment| segment.text).collect();
    assert_eq!(raw, text, "a raw prompt is cut without a loss");
}

fn vocabulary(template: &str, tokens: &[&str], user_defined: bool) -> Vocabulary {
    let control = (0..).zip(tokens).map(|(id, text)| ControlToken {
        id,
        text: (*text).into(),
        user_defined: user_defined && id > 1,
        ..ControlToken::default()
    });
    Vocabulary {
        chat_template: Some(template.into()),
        bos: tokens[0].into(),
        eos: tokens[1].into(),
        control_tokens: control.collect(),
        name: "Test".into(),
        tokenizer: "gpt2".into(),
        ..Vocabulary::default()
    }
}

fn special(segments: &[Segment]) -> Vec<&str> {
    segments.iter().filter(|segment| segment.special).map(|segment| segment.text.as_str()).collect()
}

/// What is not parsed; a record separator, which no message holds, stands for a control token.
fn plain(segments: &[Segment]) -> String {
    let mut plain = String::new();
    for segment in segments {
        if segment.special {
            plain.push(SEPARATOR);
        } else {
            plain.push_str(&segment.text);
        }
    }
    plain
}
