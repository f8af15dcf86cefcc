//! Finds the metrics and labels that an expression names, with the part of PromQL's grammar needed
//! for that (<https://prometheus.io/docs/prometheus/latest/querying/basics/>).

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::str::Chars;

/// Words that are followed by labels in parentheses.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Words that can stand in place of a metric but are not metrics.
const WORDS: [&str; 20] = [
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "inf",
    "nan",
    "sum",
    "avg",
    "min",
    "max",
    "count",
    "group",
    "topk",
    "bottomk",
    "quantile",
    "stddev",
    "stdvar",
    "count_values",
    "atan2",
];

/// A metric with its matchers: label, operator, value.
#[derive(Debug, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    pub matchers: Vec<(String, String, String)>,
}

/// The names in an expression.
#[derive(Debug, Default)]
pub struct Named {
    pub selectors: Vec<Selector>,
    /// Labels by which it groups or joins.
    pub labels: BTreeSet<String>,
    /// Whether it contains a comparison, and so may have no result when nothing is wrong.
    pub compares: bool,
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Token {
    Word(String),
    Text(String),
    Sign(String),
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(&c) = rest.peek() {
        if c.is_whitespace() {
            rest.next();
        } else if c == '"' || c == '\'' {
            tokens.push(Token::Text(text(&mut rest)));
        } else if c == '[' {
            // A time range contains no names.
            rest.by_ref().take_while(|&c| c != ']').for_each(drop);
        } else if c.is_ascii_digit() {
            take(&mut rest, |c| c.is_ascii_alphanumeric() || c == '.');
        } else if is_name(c) {
            tokens.push(Token::Word(take(&mut rest, is_name)));
        } else if "=!<>~".contains(c) {
            tokens.push(Token::Sign(take(&mut rest, |c| "=!<>~".contains(c))));
        } else {
            rest.next();
            tokens.push(Token::Sign(c.to_string()));
        }
    }
    tokens
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

fn take(rest: &mut Peekable<Chars>, belongs: impl Fn(char) -> bool) -> String {
    std::iter::from_fn(|| rest.next_if(|&c| belongs(c))).collect()
}

fn text(rest: &mut Peekable<Chars>) -> String {
    let quote = rest.next();
    let text = rest.by_ref().take_while(|&c| Some(c) != quote).collect::<String>();
    assert!(!text.contains('\\'), "this parser does not read escapes: {text}");
    text
}

/// Finds the names in `expression`.
pub fn named(expression: &str) -> Named {
    let mut named = Named::default();
    let tokens = tokens(expression);
    let sign = |at: usize, sign: &str| tokens.get(at) == Some(&Token::Sign(sign.to_owned()));
    let mut at = 0;
    while at < tokens.len() {
        let word = match &tokens[at] {
            Token::Word(word) => word.as_str(),
            Token::Sign(comparison)
                if ["==", "!=", "<", ">", "<=", ">="].contains(&&**comparison) =>
            {
                named.compares = true;
                ""
            }
            Token::Sign(brace) if brace == "{" => {
                panic!("a selector without a metric in {expression}")
            }
            _ => "",
        };
        at += 1;
        if GROUPING.contains(&word) {
            if sign(at, "(") {
                let inside = tokens[at..].iter().take_while(|it| **it != Token::Sign(")".into()));
                let labels: Vec<_> = inside.collect();
                at += labels.len();
                named.labels.extend(labels.into_iter().filter_map(as_word));
            }
        } else if !word.is_empty() && !WORDS.contains(&word) && !sign(at, "(") {
            let mut matchers = Vec::new();
            if sign(at, "{") {
                let inside =
                    tokens[at + 1..].iter().take_while(|it| **it != Token::Sign("}".into()));
                let inside: Vec<_> = inside.cloned().collect();
                at += inside.len() + 2;
                matchers = read_matchers(&inside);
            }
            named.selectors.push(Selector { metric: word.to_owned(), matchers });
        }
    }
    named
}

fn as_word(token: &Token) -> Option<String> {
    if let Token::Word(word) = token { Some(word.clone()) } else { None }
}

fn read_matchers(tokens: &[Token]) -> Vec<(String, String, String)> {
    let between = tokens.split(|token| *token == Token::Sign(",".to_owned()));
    let matchers = between.filter(|matcher| !matcher.is_empty()).map(|matcher| match matcher {
        [Token::Word(label), Token::Sign(sign), Token::Text(value)] => {
            (label.clone(), sign.clone(), value.clone())
        }
        other => panic!("not a matcher: {other:?}"),
    });
    matchers.collect()
}

/// Names of metrics, each with its labels and their values.
pub type Metrics = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The series in a scrape in text format. A histogram appears under the names of its parts.
pub fn scraped(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').expect("a sample has a value").0;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let known = metrics.entry(name.to_owned()).or_default();
        for (label, _, value) in
            read_matchers(&tokens(labels.strip_suffix('}').expect("the labels end with a brace")))
        {
            known.entry(label).or_default().insert(value);
        }
    }
    metrics
}

#[test]
fn an_expression_names_its_metrics_labels_and_no_word_of_the_language() {
    let named = named(
        "sum by (namespace) (rate(a_total{source=\"client\", reason!~\"x|y\"}[5m] offset 1m)) \
         / on (namespace) group_left () clamp_min(a:b:c, 1.5e3) unless up == 0",
    );
    let names: Vec<_> = named.selectors.iter().map(|selector| selector.metric.as_str()).collect();
    assert_eq!(names, ["a_total", "a:b:c", "up"]);
    let matcher = |label: &str, sign: &str, value: &str| (label.into(), sign.into(), value.into());
    assert_eq!(
        named.selectors[0].matchers,
        [matcher("source", "=", "client"), matcher("reason", "!~", "x|y")]
    );
    assert_eq!(named.labels, BTreeSet::from(["namespace".to_owned()]));
    assert!(named.compares);
}
