//! Draws `top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Bar, BarChart, BarGroup, Block, Paragraph, Row, Table, TableState};

use super::model::{COLUMNS, Model, row};

const WIDTHS: [u16; 15] = [8, 14, 13, 22, 6, 7, 7, 14, 24, 8, 9, 6, 12, 7, 11];
const KEYS: &str = "q quit  s sort  / cluster  p pause  up/down choose";

/// Draws what the model holds.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let figures = model.residence().len().max(model.rtts().len());
    let figures = u16::try_from(figures).unwrap_or(4);
    let areas = [
        Constraint::Length(1),
        Constraint::Length(figures),
        Constraint::Min(5),
        Constraint::Length(10),
        Constraint::Length(1),
    ];
    let [head, numbers, list, bars, foot] = Layout::vertical(areas).areas(frame.area());
    frame.render_widget(Paragraph::new(model.summary()).bold(), head);
    let [residence, rtt] = Layout::horizontal([Constraint::Fill(1); 2]).areas(numbers);
    let lines =
        |texts: Vec<String>| Paragraph::new(texts.into_iter().map(Line::from).collect::<Vec<_>>());
    frame.render_widget(lines(model.residence()), residence);
    frame.render_widget(lines(model.rtts()), rtt);
    let rows = model.connections().iter().map(|it| Row::new(row(it)));
    let table = Table::new(rows, WIDTHS.map(Constraint::Length))
        .header(Row::new(COLUMNS).style(Style::new().bold().reversed()))
        .row_highlight_style(Style::new().reversed());
    let mut state = TableState::default().with_selected(Some(model.selected));
    frame.render_stateful_widget(table, list, &mut state);
    let (title, counts) = model.bars();
    let counts: Vec<Bar<'_>> = counts
        .into_iter()
        .map(|(bound, count)| Bar::default().label(Line::from(bound)).value(count))
        .collect();
    let chart = BarChart::default()
        .block(Block::bordered().title(title))
        .bar_width(7)
        .data(BarGroup::default().bars(&counts));
    frame.render_widget(chart, bars);
    let said = match (&model.typing, &model.trouble) {
        (Some(typed), _) => format!("cluster: {typed}_"),
        (None, Some(trouble)) => trouble.clone(),
        (None, None) => KEYS.to_owned(),
    };
    frame.render_widget(Paragraph::new(said), foot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::exposition::Scrape;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    #[test]
    fn the_screen_shows_the_connections_and_what_keys_do() {
        let mut model = Model::default();
        let list = json!({"total": 1, "scanned": 1, "truncated": false, "connections": [
            {"id": "0a", "cluster": "eu-1", "datapath": "splice", "state": "established", "legs": []}]});
        let scrape = "culvert_relay_residence_seconds_bucket{cluster=\"eu-1\",direction=\"to_client\",queue=\"empty\",le=\"0.5\"} 3\n\
                      culvert_ebpf_tier{tier=\"skb\"} 1\n";
        model.update(list, Scrape::parse(scrape));
        let mut terminal = Terminal::new(TestBackend::new(160, 30)).unwrap();
        terminal.draw(|frame| draw(frame, &model)).unwrap();
        let text = terminal.backend().to_string();
        for part in [
            "tier skb",
            "CONN",
            "eu-1",
            "splice",
            "500.0ms",
            "q quit",
            "p99 <= 500.0ms",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
