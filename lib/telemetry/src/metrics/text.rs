//! The exposition text, line by line. A scrape of a thousand clusters has tens of thousands of
//! lines: labels are put into words once, when a series comes to be, and a line is a few copies.

use std::fmt::Write as _;
use std::sync::Arc;

/// `# HELP` and `# TYPE` of a family.
pub fn head(name: &str, help: &str, kind: &str, text: &mut String) {
    for part in ["# HELP ", name, " "] {
        text.push_str(part);
    }
    for char in help.chars() {
        match char {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            char => text.push(char),
        }
    }
    for part in ["\n# TYPE ", name, " ", kind, "\n"] {
        text.push_str(part);
    }
}

/// Puts labels into words: `a="1",b="2"`, in the order of their names.
#[derive(Debug, Clone)]
pub struct Labels {
    names: Box<[Box<str>]>,
    /// Places of the names, sorted by name.
    order: Box<[usize]>,
}

impl Labels {
    /// Of these names.
    pub fn new(names: &[&str]) -> Self {
        let mut order: Box<[usize]> = (0..names.len()).collect();
        order.sort_by_key(|at| names[*at]);
        let names = names.iter().map(|name| Box::from(*name)).collect();
        Self { names, order }
    }

    /// Appends the words.
    ///
    /// # Panics
    /// When there are not as many values as names: a defect of the program, found by every test.
    pub fn write<V: AsRef<str>>(&self, values: &[V], text: &mut String) {
        assert_eq!(values.len(), self.names.len(), "{:?}", self.names);
        for (nth, at) in self.order.iter().enumerate() {
            if nth > 0 {
                text.push(',');
            }
            text.push_str(&self.names[*at]);
            text.push_str("=\"");
            escape(values[*at].as_ref(), text);
            text.push('"');
        }
    }
}

fn escape(value: &str, text: &mut String) {
    if !value.contains(['\\', '"', '\n']) {
        return text.push_str(value);
    }
    for char in value.chars() {
        match char {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            char => text.push(char),
        }
    }
}

/// The value of label `cluster`, as it stands in labels in words.
pub fn cluster_of(labels: &str) -> Option<&str> {
    const NAME: &str = "cluster=\"";
    // Quotes inside values are escaped: this can only be the label's own beginning.
    let at = labels.match_indices(NAME).find_map(|(at, _)| {
        let begins = at == 0 || matches!(labels.as_bytes()[at - 1], b',' | b'{');
        begins.then_some(at + NAME.len())
    })?;
    let rest = &labels[at..];
    let mut escaped = false;
    let end = rest.find(|char| match (escaped, char) {
        (true, _) => {
            escaped = false;
            false
        }
        (false, '\\') => {
            escaped = true;
            false
        }
        (false, char) => char == '"',
    })?;
    Some(&rest[..end])
}

/// As a cluster's name stands in words.
pub fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    escape(value, &mut text);
    text
}

/// Upper bounds of buckets, and in words.
pub struct Bounds {
    /// Rising.
    pub values: Arc<[f64]>,
    /// `le="…"} ` of each, and of infinity.
    words: Box<[Box<str>]>,
}

impl Bounds {
    /// Of these values, which rise.
    pub fn new(values: &[f64]) -> Self {
        let words = values.iter().map(|bound| format!("le=\"{bound}\"}} "));
        let words = words.chain(["le=\"+Inf\"} ".to_owned()]);
        Self {
            values: values.into(),
            words: words.map(String::into_boxed_str).collect(),
        }
    }
}

/// One series, by what its lines begin with: `name{a="1"} `, or `name ` without labels.
#[derive(Clone, Copy)]
pub struct Series<'a> {
    /// Of the family.
    pub name: &'a str,
    /// Name, labels and a blank.
    pub begin: &'a str,
}

impl Series<'_> {
    /// Writes what the lines of a series begin with.
    pub fn write_begin<V: AsRef<str>>(
        name: &str,
        labels: &Labels,
        values: &[V],
        text: &mut String,
    ) {
        text.push_str(name);
        if labels.names.is_empty() {
            labels.write(values, text);
        } else {
            text.push('{');
            labels.write(values, text);
            text.push('}');
        }
        text.push(' ');
    }

    /// Its line, of a whole number.
    pub fn integer(&self, value: impl itoa::Integer, text: &mut String) {
        text.push_str(self.begin);
        integer(value, text);
    }

    /// Its line.
    pub fn number(&self, value: f64, text: &mut String) {
        text.push_str(self.begin);
        number(value, text);
    }

    /// Its lines, of buckets that are not added up, one more than bounds.
    pub fn histogram(
        &self,
        bounds: &Bounds,
        buckets: impl Iterator<Item = u64>,
        sum: f64,
        text: &mut String,
    ) {
        // Without name and blank: nothing, or the labels in braces.
        let labels = self.begin[self.name.len()..].trim_end();
        let mut begin = String::with_capacity(self.begin.len() + 16);
        begin.push_str(self.name);
        begin.push_str("_bucket{");
        if let Some(labels) = labels.strip_prefix('{') {
            begin.push_str(&labels[..labels.len() - 1]);
            begin.push(',');
        }
        let mut count = 0;
        for (le, bucket) in bounds.words.iter().zip(buckets) {
            count += bucket;
            text.push_str(&begin);
            text.push_str(le);
            integer(count, text);
        }
        for part in [self.name, "_sum", labels, " "] {
            text.push_str(part);
        }
        number(sum, text);
        for part in [self.name, "_count", labels, " "] {
            text.push_str(part);
        }
        integer(count, text);
    }
}

fn integer(value: impl itoa::Integer, text: &mut String) {
    text.push_str(itoa::Buffer::new().format(value));
    text.push('\n');
}

fn number(value: f64, text: &mut String) {
    // A string takes everything.
    let _ = writeln!(text, "{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_in_the_order_of_their_names_and_cannot_break_out() {
        let labels = Labels::new(&["zone", "cluster"]);
        let mut text = String::new();
        labels.write(&["a\"b\nc\\", "x\",cluster=\"y"], &mut text);
        assert_eq!(text, r#"cluster="x\",cluster=\"y",zone="a\"b\nc\\""#);
        assert_eq!(cluster_of(&text), Some(r#"x\",cluster=\"y"#));
        assert_eq!(cluster_of(&text), Some(&*escaped("x\",cluster=\"y")));
        assert_eq!(cluster_of(r#"carrier="raw",cluster="a""#), Some("a"));
        assert_eq!(cluster_of(r#"of_cluster="a""#), None);
        assert_eq!(cluster_of(r#"zone=",cluster=\"a""#), None);
    }

    #[test]
    fn buckets_add_up() {
        let bounds = Bounds::new(&[0.5, 1.0]);
        for (names, values, outer, inner) in [
            (&[][..], &[][..], "", ""),
            (&["a"], &["1} "], "{a=\"1} \"}", "a=\"1} \","),
        ] {
            let mut begin = String::new();
            let name = "t_seconds";
            Series::write_begin(name, &Labels::new(names), values, &mut begin);
            let series = Series {
                name,
                begin: &begin,
            };
            let mut text = String::new();
            series.histogram(&bounds, [1, 2, 3].into_iter(), 7.5, &mut text);
            let wanted = format!(
                "t_seconds_bucket{{{inner}le=\"0.5\"}} 1\nt_seconds_bucket{{{inner}le=\"1\"}} 3\nt_seconds_bucket{{{inner}le=\"+Inf\"}} 6\nt_seconds_sum{outer} 7.5\nt_seconds_count{outer} 6\n"
            );
            assert_eq!(text, wanted);
        }
    }
}
