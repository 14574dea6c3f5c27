//! The templates of well-known models, and what clients may write into them.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Prompter, TemplateError};
use crate::{
    request::{Role, Turn},
    wire::engine::{ControlToken, Segment, Vocabulary},
};

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../tests/templates/", $name, ".jinja"))
    };
}

fn vocabulary(template: &str, control: &[&str]) -> Vocabulary {
    Vocabulary {
        chat_template: Some(template.into()),
        bos: control.first().copied().unwrap_or_default().into(),
        eos: control.get(1).copied().unwrap_or_default().into(),
        control_tokens: (0..).zip(control).map(|(id, text)| control_token(id, text)).collect(),
        name: "Test".into(),
        tokenizer: "gpt2".into(),
        ..Vocabulary::default()
    }
}

fn control_token(id: u32, text: &str) -> ControlToken {
    ControlToken { id, text: text.into(), ..ControlToken::default() }
}

fn prompter(vocabulary: &Vocabulary) -> Prompter {
    let clock = || jiff::civil::date(2026, 11, 24).to_zoned(jiff::tz::TimeZone::UTC).expect("a valid day");
    Prompter::with_clock(vocabulary, Arc::new(clock)).expect("control tokens can be searched for")
}

fn turn(role: Role, content: &str) -> Turn {
    Turn { role, content: content.into() }
}

fn user(content: &str) -> Turn {
    turn(Role::User, content)
}

fn assistant(content: &str) -> Turn {
    turn(Role::Assistant, content)
}

fn system(content: &str) -> Turn {
    turn(Role::System, content)
}

fn text(segments: &[Segment]) -> String {
    segments.iter().map(|segment| segment.text.as_str()).collect()
}

fn special(segments: &[Segment]) -> Vec<&str> {
    segments.iter().filter(|segment| segment.special).map(|segment| segment.text.as_str()).collect()
}

fn plain(segments: &[Segment]) -> Vec<&str> {
    segments.iter().filter(|segment| !segment.special).map(|segment| segment.text.as_str()).collect()
}

const CHATML: [&str; 3] = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"];
const LLAMA3: [&str; 4] = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
const GEMMA: [&str; 4] = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"];
const PHI3: [&str; 6] = ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];
const MISTRAL: [&str; 7] =
    ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"];

#[test]
fn chatml() {
    let segments = prompter(&vocabulary(template!("chatml"), &CHATML))
        .chat(&[system("Be brief."), user("Hi"), assistant("Hello."), user("Who?")])
        .expect("renders");
    assert_eq!(
        text(&segments),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n\
         <|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(special(&segments).len(), 9);
    assert_eq!(plain(&segments)[0], "system\nBe brief.");
}

#[test]
fn smollm2_with_its_default_system_prompt() {
    let segments = prompter(&vocabulary(template!("smollm2"), &CHATML)).chat(&[user("Hi")]).expect("renders");
    assert_eq!(
        text(&segments),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn llama3_trims_and_knows_the_day() {
    let segments = prompter(&vocabulary(template!("llama3"), &LLAMA3))
        .chat(&[system(" S "), user("\n a <|eot_id|> \n")])
        .expect("renders");
    assert_eq!(
        text(&segments),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
         Today Date: 24 Nov 2026\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na <|eot_id|><|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert!(plain(&segments).contains(&"\n\na <|eot_id|>"));
    assert_eq!(special(&segments).iter().filter(|text| **text == "<|eot_id|>").count(), 2);
}

#[test]
fn gemma_refuses_a_system_prompt_in_its_own_words() {
    let prompter = prompter(&vocabulary(template!("gemma"), &GEMMA));
    let segments = prompter.chat(&[user(" Hi ")]).expect("renders");
    assert_eq!(text(&segments), "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n");
    let error = prompter.chat(&[system("secret"), user("Hi")]).expect_err("is refused");
    assert_eq!(error, TemplateError::Refused { reason: Some("System role not supported".into()) });
}

#[test]
fn phi3_and_its_tokens_that_take_white_space_with_them() {
    let mut vocabulary = vocabulary(template!("phi3"), &PHI3);
    let segments = prompter(&vocabulary).chat(&[user("Hi")]).expect("renders");
    assert_eq!(text(&segments), "<|user|>\nHi<|end|>\n<|assistant|>\n");
    for token in &mut vocabulary.control_tokens {
        token.strip_after = true;
    }
    let segments = prompter(&vocabulary).chat(&[user("\n Hi")]).expect("renders");
    assert_eq!(text(&segments), "<|user|>Hi<|end|><|assistant|>");
}

#[test]
fn qwen25_with_its_default_system_prompt() {
    let prompter = prompter(&vocabulary(template!("qwen25"), &CHATML));
    assert_eq!(
        text(&prompter.chat(&[user("Hi")]).expect("renders")),
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        text(&prompter.chat(&[system("S"), user("Hi"), assistant("Yo"), user("?")]).expect("renders")),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n\
         <|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn a_template_may_split_texts_and_mark_generations() {
    let segments = prompter(&vocabulary(template!("thinking"), &CHATML))
        .chat(&[user("Hi"), assistant("<think>hm</think>\n\nHello."), user("<|im_end|>")])
        .expect("renders");
    assert_eq!(
        text(&segments),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

/// The templates of two generations of files, as they are: what they write for a vocabulary that is not Mistral's.
#[test]
fn mistral_templates_themselves() {
    let turns = [user("a"), assistant("b"), user("c")];
    let old = prompter(&vocabulary(template!("mistral_old"), &MISTRAL[..4]));
    assert_eq!(text(&old.chat(&turns).expect("renders")), "<s>[INST] a [/INST]b</s>[INST] c [/INST]");
    let error = old.chat(&[system("S"), user("a")]).expect_err("is refused");
    assert!(error.to_string().contains("roles must alternate"), "{error}");
    let new = prompter(&vocabulary(template!("mistral_new"), &MISTRAL[..4]));
    assert_eq!(text(&new.chat(&turns).expect("renders")), "<s>[INST] a[/INST] b</s>[INST] c[/INST]");
    assert_eq!(text(&new.chat(&[system("S"), user("a")]).expect("renders")), "<s>[INST] S\n\na[/INST]");
    assert_eq!((old.note(), new.note()), (None, None));
}

fn mistral(template: &str, add_space_prefix: bool) -> Prompter {
    prompter(&Vocabulary { tokenizer: "llama".into(), add_space_prefix, ..vocabulary(template, &MISTRAL) })
}

#[test]
fn mistral_takes_its_makers_form_with_either_template() {
    let turns = [system("S"), user("a"), assistant(" b  "), user("c "), user("d")];
    for template in [template!("mistral_old"), template!("mistral_new")] {
        let prompter = mistral(template, false);
        assert!(prompter.note().is_some());
        assert_eq!(
            text(&prompter.chat(&turns).expect("renders")),
            "<s>[INST] a[/INST]  b</s>[INST] S\n\nc \n\nd[/INST]"
        );
        let prompter = mistral(template, true);
        assert_eq!(text(&prompter.chat(&turns).expect("renders")), "<s>[INST]a[/INST] b</s>[INST]S\n\nc \n\nd[/INST]");
    }
}

#[test]
fn mistral_refuses_what_its_maker_refuses() {
    let prompter = mistral(template!("mistral_new"), true);
    for turns in [
        vec![user("a"), assistant("b")],
        vec![user("a"), assistant(""), user("c")],
        vec![assistant("a"), system("b"), user("c")],
    ] {
        assert!(matches!(prompter.chat(&turns), Err(TemplateError::Refused { reason: Some(_) })), "{turns:?}");
    }
}

#[test]
fn another_template_on_mistrals_vocabulary_is_used_as_it_is() {
    let prompter = mistral(template!("chatml"), true);
    assert_eq!(prompter.note(), None);
    assert!(text(&prompter.chat(&[user("Hi")]).expect("renders")).starts_with("<|im_start|>user"));
}

#[test]
fn no_template_is_an_error_that_says_so_and_raw_prompts_still_work() {
    let vocabulary = Vocabulary { chat_template: None, ..vocabulary("", &MISTRAL) };
    let prompter = prompter(&vocabulary);
    let error = prompter.chat(&[user("Hi")]).expect_err("has no template");
    assert_eq!(error, TemplateError::Missing { model: "Test".into() });
    assert!(prompter.note().is_some_and(|note| note.contains("no chat template")));
    assert_eq!(special(&prompter.raw("<s>[INST] Hi [/INST]")), ["<s>", "[INST]", "[/INST]"]);
}

#[test]
fn a_template_that_does_not_parse_is_named_with_its_line() {
    let error = prompter(&vocabulary("a\n{% if %}", &CHATML)).chat(&[user("Hi")]).expect_err("does not parse");
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error:?}");
}

#[test]
fn raw_prompts_are_parsed_for_control_tokens() {
    let vocabulary = Vocabulary { add_space_prefix: true, ..vocabulary("", &MISTRAL) };
    let prompter = prompter(&vocabulary);
    let segments = prompter.raw(" <s>[INST]  Hi [/INST]");
    let pairs: Vec<_> = segments.iter().map(|segment| (segment.text.as_str(), segment.special)).collect();
    // One space less behind a control token only.
    assert_eq!(pairs, [(" ", false), ("<s>", true), ("[INST]", true), (" Hi ", false), ("[/INST]", true)]);
    assert!(prompter.raw("").is_empty());
    assert_eq!(prompter.stop_tokens(&["</s>".into(), "</s".into(), "[INST]".into()]), [1, 2]);
}

#[test]
fn errors_hold_no_text_of_a_message() {
    let secret = "SECRET-TEXT";
    for template in [
        "{{ raise_exception('no ' + messages[0].content) }}",
        "{{ raise_exception(messages[0].content[2:5]) }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content | nosuchfilter }}",
        "{{ messages[0].content.nosuchmethod() }}",
        "{% if 'SECRET' in messages[0].content %}{{ raise_exception(messages[0].content | lower) }}{% endif %}",
        "{{ strftime_now(messages[0].content + '%') }}",
    ] {
        let error = prompter(&vocabulary(template, &CHATML)).chat(&[user(secret)]).expect_err(template);
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(!shown.contains("CRE") && !shown.contains("secret"), "{template}: {shown}");
        }
    }
    let long = format!("{{{{ raise_exception('{}') }}}}", "x".repeat(1000));
    let error = prompter(&vocabulary(&long, &CHATML)).chat(&[user("a")]).expect_err("is refused");
    assert!(error.to_string().len() < 300);
}

#[test]
fn a_hostile_template_is_stopped() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
    let error = prompter(&vocabulary(endless, &CHATML)).chat(&[user("a")]).expect_err("takes too long");
    assert!(matches!(error, TemplateError::Steps { .. }), "{error:?}");
    let recursive = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    let error = prompter(&vocabulary(recursive, &CHATML)).chat(&[user("a")]).expect_err("recurses");
    assert!(matches!(error, TemplateError::Render { .. }), "{error:?}");
    let talkative = "{% for a in range(9999) %}{{ 'x' * 999 }}{% endfor %}";
    let error = prompter(&vocabulary(talkative, &CHATML)).chat(&[user("a")]).expect_err("writes too much");
    assert!(matches!(error, TemplateError::Length { .. }), "{error:?}");
}

#[test]
fn tojson_writes_as_python_does() {
    let template = "{{ {'a': [1, 'é<&\\''], 'b': none} | tojson }}|{{ [1] | tojson(indent=2) }}";
    let segments = prompter(&vocabulary(template, &CHATML)).chat(&[user("a")]).expect("renders");
    assert_eq!(text(&segments), "{\"a\": [1, \"é<&'\"], \"b\": null}|[\n  1\n]");
}

#[test]
fn a_user_defined_control_token_in_a_message_is_cut_in_two() {
    let mut vocabulary = vocabulary(template!("chatml"), &["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>"]);
    for token in &mut vocabulary.control_tokens {
        token.user_defined = true;
    }
    let segments = prompter(&vocabulary).chat(&[user("a<|im_end|>b<think>")]).expect("renders");
    assert_eq!(plain(&segments), ["user\na<", "|im_end|>b<think>", "\n", "assistant\n"]);
    assert_eq!(special(&segments), ["<|im_start|>", "<|im_end|>", "<|im_start|>"]);
}

#[test]
fn private_use_characters_of_messages_and_templates_stay() {
    let template = "\u{f0000}{% for m in messages %}<|im_start|>{{ m.content }}\u{e000}<|im_end|>{% endfor %}";
    let message = "\u{f0001}<|im_end|>\u{f0002}\u{f0000}<|im_start|>\u{10fffd}";
    let segments = prompter(&vocabulary(template, &CHATML)).chat(&[user(message)]).expect("renders");
    assert_eq!(text(&segments), format!("\u{f0000}<|im_start|>{message}\u{e000}<|im_end|>"));
    assert_eq!(special(&segments), ["<|im_start|>", "<|im_end|>"]);
}

/// Writes parts of control tokens right beside messages.
const NARROW: &str = "<|im_start|>{% for m in messages %}{{ m.content }}end|><|im_{{ m.content }}[{{ m.content }}\
                      {{ m.content }}]{% endfor %}<|im_end|>";

/// Text that with what a template writes beside it would make a control token.
#[test]
fn a_message_cannot_finish_a_control_token_of_its_neighbour() {
    let template = NARROW;
    for message in ["<|im_", "end|>", "<|im_end|>", "  <|im_  ", "im_start|>", "<|im_start|"] {
        let segments = prompter(&vocabulary(template, &CHATML)).chat(&[user(message)]).expect("renders");
        assert_eq!(special(&segments), ["<|im_start|>", "<|im_end|>"], "{message}");
        let expected = format!("<|im_start|>{message}end|><|im_{message}[{message}{message}]<|im_end|>");
        assert_eq!(text(&segments), expected);
    }
}

fn message() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(
            CHATML.iter().chain(&LLAMA3).chain(&GEMMA).chain(&PHI3).chain(&MISTRAL).copied().collect::<Vec<_>>()
        )
        .prop_flat_map(|token| (0..=token.len(), 0..=token.len())
            .prop_map(move |(a, b)| { token.get(a.min(b)..a.max(b)).unwrap_or_default().to_owned() })),
        prop::sample::select(CHATML.iter().chain(&MISTRAL).map(|s| (*s).to_owned()).collect::<Vec<_>>()),
        // What [`NARROW`] and its neighbours lack.
        prop::sample::select(["<|", "<|im_", "<|im_start|", "end|>", "start|>", "|>"].map(ToOwned::to_owned).to_vec()),
        prop::sample::select(vec![" ".to_owned(), "\n".into(), "\u{f0000}".into(), "\u{e000}".into(), "好".into()]),
        ".{0,4}",
    ];
    // Where nothing is visible, templates that trim keep nothing to look for.
    (prop::collection::vec(piece, 1..6))
        .prop_map(|pieces| pieces.concat())
        .prop_filter("nothing visible", |text| !text.trim().is_empty())
}

proptest! {
    #[test]
    fn messages_stay_text(messages in prop::collection::vec(message(), 1..4), prefix: bool) {
        let turns: Vec<Turn> = messages
            .iter()
            .enumerate()
            .flat_map(|(n, text)| if n == 0 { vec![user(text)] } else { vec![assistant(text), user(text)] })
            .collect();
        let harmless: Vec<Turn> = turns.iter().map(|t| turn(t.role, "x")).collect();
        for (template, control) in [
            (template!("chatml"), &CHATML[..]),
            (template!("smollm2"), &CHATML[..]),
            (template!("llama3"), &LLAMA3[..]),
            (template!("gemma"), &GEMMA[..]),
            (template!("phi3"), &PHI3[..]),
            (template!("mistral_old"), &MISTRAL[..4]),
            (template!("mistral_new"), &MISTRAL[..]),
            (template!("qwen25"), &CHATML[..]),
            (NARROW, &CHATML[..]),
        ] {
            let tokenizer = if control == MISTRAL { "llama" } else { "gpt2" };
            let prompter = prompter(&Vocabulary {
                add_space_prefix: prefix,
                tokenizer: tokenizer.into(),
                ..vocabulary(template, control)
            });
            let segments = prompter.chat(&turns).expect("renders");
            let expected = prompter.chat(&harmless).expect("renders");
            prop_assert_eq!(special(&segments), special(&expected));
            prop_assert_eq!(segments.len(), expected.len());
            let mut rest = plain(&segments).concat();
            for message in &messages {
                let at = rest.find(message.trim());
                prop_assert!(at.is_some(), "a message is changed");
                rest = rest.split_off(at.unwrap_or_default() + message.trim().len());
            }
        }
    }

    #[test]
    fn raw_prompts_lose_nothing(prompt in message()) {
        let prompter = prompter(&vocabulary("", &MISTRAL));
        prop_assert_eq!(text(&prompter.raw(&prompt)), prompt);
    }
}
