use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const END: u32 = 256;

fn matcher(constraint: &Constraint) -> Result<Matcher, String> {
    Constrainer::of_bytes().expect("bytes are a vocabulary").matcher(constraint)
}

fn schema(schema: &Value) -> Constraint {
    Constraint::Schema(schema.to_string())
}

fn grammar(text: &str) -> Constraint {
    Constraint::Grammar(text.into())
}

/// How many bytes of the text are allowed, and whether the answer may end there.
fn goes(matcher: &mut Matcher, text: &str) -> (usize, bool) {
    for (at, byte) in text.bytes().enumerate() {
        if !matcher.allowed().expect("no limit is met").is_allowed(byte.into()) {
            return (at, false);
        }
        matcher.take(byte.into()).expect("it was allowed");
    }
    (text.len(), matcher.allowed().expect("no limit is met").is_allowed(END))
}

fn takes(constraint: &Constraint, text: &str) -> bool {
    goes(&mut matcher(constraint).expect("it compiles"), text) == (text.len(), true)
}

fn refused(constraint: &Constraint) -> String {
    matcher(constraint).map(drop).expect_err("refused")
}

#[test]
fn a_grammar_is_obeyed_to_the_letter() {
    let answer = grammar("root ::= (\"yes\" | \"no\") \".\"?\n# nothing else");
    for (text, fits) in [("yes", true), ("no.", true), ("ye", false), ("", false), ("nope", false), ("yes..", false)] {
        assert_eq!(takes(&answer, text), fits, "{text}");
    }
    let mut matcher = matcher(&answer).expect("it compiles");
    assert_eq!(goes(&mut matcher, "yes"), (3, true));
    assert!(!matcher.complete(), "a full stop may follow");
    assert_eq!(goes(&mut matcher, "."), (1, true));
    assert!(matcher.complete());
}

#[test]
fn the_longest_lexeme_does_not_win() {
    // A lexer that takes the longest would read "ab" and find no "bd".
    for end in ["", " root?"] {
        let text = format!("root ::= (\"ab\" \"c\" | \"a\" \"bd\" | [a-z] \"bde\"){end}");
        assert!(takes(&grammar(&text), "abd") && takes(&grammar(&text), "abde") && takes(&grammar(&text), "abc"));
    }
    let names = grammar("root ::= word \" \" word\nword ::= [a-z]+ | \"end \" [a-z]+");
    assert!(takes(&names, "end of") && takes(&names, "end of line"));
}

#[test]
fn recursion_is_fine_on_either_side() {
    let sum = grammar("root ::= root \"+\" root | \"(\" root \")\" | [0-9]+");
    assert!(takes(&sum, "1+(2+(34))+5") && !takes(&sum, "1+(2"));
    let wide = grammar("root ::= \"x\" root a | \"x\" root b | \"x\"\na ::= \"y\" |\n\nb ::= \"y\"");
    assert!(refused(&wide).contains("line 4, column 3"), "after `|` a rule goes on in the next line");
    // 2^60 ways to read it.
    let wide = grammar("root ::= \"x\" root a | \"x\" root b | \"x\"\na ::= \"y\"?\nb ::= \"y\"?");
    assert!(takes(&wide, &"x".repeat(60)));
}

#[test]
fn characters_are_those_of_unicode() {
    let class = grammar("root ::= [^a-z\\n\\u00e9] . \"\\x41\\U0001F980\\\"\"");
    assert!(takes(&class, "é".to_uppercase().as_str().chars().chain("\nA🦀\"".chars()).collect::<String>().as_str()));
    assert!(!takes(&class, "éxA🦀\"") && !takes(&class, "axA🦀\"") && !takes(&class, "\nxA🦀\""));
    let mut matcher = matcher(&grammar("root ::= .*")).expect("it compiles");
    let allowed = matcher.allowed().expect("no limit is met");
    assert!([0x00, 0x0a, 0x7f, 0xc3, 0xf0].iter().all(|byte| allowed.is_allowed(*byte)));
    assert!([0x80, 0xc0, 0xff].iter().all(|byte| !allowed.is_allowed(*byte)), "what begins no character");
}

#[test]
fn a_grammar_that_is_wrong_is_refused_with_the_place() {
    for (text, what) in [
        ("", "there is no rule `root`"),
        ("x ::= \"a\"", "there is no rule `root`"),
        ("root ::= x", "there is no rule `x`"),
        ("root ::= root", "never come to an end"),
        ("root ::= \"a\" x\nx ::= \"(\" x \")\"", "never come to an end"),
        ("root", "line 1, column 5"),
        ("root ::= \"a\"\n\nx :: \"b\"", "line 3, column 3"),
        ("root ::= \"a", "ends within"),
        ("root ::= [a", "ends within"),
        ("root ::= []", "empty"),
        ("root ::= [z-a]", "backwards"),
        ("root ::= (\"a\"", "`)` is expected"),
        ("root ::= \"a\")", "cannot follow"),
        ("root ::= \"\\q\"", "escape"),
        ("root ::= \"\\xg0\"", "hexadecimal"),
        ("root ::= \"\\ud800\"", "hexadecimal"),
        ("root ::= *", "nothing to repeat"),
        ("root ::= \"a\"**", "nothing to repeat"),
        ("root ::= \"a\"{3,2}", "less than the first"),
        ("root ::= \"a\"{,2}", "a number is expected"),
        ("root ::= \"a\"{2001}", "at most 2000"),
        ("root ::= \"a\"{99999999999999999999}", "at most 2000"),
        ("root ::= \"a\"{1", "`}` is expected"),
        ("root ::= \"a\"\nroot ::= \"b\"", "a second time"),
        ("root ::= <[3]>", "references to tokens"),
        ("root ::= é", "cannot follow"),
    ] {
        let error = refused(&grammar(text));
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn hostile_grammars_meet_a_limit() {
    let nested = |depth: usize| grammar(&format!("root ::= {}\"a\"{}", "(".repeat(depth), ")".repeat(depth)));
    assert!(takes(&nested(20), "a"));
    assert!(refused(&nested(21)).contains("parentheses"));
    assert!(refused(&nested(30_000)).contains("parentheses"));
    let chain = |rules: usize, last: &str| {
        let rules: String = (0..rules).map(|n| format!("r{n} ::= (((\"a\"? r{})))\n", n + 1)).collect();
        grammar(&format!("{rules}r510 ::= {last}\nroot ::= r0"))
    };
    assert!(matcher(&chain(510, "\"b\"")).is_ok() && matcher(&chain(510, "\"b\" r0?")).is_ok());
    assert!(refused(&chain(512, "\"b\"")).contains("512 rules"));
    let doubling: String = (0..60).map(|n| format!("r{n} ::= r{0} r{0}\n", n + 1)).collect();
    assert!(refused(&grammar(&format!("{doubling}r60 ::= [ab]\nroot ::= r0"))).contains("too big"));
    assert!(refused(&grammar(&format!("root ::= \"{}\" root?", "a".repeat(20_000)))).contains("too big"));
}

#[test]
fn a_schema_is_obeyed() {
    let pump = schema(&json!({"type": "object", "properties": {"on": {"type": "boolean"},
        "hall": {"enum": ["north", "south"]}, "flow": {"type": "integer", "minimum": 0, "maximum": 99},
        "log": {"type": "array", "items": {"$ref": "#/$defs/entry"}, "maxItems": 2}},
        "required": ["on", "hall"], "additionalProperties": false,
        "$defs": {"entry": {"type": "array", "items": {"type": "null"}}}}));
    assert!(takes(&pump, r#"{"on":true,"hall":"north"}"#));
    assert!(takes(&pump, "{\n  \"on\": false,\n  \"hall\": \"south\", \"flow\": 7, \"log\": [[null, null], []]\n}"));
    for wrong in [
        r#"{"on":1"#,
        r#"{"hall":"north"}"#,
        r#"{"on":true}"#,
        r#"{"on":true,"hall":"east"#,
        r#"{"on":true,"hall":"north","flow":100"#,
        r#"{"on":true,"hall":"north","log":[[],[],"#,
        r#"{"on":true,"hall":"north","more"#,
    ] {
        assert!(!takes(&pump, wrong), "{wrong}");
    }
}

#[test]
fn white_space_is_bounded() {
    let any = schema(&json!({"type": "object"}));
    assert_eq!(goes(&mut matcher(&any).expect("it compiles"), "{  "), (2, false));
    assert_eq!(goes(&mut matcher(&any).expect("it compiles"), &format!("{{\n{}", " ".repeat(40))), (34, false));
    assert_eq!(goes(&mut matcher(&any).expect("it compiles"), "{\n\n"), (2, false));
    assert!(takes(&any, "{\n\t\"a\": {\n\t\t\"b\": [1, 2.5e3]\n\t}\n}"));
}

#[test]
fn a_schema_that_is_wrong_is_refused_with_the_reason() {
    let deep = format!("{}{{}}{}", "{\"items\":".repeat(60), "}".repeat(60));
    let abyss = "{\"items\":".repeat(7000);
    let many: Vec<Value> = (0..200).map(|_| json!({"$ref": "#/$defs/x"})).collect();
    for (text, what) in [
        (r#"{"not": {"type": "string"}}"#, "not"),
        (r#"{"type": "object", "propertyNames": {"pattern": "a"}}"#, "propertyNames"),
        (r##"{"$ref": "#/nowhere"}"##, "nowhere"),
        (r#"{"$ref": "http://localhost/schema"}"#, "http://localhost/schema"),
        (r#"{"type": "colour"}"#, "colour"),
        (r#"{"type": "integer", "minimum": 5, "maximum": 1}"#, "nsatisfiable"),
        (r#"{"x-guidance": {"lenient": true}}"#, "x-guidance"),
        ("[]", "must be a JSON object"),
        ("true", "must be a JSON object"),
        ("{\"type\":", "malformed JSON: line 1, column 8"),
        (&deep, "deeper than 48"),
        (&abyss, "malformed JSON"),
        (&json!({"$defs": {"x": {}}, "anyOf": many}).to_string(), "at most 128"),
    ] {
        let error = refused(&Constraint::Schema(text.into()));
        assert!(error.contains(what), "{text:.100}: {error}");
    }
}

#[test]
fn hostile_schemas_meet_a_limit() {
    // References through which the compiler recurses, 40 levels each.
    let chain = |length: usize| {
        let def = |n: usize| {
            let reference = format!("{{\"$ref\":\"#/$defs/{}\"}}", (n + 1) % length);
            let text = format!("{}{reference}{}", "{\"items\":".repeat(40), "}".repeat(40));
            (n.to_string(), serde_json::from_str(&text).expect("JSON"))
        };
        let defs: serde_json::Map<String, Value> = (0..length).map(def).collect();
        matcher(&schema(&json!({"$defs": defs, "$ref": "#/$defs/0"}))).map(drop)
    };
    assert_eq!(chain(10), Ok(()));
    assert!(chain(120).is_err_and(|error| error.contains("too big")));
    let properties: serde_json::Map<String, Value> = (0..6000).map(|n| (n.to_string(), json!({}))).collect();
    assert!(refused(&schema(&json!({"type": "object", "properties": properties}))).contains("too big"));
    let choice: Vec<Value> = (0..300).map(|n| json!({"properties": {n.to_string(): {"type": "null"}}})).collect();
    assert!(refused(&schema(&json!({"allOf": [{"anyOf": choice.clone()}, {"anyOf": choice}]}))).contains("too large"));
}

#[test]
fn nothing_of_a_constraint_shows_in_debug() {
    assert_eq!(format!("{:?}", grammar("root ::= \"sesame\"")), "Grammar(17 bytes)");
    assert_eq!(format!("{:?}", Constraint::Schema("{}".into())), "Schema(2 bytes)");
}

/// A vocabulary as models have it: tokens of several bytes, duplicates, tokens without text, two ends.
#[test]
fn tokens_are_allowed_by_their_bytes() {
    let tokens = ["", "y", "ye", "yes", "s", "no", "yes!", "", "no", "e"].map(|text| text.as_bytes().to_vec());
    let words = Constrainer::new(&tokens, &[7, 0]).expect("a vocabulary");
    let mut matcher = words.matcher(&grammar("root ::= \"yes\" | \"no\"")).expect("it compiles");
    let allowed = |matcher: &mut Matcher| {
        let set = matcher.allowed().expect("no limit is met");
        (0..10).filter(|token| set.is_allowed(*token)).collect::<Vec<u32>>()
    };
    assert_eq!(allowed(&mut matcher), [1, 2, 3, 5, 8]);
    matcher.take(2).expect("allowed");
    assert_eq!(allowed(&mut matcher), [4]);
    matcher.take(4).expect("allowed");
    assert_eq!(allowed(&mut matcher), [0, 7]);
    assert!(matcher.complete());
    assert!(Constrainer::new(&tokens, &[]).is_err() && Constrainer::new(&tokens, &[10]).is_err());
}

/// An expression of a grammar over a and b, and its meaning by the book.
#[derive(Debug, Clone)]
enum Rx {
    Text(&'static str),
    Any,
    Rule(usize),
    Sequence(Vec<Rx>),
    Choice(Vec<Rx>),
    Repeat(Box<Rx>, usize, Option<usize>),
}

const NAMES: [&str; 3] = ["root", "x", "y-1"];
const LONGEST: usize = 5;

impl Rx {
    fn write(&self) -> String {
        match self {
            Self::Text(text) => format!("\"{text}\""),
            Self::Any => "[ab]".into(),
            Self::Rule(index) => NAMES[*index].into(),
            Self::Sequence(parts) => format!("({})", parts.iter().map(Self::write).collect::<Vec<_>>().join(" ")),
            Self::Choice(parts) => format!("({})", parts.iter().map(Self::write).collect::<Vec<_>>().join(" | ")),
            Self::Repeat(part, 0, None) => format!("({})*", part.write()),
            Self::Repeat(part, min, max) => {
                format!("({}){{{min},{}}}", part.write(), max.map(|max| max.to_string()).unwrap_or_default())
            }
        }
    }

    /// Its texts of at most [`LONGEST`] letters, where those of the rules are these.
    fn texts(&self, rules: &[BTreeSet<String>]) -> BTreeSet<String> {
        let join = |left: &BTreeSet<String>, right: &BTreeSet<String>| {
            let pairs = left.iter().flat_map(|left| right.iter().map(move |right| format!("{left}{right}")));
            pairs.filter(|text| text.len() <= LONGEST).collect::<BTreeSet<_>>()
        };
        let empty = || BTreeSet::from([String::new()]);
        match self {
            Self::Text(text) => BTreeSet::from([(*text).to_owned()]),
            Self::Any => ["a", "b"].map(String::from).into(),
            Self::Rule(index) => rules[*index].clone(),
            Self::Sequence(parts) => parts.iter().fold(empty(), |texts, part| join(&texts, &part.texts(rules))),
            Self::Choice(parts) => parts.iter().flat_map(|part| part.texts(rules)).collect(),
            Self::Repeat(part, min, max) => {
                let once = part.texts(rules);
                let mut all = if *min == 0 { empty() } else { BTreeSet::new() };
                let mut texts = empty();
                // Once more than the longest text has letters brings nothing new, but for the count itself.
                for count in 1..=max.unwrap_or(min + LONGEST + 1) {
                    texts = join(&texts, &once);
                    if count >= *min {
                        all.extend(texts.iter().cloned());
                    }
                }
                all
            }
        }
    }
}

fn expression() -> impl Strategy<Value = Rx> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["a", "b", "ab", "ba", "aab"]).prop_map(Rx::Text),
        Just(Rx::Any),
        (0..NAMES.len()).prop_map(Rx::Rule),
    ];
    leaf.prop_recursive(3, 10, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Rx::Sequence),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Rx::Choice),
            (inner, 0usize..3, prop::option::of(0usize..3)).prop_map(|(part, min, more)| Rx::Repeat(
                Box::new(part),
                min,
                more.map(|more| min + more)
            )),
        ]
    })
}

/// Compares what may follow `text` with the texts that there are, and all that follow it likewise.
fn compare(mut matcher: Matcher, text: &str, texts: &BTreeSet<String>) -> Result<(), TestCaseError> {
    let allowed = matcher.allowed().map_err(TestCaseError::fail)?;
    prop_assert_eq!(allowed.is_allowed(END), texts.contains(text), "the end after {:?}", text);
    prop_assert!(allowed.iter().all(|way| [END, u32::from(b'a'), u32::from(b'b')].contains(&way)));
    for letter in ["a", "b"] {
        let next = format!("{text}{letter}");
        if !allowed.is_allowed(letter.as_bytes()[0].into()) {
            prop_assert!(!texts.iter().any(|known| known.starts_with(&next)), "nothing begins with {:?}", next);
        } else if next.len() <= LONGEST {
            let mut matcher = Matcher(matcher.0.clone());
            matcher.take(letter.as_bytes()[0].into()).map_err(TestCaseError::fail)?;
            compare(matcher, &next, texts)?;
        }
    }
    Ok(())
}

fn small_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        (-50i64..50, 0i64..100)
            .prop_map(|(min, more)| json!({"type": "integer", "minimum": min, "maximum": min + more})),
        (0usize..3, 0usize..4)
            .prop_map(|(min, more)| json!({"type": "string", "minLength": min, "maxLength": min + more})),
        prop::collection::vec("[a-z\"\\\\é]{0,4}", 1..4).prop_map(|words| json!({"enum": words})),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let fields = prop::collection::vec((inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            (inner.clone(), 0usize..2, 0usize..3).prop_map(
                |(items, min, more)| json!({"type": "array", "items": items, "minItems": min, "maxItems": min + more})
            ),
            fields.prop_map(|fields| {
                let named = |n: usize| ["a", "b \"c", "ü"][n];
                let properties: serde_json::Map<_, _> =
                    fields.iter().enumerate().map(|(n, (field, _))| (named(n).to_owned(), field.clone())).collect();
                let required: Vec<_> =
                    fields.iter().enumerate().filter(|(_, (_, required))| *required).map(|(n, _)| named(n)).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }),
            prop::collection::vec(inner, 1..3).prop_map(|any| json!({"anyOf": any})),
        ]
    })
}

/// Whether a value obeys a schema of [`small_schema`].
fn obeys(value: &Value, schema: &Value) -> bool {
    let number = |name: &str| schema[name].as_i64().unwrap_or_else(|| panic!("{schema} has {name}"));
    let between = |count: usize, min: &str, max: &str| {
        (number(min)..=number(max)).contains(&i64::try_from(count).expect("small"))
    };
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| obeys(value, schema));
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.contains(value);
    }
    match (schema["type"].as_str().expect("a type"), value) {
        ("boolean", Value::Bool(_)) | ("null", Value::Null) => true,
        ("integer", Value::Number(found)) => {
            // serde_json reads "-0", a whole number of JSON, as the float -0.0.
            let whole = found.as_i64().or_else(|| (found.as_f64() == Some(0.0)).then_some(0));
            whole.is_some_and(|found| (number("minimum")..=number("maximum")).contains(&found))
        }
        ("string", Value::String(text)) => between(text.chars().count(), "minLength", "maxLength"),
        ("array", Value::Array(items)) => {
            between(items.len(), "minItems", "maxItems") && items.iter().all(|item| obeys(item, &schema["items"]))
        }
        ("object", Value::Object(map)) => {
            let required = schema["required"].as_array().expect("a list");
            required.iter().all(|name| map.contains_key(name.as_str().expect("a name")))
                && map
                    .iter()
                    .all(|(name, value)| schema["properties"].get(name).is_some_and(|schema| obeys(value, schema)))
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The texts of a grammar are those that its rules make, and none else.
    #[test]
    fn a_grammar_has_exactly_its_texts(bodies in prop::collection::vec(expression(), 3)) {
        let text: String =
            NAMES.iter().zip(&bodies).map(|(name, body)| format!("{name} ::= {}\n", body.write())).collect();
        let mut texts = vec![BTreeSet::new(); NAMES.len()];
        loop {
            let next: Vec<_> = bodies.iter().map(|body| body.texts(&texts)).collect();
            if next == texts {
                break;
            }
            texts = next;
        }
        match matcher(&grammar(&text)) {
            // Nothing of it is short enough to be seen, or nothing at all.
            Err(error) => prop_assert!(texts[0].is_empty() && error.contains("never come to an end"), "{error}\n{text}"),
            Ok(matcher) => compare(matcher, "", &texts[0])?,
        }
    }

    /// Whatever is chosen among what is allowed, the end is a value that obeys the schema.
    #[test]
    fn every_answer_obeys_its_schema(wanted in small_schema(), seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut matcher = matcher(&schema(&wanted)).map_err(TestCaseError::fail)?;
        let mut text = Vec::new();
        loop {
            let allowed = matcher.allowed().map_err(TestCaseError::fail)?;
            let ways: Vec<u32> = allowed.iter().collect();
            // Within a text nearly all bytes are allowed, and the quote would hardly ever come.
            let ends: Vec<u32> = ways.iter().copied().filter(|way| [u32::from(b'"'), END].contains(way)).collect();
            let ways = if random.bool() && !ends.is_empty() { ends } else { ways };
            let way = random.choice(ways).expect("a way on");
            if way == END {
                break;
            }
            text.push(u8::try_from(way).expect("a byte"));
            prop_assert!(text.len() < 10_000, "it never ends");
            matcher.take(way).map_err(TestCaseError::fail)?;
        }
        let value: Value = serde_json::from_slice(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(obeys(&value, &wanted), "{} for {}", value, wanted);
    }
}
