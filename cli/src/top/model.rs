//! What `top` shows and how keys change it. Pure.

use serde_json::Value;

use super::exposition::{Scrape, Spread};

/// Orders of the list, as the data plane knows them.
pub const SORTS: [&str; 8] = [
    "rate",
    "bytes",
    "age",
    "idle",
    "residence",
    "rtt",
    "retrans",
    "unsent",
];

/// Headings of the columns.
pub const COLUMNS: [&str; 15] = [
    "CONN",
    "CLUSTER",
    "LEGS",
    "PEER",
    "AGE",
    "RX/s",
    "TX/s",
    "RTT c/d",
    "RESID p50/p99",
    "WINFULL%",
    "UNSENT",
    "RETR",
    "LIMITED",
    "PATH",
    "STATE",
];

/// What a person looks at.
#[derive(Debug, Default)]
pub struct Model {
    /// Only this cluster.
    pub cluster: Option<String>,
    /// Index into [`SORTS`].
    pub sort: usize,
    /// The row that is looked at.
    pub selected: usize,
    /// Nothing new is shown.
    pub is_paused: bool,
    /// What is typed for a filter, while it is typed.
    pub typing: Option<String>,
    /// Why there is nothing new.
    pub trouble: Option<String>,
    list: Value,
    now: Scrape,
    before: Scrape,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Up,
    Down,
    Enter,
    Escape,
    Backspace,
}

/// What follows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Quit,
    /// The list has to be asked for anew.
    Ask,
    Draw,
}

impl Model {
    /// Nothing was seen yet of this cluster, or of all.
    pub fn new(cluster: Option<String>, sort: &str) -> Self {
        Self {
            cluster,
            sort: SORTS.iter().position(|name| *name == sort).unwrap_or(0),
            ..Self::default()
        }
    }

    /// What to ask the data plane for.
    pub fn path(&self, limit: u16) -> String {
        let cluster = self.cluster.as_deref().unwrap_or_default();
        format!(
            "/connections?sort={}&limit={limit}&cluster={cluster}",
            SORTS[self.sort]
        )
    }

    /// Takes a list and a scrape over.
    pub fn update(&mut self, list: Value, scrape: Scrape) {
        self.list = list;
        self.before = std::mem::replace(&mut self.now, scrape);
        self.selected = self
            .selected
            .min(self.connections().len().saturating_sub(1));
        self.trouble = None;
    }

    /// A key was pressed.
    pub fn press(&mut self, key: Key) -> After {
        if let Some(typed) = &mut self.typing {
            match key {
                // What a cluster's name consists of.
                Key::Char(c) if c.is_ascii_alphanumeric() || c == '-' => typed.push(c),
                Key::Backspace => drop(typed.pop()),
                Key::Enter => {
                    let typed = self.typing.take().unwrap_or_default();
                    self.cluster = Some(typed).filter(|typed| !typed.is_empty());
                    return After::Ask;
                }
                Key::Escape => self.typing = None,
                _ => {}
            }
            return After::Draw;
        }
        match key {
            Key::Char('q') | Key::Escape => return After::Quit,
            Key::Char('s') => {
                self.sort = (self.sort + 1) % SORTS.len();
                return After::Ask;
            }
            Key::Char('/' | 'c') => self.typing = Some(String::new()),
            Key::Char('p' | ' ') => self.is_paused = !self.is_paused,
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => {
                let last = self.connections().len().saturating_sub(1);
                self.selected = (self.selected + 1).min(last);
            }
            _ => {}
        }
        After::Draw
    }

    /// The connections as they were listed.
    pub fn connections(&self) -> &[Value] {
        self.list["connections"]
            .as_array()
            .map_or(&[], Vec::as_slice)
    }

    /// The row that is looked at.
    pub fn chosen(&self) -> Option<&Value> {
        self.connections().get(self.selected)
    }

    /// One line over all.
    pub fn summary(&self) -> String {
        let tier = match self.now.tier.as_str() {
            "" => "?",
            tier => tier,
        };
        let cluster = self.cluster.as_deref().unwrap_or("all clusters");
        let (total, scanned) = (&self.list["total"], &self.list["scanned"]);
        let cut = match self.list["truncated"].as_bool() {
            Some(true) => format!(" ({scanned} looked at)"),
            _ => String::new(),
        };
        let observer = match self.now.program_s - self.before.program_s {
            spent if spent > 0.0 => format!("  observer {:.0} us/s", spent * 1e6),
            _ => String::new(),
        };
        format!(
            "tier {tier}  {cluster}  {total} connections{cut}  by {}  records lost {}{observer}{}",
            SORTS[self.sort],
            self.now.lost,
            if self.is_paused { "  PAUSED" } else { "" },
        )
    }

    /// Residence of the last second, a line for each direction and queue.
    pub fn residence(&self) -> Vec<String> {
        let cluster = self.cluster.as_deref();
        let ways = [
            ("to_service", "empty"),
            ("to_service", "behind"),
            ("to_client", "empty"),
            ("to_client", "behind"),
        ];
        ways.map(|(direction, queue)| {
            let spread = self.lately(|scrape| scrape.residence(cluster, direction, queue));
            format!(
                "residence {direction:<10} {queue:<6} {}",
                quantiles(&spread)
            )
        })
        .to_vec()
    }

    /// Round trips of the last second, a line for each leg.
    pub fn rtts(&self) -> Vec<String> {
        let cluster = self.cluster.as_deref();
        ["client", "data", "carrier"]
            .map(|leg| {
                let spread = self.lately(|scrape| scrape.rtt(cluster, leg));
                format!("rtt {leg:<8} {}", quantiles(&spread))
            })
            .to_vec()
    }

    /// Bars of the residence of the chosen connection's cluster since the start.
    pub fn bars(&self) -> (String, Vec<(String, u64)>) {
        let cluster = self.chosen().and_then(|it| it["cluster"].as_str());
        let Some(cluster) = cluster else {
            return ("no connection is chosen".to_owned(), Vec::new());
        };
        let mut all = Spread::default();
        for direction in ["to_service", "to_client"] {
            all.add(&self.now.residence(Some(cluster), direction, "empty"));
        }
        let bars = all.bars().into_iter().filter(|(_, count)| *count > 0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts are whole and not negative"
        )]
        let bars = bars.map(|(bound, count)| (time(bound), count as u64));
        (
            format!("residence in {}, queue empty", printable(cluster)),
            bars.collect(),
        )
    }

    fn lately(&self, of: impl Fn(&Scrape) -> Spread) -> Spread {
        of(&self.now).since(Some(&of(&self.before)))
    }
}

/// The cells of a connection.
pub fn row(connection: &Value) -> [String; 15] {
    let legs = connection["legs"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |value: &Value| value.as_str().map_or("-".to_owned(), printable);
    let each = |field: &str| {
        let cells = legs.iter().map(|leg| match leg[field].as_u64() {
            Some(us) => time(us as f64 / 1e6),
            None => "-".to_owned(),
        });
        cells.collect::<Vec<_>>().join("/")
    };
    let sum = |field: &str| {
        let known: Vec<u64> = legs.iter().filter_map(|leg| leg[field].as_u64()).collect();
        match known.is_empty() {
            true => "-".to_owned(),
            false => known.iter().sum::<u64>().to_string(),
        }
    };
    let rate = |field: &str| {
        legs.first()
            .and_then(|leg| leg[field].as_f64())
            .map_or("-".to_owned(), bytes)
    };
    let residence = ["to_service", "to_client"].map(|direction| {
        let of = &connection["residence"][direction];
        match (of["p50_us"].as_u64(), of["p99_us"].as_u64()) {
            (Some(p50), Some(p99)) => {
                format!("{}/{}", time(p50 as f64 / 1e6), time(p99 as f64 / 1e6))
            }
            _ => "-".to_owned(),
        }
    });
    let names: Vec<_> = legs.iter().filter_map(|leg| leg["leg"].as_str()).collect();
    [
        text(&connection["id"]).trim_start_matches('0').to_owned(),
        text(&connection["cluster"]),
        names.join("+"),
        legs.first()
            .map_or("-".to_owned(), |leg| text(&leg["peer"])),
        connection["age_s"].as_f64().map_or("-".to_owned(), time),
        rate("rx_rate"),
        rate("tx_rate"),
        each("srtt_us"),
        residence.join(" "),
        connection["window_full_pct"]
            .as_f64()
            .map_or("-".to_owned(), |it| format!("{it:.1}")),
        sum("unsent_bytes"),
        sum("retrans"),
        limited(legs),
        text(&connection["datapath"]),
        text(&connection["state"]),
    ]
}

/// What limits the legs most, and for how long.
fn limited(legs: &[Value]) -> String {
    let all = legs
        .iter()
        .filter_map(|leg| leg["limited_ms"].as_object())
        .flatten();
    let worst = all.filter_map(|(limit, ms)| Some((ms.as_u64()?, limit)));
    match worst.max() {
        Some((ms, limit)) if ms > 0 => format!("{limit} {}", time(ms as f64 / 1e3)),
        Some(_) => "no".to_owned(),
        None => "-".to_owned(),
    }
}

/// Nothing that a terminal obeys.
fn printable(text: &str) -> String {
    text.escape_debug().to_string()
}

fn quantiles(spread: &Spread) -> String {
    match (spread.quantile(0.5), spread.quantile(0.99)) {
        (Some(p50), Some(p99)) => {
            format!(
                "p50 <= {:<7} p99 <= {:<7} n {}",
                time(p50),
                time(p99),
                spread.count()
            )
        }
        _ => "-".to_owned(),
    }
}

/// A time with three digits.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => ">64s".to_owned(),
        s if s >= 86_400.0 => format!("{:.1}d", s / 86_400.0),
        s if s >= 3600.0 => format!("{:.1}h", s / 3600.0),
        s if s >= 60.0 => format!("{:.1}m", s / 60.0),
        s if s >= 1.0 => format!("{s:.1}s"),
        s if s >= 1e-3 => format!("{:.1}ms", s * 1e3),
        s => format!("{:.0}us", s * 1e6),
    }
}

/// A rate in bytes.
pub fn bytes(count: f64) -> String {
    match count {
        n if n >= 1e9 => format!("{:.1}G", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e3 => format!("{:.1}k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list() -> Value {
        json!({"total": 2, "scanned": 2, "truncated": false, "connections": [
            {"id": "000000000000000a", "cluster": "eu\u{1b}[2J", "datapath": "splice", "state": "established",
             "age_s": 75.0, "window_full_pct": 0.4,
             "residence": {"to_service": {"p50_us": 4, "p99_us": 33}, "to_client": {"p50_us": null, "p99_us": null}},
             "legs": [
                {"leg": "client", "peer": "10.0.0.1:5", "rx_rate": 1500.0, "tx_rate": 2.0, "srtt_us": 900,
                 "retrans": 3, "unsent_bytes": 0, "limited_ms": {"rwnd": 0, "sndbuf": 0, "cwnd": 12}},
                {"leg": "data", "peer": null, "srtt_us": null, "retrans": null}]},
            {"id": "000000000000000c", "cluster": "b", "residence": null, "legs": []}]})
    }

    #[test]
    fn a_row_shows_what_is_known_and_a_dash_for_the_rest() {
        let list = list();
        let cells = row(&list["connections"][0]);
        assert_eq!(cells[0], "a");
        assert_eq!(cells[1], "eu\\u{1b}[2J", "no sequence reaches the terminal");
        assert_eq!(
            (cells[2].as_str(), cells[4].as_str()),
            ("client+data", "1.2m")
        );
        assert_eq!((cells[5].as_str(), cells[7].as_str()), ("1.5k", "900us/-"));
        assert_eq!((cells[8].as_str(), cells[11].as_str()), ("4us/33us -", "3"));
        assert_eq!(cells[12], "cwnd 12.0ms");
        assert_eq!(row(&list["connections"][1])[3..6], ["-", "-", "-"]);
    }

    #[test]
    fn keys_sort_filter_pause_and_choose() {
        let mut model = Model::new(None, "retrans");
        model.update(list(), Scrape::default());
        assert_eq!(
            model.path(50),
            "/connections?sort=retrans&limit=50&cluster="
        );
        assert_eq!(model.press(Key::Char('s')), After::Ask);
        assert_eq!(SORTS[model.sort], "unsent");
        for key in [Key::Down, Key::Down, Key::Down] {
            model.press(key);
        }
        assert_eq!(model.selected, 1, "not below the last");
        model.press(Key::Char('p'));
        assert!(model.is_paused && model.summary().ends_with("PAUSED"));
        model.press(Key::Char('/'));
        for key in [
            "eu-1&x".chars().map(Key::Char).collect(),
            vec![Key::Backspace, Key::Enter],
        ]
        .concat()
        {
            model.press(key);
        }
        assert_eq!(
            model.cluster.as_deref(),
            Some("eu-1"),
            "no & gets into the URL"
        );
        assert_eq!(model.press(Key::Char('q')), After::Quit);
    }
}
