//! `culvert top`: the connections of a data plane, every second.
//!
//! `exposition` reads what Prometheus would, `model` is what keys
//! change, `screen` draws it.

mod exposition;
mod model;
mod screen;

use std::io::IsTerminal as _;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{Format, Global, Top};
use crate::dataplane::Dataplane;
use crate::error::{CliError, Result};
use crate::output;
use exposition::Scrape;
use model::{After, Key, Model};

pub use model::SORTS;

/// Between two looks at the data plane.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(50);

/// Shows until somebody has seen enough, or once.
///
/// # Errors
/// When the data plane gives no answer, or there is no terminal.
pub async fn run(global: &Global, args: &Top) -> Result<()> {
    let dataplane = Dataplane::new(&args.at.dataplane)?;
    let mut model = Model::new(args.cluster.clone(), &args.sort);
    if args.once {
        return once(global, args, &dataplane, &mut model).await;
    }
    if !std::io::stdout().is_terminal() {
        let fix = "add --once, with --output json for a program";
        return Err(CliError::usage(
            "this wants a terminal",
            "standard output is none",
            fix,
        ));
    }
    let mut terminal = ratatui::init();
    let shown = watch(args, &dataplane, &mut model, &mut terminal).await;
    ratatui::restore();
    shown
}

async fn once(global: &Global, args: &Top, dataplane: &Dataplane, model: &mut Model) -> Result<()> {
    let (list, scrape) = look(args, dataplane, model).await?;
    model.update(list.clone(), scrape);
    if global.output == Format::Json {
        let figures = json!({"residence": model.residence(), "rtt": model.rtts()});
        output::json(&json!({"list": list, "figures": figures}));
        return Ok(());
    }
    output::line(&model.summary());
    for line in model.residence().iter().chain(&model.rtts()) {
        output::line(line);
    }
    output::rows(
        &model::COLUMNS,
        model.connections().iter().map(|it| model::row(it).to_vec()),
    );
    Ok(())
}

async fn look(args: &Top, dataplane: &Dataplane, model: &Model) -> Result<(Value, Scrape)> {
    let list = dataplane.get(&model.path(args.limit)).await?;
    let list = serde_json::from_str(&list).map_err(|why| {
        let fix = "check that --dataplane names the admin listener of culvert-dataplane";
        CliError::new(
            "dataplane_broken",
            "the answer is no JSON",
            why,
            "dataplane",
            fix,
        )
    })?;
    let scrape = Scrape::parse(&dataplane.get("/metrics").await?);
    Ok((list, scrape))
}

async fn watch(
    args: &Top,
    dataplane: &Dataplane,
    model: &mut Model,
    terminal: &mut DefaultTerminal,
) -> Result<()> {
    let failed = |why: std::io::Error| {
        CliError::new(
            "terminal",
            "the terminal gives up",
            why,
            "cli",
            "use another terminal",
        )
    };
    let mut due = Instant::now();
    loop {
        if Instant::now() >= due && !model.is_paused {
            due = Instant::now() + PERIOD;
            match look(args, dataplane, model).await {
                Ok((list, scrape)) => model.update(list, scrape),
                Err(why) => model.trouble = Some(format!("{}: {}", why.what, why.seen)),
            }
        }
        terminal
            .draw(|frame| screen::draw(frame, model))
            .map_err(failed)?;
        tokio::time::sleep(KEYS).await;
        while event::poll(Duration::ZERO).map_err(failed)? {
            let Some(key) = key(&event::read().map_err(failed)?) else {
                continue;
            };
            match model.press(key) {
                After::Quit => return Ok(()),
                After::Ask => due = Instant::now(),
                After::Draw => {}
            }
        }
    }
}

fn key(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press,
        ..
    }) = event
    else {
        return None;
    };
    Some(match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Escape,
        KeyCode::Char(c) => Key::Char(*c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
